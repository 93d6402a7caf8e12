// SPDX-License-Identifier: Apache-2.0
/**
 * Which layer of an image serves which range.
 *
 * @module
 */
import type { Index } from "../../ffi/handle.ts";
import { indexCount, indexRecords, mergeIndexes } from "../../ffi/index.ts";
import { snapshotUpper } from "../../ffi/upper.ts";
import { parseRecords } from "../format/lsmt.ts";
import type { OpenStack } from "./image.ts";

/** A run of the disk and what serves it; all numbers are bytes. */
export interface MapEntry {
  offset: bigint;
  length: bigint;
  /** position in `lowers`, `"upper"`, or null: no layer, reads as zeros */
  layer: number | "upper" | null;
  kind: "data" | "zero" | "hole";
  /** offset in the layer's LSMT bytes; null unless `kind` is data */
  at: bigint | null;
}

/** Records fetched from C at a time. */
const BATCH = 4096;

/** One index over everything, and what its tags stand for. */
export function wholeIndex(
  stack: OpenStack,
): { index: Index; layers: (number | "upper")[] } {
  const layers: (number | "upper")[] = stack.lowers.map((_, i) => i).reverse();
  const indexes = stack.lowers.map((layer) => layer.index).reverse();
  if (stack.upper === undefined) {
    return { index: mergeIndexes(indexes), layers };
  }
  using upper = snapshotUpper(stack.upper.upper);
  return {
    index: mergeIndexes([upper, ...indexes]),
    layers: ["upper", ...layers],
  };
}

const SECTOR = 512n;

function hole(from: bigint, to: bigint): MapEntry {
  return {
    offset: from,
    length: to - from,
    layer: null,
    kind: "hole",
    at: null,
  };
}

/** True when `next` only continues `run`, in the disk and in the layer. */
function continues(run: MapEntry, next: MapEntry): boolean {
  return run.layer === next.layer && run.kind === next.kind &&
    run.offset + run.length === next.offset &&
    (run.at === null || run.at + run.length === next.at);
}

/** The mapped runs in order, cut to the disk, one a record. */
function* mappedRuns(stack: OpenStack): Generator<MapEntry> {
  const { index, layers } = wholeIndex(stack);
  using _ = index;
  const end = stack.virtualSize;
  const count = indexCount(index);
  for (let first = 0; first < count; first += BATCH) {
    for (const record of parseRecords(indexRecords(index, first, BATCH))) {
      const offset = BigInt(record.offset) * SECTOR;
      if (offset >= end) return;
      const length = BigInt(record.length) * SECTOR;
      yield {
        offset,
        length: offset + length > end ? end - offset : length,
        layer: layers[record.tag] ?? null,
        kind: record.zeroed ? "zero" : "data",
        at: record.zeroed ? null : BigInt(record.moffset) * SECTOR,
      };
    }
  }
}

/**
 * The whole disk as runs, in order, without gaps.  Neighbouring records that
 * continue each other in the same layer are one run.
 */
export function* mapStack(stack: OpenStack): Generator<MapEntry> {
  let run: MapEntry | undefined;
  for (const next of mappedRuns(stack)) {
    if (run !== undefined && continues(run, next)) {
      run.length += next.length;
      continue;
    }
    const from: bigint = run === undefined ? 0n : run.offset + run.length;
    if (run !== undefined) yield run;
    if (next.offset > from) yield hole(from, next.offset);
    run = next;
  }
  if (run !== undefined) yield run;
  const tail = run === undefined ? 0n : run.offset + run.length;
  if (tail < stack.virtualSize) yield hole(tail, stack.virtualSize);
}
