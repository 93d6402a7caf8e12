// SPDX-License-Identifier: Apache-2.0
/**
 * What a cache file needs of the C library beyond plain files.
 *
 * @module
 */
import type { Source } from "./engine.ts";
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

/** Descriptor `fd` is from now on the file of `by`, which stays open too. */
export function replaceFd(fd: number, by: number): void {
  check(lib.obd_io_replace(fd, by), "cannot replace a file");
}

const PUNCH_HOLE_KEEP_SIZE = 3;

/** Gives the space of a range back. */
export function punchFd(fd: number, at: number, length: number): void {
  check(
    lib.obd_io_allocate(fd, PUNCH_HOLE_KEEP_SIZE, BigInt(at), BigInt(length)),
    `cannot punch a hole at ${at}`,
  );
}
