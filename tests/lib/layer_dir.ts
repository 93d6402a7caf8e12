// SPDX-License-Identifier: Apache-2.0
/**
 * One remote layer with a directory that it is brought to, and what came.
 *
 * @module
 */
import assert from "node:assert/strict";
import { closeFd, O, openFd } from "../../ffi/files.ts";
import type { DownloadConfig } from "../../src/image/config.ts";
import { createDisk } from "../../src/source/cache/disk.ts";
import { presentUnits } from "../../src/source/cache/file.ts";
import {
  type BlobRequest,
  type BlobServer,
  commitLayer,
  type Host,
  noise,
  openHost,
  startBlobServer,
} from "./blobs.ts";
import { type TempDir, tempDir } from "./env.ts";

const MIB = 1 << 20;
/** Bytes of the disk. */
export const SIZE = 6 * MIB;
/** What is on it. */
export const CONTENT = noise(1, SIZE);
/** Bytes of one step. */
export const BLOCK = 65536;

/** Settings that begin at once. */
export const settings = (
  change: Partial<DownloadConfig> = {},
): DownloadConfig => ({
  ...{ enable: true, delay: 0, delayExtra: 1, maxMBps: 0, tryCnt: 3 },
  blockSize: BLOCK,
  ...change,
});

/** One remote layer with a directory of its own. */
export interface Setup extends AsyncDisposable {
  dir: TempDir;
  server: BlobServer;
  /** of the blob */
  size: number;
  layerDir: string;
  commit: string;
  temp: string;
  lower: { digest: string; dir: string; size: number };
  host(cache: string, cacheType?: string): Host;
  /** bytes that the server has sent */
  sent(): number;
}

/** Makes the layer and its server. */
export async function setUp(
  options: readonly string[] = ["-z", "-t"],
  where: "disk" | "memory" = "disk",
): Promise<Setup> {
  const dir = tempDir(where);
  const server = startBlobServer();
  const path = await commitLayer(dir, "layer", CONTENT, options);
  const digest = server.add(path);
  const { size } = Deno.statSync(path);
  const layerDir = dir.file("snapshot");
  Deno.mkdirSync(layerDir);
  return {
    dir,
    server,
    size,
    layerDir,
    commit: `${layerDir}/overlaybd.commit`,
    temp: `${layerDir}/.download`,
    lower: { digest, dir: layerDir, size },
    host: (cache, type) => openHost(server.url, dir.file(cache), BLOCK, type),
    sent: () => server.requests.reduce((n, { from, to }) => n + to - from, 0),
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      dir[Symbol.dispose]();
    },
  };
}

/** The whole blocks of a file that have been written, as [from, to). */
export async function writtenBlocks(
  path: string,
  size: number,
): Promise<[number, number][]> {
  const fd = openFd(path, O.RDONLY);
  try {
    const bits = await presentUnits(createDisk(), fd, path, size, BLOCK);
    return Array.from({ length: Math.ceil(size / BLOCK) }, (_, i) => i)
      .filter((i) => (bits[i >> 3] ?? 0) >> (i & 7) & 1)
      .map((
        i,
      ): [number, number] => [i * BLOCK, Math.min(size, (i + 1) * BLOCK)]);
  } finally {
    closeFd(fd);
  }
}

/** Nothing of `blocks` is asked for again, but for what opening reads. */
export function refuseAgain(
  requests: readonly BlobRequest[],
  blocks: readonly (readonly [number, number])[],
  size: number,
): void {
  const ENDS = 8 * BLOCK;
  for (const { from, to } of requests) {
    if (to <= ENDS || from >= size - ENDS) continue;
    const twice = blocks.find(([a, b]) => a < to && b > from);
    assert.equal(twice, undefined, `${from}..${to} was there`);
  }
}
