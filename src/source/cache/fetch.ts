// SPDX-License-Identifier: Apache-2.0
/**
 * Brings units of a blob: each once, whoever asks for it, and each as soon
 * as its last byte is here (spec/cache.md, section 5).  What has come is
 * written while the next is on its way.
 *
 * @module
 */
import { pause } from "../registry/attempt.ts";
import { type Blob, type RangeBody, SourceError } from "../source.ts";
import type { Media, Place } from "./media.ts";
import type { Scheduler } from "./schedule.ts";
import { type Run, runsOf } from "./units.ts";
import { createWrites } from "./writes.ts";

/** Bytes that one request brings at most. */
const REQUEST_MAX = 4 << 20;
/** Bytes that are taken at first: the sooner they can be written. */
const FIRST = 64 << 10;

/** Who is told of reads from the network. */
export type OnDownload = (
  name: string,
  at: number,
  /** -1 after a failure */
  bytes: number,
  us: number,
) => void;

/** What all blobs of a set share. */
export interface FetchParts {
  /** fetch granule in bytes, a power of two of at least 4096 */
  unit: number;
  scheduler: Scheduler;
  onDownload: OnDownload;
  log: (line: string) => void;
  /** waits between attempts, or until the signal */
  sleep?: ((ms: number, signal: AbortSignal) => Promise<void>) | undefined;
}

/** What a fetcher is made of. */
export interface FetcherOptions extends FetchParts {
  /** bytes of the blob */
  size: number;
  media: Media;
  stats: { fetches: number; fetchedBytes: number };
  has: (unit: number) => boolean;
  /** where units have to go, where that matters */
  place: (run: Run) => Place | undefined;
  onLand: (run: Run) => void;
}

/** Who waits for several units; left: how many of them are not there yet. */
interface Waiter {
  left: number;
  done: PromiseWithResolvers<void>;
}

/** See the module's comment. */
export interface Fetcher {
  /** aborted when the blob is being closed */
  readonly signal: AbortSignal;
  /**
   * Waits until all of a run is here.
   *
   * @throws {SourceError} a part of it could not be had
   */
  need(run: Run): Promise<void>;
  /** Fetches what nobody waits for, if nothing else has to be done. */
  ahead(run: Run): void;
  /** Takes an answer that is on its way: it begins with unit 0. */
  begin(body: RangeBody): void;
  fetching(unit: number): boolean;
  /** Ends fetches that have brought nothing yet and that nobody wants. */
  drop(isWanted: (run: Run) => boolean): void;
  addOrigin(blob: Blob): void;
  /** Waits, or until the blob is being closed. */
  pause(ms: number): Promise<void>;
  /** Ends all fetches and waits until they have ended. */
  settle(): Promise<void>;
}

/** A fetch that goes on. */
interface Flight {
  run: Run;
  stop: AbortController;
  /** some of it is here */
  landed: boolean;
  /** for each of its units that somebody waits for */
  waiters: Map<number, Waiter[]>;
  /** never rejects */
  ended: Promise<void>;
}

/** Makes the fetcher of an open blob. */
export function createFetcher(
  blob: Blob,
  options: FetcherOptions,
): Fetcher {
  const { size, unit, media, stats, scheduler, has } = options;
  const count = Math.ceil(size / unit);
  const stop = new AbortController();
  const origins = [blob];
  let origin = 0;
  const most = Math.max(1, Math.floor(REQUEST_MAX / unit));
  const running = new Map<number, Flight>();
  const flights = new Set<Flight>();

  const closed = () =>
    new SourceError("EIO", `cannot read ${blob.name}: it is closed`);
  const dropped = () =>
    new SourceError("EIO", `cannot read ${blob.name}: nobody waits any more`);
  const from = (): Blob => origins[origin % origins.length] ?? blob;

  /** The rest of a body into the media, each unit told of as it is there. */
  const receive = async (
    run: Run,
    body: RangeBody,
    signal: AbortSignal,
    landed: (run: Run) => void,
  ) => {
    const begin = run.first * unit;
    const end = begin + body.length;
    const writes = createWrites({
      media,
      unit,
      begin,
      end,
      place: options.place,
      onLand(there) {
        stats.fetchedBytes +=
          Math.min(size, unit * (there.first + there.count)) -
          unit * there.first;
        options.onLand(there);
        landed(there);
      },
    });
    try {
      for (let at = begin; at < end;) {
        // Who waits, waits for the beginning mostly.
        const chunk = await body.next(at === begin ? FIRST : end - at);
        if (signal.aborted) throw closed();
        at += chunk.length;
        await writes.add(chunk);
      }
    } finally {
      await writes.settle();
    }
    writes.check();
  };

  const request = async (
    run: Run,
    signal: AbortSignal,
  ): Promise<RangeBody> => {
    const at = run.first * unit;
    const length = Math.min(size, (run.first + run.count) * unit) - at;
    stats.fetches++;
    const body = await from().range(at, length, signal);
    if (body.total !== size || body.length !== length) {
      body.cancel();
      throw new SourceError(
        "EIO",
        `cannot read ${from().name}: it has ${body.total} bytes, not ${size}`,
        { retryable: false },
      );
    }
    return body;
  };

  const fetchRun = async (
    run: Run,
    signal: AbortSignal,
    landed: (run: Run) => void,
    head?: RangeBody,
  ) => {
    const start = performance.now();
    const us = () => (performance.now() - start) * 1000;
    const at = run.first * unit;
    let body = head;
    try {
      body ??= await request(run, signal);
      await receive(run, body, signal, landed);
      options.onDownload(from().name, at, body.length, us());
    } catch (error) {
      options.onDownload(from().name, at, -1, us());
      origin++;
      throw error;
    } finally {
      body?.cancel();
    }
  };

  const fly = (run: Run, head?: RangeBody) => {
    const own = new AbortController();
    /** These are not on their way any more. */
    const end = ({ first, count }: Run, how: (waiter: Waiter) => void) => {
      for (let i = first; i < first + count; i++) {
        if (running.get(i) !== flight) continue;
        running.delete(i);
        flight.waiters.get(i)?.forEach(how);
      }
    };
    const landed = (there: Run) => {
      flight.landed = true;
      end(there, (waiter) => {
        if (--waiter.left === 0) waiter.done.resolve();
      });
    };
    const fail = (error: unknown) => {
      const cause = stop.signal.aborted
        ? closed()
        : own.signal.aborted
        ? dropped()
        : error;
      end(run, (waiter) => waiter.done.reject(cause));
    };
    const flight: Flight = {
      run,
      stop: own,
      landed: false,
      waiters: new Map(),
      ended: Promise.resolve(),
    };
    for (let i = run.first; i < run.first + run.count; i++) {
      running.set(i, flight);
    }
    flights.add(flight);
    const work = () => fetchRun(run, own.signal, landed, head);
    flight.ended =
      (head === undefined ? scheduler.run(blob, own.signal, work) : work())
        .catch(fail)
        .finally(() => flights.delete(flight));
  };

  /** Waits for those of a run that are on their way. */
  const landing = (run: Run): Promise<void> | undefined => {
    const waiter: Waiter = { left: 0, done: Promise.withResolvers() };
    for (let i = run.first; i < run.first + run.count; i++) {
      const waiters = running.get(i)?.waiters;
      if (waiters === undefined) continue;
      waiter.left++;
      const others = waiters.get(i);
      if (others === undefined) waiters.set(i, [waiter]);
      else others.push(waiter);
    }
    return waiter.left === 0 ? undefined : waiter.done.promise;
  };

  const start = (run: Run) => {
    const absent = (i: number) => !has(i) && !running.has(i);
    for (const part of runsOf(run, most, absent)) fly(part);
  };

  return {
    signal: stop.signal,
    async need(run) {
      if (stop.signal.aborted) throw closed();
      start(run);
      await landing(run);
    },
    ahead(run) {
      const end = Math.min(count, run.first + run.count);
      if (stop.signal.aborted || !scheduler.idle(blob)) return;
      start({ first: run.first, count: end - run.first });
    },
    begin(body) {
      const units = Math.ceil(body.length / unit);
      const fresh = body.length === size || body.length % unit === 0;
      if (units === 0 || !fresh) return body.cancel();
      stats.fetches++;
      fly({ first: 0, count: units }, body);
    },
    fetching: (i) => running.has(i),
    addOrigin(other) {
      if (!origins.some(({ name }) => name === other.name)) origins.push(other);
    },
    pause: (ms) => (options.sleep ?? pause)(ms, stop.signal),
    drop(isWanted) {
      for (const { run, landed, stop } of flights) {
        if (!landed && !isWanted(run)) stop.abort();
      }
    },
    async settle() {
      stop.abort();
      for (const flight of flights) flight.stop.abort();
      while (flights.size > 0) {
        await Promise.all([...flights].map(({ ended }) => ended));
      }
    },
  };
}
