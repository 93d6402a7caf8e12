// SPDX-License-Identifier: Apache-2.0
/**
 * Brings units of a blob: each once, whoever asks for it, and each as soon
 * as its last byte is here (spec/cache.md, section 5).
 *
 * @module
 */
import type { Bytes } from "../../../ffi/handle.ts";
import { type Blob, type RangeBody, SourceError } from "../source.ts";
import type { Media, Place } from "./media.ts";
import type { Scheduler } from "./schedule.ts";
import { type Run, runsOf } from "./units.ts";

/** Bytes that one request brings at most. */
const REQUEST_MAX = 4 << 20;
/** Bytes that are read and written at once. */
const PIECE = 64 << 10;
const PAGE = 4096;

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
}

/** What a fetcher is made of. */
export interface FetcherOptions extends FetchParts {
  /** bytes of the blob */
  size: number;
  media: Media;
  stats: { fetches: number; fetchedBytes: number };
  has: (unit: number) => boolean;
  /** where a unit has to go, where that matters */
  place: (unit: number) => Place | undefined;
  onLand: (place: Place, first: number, count: number) => void;
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
  const running = new Map<number, PromiseWithResolvers<void>>();
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
    landed: (unit: number) => void,
  ) => {
    let memory: Bytes = new Uint8Array(Math.max(PIECE, PAGE));
    const end = run.first * unit + body.length;
    let begun: Place | undefined;
    for (let at = run.first * unit; at < end;) {
      const here = Math.floor(at / unit);
      // Whole units, or a part of one.
      const whole = unit < PIECE ? PIECE : Math.min(unit, PIECE);
      const n = Math.min(whole, end - at);
      const bytes = await body.read(memory.subarray(0, n));
      memory = new Uint8Array(bytes.buffer);
      if (signal.aborted) throw closed();
      const place = await media.write(at, bytes, begun ?? options.place(here));
      if (stop.signal.aborted) throw closed();
      stats.fetchedBytes += n;
      at += n;
      const done = at === size ? count : Math.floor(at / unit);
      if (done > here) {
        options.onLand(place, here, done - here);
        for (let i = here; i < done; i++) landed(i);
      }
      begun = at % unit === 0 ? undefined : place;
    }
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
    landed: (unit: number) => void,
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
      body?.cancel();
      options.onDownload(from().name, at, -1, us());
      origin++;
      throw error;
    }
  };

  const fly = (run: Run, head?: RangeBody) => {
    const waits = new Map<number, PromiseWithResolvers<void>>();
    for (let i = run.first; i < run.first + run.count; i++) {
      const wait = Promise.withResolvers<void>();
      // Nobody may wait for it.
      wait.promise.catch(() => {});
      waits.set(i, wait);
      running.set(i, wait);
    }
    const end = (
      i: number,
      how: (wait: PromiseWithResolvers<void>) => void,
    ) => {
      const wait = waits.get(i);
      if (wait === undefined) return;
      waits.delete(i);
      if (running.get(i) === wait) running.delete(i);
      how(wait);
    };
    const own = new AbortController();
    const landed = (i: number) => {
      flight.landed = true;
      end(i, (wait) => wait.resolve());
    };
    const work = () => fetchRun(run, own.signal, landed, head);
    const fail = (error: unknown) => {
      const cause = stop.signal.aborted
        ? closed()
        : own.signal.aborted
        ? dropped()
        : error;
      for (const i of [...waits.keys()]) end(i, (wait) => wait.reject(cause));
    };
    const ended =
      (head === undefined ? scheduler.run(blob, own.signal, work) : work())
        .catch(fail);
    const flight: Flight = { run, stop: own, landed: false, ended };
    flights.add(flight);
    ended.finally(() => flights.delete(flight));
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
      const waits: Promise<void>[] = [];
      for (let i = run.first; i < run.first + run.count; i++) {
        const already = running.get(i);
        if (already !== undefined) waits.push(already.promise);
      }
      await Promise.all(waits);
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
    pause: (ms) =>
      new Promise((done) => {
        const end = () => {
          clearTimeout(timer);
          stop.signal.removeEventListener("abort", end);
          done();
        };
        const timer = setTimeout(end, ms);
        stop.signal.addEventListener("abort", end);
      }),
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
