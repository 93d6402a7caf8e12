// SPDX-License-Identifier: Apache-2.0
/**
 * What a cache file needs of the C library beyond plain files.
 *
 * @module
 */
import { type Bytes, type Source, u64 } from "./engine.ts";
import { check } from "./errors.ts";
import { lib } from "./library.ts";

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

const PUNCH_HOLE_KEEP_SIZE = 3;

/** Gives the space of a range back. */
export function punchFd(fd: number, at: number, length: number): void {
  check(
    lib.obd_io_allocate(fd, PUNCH_HOLE_KEEP_SIZE, BigInt(at), BigInt(length)),
    `cannot punch a hole at ${at}`,
  );
}
