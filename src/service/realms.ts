// SPDX-License-Identifier: Apache-2.0
/**
 * What registries want to see, kept in a file beside the cache, so that a new
 * process need not be refused first.  It holds no secret.
 *
 * @module
 */
import * as z from "zod/mini";
import { renamePath } from "../../ffi/files.ts";
import type { Realm, Realms } from "../source/registry/auth.ts";

/** A registry that changes its mind is believed after this. */
const KEPT_MS = 7 * 24 * 3600 * 1000;
const MAX = 256;

const fileSchema = z.record(
  z.string(),
  z.object({
    realm: z.string(),
    service: z.optional(z.string()),
    /** ms since 1970 */
    learned: z.number(),
  }),
);

type Kept = z.infer<typeof fileSchema>;

function load(path: string): Map<string, Kept[string]> {
  try {
    const kept = z.parse(fileSchema, JSON.parse(Deno.readTextFileSync(path)));
    const age = (learned: number) => Date.now() - learned;
    return new Map(
      Object.entries(kept).filter(([, { learned }]) =>
        age(learned) >= 0 && age(learned) < KEPT_MS
      ),
    );
  } catch {
    // None yet, or none that can be used: registries tell again.
    return new Map();
  }
}

/** Written whole; where its directory is missing there is no cache, either. */
function save(path: string, kept: ReadonlyMap<string, Kept[string]>): void {
  const temporary = `${path}.${Deno.pid}`;
  try {
    const text = JSON.stringify(Object.fromEntries(kept));
    Deno.writeTextFileSync(temporary, text, { mode: 0o600 });
    renamePath(temporary, path);
  } catch {
    // A refusal more for the next process.
  }
}

/** The registries that a file knows, read when they are first asked for. */
export function keptRealms(path: string): Realms {
  let known: Map<string, Kept[string]> | undefined;
  const all = () => known ??= load(path);
  return {
    get(origin): Realm | undefined {
      const found = all().get(origin);
      return found === undefined
        ? undefined
        : { realm: found.realm, service: found.service };
    },
    set(origin, { realm, service }) {
      // Another process may have learned of others.
      known = new Map([...all(), ...load(path)]);
      known.delete(origin);
      known.set(origin, {
        realm,
        ...service === undefined ? {} : { service },
        learned: Date.now(),
      });
      for (const oldest of known.keys()) {
        if (known.size <= MAX) break;
        known.delete(oldest);
      }
      save(path, known);
    },
  };
}
