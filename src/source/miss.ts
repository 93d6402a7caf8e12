// SPDX-License-Identifier: Apache-2.0
/**
 * Takes misses off the library's queue and gives each to the source it is
 * for; tells of the writes that bring what was missed.
 *
 * @module
 */
import { drainWritten } from "../../ffi/buffer.ts";
import { drainMisses, type Miss } from "../../ffi/miss.ts";
import { onWake } from "../../ffi/wake.ts";

/** Fetches what a miss asks for; must not throw and not wait. */
export type Fetcher = (miss: Miss) => void;

const fetchers = new Map<number, Fetcher>();
let nextId = 1;
let wake: Disposable | undefined;

function drain(): void {
  const misses = drainMisses();
  // Then: what was written before one of its units was found damaged is known
  // to be.
  drainWritten();
  for (const miss of misses) {
    try {
      // A source that was closed meanwhile has nobody who waits.
      fetchers.get(miss.source)?.(miss);
    } catch (error) {
      // The others have their turn, and somebody hears of it.
      reportError(error);
    }
  }
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
