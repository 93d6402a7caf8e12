// SPDX-License-Identifier: Apache-2.0
/**
 * Which bytes of which lower a device's reads were served from.
 *
 * @module
 */
import type { Device } from "./handle.ts";
import { check } from "./errors.ts";
import { lib } from "./library.ts";

/** Bytes of one lower that a read was served from. */
export interface TracedRead {
  /** from the bottom */
  layer: number;
  /** bytes, in what the layer's source shows */
  offset: number;
  /** bytes */
  count: number;
}

const ENTRY_SIZE = 24;
const BATCH = 4096;

/** Notes what reads are served from; at most `max` until they are taken. */
export function startTrace(device: Device, max: number): void {
  check(
    lib.obd_device_trace(device.pointer, BigInt(max)),
    "cannot trace a device",
  );
}

/** Notes no more, and drops what was not taken. */
export function stopTrace(device: Device): void {
  check(lib.obd_device_trace(device.pointer, 0n), "cannot stop a trace");
}

/** Takes everything that was noted, and how much had no room. */
export function takeTrace(
  device: Device,
): { reads: TracedRead[]; lost: number } {
  const raw = new Uint8Array(BATCH * ENTRY_SIZE);
  const fields = new DataView(raw.buffer);
  const lost = new BigUint64Array(1);
  const reads: TracedRead[] = [];
  for (;;) {
    const got = check(
      lib.obd_device_trace_take(device.pointer, raw, BATCH, lost),
      "cannot take a trace",
    );
    for (let at = 0; at < got * ENTRY_SIZE; at += ENTRY_SIZE) {
      reads.push({
        layer: fields.getUint32(at + 16, true),
        offset: Number(fields.getBigUint64(at, true)),
        count: Number(fields.getBigUint64(at + 8, true)),
      });
    }
    if (got < BATCH) return { reads, lost: Number(lost[0]) };
  }
}
