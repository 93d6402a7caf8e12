// SPDX-License-Identifier: Apache-2.0
/**
 * Disks: a view, perhaps with an upper, that can be read and written.
 *
 * @module
 */
import { check } from "./errors.ts";
import {
  type Bytes,
  type Device,
  handle,
  slot,
  type U64,
  u64,
  type Upper,
  type View,
  view,
} from "./handle.ts";
import { lib } from "./library.ts";

/** How long a request may wait for absent data by default: 7 days. */
export const DEFAULT_DEADLINE_MS = 604_800_000;

/** A disk of `virtualSize` bytes; read-only without upper. */
export function newDevice(
  view: View,
  upper: Upper | undefined,
  virtualSize: U64,
  options: { readonly?: boolean; deadlineMs?: number } = {},
): Device {
  const out = slot();
  const readonly = options.readonly ?? upper === undefined;
  check(
    lib.obd_device_new(
      view.pointer,
      upper?.pointer ?? null,
      u64(virtualSize),
      readonly ? 1 : 0,
      BigInt(options.deadlineMs ?? DEFAULT_DEADLINE_MS),
      out,
    ),
    "cannot make a device",
  );
  return handle("device", out, lib.obd_device_unref);
}

export function swapView(device: Device, view: View): void {
  check(
    lib.obd_device_swap(device.pointer, view.pointer),
    "cannot switch a device's layers",
  );
}

/**
 * Prepares a sparse upper for a larger disk, before its file says so; a size
 * in between takes that back.
 */
export async function extendDevice(device: Device, size: U64): Promise<void> {
  check(
    await lib.obd_device_extend_async(device.pointer, u64(size)),
    `cannot make the disk ${size} bytes large`,
  );
}

/** Later requests may reach up to `size` bytes; a disk never shrinks. */
export function resizeDevice(device: Device, size: U64): void {
  check(
    lib.obd_device_resize(device.pointer, u64(size)),
    `cannot make the disk ${size} bytes large`,
  );
}

/** Ends every waiting request with `errno` and refuses new ones. */
export function closeDevice(device: Device, errno: number): void {
  check(lib.obd_device_close(device.pointer, -errno), "cannot close a device");
}

/** Ends every request that waits for absent data with `errno`. */
export function endWaiting(device: Device, errno: number): void {
  check(lib.obd_device_abandon(device.pointer, -errno), "cannot end requests");
}

/** Reads on a blocking-call thread: absent data may make it wait. */
export async function readDevice(
  device: Device,
  into: Bytes,
  at: U64,
): Promise<void> {
  check(
    await lib.obd_device_read_async(
      device.pointer,
      into,
      BigInt(into.byteLength),
      u64(at),
    ),
    `cannot read ${into.byteLength} bytes at ${at}`,
  );
}

/** Reads on the calling thread: only where nothing can be absent. */
export function readDeviceSync(device: Device, into: Bytes, at: U64): void {
  check(
    lib.obd_device_read(
      device.pointer,
      into,
      BigInt(into.byteLength),
      u64(at),
    ),
    `cannot read ${into.byteLength} bytes at ${at}`,
  );
}

export function writeDevice(device: Device, from: Bytes, at: U64): void {
  check(
    lib.obd_device_write(
      device.pointer,
      from,
      BigInt(from.byteLength),
      u64(at),
    ),
    `cannot write ${from.byteLength} bytes at ${at}`,
  );
}

/** Writes on a blocking-call thread: absent data may make it wait. */
export async function writeDeviceAsync(
  device: Device,
  from: Bytes,
  at: U64,
): Promise<void> {
  check(
    await lib.obd_device_write_async(
      device.pointer,
      from,
      BigInt(from.byteLength),
      u64(at),
    ),
    `cannot write ${from.byteLength} bytes at ${at}`,
  );
}

export function discardDevice(device: Device, at: U64, length: U64): void {
  check(
    lib.obd_device_discard(device.pointer, u64(at), u64(length)),
    `cannot discard ${length} bytes at ${at}`,
  );
}

export function zeroDevice(device: Device, at: U64, length: U64): void {
  check(
    lib.obd_device_zero(device.pointer, u64(at), u64(length)),
    `cannot zero ${length} bytes at ${at}`,
  );
}

export async function flushDevice(device: Device): Promise<void> {
  check(await lib.obd_device_flush_async(device.pointer), "cannot flush");
}

/** A run of the disk: mapped data, zeroed by a record, or in no layer. */
export interface Extent {
  length: number;
  state: "data" | "zero" | "hole";
}

/** Runs from `at` on, merged; at most `max`. */
export function extents(
  device: Device,
  at: U64,
  length: U64,
  max = 1024,
): Extent[] {
  const raw = new Uint8Array(max * 16);
  const got = check(
    lib.obd_device_extents(device.pointer, u64(at), u64(length), raw, max),
    `cannot list extents at ${at}`,
  );
  const v = view(raw);
  return Array.from({ length: got }, (_, i) => {
    const state = v.getUint32(i * 16 + 8, true);
    return {
      length: Number(v.getBigUint64(i * 16, true)),
      state: state === 0 ? "data" : state === 1 ? "zero" : "hole",
    };
  });
}

/** Running totals of a device. */
export interface DeviceStats {
  reads: number;
  readBytes: number;
  writes: number;
  writtenBytes: number;
  discards: number;
  discardedBytes: number;
  flushes: number;
  errors: number;
  misses: number;
  parked: number;
  corrupt: number;
  allocations: number;
  /** of `corrupt`: fetched again, and right then */
  healed: number;
}

export function deviceStats(device: Device): DeviceStats {
  const raw = new BigUint64Array(13);
  check(lib.obd_device_stat(device.pointer, raw), "cannot get statistics");
  const at = (i: number) => Number(raw[i]);
  return {
    reads: at(0),
    readBytes: at(1),
    writes: at(2),
    writtenBytes: at(3),
    discards: at(4),
    discardedBytes: at(5),
    flushes: at(6),
    errors: at(7),
    misses: at(8),
    parked: at(9),
    corrupt: at(10),
    allocations: at(11),
    healed: at(12),
  };
}

/** How long reads took. */
export interface ReadTimes {
  /** reads of at most 4^i us; in the last one all that took longer */
  buckets: number[];
  /** all of them together */
  seconds: number;
}

const TIMES_BUCKETS = 14;

/** Reads of what was here, sampled, and those that waited for a fetch. */
export function deviceTimes(
  device: Device,
): { local: ReadTimes; fetched: ReadTimes } {
  const raw = new BigUint64Array(2 * (TIMES_BUCKETS + 1));
  check(lib.obd_device_times(device.pointer, raw), "cannot get times");
  const half = (at: number): ReadTimes => ({
    buckets: [...raw.subarray(at, at + TIMES_BUCKETS)].map(Number),
    seconds: Number(raw[at + TIMES_BUCKETS]) / 1e9,
  });
  return { local: half(0), fetched: half(TIMES_BUCKETS + 1) };
}

/** Reads `size` bytes at each offset, for the bench. */
export async function readDeviceMany(
  device: Device,
  offsets: BigUint64Array<ArrayBuffer>,
  size: number,
): Promise<void> {
  check(
    await lib.obd_device_read_many_async(
      device.pointer,
      offsets,
      BigInt(offsets.length),
      size,
    ),
    "cannot read",
  );
}
