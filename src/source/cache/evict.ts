// SPDX-License-Identifier: Apache-2.0
/**
 * How much to evict, and what (spec/cache.md, section 1.5).
 *
 * @module
 */

const GIB = 2 ** 30;

/** Bytes above which something is evicted, and above which at once. */
export function limitsOf(capacity: number): { water: number; risk: number } {
  const water = Math.floor(Math.max(0.9 * capacity, capacity - 50 * GIB));
  return {
    water,
    risk: Math.max(capacity - 5 * GIB, (water + capacity) / 2),
  };
}

/** What a directory and its file system hold, in bytes. */
export interface Usage {
  /** allocated by everything in the directory */
  used: number;
  /** free on its file system, for those who are not root */
  free: number;
}

/** How many bytes have to go, and why. */
export interface Need {
  byCache: number;
  byDisk: number;
  bytes: number;
}

/**
 * What has to be evicted.
 *
 * @param floor bytes that the file system should have free
 */
export function evictionNeed(
  { used, free }: Usage,
  capacity: number,
  floor: number,
): Need {
  const byDisk = Math.max(0, floor - free);
  const byCache = Math.max(0, used - limitsOf(capacity).water);
  return {
    byCache,
    byDisk,
    bytes: Math.min(used, Math.max(byDisk, byCache)),
  };
}

/** Something that may go: a file. */
export interface Victim {
  /** ms since 1970 */
  lastUsed: number;
  /** that come free */
  bytes: number;
  evict(): void | Promise<void>;
}

/** Units of an open blob, some of which may go. */
export interface UnitVictims {
  /** units 0.. of the blob */
  count: number;
  /** s since 1970; undefined: it stays */
  lastUsed(unit: number): number | undefined;
  /** that come free */
  bytes(unit: number): number;
  evict(unit: number): void;
  /** resolves when what was evicted is free */
  given?(): Promise<void>;
}

const DIGIT = 0x10000;
/** Units that are evicted before others have a turn. */
const TURN = 256;

/** Where sums of bytes reach `bytes`, and what is before. */
function reached(
  sums: Float64Array,
  bytes: number,
): { at: number; before: number } {
  let before = 0;
  let at = 0;
  for (; at < sums.length - 1; at++) {
    const sum = before + (sums[at] ?? 0);
    if (sum >= bytes) break;
    before = sum;
  }
  return { at, before };
}

/**
 * The second up to which all has to go so that enough does.  Times are
 * numbers of two digits: this takes as much memory for a TiB as for a MiB.
 */
function lastToGo(
  files: readonly Victim[],
  blobs: readonly UnitVictims[],
  bytes: number,
): number {
  const sums = (digit: (time: number) => number | undefined) => {
    const all = new Float64Array(DIGIT);
    const add = (time: number, size: number) => {
      const at = digit(time);
      if (at !== undefined) all[at] = (all[at] ?? 0) + size;
    };
    for (const file of files) add(secondOf(file), file.bytes);
    for (const blob of blobs) {
      for (let i = 0; i < blob.count; i++) {
        const time = blob.lastUsed(i);
        if (time !== undefined) add(time, blob.bytes(i));
      }
    }
    return all;
  };
  const high = reached(sums((time) => Math.floor(time / DIGIT)), bytes);
  const low = sums((time) =>
    Math.floor(time / DIGIT) === high.at ? time % DIGIT : undefined
  );
  return high.at * DIGIT + reached(low, bytes - high.before).at;
}

function secondOf({ lastUsed }: Victim): number {
  return Math.max(0, Math.floor(lastUsed / 1000));
}

/**
 * Evicts what was used longest ago until enough is free; of one second, files
 * first.
 *
 * @returns bytes that came free
 */
export async function evictOldest(
  files: readonly Victim[],
  blobs: readonly UnitVictims[],
  bytes: number,
): Promise<number> {
  let left = [...files].sort((a, b) => a.lastUsed - b.lastUsed);
  let freed = 0;
  const evictFiles = async (isDue: (time: number) => boolean) => {
    const stay: Victim[] = [];
    for (const file of left) {
      if (freed >= bytes || !isDue(secondOf(file))) {
        stay.push(file);
        continue;
      }
      try {
        await file.evict();
        freed += file.bytes;
      } catch {
        // It stays; the next one goes.
      }
    }
    left = stay;
  };
  const evictUnits = async (isDue: (time: number) => boolean) => {
    let turn = 0;
    for (const blob of blobs) {
      for (let i = 0; i < blob.count && freed < bytes; i++) {
        const time = blob.lastUsed(i);
        if (time === undefined || !isDue(time)) continue;
        freed += blob.bytes(i);
        blob.evict(i);
        if (++turn % TURN === 0) await new Promise((go) => setTimeout(go));
      }
    }
  };
  // Again when some of them had to stay.
  for (let progress = true; progress && freed < bytes;) {
    const before = { freed, files: left.length };
    const last = lastToGo(left, blobs, bytes - freed);
    const older = (time: number) => time < last;
    const same = (time: number) => time === last;
    for (const isDue of [older, same]) {
      await evictFiles(isDue);
      await evictUnits(isDue);
    }
    progress = freed > before.freed || left.length < before.files;
  }
  await Promise.all(blobs.map((blob) => blob.given?.()));
  return freed;
}
