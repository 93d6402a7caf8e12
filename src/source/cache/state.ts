// SPDX-License-Identifier: Apache-2.0
/**
 * What is known of a cache file beyond what it shows itself: the blob's size,
 * and, once it was closed, which units it holds.  These count only while the
 * file is as it was left: inode, length, times and blocks.  Before the file
 * changes they are dropped, so that after a crash nobody believes them; the
 * size of what a digest names never changes.
 *
 * @module
 */
import { crc32c } from "../../../ffi/crc32c.ts";
import { O } from "../../../ffi/files.ts";
import type { Bytes } from "../../../ffi/handle.ts";
import type { Disk } from "./disk.ts";

/** What tells that a file is as it was left. */
export interface Stamp {
  inode: number;
  length: number;
  /** 512 bytes each */
  blocks: number;
  mtimeMs: number;
  ctimeMs: number;
}

/** What a closed file holds. */
export interface Presence {
  stamp: Stamp;
  /** bytes */
  unit: number;
  /** its sha256 was checked when it became whole */
  verified: boolean;
  /** bit i of byte i/8 */
  bits: Bytes;
}

/** What is saved of a blob. */
export interface Saved {
  /** of the blob, in bytes */
  size: number;
  /** undefined: the file has changed since, or still does */
  presence: Presence | undefined;
}

const MAGIC = 0x4344424f; // "OBDC"
const VERSION = 1;
const HEADER = 72;
const CRC = 4;
const VERIFIED = 1;
const CLOSED = 2;
const NO_STAMP: Stamp = {
  inode: 0,
  length: 0,
  blocks: 0,
  mtimeMs: 0,
  ctimeMs: 0,
};

/** The stamp of a file; @throws it is not there */
export async function stampOf(disk: Disk, path: string): Promise<Stamp> {
  const info = await disk.stat(path);
  return {
    inode: info.ino ?? 0,
    length: info.size,
    blocks: info.blocks ?? 0,
    mtimeMs: info.mtime?.getTime() ?? 0,
    ctimeMs: info.ctime?.getTime() ?? 0,
  };
}

function sameStamp(a: Stamp, b: Stamp): boolean {
  return a.inode === b.inode && a.length === b.length &&
    a.blocks === b.blocks && a.mtimeMs === b.mtimeMs && a.ctimeMs === b.ctimeMs;
}

/** What is saved, as bytes. */
export function encodeSaved({ size, presence }: Saved): Bytes {
  const stamp = presence?.stamp ?? NO_STAMP;
  const bits = presence?.bits ?? new Uint8Array(0);
  const bytes = new Uint8Array(HEADER + bits.length + CRC);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint32(4, VERSION, true);
  view.setUint32(8, presence?.unit ?? 0, true);
  const flags = (presence === undefined ? 0 : CLOSED) |
    (presence?.verified === true ? VERIFIED : 0);
  view.setUint32(12, flags, true);
  const fields = [
    size,
    stamp.inode,
    stamp.length,
    stamp.blocks,
    stamp.mtimeMs,
    stamp.ctimeMs,
    bits.length,
  ];
  fields.forEach((value, i) => view.setFloat64(16 + 8 * i, value, true));
  bytes.set(bits, HEADER);
  const end = HEADER + bits.length;
  view.setUint32(end, crc32c(0, bytes.subarray(0, end)), true);
  return bytes;
}

/** The same back; undefined: these are no such bytes. */
export function parseSaved(bytes: Bytes): Saved | undefined {
  if (bytes.length < HEADER + CRC) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const end = bytes.length - CRC;
  const right = view.getUint32(0, true) === MAGIC &&
    view.getUint32(4, true) === VERSION &&
    view.getUint32(end, true) === crc32c(0, bytes.subarray(0, end));
  if (!right) return undefined;
  const field = (i: number) => view.getFloat64(16 + 8 * i, true);
  const unit = view.getUint32(8, true);
  const flags = view.getUint32(12, true);
  const size = field(0);
  if (!Number.isSafeInteger(size) || size < 0) return undefined;
  if ((flags & CLOSED) === 0) return { size, presence: undefined };
  const bits = bytes.slice(HEADER, end);
  if (Math.ceil(Math.ceil(size / unit) / 8) !== bits.length) return undefined;
  return {
    size,
    presence: {
      unit,
      verified: (flags & VERIFIED) !== 0,
      bits,
      stamp: {
        inode: field(1),
        length: field(2),
        blocks: field(3),
        mtimeMs: field(4),
        ctimeMs: field(5),
      },
    },
  };
}

/**
 * What was saved of a file; its presence only if the file is as it was.
 *
 * @param path where it was saved
 * @param file the cache file
 */
export async function loadSaved(
  disk: Disk,
  path: string,
  file: string,
): Promise<Saved | undefined> {
  try {
    const read = () => Deno.readFile(path);
    const saved = parseSaved(await disk.call(`cannot read ${path}`, read));
    if (saved?.presence === undefined) return saved;
    return sameStamp(saved.presence.stamp, await stampOf(disk, file))
      ? saved
      : { size: saved.size, presence: undefined };
  } catch {
    // None, or none that can be read: the file tells by itself.
    return undefined;
  }
}

/** Saves it, whole or not at all. */
export async function save(
  disk: Disk,
  path: string,
  saved: Saved,
): Promise<void> {
  const half = `${path}.new`;
  const fd = await disk.open(half, O.WRONLY | O.CREAT | O.TRUNC, 0o600);
  try {
    await disk.pwrite(fd, encodeSaved(saved), 0);
  } finally {
    await disk.close(fd);
  }
  await disk.rename(half, path);
}

/** Nothing is known any more. */
export async function removeSaved(disk: Disk, path: string): Promise<void> {
  try {
    await disk.remove(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
