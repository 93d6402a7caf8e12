// SPDX-License-Identifier: Apache-2.0
/**
 * What registries want to see, kept in a file beside the cache, so that a new
 * process need not be refused first.  It holds no secret.
 *
 * @module
 */
import * as z from "zod/mini";
import { createDisk, type Disk } from "../source/cache/disk.ts";
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

async function load(
  disk: Disk,
  path: string,
): Promise<Map<string, Kept[string]>> {
  try {
    const read = () => Deno.readTextFile(path);
    const text = await disk.call(`cannot read ${path}`, read);
    const kept = z.parse(fileSchema, JSON.parse(text));
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
async function save(
  disk: Disk,
  path: string,
  kept: ReadonlyMap<string, Kept[string]>,
): Promise<void> {
  const temporary = `${path}.${Deno.pid}`;
  const text = JSON.stringify(Object.fromEntries(kept));
  try {
    await disk.call(
      `cannot write ${temporary}`,
      () => Deno.writeTextFile(temporary, text, { mode: 0o600 }),
    );
    await disk.rename(temporary, path);
  } catch {
    // A refusal more for the next process.
  }
}

/** The registries that a file knows, read before they are first asked for. */
export function keptRealms(path: string): Realms {
  const disk = createDisk();
  let known = new Map<string, Kept[string]>();
  let loading: Promise<void> | undefined;
  let saving = Promise.resolve();
  const keep = async (origin: string, { realm, service }: Realm) => {
    // Another process may have learned of others.
    const others = await load(disk, path);
    known = new Map([...known, ...others]);
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
    await save(disk, path, known);
  };
  return {
    ready: () =>
      loading ??= load(disk, path).then((kept) => void (known = kept)),
    get(origin): Realm | undefined {
      const found = known.get(origin);
      return found === undefined
        ? undefined
        : { realm: found.realm, service: found.service };
    },
    set: (origin, realm) => saving = saving.then(() => keep(origin, realm)),
  };
}
