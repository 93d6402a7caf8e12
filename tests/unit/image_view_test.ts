// SPDX-License-Identifier: Apache-2.0
/** Views that requests still read through when another one is shown. */
import { ok, rejects } from "node:assert/strict";
import { cacheSource } from "../../ffi/cache.ts";
import {
  closeDevice,
  deviceStats,
  newDevice,
  readDevice,
  swapView,
} from "../../ffi/device.ts";
import { O, openFd } from "../../ffi/files.ts";
import { newIndex } from "../../ffi/index.ts";
import { newView } from "../../ffi/view.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { growImage } from "../../src/image/grow.ts";
import { openImage } from "../../src/image/image.ts";
import { trackView } from "../../src/image/view.ts";
import { newSourceId } from "../../src/source/miss.ts";
import { tempDir } from "../lib/env.ts";
import { newUpper } from "../lib/product.ts";
import { noise } from "../lib/random.ts";
import { encodeFullLayer } from "../lib/spec_writer.ts";

const SIZE = 65536;
const ESHUTDOWN = 108;

/** A disk whose bytes nobody has. */
function absentDisk(path: string) {
  const fd = openFd(path, O.RDWR | O.CREAT, 0o600);
  using source = cacheSource(fd, SIZE, 4096, newSourceId());
  const record = new BigUint64Array([128n << 50n, 0n]);
  using index = newIndex(new Uint8Array(record.buffer));
  return newView(index, [source], BigInt(SIZE));
}

/** How many timers are set while something runs. */
async function countTimers(work: () => Promise<void>): Promise<number> {
  const { setTimeout: real } = globalThis;
  let count = 0;
  globalThis.setTimeout = ((...args: Parameters<typeof real>) => {
    count++;
    return real(...args);
  }) as typeof real;
  try {
    await work();
  } finally {
    globalThis.setTimeout = real;
  }
  return count;
}

Deno.test("a request that waits for long is seldom looked at", async () => {
  using dir = tempDir();
  const first = absentDisk(dir.file("blob"));
  using device = newDevice(first, undefined, BigInt(SIZE));
  const shown = trackView(device, first);
  const read = readDevice(device, new Uint8Array(4096), 0);
  const failed = rejects(read);
  while (Number(deviceStats(device).parked) === 0) {
    await new Promise((done) => setTimeout(done, 5));
  }
  using nothing = newIndex(new Uint8Array(0));
  const second = newView(nothing, [], BigInt(SIZE));
  shown.replace(second, () => swapView(device, second));
  const retired = Promise.withResolvers<void>();
  shown.retire({ close: () => retired.resolve() });
  const timers = await countTimers(() =>
    new Promise((done) => setTimeout(done, 1500))
  );
  ok(timers < 12, `${timers} timers in 1.5 s`);
  closeDevice(device, ESHUTDOWN);
  await failed;
  await shown.close();
  await retired.promise;
});

Deno.test("an image closes although its growth waits for a silent source", async () => {
  using dir = tempDir();
  const upper = await newUpper(dir.file("u"), { size: 13 * 512, sparse: true });
  const lower = dir.file("lower");
  Deno.writeFileSync(lower, encodeFullLayer(noise(1, SIZE)));
  const image = await openImage(
    parseImageConfig({ lowers: [{ file: lower }], upper }, "test"),
  );
  const { device } = image;
  // What the end of the disk splits a block of is not here any more.
  using absent = absentDisk(dir.file("blob"));
  swapView(device, absent);
  const failed = rejects(growImage(image, 30n * 512n), { code: "ESHUTDOWN" });
  while (Number(deviceStats(device).parked) === 0) {
    await new Promise((done) => setTimeout(done, 5));
  }
  await image.close();
  await failed;
  await rejects(growImage(image, 30n * 512n), /is being closed/);
});
