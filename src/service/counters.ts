// SPDX-License-Identifier: Apache-2.0
/**
 * What the service counts of itself beside its devices.
 *
 * @module
 */

/** Values by size, as Prometheus counts them. */
export interface Histogram {
  /** upper ends of the buckets, growing; the last one has none */
  readonly bounds: readonly number[];
  /** one more than there are bounds */
  readonly counts: readonly number[];
  readonly sum: number;
}

/** A histogram that values are put into. */
export interface RecordedHistogram extends Histogram {
  record(value: number): void;
}

/** Makes a histogram of fixed size. */
export function createHistogram(bounds: readonly number[]): RecordedHistogram {
  const counts = new Array<number>(bounds.length + 1).fill(0);
  let sum = 0;
  return {
    bounds,
    counts,
    get sum() {
      return sum;
    },
    record(value) {
      const found = bounds.findIndex((bound) => value <= bound);
      const nr = found < 0 ? bounds.length : found;
      counts[nr] = (counts[nr] ?? 0) + 1;
      sum += value;
    },
  };
}

/** Running totals. */
export interface Counters {
  /** requests to registries by what became of them; see `answered()` */
  readonly fetches: ReadonlyMap<string, number>;
  readonly retries: number;
  readonly evictions: number;
  readonly evictedBytes: number;
  readonly snapshotPauses: Histogram;
  readonly brokenRings: number;
}

/** The same for those who count. */
export interface CountersOfService extends Counters {
  /** @param status of the answer; undefined: there was none */
  answered(status: number | undefined): void;
  retried(): void;
  evicted(bytes: number): void;
  /** how long writes had to wait for a snapshot */
  paused(seconds: number): void;
  /** a TCMU ring made no sense */
  ringBroken(): void;
}

/** Statuses that are told apart; others by their first digit, as `4xx`. */
const STATUSES = new Set(
  [200, 206, 301, 302, 303, 307, 308, 400, 401, 403, 404, 416, 429]
    .concat([500, 502, 503, 504]),
);

function statusText(status: number | undefined): string {
  if (status === undefined) return "failed";
  return STATUSES.has(status)
    ? String(status)
    : `${Math.trunc(status / 100)}xx`;
}

/** s that writes may wait: 5 ms is aimed at. */
const PAUSES = [0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 1];

/** Makes counters that stand at zero. */
export function createCounters(): CountersOfService {
  // A rate needs a first value.
  const fetches = new Map([["206", 0], ["failed", 0]]);
  const snapshotPauses = createHistogram(PAUSES);
  let retries = 0;
  let brokenRings = 0;
  let evictions = 0;
  let evictedBytes = 0;
  return {
    fetches,
    snapshotPauses,
    get retries() {
      return retries;
    },
    get brokenRings() {
      return brokenRings;
    },
    get evictions() {
      return evictions;
    },
    get evictedBytes() {
      return evictedBytes;
    },
    answered(status) {
      const text = statusText(status);
      fetches.set(text, (fetches.get(text) ?? 0) + 1);
    },
    retried() {
      retries++;
    },
    evicted(bytes) {
      evictions++;
      evictedBytes += bytes;
    },
    paused: (seconds) => snapshotPauses.record(seconds),
    ringBroken() {
      brokenRings++;
    },
  };
}
