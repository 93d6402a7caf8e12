// SPDX-License-Identifier: Apache-2.0
/**
 * Attempts: each ends in time, some are made again.
 *
 * @module
 */
import { SourceError } from "../source.ts";

/** Attempts in a row that bring nothing. */
export const TRIES = 4;

const BACKOFF_MIN_MS = 100;
const BACKOFF_MAX_MS = 5000;

/** One attempt. */
export interface Attempt extends Disposable {
  /** From now on the time counts: who waits for a turn loses none. */
  begin(): void;
  /** aborts when the time is over, or who asked wants no more */
  readonly signal: AbortSignal;
  /** There was progress: the time begins anew. */
  progress(): void;
  /** why it was ended from here; undefined: it was not */
  ended(what: string): SourceError | undefined;
  /** Its end, good or bad; may be repeated. */
  [Symbol.dispose](): void;
}

/** Makes an attempt that takes at most `ms`, once it has begun. */
export function newAttempt(
  ms: number,
  outer: AbortSignal | undefined,
): Attempt {
  const controller = new AbortController();
  let late = false;
  const onOuter = () => controller.abort(outer?.reason);
  const onLate = () => {
    late = true;
    controller.abort(new DOMException("timed out", "TimeoutError"));
  };
  let timer: ReturnType<typeof setTimeout> | undefined;
  if (outer?.aborted === true) onOuter();
  else outer?.addEventListener("abort", onOuter, { once: true });
  return {
    signal: controller.signal,
    begin() {
      timer ??= setTimeout(onLate, ms);
    },
    progress() {
      clearTimeout(timer);
      timer = setTimeout(onLate, ms);
    },
    ended(what) {
      const reason: unknown = outer?.reason;
      if (outer?.aborted === true) {
        const timeout = reason instanceof DOMException &&
          reason.name === "TimeoutError";
        return new SourceError(
          timeout ? "ETIMEDOUT" : "EIO",
          `cannot ${what}: ${timeout ? "no answer in time" : "it was ended"}`,
          { retryable: false },
        );
      }
      return late
        ? new SourceError(
          "ETIMEDOUT",
          `cannot ${what}: no answer within ${Math.round(ms / 100) / 10} s`,
        )
        : undefined;
    },
    [Symbol.dispose]() {
      clearTimeout(timer);
      outer?.removeEventListener("abort", onOuter);
    },
  };
}

/** Waits; ends early, and throws nothing, when `signal` aborts. */
export function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      done();
    };
    const timer = setTimeout(end, ms);
    if (signal?.aborted === true) end();
    else signal?.addEventListener("abort", end, { once: true });
  });
}

/** How long to wait before try `n`, counted from 1, is made again. */
export function backoff(n: number, askedMs = 0): number {
  const full = Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** (n - 1));
  return Math.max(askedMs, full * (0.5 + Math.random() / 2));
}

/** Waits for a promise, but not longer than a signal allows. */
export async function untilAborted<T>(
  promise: Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  // It may fail when nobody waits any more.
  promise.catch(() => {});
  signal.throwIfAborted();
  let onAbort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

/**
 * Tries until something succeeds or fails for good, for as long as one attempt
 * may take in all.
 *
 * @param work may take this many ms
 * @throws {SourceError} the last failure; where the rest of the time was too
 *   short for an answer, the one before it
 */
export async function tryAgain<T>(
  ms: number,
  signal: AbortSignal | undefined,
  work: (ms: number) => Promise<T>,
  onRetry?: () => void,
): Promise<T> {
  const until = performance.now() + ms;
  let before: SourceError | undefined;
  for (let n = 1;; n++) {
    try {
      return await work(Math.max(1, until - performance.now()));
    } catch (error) {
      if (!(error instanceof SourceError) || !error.retryable) throw error;
      const wait = backoff(n, error.retryAfterMs);
      const over = performance.now() + wait >= until;
      if (over && error.code === "ETIMEDOUT") throw before ?? error;
      if (n === TRIES || over) throw error;
      before = error;
      await pause(wait, signal);
      onRetry?.();
    }
  }
}
