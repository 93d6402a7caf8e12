// SPDX-License-Identifier: Apache-2.0
/**
 * Closes gaps between a layer's records with the data below them, so that
 * records fold and the index becomes small enough for readers
 * (spec/defects.md, 4).
 *
 * @module
 */
import { closeFd, O, openFd } from "../../ffi/files.ts";
import type { Index, Source } from "../../ffi/handle.ts";
import {
  indexCount,
  indexRecords,
  mergeIndexes,
  newIndex,
} from "../../ffi/index.ts";
import { fileSource } from "../../ffi/sources.ts";
import { type LsmtRecord, MAX_RECORDS, parseRecords } from "../format/lsmt.ts";

/** A layer below the one that is committed. */
export interface FillLayer {
  index: Index;
  source: Source;
}

/** A layer with its gaps closed: an index over several sources. */
export interface Filled extends Disposable {
  index: Index;
  sources: readonly Source[];
}

/** Longest record: 2^14 - 1 sectors. */
const MAX_LENGTH = 16383;
const BATCH = 65536;
/** Where records mapped to zeros begin: any place past a header will do. */
const ZEROS_AT = 8;

/** A stretch of sectors. */
interface Range {
  offset: number;
  length: number;
}

/** What lies between two pieces of data, to be data, too, when closed. */
interface Gap extends Range {
  /** records that it would save */
  saves: number;
  /** the parts of it that the layer itself zeroes */
  zeroed: Range[];
}

function endOf(range: Range | undefined): number {
  return range === undefined ? Infinity : range.offset + range.length;
}

/** All records of an index, in order. */
function* recordsOf(index: Index): Generator<LsmtRecord> {
  const count = indexCount(index);
  for (let first = 0; first < count; first += BATCH) {
    yield* parseRecords(indexRecords(index, first, BATCH));
  }
}

/** What separates the data of a layer, in order: unmapped, or zeroed. */
function gapsOf(index: Index): Gap[] {
  const gaps: Gap[] = [];
  let end: number | undefined;
  let zeroed: Range[] = [];
  for (const { offset, length, zeroed: isZero } of recordsOf(index)) {
    if (isZero) {
      zeroed.push({ offset, length });
      continue;
    }
    if (end !== undefined && offset > end) {
      const saves = 1 + zeroed.length;
      gaps.push({ offset: end, length: offset - end, saves, zeroed });
    }
    end = offset + length;
    zeroed = [];
  }
  return gaps;
}

/** The shortest gaps for what they save, as many as must go, in order. */
function gapsToClose(gaps: readonly Gap[], records: number): Gap[] {
  // Half the limit leaves room for records that do not fold.
  let excess = records - MAX_RECORDS / 2;
  const cost = (gap: Gap) => gap.length / gap.saves;
  const chosen: Gap[] = [];
  for (const gap of gaps.toSorted((a, b) => cost(a) - cost(b))) {
    if (excess <= 0) break;
    chosen.push(gap);
    excess -= gap.saves;
  }
  return chosen.sort((a, b) => a.offset - b.offset);
}

/** Collects index records. */
function recordList() {
  const words: bigint[] = [];
  return {
    add: (offset: number, length: number, at: number) => {
      words.push(BigInt(offset) | BigInt(length) << 50n, BigInt(at));
    },
    index: () => newIndex(new Uint8Array(BigUint64Array.from(words).buffer)),
  };
}

/** An index that maps ranges to zeros, as data: what is zeroed cannot fold. */
function zeroIndex(ranges: Iterable<Range>): Index {
  const list = recordList();
  for (const { offset, length } of ranges) {
    for (let done = 0; done < length; done += MAX_LENGTH) {
      list.add(offset + done, Math.min(MAX_LENGTH, length - done), ZEROS_AT);
    }
  }
  return list.index();
}

/**
 * What lower layers hold as data in the gaps, as one index a layer: `count`
 * of them, in the order of the merged index's tags.
 */
function lowerIndexes(
  merged: Index,
  count: number,
  gaps: readonly Gap[],
): Index[] {
  const lists = Array.from({ length: count }, recordList);
  let first = 0;
  for (const record of recordsOf(merged)) {
    while (endOf(gaps[first]) <= record.offset) first++;
    if (record.zeroed) continue;
    for (const gap of gaps.slice(first, gapAfter(gaps, first, endOf(record)))) {
      const from = Math.max(gap.offset, record.offset);
      const to = Math.min(endOf(gap), endOf(record));
      const at = record.moffset + from - record.offset;
      lists[record.tag]?.add(from, to - from, at);
    }
  }
  return lists.map((list) => list.index());
}

/** Number of the first gap from `first` on that begins at `end` or later. */
function gapAfter(gaps: readonly Gap[], first: number, end: number): number {
  let i = first;
  while ((gaps[i]?.offset ?? Infinity) < end) i++;
  return i;
}

/** Zeros, as many as the longest record wants. */
function zeroSource(): Source {
  const fd = openFd("/dev/zero", O.RDONLY);
  try {
    return fileSource(fd, 0, (MAX_LENGTH + ZEROS_AT) * 512);
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

/**
 * Maps the shortest gaps between a layer's pieces of data to the data that
 * lower layers have there, and to zeros where they have none, so that what
 * was apart can fold.  Gaps that the layer itself zeroes become zeros.
 *
 * @param lowers bottom first
 * @returns an index whose tags count `sources`
 */
export function fillGaps(
  index: Index,
  source: Source,
  lowers: readonly FillLayer[],
): Filled {
  const gaps = gapsToClose(gapsOf(index), indexCount(index));
  const topFirst = lowers.toReversed();
  const own: Index[] = [zeroIndex(gaps.flatMap((gap) => gap.zeroed))];
  try {
    if (topFirst.length > 0) {
      using below = mergeIndexes(topFirst.map((layer) => layer.index));
      own.push(...lowerIndexes(below, topFirst.length, gaps));
    }
    own.push(zeroIndex(gaps));
    const [zeroed, ...below] = own;
    const merged = mergeIndexes(
      zeroed === undefined ? [index] : [zeroed, index, ...below],
    );
    const zeros = zeroSource();
    return {
      index: merged,
      sources: [zeros, source, ...topFirst.map((l) => l.source), zeros],
      [Symbol.dispose]: () => {
        merged.close();
        zeros.close();
      },
    };
  } finally {
    for (const one of own) one.close();
  }
}
