// SPDX-License-Identifier: Apache-2.0
/**
 * Units of a blob as numbers and bits: bit i of byte i/8 is unit i.
 *
 * @module
 */
import type { Bytes } from "../../../ffi/handle.ts";

/** Units that stand side by side. */
export interface Run {
  first: number;
  count: number;
}

/** An empty bitmap for `count` units. */
export function newBits(count: number): Bytes {
  return new Uint8Array(Math.ceil(count / 8));
}

export function hasBit(bits: Bytes, i: number): boolean {
  return ((bits[i >> 3] ?? 0) >> (i & 7) & 1) === 1;
}

export function putBit(bits: Bytes, i: number, on: boolean): void {
  const byte = bits[i >> 3] ?? 0;
  bits[i >> 3] = on ? byte | 1 << (i & 7) : byte & ~(1 << (i & 7));
}

/** How many bits are set. */
export function countBits(bits: Bytes): number {
  let n = 0;
  for (let byte of bits) for (; byte !== 0; byte &= byte - 1) n++;
  return n;
}

/**
 * The units that hold bytes [at, at + length) of a blob, cut at its end.
 *
 * @param size of the blob in bytes
 * @param unit in bytes
 */
export function unitsUnder(
  at: number,
  length: number,
  size: number,
  unit: number,
): Run {
  const end = Math.min(size, at + length);
  const first = Math.floor(Math.max(0, at) / unit);
  return end <= at || end <= 0
    ? { first, count: 0 }
    : { first, count: Math.ceil(end / unit) - first };
}

/** A run as far as whole groups of `per` units go, cut at `count`. */
export function widened(run: Run, per: number, count: number): Run {
  const first = run.first - run.first % per;
  const end = Math.ceil((run.first + run.count) / per) * per;
  return { first, count: Math.min(end, count) - first };
}

/**
 * The parts of a run that are wanted, in order, each as long as it can be
 * and at most `max` long.
 */
export function* runsOf(
  { first, count }: Run,
  max: number,
  wanted: (unit: number) => boolean,
): Generator<Run> {
  const end = first + count;
  for (let at = first; at < end;) {
    if (!wanted(at)) {
      at++;
      continue;
    }
    let to = at + 1;
    while (to < end && to - at < max && wanted(to)) to++;
    yield { first: at, count: to - at };
    at = to;
  }
}
