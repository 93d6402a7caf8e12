// SPDX-License-Identifier: Apache-2.0
/**
 * The file that keeps a blob: the original's names and sparse layout
 * (spec/cache.md, section 1), or an unlinked one where nothing can be kept.
 *
 * @module
 */
import { O, openFd } from "../../../ffi/files.ts";
import type { Bytes } from "../../../ffi/handle.ts";
import { EngineError } from "../../../ffi/errors.ts";
import type { Disk } from "./disk.ts";
import { newBits, putBit } from "./units.ts";

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

/**
 * Opens the file of a blob, makes it where there is none.  One that can only
 * be read serves what it holds.
 */
export async function openStore(disk: Disk, path: string): Promise<StoreFile> {
  let fd: number;
  try {
    fd = await disk.open(path, O.RDWR | O.CREAT, 0o644);
  } catch (error) {
    const readonly = error instanceof EngineError &&
      ["EROFS", "EACCES", "EPERM"].includes(error.code);
    if (!readonly) throw error;
    fd = await disk.open(path, O.RDONLY);
  }
  try {
    return { fd, size: await disk.size(fd), kept: true };
  } catch (error) {
    await disk.close(fd);
    throw error;
  }
}

/** A file without a name, in memory where that is possible. */
export function openUnlinked(): StoreFile {
  return openNameless(["/dev/shm", "/tmp", "/var/tmp"]);
}

/** One for more than memory should hold. */
export function openUnlinkedOnDisk(): StoreFile {
  const dir = Deno.env.get("TMPDIR");
  return openNameless([...(dir ? [dir] : []), "/var/tmp", "/tmp"]);
}

function openNameless(dirs: readonly string[]): StoreFile {
  let failure: unknown;
  for (const dir of dirs) {
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
 * @param size of the blob; a file of another length is believed as far as
 *   whole pages of both go
 * @param blocks its st_blocks
 */
export async function presentUnits(
  disk: Pick<Disk, "seek" | "size">,
  fd: number,
  size: number,
  unit: number,
  blocks: number,
): Promise<Bytes> {
  const count = Math.ceil(size / unit);
  const bits = newBits(count);
  const length = await disk.size(fd);
  const shorter = Math.min(size, length);
  const end = length === size ? size : shorter - shorter % PAGE;
  let total = 0;
  for (let at = 0; at < end;) {
    const from = await disk.seek(fd, at, "data");
    if (from === undefined || from >= end) break;
    const to = Math.min(end, await disk.seek(fd, from, "hole") ?? end);
    total += to - from;
    const last = to === size ? count : Math.floor(to / unit);
    for (let i = Math.ceil(from / unit); i < last; i++) putBit(bits, i, true);
    at = to;
  }
  const PIECE = 512;
  return total > blocks * PIECE + PAGE ? newBits(count) : bits;
}
