// SPDX-License-Identifier: Apache-2.0
/**
 * The trace of a container's start: which bytes of which layer were read, in
 * order (spec/image.md, section 5.2).
 *
 * @module
 */
import { FormatError } from "./error.ts";
import type { Crc } from "./zfile.ts";

/** Bytes of the header, and of each record. */
export const TRACE_BLOCK = 24;

/** The original reads a record into a buffer of this size, unchecked. */
export const TRACE_COUNT_MAX = 1 << 20;

/** CRC-32 of "Container Image Trace Format". */
const MAGIC = 0xc2ef1820;

const READ = 0x52;
const WRITE = 0x57;

/** One read or write of a layer. */
export interface TraceRecord {
  op: "read" | "write";
  /** 0 = bottom */
  layer: number;
  /** bytes, in the layer as it is decompressed; may be negative */
  offset: number;
  /** bytes */
  count: number;
}

function fieldsOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** True when a file that begins like this is a trace, sound or not. */
export function isTrace(head: Uint8Array): boolean {
  return head.length >= 4 && fieldsOf(head).getUint32(0, true) === MAGIC;
}

/**
 * Reads a whole trace file.  Records that are neither reads nor writes are
 * left out.  Numbers past 2^53 lose their last bits: no layer is that long.
 *
 * @throws {FormatError} which rule does not hold
 */
export function parseTrace(
  file: Uint8Array<ArrayBuffer>,
  crc: Crc,
): TraceRecord[] {
  if (!isTrace(file)) throw new FormatError("a trace's magic is missing");
  if (file.length < TRACE_BLOCK) {
    throw new FormatError(`the trace ends inside its header`);
  }
  const v = fieldsOf(file);
  const size = v.getBigUint64(8, true);
  if (BigInt(file.length - TRACE_BLOCK) !== size) {
    throw new FormatError(
      `the trace has ${file.length - TRACE_BLOCK} bytes of records, ` +
        `its header says ${size}`,
    );
  }
  if (file.length % TRACE_BLOCK !== 0) {
    throw new FormatError("the trace ends inside a record");
  }
  const sum = crc(0, file.subarray(TRACE_BLOCK));
  if (sum !== v.getUint32(16, true)) {
    throw new FormatError("the trace does not match its checksum");
  }
  const records: TraceRecord[] = [];
  for (let at = TRACE_BLOCK; at < file.length; at += TRACE_BLOCK) {
    const op = v.getUint8(at);
    if (op !== READ && op !== WRITE) continue;
    records.push({
      op: op === READ ? "read" : "write",
      layer: v.getUint32(at + 4, true),
      count: Number(v.getBigUint64(at + 8, true)),
      offset: Number(v.getBigInt64(at + 16, true)),
    });
  }
  return records;
}

/** The header over records that are encoded already. */
export function encodeTraceHeader(
  dataSize: number,
  checksum: number,
): Uint8Array<ArrayBuffer> {
  const raw = new Uint8Array(TRACE_BLOCK);
  const v = fieldsOf(raw);
  v.setUint32(0, MAGIC, true);
  v.setBigUint64(8, BigInt(dataSize), true);
  v.setUint32(16, checksum, true);
  return raw;
}

/** Cuts records to what the original can take. */
function* cut(records: Iterable<TraceRecord>): Generator<TraceRecord> {
  for (const record of records) {
    for (let done = 0; done < record.count; done += TRACE_COUNT_MAX) {
      yield {
        ...record,
        offset: record.offset + done,
        count: Math.min(TRACE_COUNT_MAX, record.count - done),
      };
    }
  }
}

/** Records as bytes, padding zero; none covers more than 1 MiB. */
export function encodeTraceRecords(
  records: Iterable<TraceRecord>,
): Uint8Array<ArrayBuffer> {
  const list = [...cut(records)];
  const raw = new Uint8Array(list.length * TRACE_BLOCK);
  const v = fieldsOf(raw);
  let at = 0;
  for (const { op, layer, count, offset } of list) {
    v.setUint8(at, op === "read" ? READ : WRITE);
    v.setUint32(at + 4, layer, true);
    v.setBigUint64(at + 8, BigInt(count), true);
    v.setBigInt64(at + 16, BigInt(offset), true);
    at += TRACE_BLOCK;
  }
  return raw;
}
