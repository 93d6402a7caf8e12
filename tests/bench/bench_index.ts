// SPDX-License-Identifier: Apache-2.0
/**
 * Look-up, opening and checksums against the standard library and ISA-L.
 *
 * @module
 */
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { crc32c } from "../../ffi/crc32c.ts";
import { O, openFd } from "../../ffi/files.ts";
import type { Index } from "../../ffi/handle.ts";
import {
  indexCount,
  loadIndex,
  lookupMany,
  mergeIndexes,
  newIndex,
  RECORD_SIZE,
} from "../../ffi/index.ts";
import { fileSource } from "../../ffi/sources.ts";
import { lib } from "../../ffi/library.ts";
import { pairs, random, type Result } from "./measure.ts";
import { reference } from "./reference.ts";

const SECTORS = 8;

/** Sorted records of 1..32 sectors with gaps between some, as a layer has. */
export function sampleRecords(
  count: number,
  seed: number,
  at = 8,
): { records: BigUint64Array<ArrayBuffer>; end: number; dataEnd: number } {
  const next = random(seed);
  const records = new BigUint64Array(count * 2);
  let lba = 0;
  for (let i = 0; i < count; i++) {
    if (next() % 4 === 0) lba += 8 * (1 + next() % 4);
    const length = 8 * (1 + next() % 4);
    records[2 * i] = BigInt(lba) | BigInt(length) << 50n;
    records[2 * i + 1] = BigInt(at);
    lba += length;
    at += length;
  }
  return { records, end: lba, dataEnd: at };
}

const LOOKUPS = 1_000_000;

function randomLbas(n: number, end: number): BigUint64Array<ArrayBuffer> {
  const next = random(7);
  return BigUint64Array.from(
    { length: n },
    () => BigInt((next() % Math.floor(end / SECTORS)) * SECTORS),
  );
}

/** Ratio for one size at the dispatch level of this process. */
async function lookupRatio(count: number) {
  const { records, end } = sampleRecords(count, 1);
  const bytes = new Uint8Array(records.buffer);
  using index = newIndex(bytes);
  const lbas = randomLbas(LOOKUPS, end);
  const run = () => lookupMany(index, lbas, SECTORS);
  const plain = () =>
    reference.bench_lower_bound(
      bytes,
      BigInt(count),
      lbas,
      BigInt(LOOKUPS),
      SECTORS,
    );
  if (run() !== plain()) throw new Error("the two look-ups disagree");
  return await pairs(run, plain);
}

function perSecond(ms: number): string {
  return `${(LOOKUPS / ms / 1000).toFixed(1)} M/s`;
}

/** Each level in a process of its own: the choice is made once. */
export async function benchLookup(): Promise<Result[]> {
  await Promise.resolve();
  const results: Result[] = [];
  const aims = { avx512: [4, 3], scalar: [2, 1.5] } as const;
  for (const [level, aim] of Object.entries(aims)) {
    const child = spawnSync(Deno.execPath(), [
      "run",
      "-A",
      import.meta.filename ?? "",
    ], {
      encoding: "utf8",
      env: { ...Deno.env.toObject(), OVERLAYBD_CPU: level },
    });
    if (child.status !== 0) throw new Error(child.stderr);
    const lines: { ours: number; theirs: number; ratio: number }[] = JSON.parse(
      child.stdout,
    );
    for (const [i, size] of ["10k", "1M"].entries()) {
      const line = lines[i];
      if (line === undefined) continue;
      results.push({
        what: `look-up of 8 sectors, ${size} segments, ${level}`,
        reference: "std::lower_bound, same cut and collect",
        ratio: line.ratio,
        aim: aim[i] ?? 1,
        ours: perSecond(line.ours),
        theirs: perSecond(line.theirs),
      });
    }
  }
  return results;
}

const LAYERS = 64;
const PER_LAYER = 10_000;

/** Loads and merges 64 layers, against sorting the same records. */
export async function benchOpen(dir: string): Promise<Result[]> {
  const all = new BigUint64Array(LAYERS * PER_LAYER * 2);
  const layers = Array.from({ length: LAYERS }, (_, i) => {
    const { records, dataEnd } = sampleRecords(PER_LAYER, 100 + i);
    all.set(records, i * PER_LAYER * 2);
    const path = join(dir, `index${i}`);
    writeFileSync(path, new Uint8Array(records.buffer));
    const fd = openFd(path, O.RDONLY);
    return { source: fileSource(fd, 0, PER_LAYER * RECORD_SIZE), dataEnd };
  });
  const bytes = new Uint8Array(all.buffer);
  const ours = async () => {
    const indexes: Index[] = await Promise.all(
      layers.map(({ source, dataEnd }) =>
        loadIndex(source, 0, PER_LAYER, dataEnd)
      ),
    );
    using merged = mergeIndexes(indexes);
    if (indexCount(merged) === 0) throw new Error("nothing was merged");
    for (const index of indexes) index.close();
  };
  const { ours: mine, theirs, ratio } = await pairs(
    ours,
    () => reference.bench_stable_sort(bytes, BigInt(LAYERS * PER_LAYER)),
  );
  for (const { source } of layers) source.close();
  return [{
    what: `opening ${LAYERS} layers of 10k segments`,
    reference: "std::stable_sort of the same records",
    ratio: 1 / ratio,
    aim: 1.2,
    most: true,
    ours: `${mine.toFixed(1)} ms`,
    theirs: `${theirs.toFixed(1)} ms`,
  }];
}

/** Checksums of 4 KiB blocks. */
export async function benchCrc(): Promise<Result[]> {
  const block = new Uint8Array(4096).map((_, i) => i * 7);
  const rounds = 50_000;
  const n = BigInt(block.length);
  const many = (crc: () => number) => () => {
    for (let i = 0; i < rounds; i++) crc();
  };
  const rate = (ms: number) =>
    `${(rounds * block.length / ms / 1e6).toFixed(1)} GB/s`;
  // Both called alike: crc32c() itself makes a bigint of the length, which
  // costs a quarter of the checksum.
  const best = await pairs(
    many(() => lib.obd_crc32c(100007, block, n)),
    many(() => reference.bench_crc(block, n)),
  );
  const child = spawnSync(Deno.execPath(), [
    "run",
    "-A",
    import.meta.filename ?? "",
    "crc",
  ], {
    encoding: "utf8",
    env: { ...Deno.env.toObject(), OVERLAYBD_CPU: "sse42" },
  });
  if (child.status !== 0) throw new Error(child.stderr);
  const sse: typeof best = JSON.parse(child.stdout);
  return [{
    what: "crc32c of 4 KiB",
    reference: "ISA-L",
    ratio: best.ratio,
    aim: 0.9,
    ours: rate(best.ours),
    theirs: rate(best.theirs),
  }, {
    what: "crc32c of 4 KiB, SSE4.2 only",
    reference: "one stream of crc32 instructions",
    ratio: sse.ratio,
    aim: 2,
    ours: rate(sse.ours),
    theirs: rate(sse.theirs),
  }];
}

if (import.meta.main) {
  if (Deno.args[0] === "crc") {
    const block = new Uint8Array(4096).map((_, i) => i * 7);
    const many = (crc: () => number) => () => {
      for (let i = 0; i < 50_000; i++) crc();
    };
    console.log(JSON.stringify(
      await pairs(
        many(() => crc32c(100007, block)),
        many(() => reference.bench_crc_one_stream(block, 4096n)),
      ),
    ));
  } else {
    console.log(JSON.stringify([
      await lookupRatio(10_000),
      await lookupRatio(1_000_000),
    ]));
  }
}
