// SPDX-License-Identifier: Apache-2.0
/**
 * Ratios on a noisy machine: ours and the reference in turn, several rounds,
 * the median of the ratios pair by pair.
 *
 * @module
 */

/** One line of the report. */
export interface Result {
  what: string;
  reference: string;
  /** how many times faster than the reference (1 = the same) */
  ratio: number;
  /** what the project aims at; `most`: the ratio is a cost */
  aim: number;
  most?: boolean;
  /** the two medians in words */
  ours: string;
  theirs: string;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const high = sorted[middle] ?? NaN;
  return sorted.length % 2 === 1
    ? high
    : ((sorted[middle - 1] ?? NaN) + high) / 2;
}

/** Milliseconds that one call takes. */
export async function time(
  work: () => unknown | Promise<unknown>,
): Promise<number> {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

/** Medians of both sides, and of theirs/ours pair by pair, after a warm-up. */
export async function pairs(
  ours: () => unknown | Promise<unknown>,
  theirs: () => unknown | Promise<unknown>,
  rounds = 9,
): Promise<{ ours: number; theirs: number; ratio: number }> {
  const a: number[] = [];
  const b: number[] = [];
  await ours();
  await theirs();
  for (let round = 0; round < rounds; round++) {
    // The side that goes first changes, so that drift hits both.
    if (round % 2 === 0) {
      a.push(await time(ours));
      b.push(await time(theirs));
    } else {
      b.push(await time(theirs));
      a.push(await time(ours));
    }
  }
  return {
    ours: median(a),
    theirs: median(b),
    ratio: median(a.map((ms, i) => (b[i] ?? NaN) / ms)),
  };
}

/** A seeded generator of 32-bit numbers (mulberry32). */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  };
}
