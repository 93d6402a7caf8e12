// SPDX-License-Identifier: Apache-2.0
/**
 * Cache sources: remote blobs kept in sparse files, present unit by unit.
 *
 * @module
 */
import { check } from "./errors.ts";
import {
  type Bytes,
  handle,
  slot,
  type Source,
  type U64,
  u64,
} from "./handle.ts";
import { lib } from "./library.ts";

/** A remote blob kept in a sparse file, absent until {@linkcode fill}. */
export function cacheSource(
  fd: number,
  size: U64,
  unit: number,
  id: U64,
): Source {
  const out = slot();
  check(
    lib.obd_source_cache(fd, u64(size), unit, u64(id), out),
    "cannot use a cache file",
  );
  return handle("source", out, lib.obd_source_unref);
}

/**
 * Closes a source, and its file with it, on another thread: the file's disk
 * may hang.
 */
export async function closeSource(source: Source): Promise<void> {
  await lib.obd_source_unref_async(source.take());
}

/** Units of a cache are there (`errno` 0) or could not be fetched. */
export function fill(
  cache: Source,
  first: U64,
  count: U64,
  errno = 0,
): void {
  check(
    lib.obd_source_fill(cache.pointer, u64(first), u64(count), 0 - errno),
    `cannot fill units ${first}+${count}`,
  );
}

/**
 * True while a request waits for one of the units; who wants one later asks
 * for it again.
 */
export function isWanted(cache: Source, first: U64, count: U64): boolean {
  const wanted = lib.obd_source_wanted(cache.pointer, u64(first), u64(count));
  return check(wanted, `cannot tell who wants units ${first}+${count}`) === 1;
}

export function evict(cache: Source, first: U64, count: U64): void {
  check(
    lib.obd_source_evict(cache.pointer, u64(first), u64(count)),
    `cannot evict units ${first}+${count}`,
  );
}

export function getBitmap(cache: Source, bits: Bytes): void {
  check(
    lib.obd_source_bitmap_get(
      cache.pointer,
      bits,
      BigInt(bits.byteLength),
    ),
    "cannot read the bitmap",
  );
}

export function setBitmap(cache: Source, bits: Bytes): void {
  check(
    lib.obd_source_bitmap_set(
      cache.pointer,
      bits,
      BigInt(bits.byteLength),
    ),
    "cannot set the bitmap",
  );
}

/** Shows bytes [base, base + size) of a cache source alone. */
export function windowSource(
  cache: Source,
  base: number,
  size: number,
): void {
  check(
    lib.obd_source_window(cache.pointer, BigInt(base), BigInt(size)),
    `cannot show bytes ${base}+${size} of a blob`,
  );
}

/** Gives a cache a second file; takes the descriptor over. */
export function spillSource(cache: Source, fd: number): void {
  check(
    lib.obd_source_spill(cache.pointer, fd),
    "cannot use a second file for a blob",
  );
}

/** Units are there, in the second file. */
export function fillSpilled(cache: Source, first: number, count: number): void {
  check(
    lib.obd_source_fill_spilled(cache.pointer, u64(first), u64(count)),
    `cannot fill units ${first}+${count}`,
  );
}

/** Which units were read since the last call, bit i of byte i/8. */
export function takeUsed(cache: Source, bits: Bytes): void {
  check(
    lib.obd_source_used(cache.pointer, bits, BigInt(bits.byteLength)),
    "cannot tell which units were read",
  );
}
