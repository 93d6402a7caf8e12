// SPDX-License-Identifier: Apache-2.0
/**
 * Takes misses off the library's queue and gives each to the source it is
 * for.
 *
 * @module
 */
import { drainMisses, type Miss } from "../../ffi/miss.ts";
import { onWake } from "../../ffi/wake.ts";

/** Fetches what a miss asks for; must not throw and not wait. */
export type Fetcher = (miss: Miss) => void;

const fetchers = new Map<number, Fetcher>();
let nextId = 1;
let wake: Disposable | undefined;

function drain(): void {
  // A source that was closed meanwhile has nobody who waits.
  for (const miss of drainMisses()) fetchers.get(miss.source)?.(miss);
}

/** A number that no other source has. */
export function newSourceId(): number {
  return nextId++;
}

/** Routes the misses of source `id` until the scope ends. */
export function routeMisses(id: number, fetcher: Fetcher): Disposable {
  fetchers.set(id, fetcher);
  wake ??= onWake("miss", drain);
  return {
    [Symbol.dispose]() {
      fetchers.delete(id);
      if (fetchers.size > 0) return;
      wake?.[Symbol.dispose]();
      wake = undefined;
    },
  };
}
