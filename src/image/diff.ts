// SPDX-License-Identifier: Apache-2.0
/**
 * Where two disks differ.
 *
 * @module
 */
import type { JobOptions } from "../../ffi/pipelines.ts";
import type { Disk } from "./disk.ts";

/** Bytes [offset, offset + length) are not the same. */
export interface DiffRange {
  offset: bigint;
  length: bigint;
}

const CHUNK = 1 << 20;
const SECTOR = 512;

/** Length of the run at `at`, and whether it is known to be zeros. */
function zeroRun(disk: Disk, at: bigint): { zero: boolean; length: bigint } {
  if (at >= disk.size) return { zero: true, length: 1n << 62n };
  const [run] = disk.runs(at, disk.size - at);
  if (run === undefined || run.length === 0) {
    return { zero: false, length: disk.size - at };
  }
  return { zero: run.state !== "data", length: BigInt(run.length) };
}

/** Reads n bytes at `at`, zeros past the end of the disk. */
async function readInto(
  disk: Disk,
  into: Uint8Array<ArrayBuffer>,
  at: bigint,
  signal: AbortSignal | undefined,
): Promise<void> {
  const left = disk.size - at;
  const n = left <= 0n
    ? 0
    : left < BigInt(into.length)
    ? Number(left)
    : into.length;
  if (n > 0) await disk.read(into.subarray(0, n), at, signal);
  into.fill(0, n);
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  const x = new BigUint64Array(a.buffer, a.byteOffset, a.length >> 3);
  const y = new BigUint64Array(b.buffer, b.byteOffset, b.length >> 3);
  for (let i = 0; i < x.length; i++) if (x[i] !== y[i]) return false;
  return true;
}

/**
 * The ranges in which two disks differ, in order, merged, in whole sectors.
 * A shorter disk counts as zeros behind its end.
 */
export async function* diffDisks(
  a: Disk,
  b: Disk,
  options: JobOptions = {},
): AsyncGenerator<DiffRange> {
  const size = a.size > b.size ? a.size : b.size;
  const left = new Uint8Array(CHUNK);
  const right = new Uint8Array(CHUNK);
  let open: DiffRange | undefined;
  let at = 0n;
  while (at < size) {
    options.signal?.throwIfAborted();
    const ra = zeroRun(a, at);
    const rb = zeroRun(b, at);
    let span = ra.length < rb.length ? ra.length : rb.length;
    if (span > size - at) span = size - at;
    if (!(ra.zero && rb.zero)) {
      if (span > BigInt(CHUNK)) span = BigInt(CHUNK);
      const n = Math.ceil(Number(span) / SECTOR) * SECTOR;
      const x = left.subarray(0, n);
      const y = right.subarray(0, n);
      const { signal } = options;
      // Both to their end: nothing is closed under a read that goes on.
      const read = await Promise.allSettled([
        readInto(a, x, at, signal),
        readInto(b, y, at, signal),
      ]);
      for (const one of read) {
        if (one.status === "rejected") throw one.reason;
      }
      if (!sameBytes(x, y)) {
        for (let i = 0; i < n; i += SECTOR) {
          const end = i + SECTOR;
          if (sameBytes(x.subarray(i, end), y.subarray(i, end))) continue;
          const offset = at + BigInt(i);
          if (open !== undefined && open.offset + open.length === offset) {
            open.length += BigInt(SECTOR);
          } else {
            if (open !== undefined) yield open;
            open = { offset, length: BigInt(SECTOR) };
          }
        }
      }
      // Reading may be synchronous: let timers and signals have their turn.
      await new Promise<void>((done) => setImmediate(done));
    }
    at += span;
    options.onProgress?.({
      total: Number(size),
      done: Number(at),
      written: 0,
    });
  }
  if (open !== undefined) yield open;
}
