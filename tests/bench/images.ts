// SPDX-License-Identifier: Apache-2.0
/**
 * The images that the bench reads: the same disk, flat and in layers.
 *
 * @module
 */
import { join } from "node:path";
import { writeFileSync } from "node:fs";
import { flushDevice, readDeviceSync, writeDevice } from "../../ffi/device.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { openImage } from "../../src/image/image.ts";
import { commitLayer } from "../../src/layer/commit.ts";
import { createUpper } from "../../src/layer/create.ts";
import type { ZfileOptions } from "../../src/layer/write.ts";
import { random } from "./measure.ts";

/** Bytes of the disk. */
export const DISK = 64 << 20;
const CHUNK = 1 << 20;
const PAGE = 4096;

/** Text-like bytes: about 2 : 1 in lz4. */
export function sampleBytes(
  n: number,
  seed: number,
): Uint8Array<ArrayBuffer> {
  const next = random(seed);
  const words = Array.from(
    { length: 512 },
    () => next().toString(36).slice(0, 3 + next() % 5) + " ",
  );
  const encoder = new TextEncoder();
  const bytes = new Uint8Array(n);
  let at = 0;
  while (at < n) {
    const word = next() % 4 === 0
      ? next().toString(16)
      : words[next() % words.length] ?? "";
    at += encoder.encodeInto(word, bytes.subarray(at)).written;
    if (n - at < 16) break;
  }
  return bytes;
}

/** Pages of the disk that layer number `layer` of three has. */
function* pagesOf(layer: number): Generator<[at: number, pages: number]> {
  if (layer === 0) {
    for (let at = 0; at < DISK; at += CHUNK) yield [at, CHUNK / PAGE];
    return;
  }
  const next = random(50 + layer);
  for (let i = 0; i < 2000; i++) {
    const pages = 1 + next() % 4;
    yield [next() % (DISK / PAGE - pages) * PAGE, pages];
  }
}

/** Writes three layers, all compressed alike; returns their paths. */
export async function makeLayers(
  dir: string,
  name: string,
  zfile: ZfileOptions | undefined,
): Promise<string[]> {
  const content = sampleBytes(CHUNK, 3);
  const layers: string[] = [];
  for (let layer = 0; layer < 3; layer++) {
    const data = join(dir, `${name}${layer}.data`);
    const index = join(dir, `${name}${layer}.index`);
    const output = join(dir, `${name}${layer}`);
    await createUpper({ data, index, virtualSize: BigInt(DISK), kind: "log" });
    const image = await openImage(parseImageConfig({
      lowers: layers.map((file) => ({ file })),
      upper: { data, index },
    }, name));
    for (const [at, pages] of pagesOf(layer)) {
      const from = (at * 7 + layer * PAGE) % (CHUNK - pages * PAGE + 1);
      writeDevice(
        image.device,
        content.subarray(from, from + pages * PAGE),
        at,
      );
    }
    await flushDevice(image.device);
    await image.close();
    await commitLayer({ data, index, output, zfile });
    Deno.removeSync(data);
    Deno.removeSync(index);
    layers.push(output);
  }
  return layers;
}

/** The same disk as one flat file. */
export async function makeFlat(
  path: string,
  layers: readonly string[],
): Promise<void> {
  const image = await openImage(
    parseImageConfig({ lowers: layers.map((file) => ({ file })) }, path),
  );
  const bytes = new Uint8Array(DISK);
  readDeviceSync(image.device, bytes, 0);
  await image.close();
  writeFileSync(path, bytes);
}

/** One layer of a disk that is full of `sample`, lz4 or plain; its path. */
export async function makeDiskLayer(
  dir: string,
  size: number,
  sample: Uint8Array<ArrayBuffer>,
  plain = false,
): Promise<string> {
  const [data, index, output] = ["data", "index", "layer"]
    .map((name) => join(dir, name)) as [string, string, string];
  await createUpper({ data, index, virtualSize: BigInt(size), kind: "log" });
  const image = await openImage(
    parseImageConfig({ upper: { data, index } }, dir),
  );
  for (let at = 0; at < size; at += sample.length) {
    writeDevice(image.device, sample, at);
  }
  await flushDevice(image.device);
  await image.close();
  const zfile: ZfileOptions | undefined = plain
    ? undefined
    : { algorithm: "lz4", blockSize: PAGE };
  await commitLayer({ data, index, output, zfile });
  Deno.removeSync(data);
  Deno.removeSync(index);
  return output;
}
