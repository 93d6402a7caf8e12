// SPDX-License-Identifier: Apache-2.0
/**
 * One blob behind the cache: which units are here, and the one fetch that
 * brings each of the others (spec/cache.md, sections 1.3 and 1.4).
 *
 * @module
 */
import { punchFd, replaceFd, windowSource } from "../../../ffi/cache.ts";
import {
  type Bytes,
  cacheSource,
  closeFd,
  evict,
  fill,
  preadFd,
  pwriteFd,
  setBitmap,
  type Source,
} from "../../../ffi/engine.ts";
import type { TarPayload } from "../../format/tar.ts";
import type { Miss } from "../../../ffi/miss.ts";
import { newSourceId, routeMisses } from "../miss.ts";
import { type Blob, SourceError } from "../source.ts";
import { openUnlinked, type StoreFile } from "./file.ts";

/** Bytes that one request brings at most. */
const REQUEST_MAX = 4 << 20;
/** Bytes that a file without a name may hold. */
const UNLINKED_MAX = 64 << 20;
/** How long one attempt may take. */
const ATTEMPT_MS = 30_000;
const BACKOFF_MIN_MS = 20;
const BACKOFF_MAX_MS = 30_000;
const EUCLEAN = 117;
/** A damaged unit is fetched again this often before it is an error. */
const CORRUPT_TRIES = 3;

/** Runs work when there is room for it. */
export type Limit = <T>(work: () => Promise<T>) => Promise<T>;

/** What a blob is opened with. */
export interface BlobOptions {
  store: StoreFile;
  size: number;
  /** fetch granule in bytes, a power of two of at least 4096 */
  unit: number;
  /** units the file holds already, bit i of byte i/8 */
  present: Bytes;
  limit: Limit;
  log: (line: string) => void;
}

/** Running totals. */
export interface BlobStats {
  fetches: number;
  fetchedBytes: number;
  corrupt: number;
}

/** A blob that the engine can read. */
export interface CachedBlob extends Disposable {
  readonly name: string;
  readonly size: number;
  /** bytes that are fetched together, a power of two */
  readonly unit: number;
  readonly source: Source;
  readonly stats: BlobStats;
  /** the same bytes, past the cache */
  readonly origin: Blob;
  /** the wrapper that `window` took it out of */
  tar: TarPayload | undefined;
  /** Shows a part of it alone. */
  window(base: number, size: number): void;
  /**
   * Waits until [at, at + length) of the whole blob is here.
   *
   * @throws {SourceError} it cannot be fetched
   */
  need(at: number, length: number): Promise<void>;
  /**
   * Copies bytes from `at` of the whole blob; false, and nothing copied, when
   * not all of them are here.
   */
  peek(at: number, into: Bytes): boolean;
  /** Forgets everything: what was fetched is not what it should be. */
  forget(): void;
  close(): void;
}

/** Splits [first, first + count) where `absent` says so, at most max long. */
function* runs(
  first: number,
  count: number,
  max: number,
  absent: (unit: number) => boolean,
): Generator<[first: number, count: number]> {
  let from = first;
  for (let i = first; i <= first + count; i++) {
    const stop = i === first + count || !absent(i);
    if ((stop || i - from === max) && i > from) yield [from, i - from];
    if (stop) from = i + 1;
    else if (i - from === max) from = i;
  }
}

/** Opens a blob; takes the file over. */
export function openCachedBlob(blob: Blob, options: BlobOptions): CachedBlob {
  const { size, unit, limit, log } = options;
  const count = Math.ceil(size / unit);
  const here = options.present.slice();
  const { fd } = options.store;
  let { kept } = options.store;
  const id = newSourceId();
  const source = cacheSource(fd, size, unit, id);
  setBitmap(source, here);
  const stop = new AbortController();
  const stats: BlobStats = { fetches: 0, fetchedBytes: 0, corrupt: 0 };
  const running = new Map<number, Promise<void>>();
  const corrupt = new Map<number, number>();
  // Units of an unlinked file, oldest first.
  const held = new Set<number>();
  let nextExpected = -1;
  let ahead = 0;

  const has = (i: number) => ((here[i >> 3] ?? 0) >> (i & 7) & 1) === 1;
  const mark = (i: number, on: boolean) => {
    const byte = here[i >> 3] ?? 0;
    here[i >> 3] = on ? byte | 1 << (i & 7) : byte & ~(1 << (i & 7));
  };

  const drop = (i: number) => {
    mark(i, false);
    held.delete(i);
    evict(source, i, 1);
    try {
      punchFd(fd, i * unit, unit);
    } catch {
      // The space stays taken; the unit is absent all the same.
    }
  };

  /** The cache's file fails: a file without a name takes its place. */
  const leaveFile = (cause: unknown) => {
    log(
      `WARNING the cache cannot keep ${blob.name}, reading past it: ${
        cause instanceof Error ? cause.message : String(cause)
      }`,
    );
    const other = openUnlinked();
    // Absent first: who reads meanwhile sees that units were lost.
    here.fill(0);
    evict(source, 0, count);
    replaceFd(fd, other.fd);
    closeFd(other.fd);
    kept = false;
  };

  const store = (first: number, n: number, bytes: Bytes) => {
    try {
      pwriteFd(fd, bytes, first * unit);
    } catch (error) {
      if (!kept) throw error;
      leaveFile(error);
      pwriteFd(fd, bytes, first * unit);
    }
    for (let i = first; i < first + n; i++) {
      mark(i, true);
      if (!kept) held.add(i);
    }
    fill(source, first, n);
    for (const i of held) {
      if (held.size * unit <= UNLINKED_MAX) break;
      drop(i);
    }
  };

  const fetchRun = async (first: number, n: number) => {
    const at = first * unit;
    let bytes = new Uint8Array(Math.min(size, (first + n) * unit) - at);
    await limit(async () => {
      const signal = AbortSignal.any([
        stop.signal,
        AbortSignal.timeout(ATTEMPT_MS),
      ]);
      stats.fetches++;
      const body = await blob.range(at, bytes.length, signal);
      if (body.total !== size) {
        body.cancel();
        throw new SourceError(
          "EIO",
          `cannot read ${blob.name}: it has ${body.total} bytes, not ${size}`,
          { retryable: false },
        );
      }
      bytes = await body.read(bytes);
      stats.fetchedBytes += bytes.length;
    });
    if (!stop.signal.aborted) store(first, n, bytes);
  };

  const fetchUnits = (first: number, n: number): Promise<void>[] => {
    const max = Math.max(1, Math.floor(REQUEST_MAX / unit));
    const absent = (i: number) => !has(i) && !running.has(i);
    const waits = new Set<Promise<void>>();
    const todo = [...runs(first, n, max, absent)];
    for (let i = first; i < first + n; i++) {
      const already = running.get(i);
      if (already !== undefined) waits.add(already);
    }
    for (const [from, length] of todo) {
      const done = fetchRun(from, length).finally(() => {
        for (let i = from; i < from + length; i++) running.delete(i);
      });
      done.catch(() => {});
      for (let i = from; i < from + length; i++) running.set(i, done);
      waits.add(done);
    }
    return [...waits];
  };

  const needUnits = async (first: number, n: number) => {
    await Promise.all(fetchUnits(first, n));
    if (stop.signal.aborted) {
      throw new SourceError("EIO", `cannot read ${blob.name}: it is closed`);
    }
  };

  /** Until it is there: the engine ends what waits too long. */
  const insist = async (first: number, n: number) => {
    for (let pause = BACKOFF_MIN_MS; !stop.signal.aborted;) {
      try {
        return await needUnits(first, n);
      } catch (error) {
        if (stop.signal.aborted) return;
        log(`WARNING ${error instanceof Error ? error.message : error}`);
        await new Promise((done) => setTimeout(done, pause));
        pause = Math.min(BACKOFF_MAX_MS, pause * 2);
      }
    }
  };

  /** Reads further than asked while reads go on where the last one ended. */
  const readAhead = (first: number, n: number) => {
    ahead = first === nextExpected
      ? Math.min(REQUEST_MAX / unit, Math.max(1, ahead * 2))
      : 0;
    nextExpected = first + n + ahead;
    const more = Math.min(ahead, count - first - n);
    // Nobody waits for these: a failure is left to who will.
    if (more > 0) void fetchUnits(first + n, more);
  };

  const route = routeMisses(id, ({ first, count: n, ...miss }: Miss) => {
    if (miss.corrupt) {
      for (let i = first; i < first + n; i++) {
        const times = (corrupt.get(i) ?? 0) + 1;
        corrupt.set(i, times);
        stats.corrupt++;
        drop(i);
        if (times > CORRUPT_TRIES) {
          log(`ERROR ${blob.name}: bytes at ${i * unit} are damaged`);
          corrupt.delete(i);
          fill(source, i, 1, EUCLEAN);
        } else insist(i, 1);
      }
      return;
    }
    insist(first, n);
    readAhead(first, n);
  });

  const close = () => {
    stop.abort();
    route[Symbol.dispose]();
    source.close();
  };
  return {
    name: blob.name,
    size,
    unit,
    source,
    stats,
    origin: blob,
    tar: undefined,
    window: (base, length) => windowSource(source, base, length),
    async need(at, length) {
      if (length <= 0 || at >= size) return;
      const first = Math.floor(at / unit);
      const end = Math.ceil(Math.min(size, at + length) / unit);
      await needUnits(first, end - first);
    },
    peek(at, into) {
      const end = at + into.length;
      if (end > size) return false;
      for (let i = Math.floor(at / unit); i * unit < end; i++) {
        if (!has(i)) return false;
      }
      return preadFd(fd, into, at) === into.length;
    },
    forget() {
      for (let i = 0; i < count; i++) if (has(i)) drop(i);
    },
    close,
    [Symbol.dispose]: close,
  };
}
