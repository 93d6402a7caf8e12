// SPDX-License-Identifier: Apache-2.0
/**
 * Writable layers.
 *
 * @module
 */
import { check } from "./errors.ts";
import {
  handle,
  type Index,
  slot,
  type Source,
  type U64,
  u64,
  type Upper,
  view,
} from "./handle.ts";
import { BadIndexError, type BadReason, EBADMSG, readBad } from "./index.ts";
import { lib } from "./library.ts";

/** What opening a writable layer found and did. */
export interface UpperReport {
  records: number;
  /** durable marks left by FLUSH */
  marks: number;
  /** first record that was cut; undefined: none */
  cutRecord: number | undefined;
  /** bytes of a torn record at the end of the index, 0..15 */
  tornBytes: number;
  /** end of the data in bytes, a multiple of 512 */
  dataEnd: number;
  /** bytes cut off a sparse layer (a torn seal) */
  trimmed: number;
  /** why records were cut */
  reason: BadReason;
}

/**
 * Opens a writable layer whose headers are checked; takes both descriptors
 * over.  `indexFd` is -1 for a sparse one.
 *
 * @throws {BadIndexError} the layer must be rejected
 */
export async function openUpper(
  kind: "log" | "sparse",
  dataFd: number,
  indexFd: number,
  virtualSize: U64,
  readonly: boolean,
): Promise<{ upper: Upper; report: UpperReport }> {
  const raw = new Uint8Array(64);
  const out = slot();
  const rc = await lib.obd_upper_open_async(
    (kind === "sparse" ? 1 : 0) | (readonly ? 0x100 : 0),
    dataFd,
    indexFd,
    u64(virtualSize),
    raw,
    out,
  );
  const [reason, record] = readBad(raw, 48);
  if (rc === -EBADMSG) {
    throw new BadIndexError("cannot open the writable layer", reason, record);
  }
  check(rc, "cannot open the writable layer");
  const v = view(raw);
  const number = (at: number) => Number(v.getBigUint64(at, true));
  const cut = v.getBigUint64(16, true);
  return {
    upper: handle("upper", out, lib.obd_upper_unref),
    report: {
      records: number(0),
      marks: number(8),
      cutRecord: cut === 0xffff_ffff_ffff_ffffn ? undefined : Number(cut),
      tornBytes: number(24),
      dataEnd: number(32),
      trimmed: number(40),
      reason,
    },
  };
}

/** False: no device and no request uses the layer any more. */
export function upperBusy(upper: Upper): boolean {
  return lib.obd_upper_busy(upper.pointer) !== 0;
}

/** Data, mark, index on disk. */
export async function syncUpper(upper: Upper): Promise<void> {
  check(
    await lib.obd_upper_sync_async(upper.pointer),
    "cannot sync the writable layer",
  );
}

/** The live map, tag 0. */
export function snapshotUpper(upper: Upper): Index {
  const out = slot();
  check(
    lib.obd_upper_snapshot(upper.pointer, out),
    "cannot copy the writable layer's map",
  );
  return handle("index", out, lib.obd_index_unref);
}

/** The same on a blocking-call thread: long for many records. */
export async function snapshotUpperAsync(upper: Upper): Promise<Index> {
  const out = slot();
  check(
    await lib.obd_upper_snapshot_async(upper.pointer, out),
    "cannot copy the writable layer's map",
  );
  return handle("index", out, lib.obd_index_unref);
}

/** The data file, as commit and merge read it. */
export function upperSource(upper: Upper): Source {
  const out = slot();
  check(
    lib.obd_upper_source(upper.pointer, out),
    "cannot read the writable layer",
  );
  return handle("source", out, lib.obd_source_unref);
}
