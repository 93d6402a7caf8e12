// SPDX-License-Identifier: Apache-2.0
/**
 * 4 KiB random reads in process, one thread, page cache warm.
 *
 * @module
 */
import { join } from "node:path";
import { readDeviceMany } from "../../ffi/device.ts";
import { closeFd, O, openFd, sizeOfFd } from "../../ffi/files.ts";
import { zfileBlock } from "../../ffi/sources.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { type OpenImage, openImage } from "../../src/image/image.ts";
import type { OpenLayer } from "../../src/layer/open.ts";
import { DISK, makeFlat, makeLayers } from "./images.ts";
import { pairs, random, type Result } from "./measure.ts";
import { reference } from "./reference.ts";

const PAGE = 4096;
const READS = 200_000;

function offsets(limit: number): BigUint64Array<ArrayBuffer> {
  const next = random(11);
  return BigUint64Array.from(
    { length: READS },
    () => BigInt(next() % limit),
  );
}

async function open(layers: readonly string[]): Promise<OpenImage> {
  return await openImage(
    parseImageConfig({ lowers: layers.map((file) => ({ file })) }, "bench"),
  );
}

function rate(ms: number): string {
  return `${(READS / ms).toFixed(0)} k/s`;
}

function result(
  what: string,
  reference: string,
  figures: { ours: number; theirs: number; ratio: number },
): Result {
  return {
    what: `4 KiB random read in process, 3 ${what} layers`,
    reference,
    ratio: figures.ratio,
    aim: 0.9,
    ours: rate(figures.ours),
    theirs: rate(figures.theirs),
  };
}

async function plainReads(dir: string): Promise<Result> {
  const layers = await makeLayers(dir, "plain", undefined);
  const flat = join(dir, "flat");
  await makeFlat(flat, layers);
  const image = await open(layers);
  const at = offsets(DISK / PAGE).map((page) => page * BigInt(PAGE));
  const fd = openFd(flat, O.RDONLY);
  const figures = await pairs(
    () => readDeviceMany(image.device, at, PAGE),
    () => reference.bench_pread(fd, at, BigInt(READS), PAGE),
  );
  closeFd(fd);
  await image.close();
  return result("plain", "pread of a flat file", figures);
}

/** Where each block of a ZFile lies, and where the last one ends. */
function blockTable(layer: OpenLayer): BigUint64Array<ArrayBuffer> {
  const blocks = Number(layer.zfile?.final.indexSize ?? 0n);
  const table = new BigUint64Array(blocks + 1);
  for (let i = 0; i < blocks; i++) {
    const { at, length } = zfileBlock(layer.source, i);
    table[i] = BigInt(at);
    table[i + 1] = BigInt(at + length);
  }
  return table;
}

async function zfileReads(
  dir: string,
  algorithm: "lz4" | "zstd",
): Promise<Result> {
  const layers = await makeLayers(dir, algorithm, {
    algorithm,
    blockSize: PAGE,
  });
  const image = await open(layers);
  const [bottom] = image.stack.lowers;
  if (bottom === undefined) throw new Error("no layer");
  const table = blockTable(bottom);
  // The bottom layer has the whole disk behind its header, page by page.
  const pages = offsets(DISK / PAGE);
  const at = pages.map((page) => page * BigInt(PAGE));
  const blocks = pages.map((page) => page + 1n);
  const fd = openFd(bottom.path, O.RDONLY);
  if (Number(table.at(-1)) > sizeOfFd(fd)) throw new Error("short layer");
  const figures = await pairs(
    () => readDeviceMany(image.device, at, PAGE),
    () => {
      const rc = reference.bench_decode(
        fd,
        table,
        blocks,
        BigInt(READS),
        PAGE,
        algorithm === "lz4" ? 1 : 2,
      );
      if (rc !== 0n) throw new Error(`the reference failed: ${rc}`);
    },
  );
  closeFd(fd);
  await image.close();
  return result(
    `${algorithm} ZFile`,
    `pread + ISA-L crc + lib${algorithm} decode of the same blocks`,
    figures,
  );
}

/** Plain, lz4 and zstd layers. */
export async function benchReads(dir: string): Promise<Result[]> {
  return [
    await plainReads(dir),
    await zfileReads(dir, "lz4"),
    await zfileReads(dir, "zstd"),
  ];
}
