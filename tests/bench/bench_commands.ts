// SPDX-License-Identifier: Apache-2.0
/**
 * Commit and extraction.
 *
 * @module
 */
import { spawnSync } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { zfileBlock } from "../../ffi/sources.ts";
import { commitLayer } from "../../src/layer/commit.ts";
import { openLayer } from "../../src/layer/open.ts";
import { extractFile } from "../../src/layer/zfile.ts";
import { DISK, makeLayers } from "./images.ts";
import { pairs, type Result } from "./measure.ts";
import { reference } from "./reference.ts";

const PAGE = 4096;

function rate(bytes: number, ms: number): string {
  return `${(bytes / ms / 1000).toFixed(0)} MB/s`;
}

async function commits(dir: string, layer: string): Promise<Result[]> {
  const input = new Uint8Array(readFileSync(layer));
  const output = join(dir, "committed");
  const results: Result[] = [];
  for (const [threads, aim] of [[1, 0.85], [2, 1.2]] as const) {
    const figures = await pairs(
      () =>
        commitLayer({
          data: layer,
          sealed: true,
          output,
          replace: true,
          threads,
          zfile: { algorithm: "lz4", blockSize: PAGE },
        }),
      () => reference.bench_compress(input, BigInt(input.length), PAGE),
    );
    results.push({
      what: `commit -z, lz4 4 KiB with crc, ${threads} thread(s), tmpfs`,
      reference: "liblz4 alone on the same blocks in memory, 1 thread",
      ratio: figures.ratio,
      aim,
      ours: rate(input.length, figures.ours),
      theirs: rate(input.length, figures.theirs),
    });
  }
  return results;
}

async function extraction(dir: string): Promise<Result> {
  const [zfile = ""] = await makeLayers(dir, "extract", {
    algorithm: "lz4",
    blockSize: PAGE,
  });
  using layer = await openLayer(zfile);
  const blocks = Number(layer.zfile?.final.indexSize ?? 0n);
  const table = new BigUint64Array(blocks + 1);
  for (let i = 0; i < blocks; i++) {
    const { at, length } = zfileBlock(layer.source, i);
    table[i] = BigInt(at);
    table[i + 1] = BigInt(at + length);
  }
  const stored = new Uint8Array(readFileSync(zfile));
  const plain = new Uint8Array(blocks * PAGE);
  const copy = join(dir, "copy");
  const source = join(dir, "source");
  writeFileSync(source, plain);
  const output = join(dir, "extracted");
  const figures = await pairs(
    () => extractFile({ input: zfile, output, replace: true, threads: 2 }),
    () => {
      reference.bench_decompress(
        stored,
        table,
        BigInt(blocks),
        PAGE,
        plain,
        4,
      );
      rmSync(copy, { force: true });
      spawnSync("sh", ["-c", `cp ${source} ${copy} && sync ${copy}`]);
    },
  );
  return {
    what: "zfile -x to a new file, 2 threads",
    reference: "liblz4 decode in memory, 1 thread, then cp and fsync",
    ratio: figures.ratio,
    aim: 1.3,
    ours: rate(DISK, figures.ours),
    theirs: rate(DISK, figures.theirs),
  };
}

/** Commit by one and two threads, extraction. */
export async function benchCommands(dir: string): Promise<Result[]> {
  const [layer = ""] = await makeLayers(dir, "commit", undefined);
  return [
    ...await commits(dir, layer),
    await extraction(dir),
  ];
}
