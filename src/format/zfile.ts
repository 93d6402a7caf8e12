// SPDX-License-Identifier: Apache-2.0
/**
 * ZFile header and trailer as values (spec/zfile.md, section 2).
 *
 * @module
 */
import { FormatError } from "./error.ts";

/** Bytes of a ZFile header or trailer. */
export const ZFILE_BLOCK = 512;

/** Entries in a jump table at most. */
export const MAX_BLOCKS = 1_000_000_000n;

const MAGIC = Uint8Array.of(
  ...[0x5a, 0x46, 0x69, 0x6c, 0x65, 0x00, 0x01, 0x00],
  ...[0x74, 0x75, 0x6a, 0x69, 0x2e, 0x79, 0x79, 0x66],
  ...[0x40, 0x41, 0x6c, 0x69, 0x62, 0x61, 0x62, 0x61],
);
const DIGEST_AT = 28;

/** Bits of the flags word; those above are garbage in old files. */
export const ZFLAG = {
  header: 1n,
  data: 2n,
  sealed: 4n,
  headerOverwritten: 8n,
  digest: 16n,
} as const;

/** CRC-32C without inversions, as `ffi` gives it. */
export type Crc = (start: number, bytes: Uint8Array<ArrayBuffer>) => number;

/** One header or trailer. */
export interface ZfileBlock {
  digest: number;
  flags: bigint;
  /** bytes */
  indexOffset: bigint;
  /** entries of 4 bytes */
  indexSize: bigint;
  /** bytes */
  originalSize: bigint;
  indexCrc: number;
  blockSize: number;
  /** 1 LZ4, 2 ZSTD */
  algo: number;
  level: number;
  useDict: number;
  dictSize: number;
  /** 1: a crc behind every block */
  verify: number;
}

/** True when the first 24 bytes are ZFile's and it is marked as a header. */
export function isZfile(bytes: Uint8Array): boolean {
  return bytes.length >= ZFILE_BLOCK &&
    MAGIC.every((b, i) => bytes[i] === b) && ((bytes[32] ?? 0) & 1) === 1;
}

function digestOf(bytes: Uint8Array, crc: Crc): number {
  const copy = bytes.slice(0, ZFILE_BLOCK);
  copy.fill(0, DIGEST_AT, DIGEST_AT + 4);
  return crc(0, copy);
}

/** The fields; magic and, where there is one, the digest are checked. */
function parseBlock(bytes: Uint8Array, what: string, crc: Crc): ZfileBlock {
  if (bytes.length < ZFILE_BLOCK) {
    throw new FormatError(
      `${what} is short: ${bytes.length} of ${ZFILE_BLOCK} bytes`,
    );
  }
  if (!MAGIC.every((b, i) => bytes[i] === b)) {
    throw new FormatError(`${what} has no ZFile magic`);
  }
  const v = new DataView(bytes.buffer, bytes.byteOffset, ZFILE_BLOCK);
  const block: ZfileBlock = {
    digest: v.getUint32(DIGEST_AT, true),
    flags: v.getBigUint64(32, true),
    indexOffset: v.getBigUint64(40, true),
    indexSize: v.getBigUint64(48, true),
    originalSize: v.getBigUint64(56, true),
    indexCrc: v.getUint32(64, true),
    blockSize: v.getUint32(72, true),
    algo: v.getUint8(76),
    level: v.getUint8(77),
    useDict: v.getUint8(78),
    dictSize: v.getUint32(84, true),
    verify: v.getUint8(88),
  };
  if ((block.flags & ZFLAG.digest) !== 0n) {
    const got = digestOf(bytes, crc);
    if (got !== block.digest) {
      throw new FormatError(
        `${what} has digest 0x${block.digest.toString(16)}, ` +
          `its bytes give 0x${got.toString(16)}`,
      );
    }
  }
  return block;
}

/** Rules that hold for whichever block carries the final values. */
function checkFinal(block: ZfileBlock, what: string): void {
  const { blockSize, algo } = block;
  if (
    blockSize < 1 || blockSize > 65536 || (blockSize & (blockSize - 1)) !== 0
  ) {
    throw new FormatError(
      `${what} has block size ${blockSize}, not a power of two up to 65536`,
    );
  }
  if (algo !== 1 && algo !== 2) {
    throw new FormatError(
      `${what} has algorithm ${algo}, neither 1 (lz4) nor 2 (zstd)`,
    );
  }
  if (block.indexSize > MAX_BLOCKS) {
    throw new FormatError(
      `${what} counts ${block.indexSize} blocks, at most ${MAX_BLOCKS}`,
    );
  }
}

/**
 * The header of a ZFile.
 *
 * @throws {FormatError} magic, header bit, digest (section 3, rules 1 and 2);
 *   when it carries the final values: block size, algorithm, count; when a
 *   trailer does: data bit
 */
export function parseZfileHeader(bytes: Uint8Array, crc: Crc): ZfileBlock {
  const what = "the ZFile header";
  const block = parseBlock(bytes, what, crc);
  if ((block.flags & ZFLAG.header) === 0n) {
    throw new FormatError(`${what} is marked as a trailer`);
  }
  if ((block.flags & ZFLAG.headerOverwritten) !== 0n) {
    checkFinal(block, what);
  } else if ((block.flags & ZFLAG.data) === 0n) {
    throw new FormatError(`${what} is not marked as data`);
  }
  return block;
}

/**
 * The trailer of a ZFile.
 *
 * @param size of the ZFile in bytes
 * @throws {FormatError} section 3, rules 3 and 4; its digest is checked too
 *   where it has one
 */
export function parseZfileTrailer(
  bytes: Uint8Array,
  size: number,
  crc: Crc,
): ZfileBlock {
  const what = "the ZFile trailer";
  const block = parseBlock(bytes, what, crc);
  const { flags } = block;
  if ((flags & ZFLAG.header) !== 0n) {
    throw new FormatError(`${what} is marked as a header`);
  }
  if ((flags & ZFLAG.data) === 0n) {
    throw new FormatError(`${what} is not marked as data`);
  }
  if ((flags & ZFLAG.sealed) === 0n) {
    throw new FormatError(`${what} is not marked sealed`);
  }
  checkFinal(block, what);
  checkIndexRange(block, size - ZFILE_BLOCK);
  return block;
}

/**
 * The jump table lies between the header and `end`.
 *
 * @throws {FormatError} it does not
 */
export function checkIndexRange(block: ZfileBlock, end: number): void {
  const { indexOffset, indexSize } = block;
  if (indexOffset < BigInt(ZFILE_BLOCK) || indexOffset > BigInt(end)) {
    throw new FormatError(
      `the jump table begins at ${indexOffset}, not in ${ZFILE_BLOCK}..${end}`,
    );
  }
  const last = indexOffset + 4n * indexSize;
  if (last > BigInt(end)) {
    throw new FormatError(`the jump table ends at ${last}, past ${end}`);
  }
}

/** A header or trailer as 512 bytes, with its digest. */
export function encodeZfileBlock(
  block: Omit<ZfileBlock, "digest">,
  crc: Crc,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(ZFILE_BLOCK);
  bytes.set(MAGIC);
  const v = new DataView(bytes.buffer);
  v.setUint32(24, 96, true);
  v.setBigUint64(32, block.flags, true);
  v.setBigUint64(40, block.indexOffset, true);
  v.setBigUint64(48, block.indexSize, true);
  v.setBigUint64(56, block.originalSize, true);
  v.setUint32(64, block.indexCrc, true);
  v.setUint32(72, block.blockSize, true);
  v.setUint8(76, block.algo);
  v.setUint8(77, block.level);
  v.setUint8(78, block.useDict);
  v.setUint32(84, block.dictSize, true);
  v.setUint8(88, block.verify);
  v.setUint32(DIGEST_AT, digestOf(bytes, crc), true);
  return bytes;
}
