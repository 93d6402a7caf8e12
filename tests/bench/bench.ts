// SPDX-License-Identifier: Apache-2.0
/**
 * `make bench`: every figure beside its reference in one run, as ratios.
 * Prints them and writes BENCHMARKS.md.
 *
 * deno run -A tests/bench/bench.ts [--only NAME] [--out FILE]
 *
 * @module
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { describeEngine } from "../../ffi/engine.ts";
import { benchCrc, benchLookup, benchOpen } from "./bench_index.ts";
import { benchCold } from "./bench_cold.ts";
import { benchCommands } from "./bench_commands.ts";
import { benchDisk } from "./bench_disk.ts";
import { benchFetch } from "./bench_fetch.ts";
import { benchReads } from "./bench_reads.ts";
import { benchServe } from "./bench_serve.ts";
import { benchSnapshot } from "./bench_snapshot.ts";
import { benchStart } from "./bench_start.ts";
import type { Result } from "./measure.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

/** The groups, in the order of the report. */
const GROUPS: Readonly<Record<string, (dir: string) => Promise<Result[]>>> = {
  lookup: benchLookup,
  open: benchOpen,
  crc: benchCrc,
  reads: benchReads,
  commands: benchCommands,
  start: benchStart,
  serve: benchServe,
  disk: benchDisk,
  cold: benchCold,
  fetch: benchFetch,
  snapshot: benchSnapshot,
};

function verdict(result: Result): string {
  const met = result.most === true
    ? result.ratio <= result.aim
    : result.ratio >= result.aim;
  return met ? "met" : "**missed**";
}

function row(result: Result): string {
  const limit = `${result.most === true ? "≤" : "≥"} ${result.aim} x`;
  return `| ${result.what} | ${result.ours} | ${result.reference} | ` +
    `${result.theirs} | ${result.ratio.toFixed(2)} x | ${limit} | ${
      verdict(result)
    } |`;
}

function machine(): string {
  const model = cpus()[0]?.model ?? "unknown";
  const kernel = spawnSync("uname", ["-r"], { encoding: "utf8" }).stdout.trim();
  return `${cpus().length} x ${model}, Linux ${kernel}, ${describeEngine()}`;
}

function report(results: readonly Result[]): string {
  return [
    "# Benchmarks",
    "",
    "Written by `make bench`. Each ratio is ours against the reference, both",
    "measured in turn in one run; the median of the pairs. Absolute times are",
    "this machine's, on that day, and mean little elsewhere.",
    "",
    `Machine: ${machine()}.`,
    "",
    "| what | ours | reference | its figure | ratio | aim | |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    ...results.map(row),
    "",
  ].join("\n");
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { only: { type: "string" }, out: { type: "string" } },
  });
  const results: Result[] = [];
  for (const [name, group] of Object.entries(GROUPS)) {
    if (values.only !== undefined && values.only !== name) continue;
    const dir = mkdtempSync(join("/dev/shm", "obd-bench-"));
    try {
      for (const result of await group(dir)) {
        console.log(row(result));
        results.push(result);
      }
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  }
  if (values.only === undefined) {
    const out = values.out ?? join(ROOT, "BENCHMARKS.md");
    const old = readFileSync(out, { encoding: "utf8", flag: "a+" });
    const notes = old.split("\n## Notes\n")[1];
    writeFileSync(
      out,
      report(results) + (notes === undefined ? "" : `\n## Notes\n${notes}`),
    );
  }
}

await main();
