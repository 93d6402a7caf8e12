// SPDX-License-Identifier: Apache-2.0
/**
 * Which parts of which layers serve a range of a disk.
 *
 * @module
 */
import type { Index } from "../../ffi/handle.ts";
import { lookup } from "../../ffi/index.ts";
import { parseRecords } from "../format/lsmt.ts";

/** Bytes of one source of an index. */
export interface ServingRange {
  /** the index's tag */
  tag: number;
  offset: number;
  count: number;
}

const SECTOR = 512;
const MAX_LOOKUP = 4096;

/**
 * The data behind bytes [at, end) of the disk that an index maps, in order;
 * what is zeros has none.
 */
export function* servingRanges(
  index: Index,
  at: number,
  end: number,
): Generator<ServingRange> {
  let lba = Math.floor(at / SECTOR);
  const last = Math.ceil(end / SECTOR);
  while (lba < last) {
    const records = [
      ...parseRecords(lookup(index, lba, last - lba, MAX_LOOKUP)),
    ];
    for (const record of records) {
      lba = record.offset + record.length;
      if (record.zeroed) continue;
      yield {
        tag: record.tag,
        offset: record.moffset * SECTOR,
        count: record.length * SECTOR,
      };
    }
    if (records.length < MAX_LOOKUP) return;
  }
}
