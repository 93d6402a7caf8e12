// SPDX-License-Identifier: Apache-2.0
/**
 * Writes layers by hand from spec/lsmt.md, right or wrong on purpose, for
 * tests of what readers take and refuse.
 *
 * @module
 */

const BLOCK = 4096;
const SECTOR = 512;
const MAGIC = "4c534d5400010200657e63d29444084ca2d2c8ec4fcfae8a";
const NIL = "00000000-0000-0000-0000-000000000000";

/** Fields of a header or trailer. */
export interface BlockFields {
  flags: number;
  indexOffset?: number;
  records?: number;
  virtualSize: number;
}

/** A 4096-byte header or trailer. */
export function encodeBlock(fields: BlockFields): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(BLOCK);
  const v = new DataView(out.buffer);
  out.set(Uint8Array.fromHex(MAGIC));
  v.setUint32(24, 390, true);
  v.setUint32(28, fields.flags, true);
  v.setBigUint64(32, BigInt(fields.indexOffset ?? 0), true);
  v.setBigUint64(40, BigInt(fields.records ?? 0), true);
  v.setBigUint64(48, BigInt(fields.virtualSize), true);
  const nil = new TextEncoder().encode(NIL);
  out.set(nil, 56);
  out.set(nil, 93);
  out.set([1, 1], 132);
  return out;
}

/** One record, in sectors. */
export interface Record {
  lba: number;
  length: number;
  at: number;
  zeroed?: boolean;
  tag?: number;
}

/** Records as they are on disk, 16 bytes each. */
export function encodeRecords(
  records: readonly Record[],
): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(16 * records.length);
  const v = new DataView(out.buffer);
  records.forEach(({ lba, length, at, zeroed, tag }, i) => {
    v.setBigUint64(16 * i, BigInt(lba) | BigInt(length) << 50n, true);
    v.setBigUint64(
      16 * i + 8,
      BigInt(at) | (zeroed === true ? 1n << 55n : 0n) | BigInt(tag ?? 0) << 56n,
      true,
    );
  });
  return out;
}

/** A committed layer; `trailer` overrides what its last block says. */
export function encodeLayer(
  virtualSize: number,
  records: readonly Record[],
  data: Uint8Array,
  trailer: Partial<BlockFields> = {},
): Uint8Array<ArrayBuffer> {
  const index = encodeRecords(records);
  const indexOffset = BLOCK + data.length;
  const out = new Uint8Array(indexOffset + index.length + BLOCK);
  out.set(encodeBlock({ flags: 7, virtualSize }));
  out.set(data, BLOCK);
  out.set(index, indexOffset);
  out.set(
    encodeBlock({
      flags: 6,
      indexOffset,
      records: records.length,
      virtualSize,
      ...trailer,
    }),
    indexOffset + index.length,
  );
  return out;
}

/** A layer that maps all of a disk to the given bytes. */
export function encodeFullLayer(data: Uint8Array): Uint8Array<ArrayBuffer> {
  const length = data.length / SECTOR;
  return encodeLayer(data.length, [{ lba: 0, length, at: 8 }], data);
}
