// SPDX-License-Identifier: Apache-2.0
/**
 * Units that requests of the C library wait for.
 *
 * @module
 */
import { check } from "./errors.ts";
import { lib } from "./library.ts";

/** Units that somebody waits for. */
export interface Miss {
  /** the id given to `cacheSource()` */
  source: number;
  first: number;
  count: number;
  /** the units are here, but a block in them is damaged */
  corrupt: boolean;
}

const MISS_SIZE = 32;
const MAX = 256;
// One buffer for all calls: they do not overlap.
const raw = new Uint8Array(MAX * MISS_SIZE);
const fields = new DataView(raw.buffer);

/** Takes everything off the queue; each unit is handed out once. */
export function drainMisses(): Miss[] {
  const misses: Miss[] = [];
  for (;;) {
    const got = check(lib.obd_miss_drain(raw, MAX), "cannot take misses");
    for (let at = 0; at < got * MISS_SIZE; at += MISS_SIZE) {
      misses.push({
        source: Number(fields.getBigUint64(at, true)),
        first: Number(fields.getBigUint64(at + 8, true)),
        count: Number(fields.getBigUint64(at + 16, true)),
        corrupt: fields.getUint32(at + 24, true) === 1,
      });
    }
    if (got < MAX) return misses;
  }
}
