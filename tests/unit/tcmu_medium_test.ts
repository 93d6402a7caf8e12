// SPDX-License-Identifier: Apache-2.0
// Bytes of a disk for the commands that TypeScript answers.
import { deepStrictEqual as equal, rejects } from "node:assert/strict";
import { cacheSource } from "../../ffi/cache.ts";
import { closeDevice, newDevice } from "../../ffi/device.ts";
import { O, openFd } from "../../ffi/files.ts";
import type { Device } from "../../ffi/handle.ts";
import { newIndex } from "../../ffi/index.ts";
import { newView } from "../../ffi/view.ts";
import { createMedium } from "../../src/device/tcmu/medium.ts";
import { newSourceId } from "../../src/source/miss.ts";
import { tempDir } from "../lib/env.ts";

const SIZE = 65536;
const ESHUTDOWN = 108;

/** A disk whose bytes nobody has. */
function absentDisk(path: string): Device {
  const fd = openFd(path, O.RDWR | O.CREAT, 0o600);
  using source = cacheSource(fd, SIZE, 4096, newSourceId());
  const record = new BigUint64Array([128n << 50n, 0n]);
  using index = newIndex(new Uint8Array(record.buffer));
  using view = newView(index, [source], BigInt(SIZE));
  return newDevice(view, undefined, BigInt(SIZE));
}

Deno.test("a medium closes, however long other disks wait", async () => {
  using dir = tempDir();
  using silent = absentDisk(dir.file("silent"));
  using other = absentDisk(dir.file("other"));
  const waiting = createMedium(silent);
  const medium = createMedium(other);
  const read = ({ read }: typeof medium) =>
    rejects(read(new Uint8Array(512), 0n), /shutdown|cannot/i);
  // As many as may wait of all disks, then one more.
  const many = Array.from({ length: 8 }, () => read(waiting));
  while (waiting.running < 8) await new Promise((done) => setTimeout(done, 1));
  const last = read(medium);
  equal(medium.running, 0);
  await medium.close();
  closeDevice(silent, ESHUTDOWN);
  await waiting.close();
  await Promise.all([...many, last]);
});
