// SPDX-License-Identifier: Apache-2.0
/**
 * How long writes wait for a live snapshot.
 *
 * @module
 */
import { join } from "node:path";
import { writeFileSync } from "node:fs";
import { writeDeviceAsync, zeroDevice } from "../../ffi/device.ts";
import { snapshotUpper } from "../../ffi/upper.ts";
import { readImageConfig } from "../../src/image/config.ts";
import { type OpenImage, openImage } from "../../src/image/image.ts";
import { snapshotImage } from "../../src/image/snapshot.ts";
import { createUpper } from "../../src/layer/create.ts";
import { encodeFullLayer } from "../lib/spec_writer.ts";
import { median, type Result } from "./measure.ts";

const SECTOR = 512;
/** With what the load adds, close to what can be sealed: a million. */
const SEGMENTS = 900_000;
/** Where the segments end: the load writes behind. */
const LOAD_AT = SEGMENTS * 2 * SECTOR;
const LOAD_BYTES = 256 << 20;
const SIZE = LOAD_AT + LOAD_BYTES;
const WRITERS = 8;
const ROUNDS = 3;
const AIM_MS = 5;

async function prepare(dir: string, nr: number, lowers: readonly string[]) {
  const upper = {
    data: join(dir, `u${nr}.data`),
    index: join(dir, `u${nr}.index`),
  };
  await createUpper({ ...upper, virtualSize: BigInt(SIZE), kind: "log" });
  const config = join(dir, `c${nr}.json`);
  writeFileSync(
    config,
    JSON.stringify({ lowers: lowers.map((file) => ({ file })), upper }),
  );
  return { upper, config };
}

/** Every second sector, zeroed: as many records, and no data. */
function fragment(image: OpenImage): void {
  for (let i = 0; i < SEGMENTS; i++) {
    zeroDevice(image.device, i * 2 * SECTOR, SECTOR);
  }
}

/** Writers until told; the longest write since the last look, in ms. */
function load(image: OpenImage) {
  const block = new Uint8Array(4096).fill(7);
  let [stopped, longest, count] = [false, 0, 0];
  const writer = async () => {
    while (!stopped) {
      const at = LOAD_AT +
        Math.floor(Math.random() * (LOAD_BYTES / 4096)) * 4096;
      const began = performance.now();
      await writeDeviceAsync(image.device, block, at);
      longest = Math.max(longest, performance.now() - began);
      count++;
    }
  };
  const running = Promise.all(Array.from({ length: WRITERS }, writer));
  return {
    look: () => {
      const was = { longest, count };
      [longest, count] = [0, 0];
      return was;
    },
    stop: async () => {
      stopped = true;
      await running;
    },
  };
}

/** Snapshots of an upper of a million segments, under writes. */
export async function benchSnapshot(dir: string): Promise<Result[]> {
  const lower = join(dir, "lower");
  writeFileSync(lower, encodeFullLayer(new Uint8Array(1 << 20).fill(1)));
  const lowers = [lower];
  const first = await prepare(dir, 0, lowers);
  let upper = first.upper;
  await using image = await openImage(await readImageConfig(first.config));
  const pauses: number[] = [];
  const longest: number[] = [];
  const copies: number[] = [];
  for (let nr = 1; nr <= ROUNDS; nr++) {
    fragment(image);
    const began = performance.now();
    if (image.stack.upper !== undefined) {
      snapshotUpper(image.stack.upper.upper).close();
    }
    copies.push(performance.now() - began);
    lowers.push(upper.data);
    const next = await prepare(dir, nr, lowers);
    upper = next.upper;
    const writers = load(image);
    await new Promise((done) => setTimeout(done, 300));
    writers.look();
    const { pauseUs } = await snapshotImage(image, first.config, next.config);
    const seen = writers.look();
    await writers.stop();
    pauses.push(pauseUs / 1000);
    longest.push(seen.longest);
    console.error(
      `  snapshot ${nr}: pause ${pauseUs.toFixed(0)} us, ${seen.count} ` +
        `writes meanwhile, the longest ${seen.longest.toFixed(2)} ms`,
    );
  }
  const copy = median(copies);
  return [
    {
      what:
        `writes held up by a live snapshot, ${SEGMENTS / 1000}k segments, ` +
        `${WRITERS} writers`,
      ours: `${median(pauses).toFixed(3)} ms`,
      reference: `${AIM_MS} ms; a copy of the map alone takes ${
        copy.toFixed(1)
      } ms`,
      theirs: `${AIM_MS} ms`,
      ratio: median(pauses) / AIM_MS,
      aim: 1,
      most: true,
    },
  ];
}
