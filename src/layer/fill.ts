// SPDX-License-Identifier: Apache-2.0
/**
 * Closes gaps between a layer's records with the data below them, so that
 * records fold and the index becomes small enough for readers
 * (spec/defects.md, 4).
 *
 * @module
 */
import {
  fileSource,
  type Index,
  indexCount,
  indexRecords,
  mergeIndexes,
  newIndex,
  O,
  openFd,
  RECORD_SIZE,
  type Source,
  truncateFd,
} from "../../ffi/engine.ts";
import { MAX_RECORDS, parseRecords } from "../format/lsmt.ts";

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

interface Gap {
  offset: number;
  length: number;
}

/** The unmapped stretches between records, in order. */
function gapsOf(index: Index): Gap[] {
  const gaps: Gap[] = [];
  let end: number | undefined;
  for (let first = 0; first < indexCount(index); first += BATCH) {
    for (const record of parseRecords(indexRecords(index, first, BATCH))) {
      if (end !== undefined && record.offset > end) {
        gaps.push({ offset: end, length: record.offset - end });
      }
      end = record.offset + record.length;
    }
  }
  return gaps;
}

/** The shortest gaps, as many as must go. */
function gapsToClose(gaps: readonly Gap[], records: number): Gap[] {
  // Half the limit leaves room for records that do not fold.
  const excess = records - MAX_RECORDS / 2;
  return gaps.toSorted((a, b) => a.length - b.length)
    .slice(0, Math.max(0, excess))
    .sort((a, b) => a.offset - b.offset);
}

/** Records that map the gaps to a source of zeros, whatever lies below. */
function zeroData(gaps: readonly Gap[]): Uint8Array<ArrayBuffer> {
  const words: bigint[] = [];
  for (const gap of gaps) {
    for (let done = 0; done < gap.length; done += MAX_LENGTH) {
      const length = Math.min(MAX_LENGTH, gap.length - done);
      words.push(BigInt(gap.offset + done) | BigInt(length) << 50n, 8n);
    }
  }
  return new Uint8Array(BigUint64Array.from(words).buffer);
}

/** Records of an index that lie in the gaps, as data: zeros stay zeros. */
function cutToGaps(
  lower: Index,
  gaps: readonly Gap[],
): Uint8Array<ArrayBuffer> {
  const words: bigint[] = [];
  let gap = 0;
  for (let first = 0; first < indexCount(lower); first += BATCH) {
    for (const record of parseRecords(indexRecords(lower, first, BATCH))) {
      if (record.zeroed) continue;
      const end = record.offset + record.length;
      while (gap < gaps.length && gapEnd(gaps[gap]) <= record.offset) gap++;
      for (let i = gap; i < gaps.length; i++) {
        const piece = gaps[i];
        if (piece === undefined || piece.offset >= end) break;
        const from = Math.max(piece.offset, record.offset);
        const to = Math.min(gapEnd(piece), end);
        words.push(
          BigInt(from) | BigInt(to - from) << 50n,
          BigInt(record.moffset + from - record.offset) |
            BigInt(record.tag) << 56n,
        );
      }
    }
  }
  return new Uint8Array(BigUint64Array.from(words).buffer);
}

function gapEnd(gap: Gap | undefined): number {
  return gap === undefined ? Infinity : gap.offset + gap.length;
}

/** A file of zeros, as long as the longest record and the header. */
function zeroSource(): Source {
  const size = (MAX_LENGTH + 8) * 512;
  const fd = openFd("/dev/shm", O.TMPFILE | O.RDWR, 0o600);
  truncateFd(fd, size);
  return fileSource(fd, 0, size);
}

/**
 * Maps the shortest gaps of an index to the data that lower layers have
 * there, zeros where they have none.
 *
 * @param lowers bottom first
 * @returns an index whose tags count `sources`
 */
export function fillGaps(
  index: Index,
  source: Source,
  lowers: readonly FillLayer[],
): Filled {
  const records = indexCount(index);
  const gaps = gapsToClose(gapsOf(index), records);
  const topFirst = lowers.toReversed();
  const zeros = zeroSource();
  const zeroIndex = newIndex(zeroData(gaps));
  const indexes: Index[] = [index];
  if (topFirst.length > 0) {
    using below = mergeIndexes(topFirst.map((layer) => layer.index));
    const cut = cutToGaps(below, gaps);
    for (const [tag] of topFirst.entries()) {
      indexes.push(newIndex(recordsOf(cut, tag)));
    }
  }
  indexes.push(zeroIndex);
  const merged = mergeIndexes(indexes);
  for (const own of indexes.slice(1)) own.close();
  return {
    index: merged,
    sources: [source, ...topFirst.map((layer) => layer.source), zeros],
    [Symbol.dispose]: () => {
      merged.close();
      zeros.close();
    },
  };
}

/** The records with one tag. */
function recordsOf(
  records: Uint8Array<ArrayBuffer>,
  tag: number,
): Uint8Array<ArrayBuffer> {
  const kept: Uint8Array[] = [];
  for (let at = 0; at < records.length; at += RECORD_SIZE) {
    if (records[at + 15] === tag) {
      kept.push(records.subarray(at, at + RECORD_SIZE));
    }
  }
  const bytes = new Uint8Array(kept.length * RECORD_SIZE);
  for (const [i, record] of kept.entries()) bytes.set(record, i * RECORD_SIZE);
  return bytes;
}
