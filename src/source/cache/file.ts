// SPDX-License-Identifier: Apache-2.0
/**
 * The file that keeps a blob: the original's names and sparse layout
 * (spec/cache.md, section 1), or an unlinked one where nothing can be kept.
 *
 * @module
 */
import { closeFd, O, openFd, seekFd, sizeOfFd } from "../../../ffi/engine.ts";

/** Holes and data come in pieces of this size. */
export const PAGE = 4096;

/** A file that holds units of a blob. */
export interface StoreFile {
  fd: number;
  /** bytes; 0 for a new one */
  size: number;
  /** false: unlinked, so what it holds must be bounded */
  kept: boolean;
}

/** Opens the file of a blob, makes it where there is none. */
export function openStore(path: string): StoreFile {
  const fd = openFd(path, O.RDWR | O.CREAT, 0o644);
  try {
    return { fd, size: sizeOfFd(fd), kept: true };
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

/** A file without a name, in memory where that is possible. */
export function openUnlinked(): StoreFile {
  let failure: unknown;
  for (const dir of ["/dev/shm", "/tmp", "/var/tmp"]) {
    try {
      const fd = openFd(dir, O.TMPFILE | O.RDWR, 0o600);
      return { fd, size: 0, kept: false };
    } catch (error) {
      failure = error;
    }
  }
  throw failure;
}

/**
 * The size that a file's length alone proves: the last thing written to a
 * file whose length is no whole number of pages was the blob's end.
 */
export function provenSize(length: number): number | undefined {
  return length % PAGE === 0 ? undefined : length;
}

/**
 * Which units a file holds, bit i of byte i/8, by what is allocated.  A unit
 * counts when all of it is; nothing counts when the file system calls more
 * data than it has blocks for, which is what one without holes does.
 *
 * @param blocks its st_blocks
 */
export function presentUnits(
  fd: number,
  size: number,
  unit: number,
  blocks: number,
): Uint8Array<ArrayBuffer> {
  const count = Math.ceil(size / unit);
  const bits = new Uint8Array(Math.ceil(count / 8));
  let total = 0;
  const end = Math.min(size, sizeOfFd(fd));
  for (let at = 0; at < end;) {
    const from = seekFd(fd, at, "data");
    if (from === undefined || from >= end) break;
    const to = Math.min(end, seekFd(fd, from, "hole") ?? end);
    total += to - from;
    const last = to === size ? count : Math.floor(to / unit);
    for (let i = Math.ceil(from / unit); i < last; i++) {
      bits[i >> 3] = (bits[i >> 3] ?? 0) | 1 << (i & 7);
    }
    at = to;
  }
  const PIECE = 512;
  return total > blocks * PIECE + PAGE ? new Uint8Array(bits.length) : bits;
}
