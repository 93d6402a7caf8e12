// SPDX-License-Identifier: Apache-2.0
/**
 * Keeps a flow of bytes at a rate.
 *
 * @module
 */

/** A flow; several may use it at once and share its rate. */
export interface Pace {
  /**
   * Waits until `bytes` may flow.
   *
   * @param perSecond bytes; 0 or less: as fast as may be
   * @throws the signal's reason
   */
  take(bytes: number, perSecond: number, signal: AbortSignal): Promise<void>;
}

/** Waits; ends early with the signal's reason. */
export function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", abort);
      resolve();
    }, ms);
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true });
  });
}

/**
 * Makes a flow that nothing has gone through yet.
 *
 * @param wait for tests: as {@linkcode sleep}
 */
export function createPace(
  now = () => performance.now(),
  wait = sleep,
): Pace {
  /** when what has been taken so far is through, in ms */
  let through = 0;
  return {
    async take(bytes, perSecond, signal) {
      signal.throwIfAborted();
      if (perSecond <= 0) return;
      const from = Math.max(through, now());
      through = from + bytes / perSecond * 1000;
      const ms = from - now();
      if (ms > 0) await wait(ms, signal);
    },
  };
}
