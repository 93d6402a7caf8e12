// SPDX-License-Identifier: Apache-2.0
/**
 * How far to read beyond what was asked: twice as far each time reads go on
 * where they ended, nothing when they do not.
 *
 * @module
 */
import type { Run } from "./units.ts";

/** Reads that go through a blob in order. */
interface Stream {
  /** the unit that was missed last */
  last: number;
  /** what was fetched ends here */
  end: number;
  /** units beyond what was asked */
  ahead: number;
}

/** Streams of one blob that are followed at once. */
const STREAMS = 8;

/**
 * Follows the misses of one blob.
 *
 * @param most units beyond what was asked
 * @param least the same, once reads go on where they ended
 * @param has tells what is here: nobody misses it
 * @returns what else to fetch after a miss
 */
export function createReadAhead(
  most: number,
  least = 1,
  has: (unit: number) => boolean = () => false,
): (miss: Run) => Run {
  /** Goes on at `first`, behind no more than it had ahead. */
  const reaches = ({ last, end, ahead }: Stream, first: number): boolean => {
    if (first <= last || first > end + ahead) return false;
    while (end < first && has(end)) end++;
    return first <= end;
  };
  // Whatever was missed last is at the end.
  const streams: Stream[] = [];
  return ({ first, count }) => {
    const end = first + count;
    const at = streams.findIndex((stream) => reaches(stream, first));
    const [known] = at < 0 ? [] : streams.splice(at, 1);
    const ahead = known === undefined
      ? 0
      : Math.min(most, Math.max(least, known.ahead * 2));
    const from = Math.max(end, known?.end ?? 0);
    const to = Math.max(from, end + ahead);
    streams.push({ last: first, end: to, ahead });
    if (streams.length > STREAMS) streams.shift();
    return { first: from, count: to - from };
  };
}
