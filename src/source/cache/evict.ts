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

/** Something that may go. */
export interface Victim {
  /** ms since 1970 */
  lastUsed: number;
  /** that come free */
  bytes: number;
  evict(): void;
}

/**
 * Evicts what was used longest ago until enough is free.
 *
 * @returns bytes that came free
 */
export function evictOldest(
  victims: Iterable<Victim>,
  bytes: number,
): number {
  let freed = 0;
  const order = [...victims].sort((a, b) => a.lastUsed - b.lastUsed);
  for (const victim of order) {
    if (freed >= bytes) break;
    try {
      victim.evict();
      freed += victim.bytes;
    } catch {
      // It stays; the next one goes.
    }
  }
  return freed;
}
