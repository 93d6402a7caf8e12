// SPDX-License-Identifier: Apache-2.0
/**
 * LSMT header, trailer and index records as values (spec/lsmt.md, sections 2
 * and 3).  Pure: bytes in, values out, and back.
 *
 * @module
 */
import { FormatError } from "./error.ts";
import { NIL_UUID } from "./uuid.ts";

/** Bytes of a header or trailer block. */
export const BLOCK_SIZE = 4096;

/** Bytes of one index record. */
export const RECORD_SIZE = 16;

/** Bytes of a user tag at most. */
export const MAX_TAG = 256;

/** Records in the index of a read-only layer at most, padding included. */
export const MAX_RECORDS = 1_000_000;

/** `lba` of a record that every reader drops. */
export const INVALID_LBA = 2 ** 50 - 1;

/** Bytes of a disk at most: the last sector's number is below INVALID_LBA. */
export const MAX_VIRTUAL_SIZE = BigInt(INVALID_LBA) * 512n;

const MAGIC = Uint8Array.of(
  ...[0x4c, 0x53, 0x4d, 0x54, 0x00, 0x01, 0x02, 0x00],
  ...[0x65, 0x7e, 0x63, 0xd2, 0x94, 0x44, 0x08, 0x4c],
  ...[0xa2, 0xd2, 0xc8, 0xec, 0x4f, 0xcf, 0xae, 0x8a],
);
/** Bytes of a block that have a meaning. */
export const USED_SIZE = 390;
const UUID_AT = 56;
const PARENT_AT = 93;
const UUID_FIELD = 37;
const TAG_AT = 134;

/** Bits of the flags word; the others are ignored on read, 0 on write. */
export const FLAG = {
  header: 1,
  data: 2,
  sealed: 4,
  sparse: 16,
} as const;

/** Flag words that writers use. */
export const FLAGS = {
  logData: 0x03,
  sparseData: 0x13,
  index: 0x01,
  committedHeader: 0x07,
  trailer: 0x06,
  sparseTrailer: 0x16,
} as const;

/** One header or trailer block. */
export interface LsmtBlock {
  flags: number;
  /** bytes */
  indexOffset: bigint;
  /** records of 16 bytes, padding included */
  indexSize: bigint;
  /** bytes */
  virtualSize: bigint;
  /** as it stands in the file, without the NUL */
  uuid: string;
  parentUuid: string;
  /** without trailing zeros */
  userTag: Uint8Array;
}

/** What a writer of a block says; the rest is zero. */
export interface NewLsmtBlock {
  flags: number;
  indexOffset?: number | bigint;
  indexSize?: number | bigint;
  virtualSize?: number | bigint;
  uuid?: string;
  parentUuid?: string;
  userTag?: Uint8Array;
}

/** One index record; sectors of 512 bytes. */
export interface LsmtRecord {
  /** logical sector, 0..2^50-1 */
  offset: number;
  /** 0..16383 */
  length: number;
  /** sector in the mapped file, 0..2^55-1 (exact up to 2^53) */
  moffset: number;
  zeroed: boolean;
  tag: number;
}

/** True when the first 24 bytes are LSMT's. */
export function isLsmt(bytes: Uint8Array): boolean {
  return bytes.length >= MAGIC.length && MAGIC.every((b, i) => bytes[i] === b);
}

function text(bytes: Uint8Array): string {
  const nul = bytes.indexOf(0);
  return new TextDecoder("latin1").decode(
    nul < 0 ? bytes : bytes.subarray(0, nul),
  );
}

/** Reads the fields of a block whose magic is right. */
function parseBlock(bytes: Uint8Array, what: string): LsmtBlock {
  if (bytes.length < BLOCK_SIZE) {
    throw new FormatError(
      `${what} is short: ${bytes.length} of ${BLOCK_SIZE} bytes`,
    );
  }
  if (!isLsmt(bytes)) throw new FormatError(`${what} has no LSMT magic`);
  const v = new DataView(bytes.buffer, bytes.byteOffset, BLOCK_SIZE);
  const tag = bytes.subarray(TAG_AT, TAG_AT + MAX_TAG);
  const used = tag.findLastIndex((b) => b !== 0) + 1;
  return {
    flags: v.getUint32(28, true),
    indexOffset: v.getBigUint64(32, true),
    indexSize: v.getBigUint64(40, true),
    virtualSize: v.getBigUint64(48, true),
    uuid: text(bytes.subarray(UUID_AT, UUID_AT + UUID_FIELD)),
    parentUuid: text(bytes.subarray(PARENT_AT, PARENT_AT + UUID_FIELD)),
    userTag: tag.slice(0, used),
  };
}

function demand(holds: boolean, what: string): void {
  if (!holds) throw new FormatError(what);
}

/**
 * A disk's size fits the index's sector numbers.
 *
 * @throws {FormatError} it does not
 */
export function checkVirtualSize(block: LsmtBlock): void {
  demand(
    block.virtualSize <= MAX_VIRTUAL_SIZE,
    `the virtual size is ${block.virtualSize}, at most ${MAX_VIRTUAL_SIZE}`,
  );
}

/**
 * The header of a committed or sealed layer, or of a writable data file.
 *
 * @throws {FormatError} magic, header bit or data bit (section 8, rule 1)
 */
export function parseLsmtHeader(bytes: Uint8Array): LsmtBlock {
  const block = parseBlock(bytes, "the header");
  demand(
    (block.flags & FLAG.header) !== 0,
    "the header is marked as a trailer",
  );
  demand(
    (block.flags & FLAG.data) !== 0,
    "the header is that of an index file, not of a layer",
  );
  return block;
}

/**
 * The trailer of a committed or sealed layer, bounds checked.
 *
 * @param size of the layer in bytes, out of tar and ZFile
 * @throws {FormatError} section 8, rules 2 to 4, or an impossible size
 */
export function parseLsmtTrailer(bytes: Uint8Array, size: number): LsmtBlock {
  const block = parseBlock(bytes, "the trailer");
  demand(
    (block.flags & FLAG.header) === 0,
    "the trailer is marked as a header",
  );
  demand((block.flags & FLAG.data) !== 0, "the trailer is not marked as data");
  demand((block.flags & FLAG.sealed) !== 0, "the trailer is not marked sealed");
  const trailerAt = BigInt(size - BLOCK_SIZE);
  demand(
    block.indexSize <= BigInt(MAX_RECORDS),
    `the index has ${block.indexSize} records, at most ${MAX_RECORDS}`,
  );
  demand(
    block.indexOffset >= BigInt(BLOCK_SIZE),
    `the index begins at ${block.indexOffset}, inside the header`,
  );
  demand(
    block.indexOffset <= trailerAt,
    `the index begins at ${block.indexOffset}, past the trailer at ${trailerAt}`,
  );
  const end = block.indexOffset + block.indexSize * BigInt(RECORD_SIZE);
  demand(
    end <= trailerAt,
    `the index ends at ${end}, past the trailer at ${trailerAt}`,
  );
  checkVirtualSize(block);
  return block;
}

/**
 * The header of a writable layer's index file.
 *
 * @throws {FormatError} section 5, "Opening"
 */
export function parseIndexHeader(bytes: Uint8Array): LsmtBlock {
  const block = parseBlock(bytes, "the index header");
  demand(
    (block.flags & FLAG.header) !== 0,
    "the index header is marked as a trailer",
  );
  demand(
    (block.flags & FLAG.data) === 0,
    "the index header is that of a data file",
  );
  demand(
    (block.flags & FLAG.sealed) === 0,
    "the index header is marked sealed",
  );
  demand(
    block.indexOffset === BigInt(BLOCK_SIZE),
    `the index begins at ${block.indexOffset}, not at ${BLOCK_SIZE}`,
  );
  checkVirtualSize(block);
  return block;
}

/**
 * A block as 4096 bytes.  Uuids must be valid; "" stands for the nil one.
 *
 * @throws {RangeError} the user tag is longer than 256 bytes
 */
export function encodeLsmtBlock(block: NewLsmtBlock): Uint8Array<ArrayBuffer> {
  const tag = block.userTag ?? new Uint8Array(0);
  if (tag.length > MAX_TAG) {
    throw new RangeError(
      `cannot store a user tag of ${tag.length} bytes: at most ${MAX_TAG}`,
    );
  }
  const bytes = new Uint8Array(BLOCK_SIZE);
  bytes.set(MAGIC);
  const v = new DataView(bytes.buffer);
  v.setUint32(24, USED_SIZE, true);
  v.setUint32(28, block.flags, true);
  v.setBigUint64(32, BigInt(block.indexOffset ?? 0), true);
  v.setBigUint64(40, BigInt(block.indexSize ?? 0), true);
  v.setBigUint64(48, BigInt(block.virtualSize ?? 0), true);
  const encoder = new TextEncoder();
  encoder.encodeInto(
    block.uuid || NIL_UUID,
    bytes.subarray(UUID_AT, UUID_AT + UUID_FIELD),
  );
  encoder.encodeInto(
    block.parentUuid || NIL_UUID,
    bytes.subarray(PARENT_AT, PARENT_AT + UUID_FIELD),
  );
  bytes[132] = 1;
  bytes[133] = 1;
  bytes.set(tag, TAG_AT);
  return bytes;
}

/** Records of 16 bytes each, in order; a rest of under 16 is left out. */
export function* parseRecords(bytes: Uint8Array): Generator<LsmtRecord> {
  const v = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at + RECORD_SIZE <= bytes.length; at += RECORD_SIZE) {
    const w0 = v.getBigUint64(at, true);
    const w1 = v.getBigUint64(at + 8, true);
    yield {
      offset: Number(w0 & (1n << 50n) - 1n),
      length: Number(w0 >> 50n),
      moffset: Number(w1 & (1n << 55n) - 1n),
      zeroed: (w1 >> 55n & 1n) === 1n,
      tag: Number(w1 >> 56n),
    };
  }
}
