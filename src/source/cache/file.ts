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
 * True when the file system of a directory tells holes from data: one that
 * does not calls an empty file data.
 */
async function tellsHoles(disk: Disk, dir: string): Promise<boolean> {
  const LENGTH = 1 << 20;
  let fd: number;
  try {
    fd = await disk.open(dir, O.TMPFILE | O.RDWR, 0o600);
  } catch (error) {
    // What has files without a name has holes, too.
    return error instanceof EngineError &&
      ["EROFS", "EACCES", "EPERM", "ENOSPC", "EDQUOT"].includes(error.code);
  }
  try {
    await disk.truncate(fd, LENGTH);
    return await disk.seek(fd, 0, "hole") === 0;
  } finally {
    await disk.close(fd);
  }
}

/**
 * Which units a file holds, bit i of byte i/8, by what is allocated.  A unit
 * counts when all of it is; nothing counts where the file system knows no
 * holes.
 *
 * @param path of the file
 * @param size of the blob; a file of another length is believed as far as
 *   whole pages of both go
 */
export async function presentUnits(
  disk: Disk,
  fd: number,
  path: string,
  size: number,
  unit: number,
): Promise<Bytes> {
  const count = Math.ceil(size / unit);
  const bits = newBits(count);
  const length = await disk.size(fd);
  const shorter = Math.min(size, length);
  const end = length === size ? size : shorter - shorter % PAGE;
  for (let at = 0; at < end;) {
    const from = await disk.seek(fd, at, "data");
    if (from === undefined || from >= end) break;
    const to = Math.min(end, await disk.seek(fd, from, "hole") ?? end);
    // One that is whole, or nobody knows.
    const doubtful = from === 0 && to === end;
    const dir = path.slice(0, path.lastIndexOf("/")) || "/";
    if (doubtful && !await tellsHoles(disk, dir)) break;
    const last = to === size ? count : Math.floor(to / unit);
    for (let i = Math.ceil(from / unit); i < last; i++) putBit(bits, i, true);
    at = to;
  }
  return bits;
}
