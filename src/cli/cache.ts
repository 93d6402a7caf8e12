// SPDX-License-Identifier: Apache-2.0
/**
 * `cache`: what an operator asks of the cache of remote layers.
 *
 * @module
 */
import { readServiceConfig } from "../service/config.ts";
import type { CacheEntry, CacheStat } from "../source/cache/manage.ts";
import { withCache } from "./cache_holder.ts";
import { EXIT, UsageError } from "./exit.ts";
import { type Printer, printJson, stdoutPrinter } from "./print.ts";
import { formatBytes } from "./progress.ts";
import type { Args } from "./table.ts";

const GIB = 2 ** 30;
/** Something was damaged, as `check` says it. */
const DAMAGED = 2;

const ACTIONS = ["ls", "stat", "verify", "prune", "pin", "unpin"] as const;
type Action = (typeof ACTIONS)[number];

function actionOf(text: string): Action {
  const action = ACTIONS.find((known) => known === text);
  if (action !== undefined) return action;
  throw new UsageError(
    EXIT.validation,
    `action: ${text} is none of ${ACTIONS.join(", ")}`,
  );
}

function targetOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const gib = Number(text);
  if (text.trim() !== "" && Number.isFinite(gib) && gib >= 0) {
    return Math.floor(gib * GIB);
  }
  throw new UsageError(EXIT.conversion, `--to: ${text} is no size in GiB`);
}

function printEntries(out: Printer, entries: readonly CacheEntry[]): void {
  for (const entry of entries) {
    const part = entry.size === 0
      ? 100
      : Math.min(100, Math.floor(entry.bytes / entry.size * 100));
    const marks = [
      entry.open ? "open" : undefined,
      entry.pinned ? "pinned" : undefined,
      entry.verified ? "verified" : undefined,
    ].filter((mark) => mark !== undefined).join(" ");
    out.line(
      `${entry.name}  ${formatBytes(entry.size)}  ` +
        `${entry.whole ? 100 : Math.min(99, part)} %  ${entry.lastUsed}` +
        `${marks === "" ? "" : `  ${marks}`}`,
    );
  }
}

function printStat(out: Printer, stat: CacheStat): void {
  const limit = stat.capacity === null
    ? "no limit"
    : `${formatBytes(stat.capacity)}, evicts above ${
      formatBytes(stat.waterMark ?? 0)
    }`;
  out.line(`directory  ${stat.dir}`);
  out.line(`state      ${stat.stateDir}`);
  out.line(`used       ${formatBytes(stat.used)} of ${limit}`);
  out.line(`disk       ${formatBytes(stat.free)} free`);
  out.line(
    `blobs      ${stat.blobs}, ${stat.openBlobs} open, ${stat.pinned} pinned`,
  );
  out.line(
    `open       ${stat.fetches} requests, ${
      formatBytes(stat.fetchedBytes)
    } fetched, ${stat.corrupt} damaged units, ${stat.evictedUnits} evicted`,
  );
  if (stat.foreignBytes > 0) {
    out.line(`foreign    ${formatBytes(stat.foreignBytes)}, never evicted`);
  }
}

/** Runs `overlaybd cache ACTION [NAME...] [--json]`. */
export async function run(args: Args<"cache">): Promise<number> {
  const action = actionOf(args.action);
  const names = args.names ?? [];
  const target = targetOf(args.to);
  const pins = action === "pin" || action === "unpin";
  if (pins && names.length === 0) {
    throw new UsageError(EXIT.required, `names: ${action} needs one at least`);
  }
  const settings = await readServiceConfig(args.serviceConfig);
  return await withCache(settings, { mustExist: true }, async (manager) => {
    const out = stdoutPrinter();
    const show = (result: unknown, text: () => void) => {
      if (args.json) printJson(result);
      else text();
      out.flush();
      return EXIT.ok;
    };
    switch (action) {
      case "ls": {
        const entries = await manager.list();
        return show(entries, () => printEntries(out, entries));
      }
      case "stat": {
        const stat = await manager.stat();
        return show(stat, () => printStat(out, stat));
      }
      case "verify": {
        const results = await manager.verify(names);
        show(results, () => {
          for (const { name, state } of results) out.line(`${name}  ${state}`);
        });
        const bad = results.some(({ state }) => state === "wrong");
        return bad ? DAMAGED : EXIT.ok;
      }
      case "prune": {
        const pruned = await manager.prune(names, target);
        return show(pruned, () =>
          out.line(
            `${formatBytes(pruned.freed)} freed, ` +
              `${formatBytes(pruned.used)} used`,
          ));
      }
      case "pin":
      case "unpin": {
        const pinned = await manager.pin(names, action === "pin");
        return show(pinned, () => {
          for (const name of pinned) out.line(name);
        });
      }
    }
  });
}
