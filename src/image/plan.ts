// SPDX-License-Identifier: Apache-2.0
/**
 * Which units of which blobs serve ranges of layers, and in what order they
 * are fetched: each once, neighbours together.
 *
 * @module
 */
import { sourceSize, zfileBlock } from "../../ffi/sources.ts";
import type { CachedBlob } from "../source/cache/blob.ts";
import type { OpenLower } from "./lowers.ts";

/** Bytes of a layer as it is decompressed. */
export interface LayerRange {
  /** 0 = bottom */
  layer: number;
  offset: number;
  count: number;
}

/** What one call of `prefetch()` brings; bytes of the whole blob. */
export interface Fetch {
  layer: number;
  blob: CachedBlob;
  at: number;
  length: number;
}

/** Bytes that one request brings at most. */
const FETCH_MAX = 4 << 20;
/** Ranges that are worked out before others get their turn. */
const TURN = 4096;

/**
 * The bytes of its blob that a range of a remote layer is stored in, cut to
 * the layer; undefined: none.
 */
export function storedRange(
  lower: OpenLower,
  { offset, count }: LayerRange,
): { at: number; length: number } | undefined {
  const base = lower.tar?.at ?? 0;
  const end = Math.min(offset + count, sourceSize(lower.source));
  if (!(offset >= 0 && end > offset)) return undefined;
  if (lower.zfile === undefined) {
    return { at: base + offset, length: end - offset };
  }
  const { blockSize } = lower.zfile.final;
  const first = zfileBlock(lower.source, Math.floor(offset / blockSize));
  const last = zfileBlock(lower.source, Math.ceil(end / blockSize) - 1);
  return { at: base + first.at, length: last.at + last.length - first.at };
}

/** Waits until a range of a layer is here; nothing to do for a local one. */
export async function needRange(
  lowers: readonly OpenLower[],
  range: LayerRange,
): Promise<void> {
  const lower = lowers[range.layer];
  if (lower?.remote === undefined) return;
  const stored = storedRange(lower, range);
  if (stored === undefined) return;
  await lower.remote.blob.prefetch(stored.at, stored.length);
}

/** The units of one blob, and which range wants each first. */
interface Wanted {
  layer: number;
  blob: CachedBlob;
  /** number of the range, from 1; 0: nobody wants it */
  first: Uint32Array;
  /** where to look for the next unit that nobody wants yet */
  next: Uint32Array;
}

function newWanted(layer: number, blob: CachedBlob): Wanted {
  const units = Math.ceil(blob.size / blob.unit);
  return {
    layer,
    blob,
    first: new Uint32Array(units),
    next: new Uint32Array(units + 1).map((_, i) => i),
  };
}

/** The first unit at or after `unit` that nobody wants yet. */
function unwanted(next: Uint32Array, unit: number): number {
  let root = unit;
  while (next[root] !== root) root = next[root] ?? root;
  for (let at = unit; at !== root;) {
    const after = next[at] ?? root;
    next[at] = root;
    at = after;
  }
  return root;
}

/** Notes that range number `nr` wants bytes of a blob. */
function want(
  { blob: { unit }, first, next }: Wanted,
  at: number,
  length: number,
  nr: number,
): void {
  const end = Math.min(Math.ceil((at + length) / unit), first.length);
  for (let i = unwanted(next, Math.floor(at / unit)); i < end;) {
    first[i] = nr;
    next[i] = i + 1;
    i = unwanted(next, i + 1);
  }
}

/**
 * Wanted units of one refill become one run: what lies between them costs
 * less than another request.
 */
function bridge({ blob: { unit, refill }, first }: Wanted): void {
  const per = Math.max(1, refill / unit);
  let last = -1;
  for (let i = 0; i < first.length; i++) {
    if (first[i] === 0) continue;
    const near = last >= 0 && Math.floor(last / per) === Math.floor(i / per);
    if (near) first.fill(first[last] ?? 0, last + 1, i);
    last = i;
  }
}

/** The wanted units as runs, and the first range that wants any of each. */
function* runs(wanted: Wanted): Generator<Fetch & { nr: number }> {
  bridge(wanted);
  const { layer, blob, first } = wanted;
  const max = Math.max(1, FETCH_MAX / blob.unit);
  for (let i = 0; i < first.length;) {
    let nr = first[i] ?? 0;
    if (nr === 0) {
      i++;
      continue;
    }
    const from = i;
    for (; i < first.length && i - from < max && first[i] !== 0; i++) {
      nr = Math.min(nr, first[i] ?? nr);
    }
    const at = from * blob.unit;
    const length = Math.min(i * blob.unit, blob.size) - at;
    yield { layer, blob, at, length, nr };
  }
}

/**
 * Works out what to fetch for ranges of layers.  Layers that there are not,
 * and local ones, need nothing.
 *
 * @returns every unit once, neighbours together, in the order of the first
 *   range that wants any of them
 */
export async function planFetches(
  lowers: readonly OpenLower[],
  ranges: readonly LayerRange[],
  signal: AbortSignal,
): Promise<Fetch[]> {
  const blobs = new Map<string, Wanted>();
  let nr = 0;
  for (const range of ranges) {
    nr++;
    // Others have their turn: a trace may be long.
    if (nr % TURN === 0) await new Promise((done) => setTimeout(done));
    signal.throwIfAborted();
    const lower = lowers[range.layer];
    if (lower?.remote === undefined) continue;
    const stored = storedRange(lower, range);
    if (stored === undefined) continue;
    const { url, blob } = lower.remote;
    const wanted = blobs.get(url) ?? newWanted(range.layer, blob);
    blobs.set(url, wanted);
    want(wanted, stored.at, stored.length, nr);
  }
  return [...blobs.values()].flatMap((wanted) => [...runs(wanted)])
    .sort((a, b) => a.nr - b.nr)
    .map(({ nr: _, ...fetch }) => fetch);
}
