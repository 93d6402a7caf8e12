// SPDX-License-Identifier: Apache-2.0
/**
 * Indexes of layers: loaded, merged, looked up.
 *
 * @module
 */
import { check, EngineError } from "./errors.ts";
import {
  type Bytes,
  handle,
  type Index,
  pointers,
  slot,
  type Source,
  type U64,
  u64,
  view,
} from "./handle.ts";
import { lib } from "./library.ts";

/** Why an index was rejected, `OBD_BAD_*`. */
export type BadReason =
  | "none"
  | "order"
  | "low"
  | "high"
  | "count"
  | "short"
  | "hole"
  | "address";
const BAD: readonly BadReason[] = [
  "none",
  "order",
  "low",
  "high",
  "count",
  "short",
  "hole",
  "address",
];

/** Thrown when an index breaks a rule of spec/lsmt.md, section 8. */
export class BadIndexError extends EngineError {
  readonly reason: BadReason;
  /** number of the record in the file, from 0 */
  readonly record: number;

  constructor(what: string, reason: BadReason, record: number) {
    super(EBADMSG, what);
    this.reason = reason;
    this.record = record;
    this.message = `${what}: record ${record}: ${reason}`;
  }
}
export const EBADMSG = 74;

export function readBad(raw: Bytes, at: number): [BadReason, number] {
  const v = view(raw);
  const record = Number(v.getBigUint64(at, true));
  return [BAD[v.getUint32(at + 8, true)] ?? "none", record];
}

/** Bytes of one index record. */
export const RECORD_SIZE = 16;

/** @throws {BadIndexError} which rule does not hold, for which record */
export async function loadIndex(
  source: Source,
  at: U64,
  count: U64,
  endSector: U64,
): Promise<Index> {
  const bad = new Uint8Array(16);
  const out = slot();
  const rc = await lib.obd_index_load_async(
    source.pointer,
    u64(at),
    u64(count),
    u64(endSector),
    bad,
    out,
  );
  if (rc === -EBADMSG) {
    throw new BadIndexError("cannot load the index", ...readBad(bad, 0));
  }
  check(rc, "cannot load the index");
  return handle("index", out, lib.obd_index_unref);
}

/** From sorted, disjoint records of 16 bytes each. */
export function newIndex(records: Bytes): Index {
  const out = slot();
  const count = BigInt(records.byteLength / RECORD_SIZE);
  check(lib.obd_index_new(records, count, out), "cannot make an index");
  return handle("index", out, lib.obd_index_unref);
}

/** Topmost first; the result's tag is the position in `layers`. */
export function mergeIndexes(layers: readonly Index[]): Index {
  const out = slot();
  check(
    lib.obd_index_merge(pointers(layers), layers.length, out),
    `cannot merge ${layers.length} indexes`,
  );
  return handle("index", out, lib.obd_index_unref);
}

/** The same on a blocking-call thread: long for many records. */
export async function mergeIndexesAsync(
  layers: readonly Index[],
): Promise<Index> {
  const out = slot();
  check(
    await lib.obd_index_merge_async(pointers(layers), layers.length, out),
    `cannot merge ${layers.length} indexes`,
  );
  return handle("index", out, lib.obd_index_unref);
}

export function indexCount(index: Index): number {
  return Number(lib.obd_index_count(index.pointer));
}

/** Records [first, first + max) as 16 on-disk bytes each. */
export function indexRecords(index: Index, first: number, max: number): Bytes {
  const raw = new Uint8Array(max * RECORD_SIZE);
  const got = check(
    lib.obd_index_records(index.pointer, BigInt(first), BigInt(max), raw),
    "cannot list records",
  );
  return raw.subarray(0, got * RECORD_SIZE);
}

/** The pieces of [lba, lba + sectors), cut to it, at most `max`. */
export function lookup(
  index: Index,
  lba: U64,
  sectors: U64,
  max: number,
): Bytes {
  const raw = new Uint8Array(max * RECORD_SIZE);
  const got = check(
    lib.obd_index_lookup(index.pointer, u64(lba), u64(sectors), raw, max),
    "cannot look up",
  );
  return raw.subarray(0, got * RECORD_SIZE);
}

/** Sum over n look-ups, for the bench. */
export function lookupMany(
  index: Index,
  lbas: BigUint64Array<ArrayBuffer>,
  sectors: number,
): bigint {
  return lib.obd_index_lookup_many(
    index.pointer,
    lbas,
    BigInt(lbas.length),
    sectors,
  );
}
