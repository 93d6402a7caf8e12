// SPDX-License-Identifier: Apache-2.0
/**
 * Units that no cache file keeps: they lie in files without a name, and the
 * oldest go when there are too many of all blobs together.
 *
 * @module
 */

/** What all spilled units may take together, in bytes. */
export interface SpillBudget {
  /** Counts a unit; drops others until all fit. */
  add(owner: object, unit: number, bytes: number, drop: () => void): void;
  remove(owner: object, unit: number): void;
  /** an owner is gone, with all that it had */
  forget(owner: object): void;
  /** bytes */
  used(): number;
}

interface Entry {
  owner: object;
  unit: number;
  bytes: number;
  drop: () => void;
}

/** Makes a budget of `most` bytes; one unit always fits. */
export function createSpillBudget(most: number): SpillBudget {
  // Oldest first.
  const entries = new Set<Entry>();
  const byOwner = new Map<object, Map<number, Entry>>();
  let used = 0;
  const take = (entry: Entry) => {
    entries.delete(entry);
    used -= entry.bytes;
    const units = byOwner.get(entry.owner);
    units?.delete(entry.unit);
    if (units?.size === 0) byOwner.delete(entry.owner);
  };
  const remove = (owner: object, unit: number) => {
    const entry = byOwner.get(owner)?.get(unit);
    if (entry !== undefined) take(entry);
  };
  return {
    add(owner, unit, bytes, drop) {
      remove(owner, unit);
      const entry = { owner, unit, bytes, drop };
      entries.add(entry);
      const units = byOwner.get(owner) ?? new Map<number, Entry>();
      byOwner.set(owner, units.set(unit, entry));
      used += bytes;
      for (const oldest of entries) {
        if (used <= most || oldest === entry) break;
        take(oldest);
        oldest.drop();
      }
    },
    remove,
    forget(owner) {
      for (const entry of [...byOwner.get(owner)?.values() ?? []]) take(entry);
    },
    used: () => used,
  };
}
