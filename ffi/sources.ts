// SPDX-License-Identifier: Apache-2.0
/**
 * What layers are read from: files and ZFiles.
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
  view,
} from "./handle.ts";
import { lib } from "./library.ts";

/** OBD_ALGO_*: ZFile's algorithm numbers. */
export const ALGO = { lz4: 1, zstd: 2 } as const;

/** Bytes [base, base + size) of an open file; takes the descriptor over. */
export function fileSource(fd: number, base: U64, size: U64): Source {
  const out = slot();
  check(
    lib.obd_source_file(fd, u64(base), u64(size), out),
    "cannot read a file",
  );
  return handle("source", out, lib.obd_source_unref);
}

/**
 * Reads past the page cache, through `fd`: the same file with O_DIRECT.
 *
 * @throws {EngineError} EOPNOTSUPP its file system refuses that; `fd` is
 *   still the caller's
 */
export function directSource(file: Source, fd: number): void {
  check(lib.obd_source_direct(file.pointer, fd), "cannot read past the cache");
}

/** Reads by io_uring where a worker would have to wait for the disk. */
export function uringSource(file: Source): void {
  check(lib.obd_source_uring(file.pointer), "cannot read by io_uring");
}

/** `struct obd_zfile_info`, from a parsed ZFile header or trailer. */
export interface ZfileInfo {
  indexOffset: U64;
  blocks: U64;
  originalSize: U64;
  blockSize: number;
  algo: number;
  verify: boolean;
  /** undefined: the jump table carries no checksum */
  indexCrc: number | undefined;
  dictSize: number;
}

/**
 * The decompressed bytes of a ZFile.  Reads and checks the jump table.
 *
 * @throws {EngineError} EINVAL field out of bounds, ERANGE table outside the
 *   file, EBADMSG index crc, EPROTO entry too small or past the table,
 *   EUCLEAN blocks disagree with the original size
 */
export async function zfileSource(
  inner: Source,
  info: ZfileInfo,
): Promise<Source> {
  const raw = new Uint8Array(48);
  const v = view(raw);
  v.setBigUint64(0, u64(info.indexOffset), true);
  v.setBigUint64(8, u64(info.blocks), true);
  v.setBigUint64(16, u64(info.originalSize), true);
  v.setUint32(24, info.blockSize, true);
  v.setUint32(28, info.algo, true);
  v.setUint32(32, info.verify ? 1 : 0, true);
  v.setUint32(36, info.indexCrc ?? 0, true);
  v.setUint32(40, info.indexCrc === undefined ? 0 : 1, true);
  v.setUint32(44, info.dictSize, true);
  const out = slot();
  check(
    await lib.obd_source_zfile_async(inner.pointer, raw, out),
    "cannot open a ZFile",
  );
  return handle("source", out, lib.obd_source_unref);
}

export function sourceSize(source: Source): number {
  return Number(lib.obd_source_size(source.pointer));
}

/**
 * Reads at `at` of what the source shows; fewer bytes than asked only at its
 * end.
 *
 * @throws {EngineError} EUCLEAN for a damaged block, EIO for a short file
 */
export function readSource(source: Source, into: Bytes, at: U64): number {
  return check(
    lib.obd_source_pread(
      source.pointer,
      into,
      BigInt(into.byteLength),
      u64(at),
    ),
    `cannot read ${into.byteLength} bytes at ${at}`,
  );
}

/** Where a ZFile's block is stored: offset and length, crc included. */
export function zfileBlock(
  zfile: Source,
  block: U64,
): { at: number; length: number } {
  const at = slot();
  const length = new Uint32Array(1);
  check(
    lib.obd_source_block(zfile.pointer, u64(block), at, length),
    `cannot find block ${block}`,
  );
  return { at: Number(at[0]), length: length[0] ?? 0 };
}
