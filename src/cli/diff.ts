// SPDX-License-Identifier: Apache-2.0
/**
 * `diff`: the ranges in which two disks differ.
 *
 * @module
 */
import { diffDisks, type DiffRange } from "../image/diff.ts";
import { type Disk, openDisk, type SourcesOf } from "../image/disk.ts";
import { ExitError, reason } from "./exit.ts";
import { printJson, stdoutPrinter } from "./print.ts";
import type { Call } from "./program.ts";
import { formatBytes, showProgress } from "./progress.ts";
import { InterruptedError, interruptible } from "./signals.ts";
import { withSources } from "./sources.ts";
import type { Args } from "./table.ts";

/** What `diff` exits with. */
const SAME = 0;
const DIFFERENT = 1;
const TROUBLE = 2;

/** Ranges kept for `--json`, which prints one object. */
const MAX_JSON_RANGES = 1_000_000;

async function open(
  path: string,
  sourcesOf: SourcesOf,
  closers: AsyncDisposableStack,
) {
  const disk = await openDisk(path, sourcesOf);
  closers.defer(() => disk.close());
  return disk;
}

async function compare(
  a: Disk,
  b: Disk,
  each: (range: DiffRange) => void,
): Promise<{ ranges: number; bytes: bigint }> {
  using bar = showProgress("diff");
  const total = { ranges: 0, bytes: 0n };
  await interruptible(async (signal) => {
    const options = { signal, onProgress: bar.onProgress };
    for await (const range of diffDisks(a, b, options)) {
      total.ranges++;
      total.bytes += range.length;
      each(range);
    }
  });
  return total;
}

async function diffText(a: Disk, b: Disk): Promise<boolean> {
  const out = stdoutPrinter();
  const total = await compare(a, b, ({ offset, length }) => {
    out.line(`${String(offset).padStart(16)} ${String(length).padStart(16)}`);
  });
  out.flush();
  if (a.size !== b.size) {
    out.line(`sizes differ: ${a.size} and ${b.size} bytes`);
  }
  if (total.ranges > 0) {
    out.line(
      `${formatBytes(total.bytes)} in ${total.ranges} range${
        total.ranges === 1 ? "" : "s"
      } differ`,
    );
  }
  out.flush();
  return total.ranges === 0 && a.size === b.size;
}

async function diffJson(a: Disk, b: Disk): Promise<boolean> {
  const ranges: DiffRange[] = [];
  const total = await compare(a, b, (range) => {
    if (ranges.length < MAX_JSON_RANGES) ranges.push(range);
  });
  const same = total.ranges === 0 && a.size === b.size;
  printJson({
    same,
    sizes: [a.size, b.size],
    differentBytes: total.bytes,
    rangeCount: total.ranges,
    ranges,
  });
  return same;
}

/** Runs `overlaybd diff A B [--json]`. */
export async function run(args: Args<"diff">, call: Call): Promise<number> {
  try {
    const same = await withSources(args.serviceConfig, async (sourcesOf) => {
      await using closers = new AsyncDisposableStack();
      const a = await open(args.a, sourcesOf, closers);
      const b = await open(args.b, sourcesOf, closers);
      return await (args.json ? diffJson(a, b) : diffText(a, b));
    });
    return same ? SAME : DIFFERENT;
  } catch (error) {
    if (error instanceof InterruptedError) throw error;
    throw new ExitError(TROUBLE, `${call.program}: ${reason(error)}`);
  }
}
