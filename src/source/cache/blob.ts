// SPDX-License-Identifier: Apache-2.0
/**
 * One blob behind the cache: which units are here, and the one fetch that
 * brings each of the others (spec/cache.md, sections 1.3 and 1.4).
 *
 * @module
 */
import {
  cacheSource,
  closeSource,
  fill,
  isWanted,
  setBitmap,
  takeUsed,
  windowSource,
} from "../../../ffi/cache.ts";
import type { Bytes, Source } from "../../../ffi/handle.ts";
import type { Miss } from "../../../ffi/miss.ts";
import type { TarPayload } from "../../format/tar.ts";
import { newSourceId, routeMisses } from "../miss.ts";
import { type Blob, endable, type RangeBody, SourceError } from "../source.ts";
import type { Disk } from "./disk.ts";
import type { UnitVictims } from "./evict.ts";
import { createFetcher, type FetchParts } from "./fetch.ts";
import { type Media, openMedia } from "./media.ts";
import { createReadAhead } from "./readahead.ts";
import type { SpillBudget } from "./spill.ts";
import {
  countBits,
  hasBit,
  newBits,
  putBit,
  type Run,
  unitsUnder,
  widened,
} from "./units.ts";

/** Bytes that are read ahead at most. */
const AHEAD_MAX = 8 << 20;
const BACKOFF_MIN_MS = 20;
const BACKOFF_MAX_MS = 30_000;
const EIO = 5;
const EUCLEAN = 117;
/** Answers that cannot be right, in a row, before they are an error. */
const WRONG_TRIES = 3;
/** A damaged unit is fetched again this often before it is an error. */
const CORRUPT_TRIES = 3;
/** What was sound for so long since it came is damaged for the first time. */
const CORRUPT_MEMORY_MS = 5_000;

/** What a blob is opened with. */
export interface BlobOptions extends FetchParts {
  fd: number;
  /** that it lies on */
  disk: Disk;
  /** of the file; undefined: it has no name */
  path: string | undefined;
  /** false: the file has no name, so what it holds is bounded */
  kept: boolean;
  /** bytes of the blob */
  size: number;
  /** units the file holds already */
  present: Bytes;
  /** bytes that a miss brings, a power of two of at least a unit */
  refill: number;
  spill: SpillBudget;
  /** the answer to the first request, which told the size */
  head: RangeBody | undefined;
  /** the kept file is about to change: may, once this resolves */
  onChange: () => Promise<void>;
  /** makes room on a full disk, if it can */
  onFull: () => Promise<void>;
  onWrite: (at: number, bytes: number, us: number) => void;
  /** ms after which a write is given up */
  writeMs?: number | undefined;
  /** every unit is in the file */
  onWhole: () => void;
}

/** Running totals. */
export interface BlobStats {
  fetches: number;
  fetchedBytes: number;
  corrupt: number;
  evicted: number;
}

/** A blob that the engine can read. */
export interface CachedBlob extends Disposable {
  readonly name: string;
  /** bytes */
  readonly size: number;
  /** bytes that are here or not together, a power of two */
  readonly unit: number;
  /** bytes that a miss brings, a power of two of at least a unit */
  readonly refill: number;
  readonly source: Source;
  readonly stats: BlobStats;
  /** the same bytes, past the cache */
  readonly origin: Blob;
  /** of the file that keeps it; undefined: none does */
  readonly path: string | undefined;
  /** the wrapper that `window` took it out of */
  tar: TarPayload | undefined;
  /** Shows a part of it alone. */
  window(base: number, size: number): void;
  /**
   * Waits until [at, at + length) of the whole blob is here.  It is not
   * evicted while the blob is open: this is for headers and indexes.
   *
   * @param signal ends the waiting
   * @throws {SourceError} it cannot be fetched
   */
  need(at: number, length: number, signal?: AbortSignal): Promise<void>;
  /** The same for data, which may be evicted again. */
  prefetch(at: number, length: number, signal?: AbortSignal): Promise<void>;
  /** True when all of the range is here. */
  has(at: number, length: number): boolean;
  /**
   * Copies bytes from `at` of the whole blob; false, and what is copied says
   * nothing, when not all of them are in its file.
   */
  peek(at: number, into: Bytes): Promise<boolean>;
  /**
   * Its file is not changed any more: from now on it is somebody else's.
   *
   * @throws {Error} something may change it still
   */
  freeze(): void;
  /**
   * Forgets everything, at once: what was fetched is not what it should be.
   * Resolves when its space is given back.
   */
  forget(): Promise<void>;
  close(): void;
}

/** The same for its owner. */
export interface OwnedBlob extends CachedBlob {
  /** a copy: the units that are in its own file */
  present(): Bytes;
  /** Another place where it can be had. */
  addOrigin(blob: Blob): void;
  /** Somebody uses it no more: ends fetches that nobody else wants. */
  drop(): void;
  /** What may be evicted; harvests what was read since the last call. */
  evictable(now: number): UnitVictims;
  /**
   * Ends fetches; after it nothing changes the file but writes that were given
   * up: these bring what it should hold.
   */
  settle(): Promise<void>;
  /** such writes */
  late(): number;
  /** Resolves when its file is closed, or cannot be in time. */
  close(): Promise<void>;
}

/** Opens a blob; takes the descriptor and the head over. */
export function openCachedBlob(blob: Blob, options: BlobOptions): OwnedBlob {
  const { fd, disk, kept, size, unit, refill, log } = options;
  const count = Math.ceil(size / unit);
  const perRefill = Math.max(1, refill / unit);
  const here = options.present.slice();
  const id = newSourceId();
  const source = cacheSource(fd, size, unit, id);
  setBitmap(source, here);
  const stats: BlobStats = {
    fetches: 0,
    fetchedBytes: 0,
    corrupt: 0,
    evicted: 0,
  };
  let left = count - countBits(here);
  let settled = false;
  let closed = false;
  // Headers, indexes: not evicted.
  const guarded = newBits(count);
  // When units were used, in s since 1970; made when it is first asked for.
  let lastUsed: Uint32Array | undefined;
  const openedAt = Date.now();
  const damage = new Map<number, { times: number; at: number }>();

  let drops = 0;
  const drop = (i: number) => {
    drops++;
    if (hasBit(here, i)) left++;
    putBit(here, i, false);
    media.drop(i);
  };
  const media: Media = openMedia({
    ...options,
    name: blob.name,
    source,
    onDrop: drop,
  });
  const fetcher = createFetcher(blob, {
    ...options,
    stats,
    media,
    has: (i) => hasBit(here, i),
    // Twice damaged in the file: the disk below may be what is bad.
    place({ first, count: n }) {
      for (let i = first; damage.size > 0 && i < first + n; i++) {
        if ((damage.get(i)?.times ?? 0) > 1) return "spill";
      }
      return undefined;
    },
    onLand({ first, count: n }) {
      const now = Date.now();
      for (let i = first; i < first + n; i++) {
        if (!hasBit(here, i)) left--;
        putBit(here, i, true);
        const before = damage.get(i);
        if (before !== undefined) before.at = now;
        if (lastUsed !== undefined) lastUsed[i] = now / 1000;
      }
      if (left === 0 && kept && media.spilled().size === 0) options.onWhole();
    },
  });
  if (options.head !== undefined) fetcher.begin(options.head);

  const under = (at: number, length: number) =>
    unitsUnder(at, length, size, unit);

  /**
   * Until it is there, or no request waits for it: the engine ends what waits
   * too long.  An answer that is wrong in itself, not just missing, becomes an
   * error sooner: the blob may be another one now.
   */
  const insist = async (first: number, n: number) => {
    const isOver = () =>
      closed || fetcher.signal.aborted || !isWanted(source, first, n);
    let wrong = 0;
    for (let pause = BACKOFF_MIN_MS;;) {
      try {
        return await fetcher.need({ first, count: n });
      } catch (error) {
        if (isOver()) return;
        log(`WARNING ${error instanceof Error ? error.message : error}`);
        const known = error instanceof SourceError ? error : undefined;
        if (known?.code === "EIO" && !known.retryable) wrong++;
        if (wrong === WRONG_TRIES) return fail(first, n);
        await fetcher.pause(Math.max(pause, known?.retryAfterMs ?? 0));
        if (isOver()) return;
        pause = Math.min(BACKOFF_MAX_MS, pause * 2);
      }
    }
  };
  const fail = (first: number, n: number) => {
    for (let i = first; i < first + n; i++) {
      if (!hasBit(here, i)) fill(source, i, 1, EIO);
    }
  };

  const mend = (i: number) => {
    const now = Date.now();
    const before = damage.get(i);
    const recent = before !== undefined && now - before.at < CORRUPT_MEMORY_MS;
    const times = (recent ? before.times : 0) + 1;
    damage.set(i, { times, at: now });
    stats.corrupt++;
    if (!fetcher.fetching(i)) drop(i);
    if (times > CORRUPT_TRIES) {
      log(
        `ERROR cannot read ${blob.name}: its bytes at ${i * unit} are ` +
          `damaged, ${times} times in a row`,
      );
      damage.delete(i);
      fill(source, i, 1, EUCLEAN);
    } else insist(i, 1);
  };

  const isFetched = (first: number, n: number) => {
    for (let i = first; i < first + n; i++) {
      if (!hasBit(here, i) && !fetcher.fetching(i)) return false;
    }
    return true;
  };
  const readAhead = createReadAhead(
    Math.max(1, AHEAD_MAX / unit),
    perRefill,
    (i) => hasBit(here, i),
  );
  const route = routeMisses(id, ({ first, count: n, corrupt }: Miss) => {
    if (corrupt) {
      for (let i = first; i < first + n; i++) mend(i);
      return;
    }
    // What is asked for is insisted on; its surroundings come with it, unless
    // somebody fetches just this already.
    const around = isFetched(first, n)
      ? { first, count: n }
      : widened({ first, count: n }, perRefill, count);
    if (around.count > n) fetcher.need(around).catch(() => {});
    insist(first, n);
    const more = readAhead(around);
    if (more.count > 0) fetcher.ahead(more);
  });

  const harvest = (now: number): Uint32Array => {
    const times = lastUsed ?? new Uint32Array(count).fill(openedAt / 1000);
    lastUsed = times;
    const used = newBits(count);
    takeUsed(source, used);
    for (let i = 0; i < count; i++) {
      if (hasBit(used, i)) times[i] = now / 1000;
    }
    return times;
  };

  const has = (at: number, length: number) => {
    const run = under(at, length);
    for (let i = run.first; i < run.first + run.count; i++) {
      if (!hasBit(here, i)) return false;
    }
    return true;
  };
  /** Who waits here, and not in the engine. */
  const waiting = new Set<{ run: Run; signal: AbortSignal | undefined }>();
  const wait = async (run: Run, signal: AbortSignal | undefined) => {
    const one = { run, signal };
    waiting.add(one);
    try {
      await endable(fetcher.need(run), signal, blob.name);
    } finally {
      waiting.delete(one);
    }
  };
  const isWaitedFor = ({ first, count: n }: Run) => {
    for (const { run, signal } of waiting) {
      if (signal?.aborted) continue;
      if (run.first < first + n && first < run.first + run.count) return true;
    }
    return isWanted(source, first, n);
  };
  const settle = async () => {
    settled = true;
    await fetcher.settle();
    await media.given();
    media.close();
  };
  const inFile = (at: number, length: number) => {
    if (at + length > size || !has(at, length)) return false;
    const run = under(at, length);
    for (let i = run.first; i < run.first + run.count; i++) {
      if (media.spilled().has(i)) return false;
    }
    return true;
  };
  const close = async () => {
    closed = true;
    route[Symbol.dispose]();
    await disk.closing(() => closeSource(source));
  };
  return {
    name: blob.name,
    size,
    unit,
    refill,
    source,
    stats,
    origin: blob,
    path: options.path,
    tar: undefined,
    window: (base, length) => windowSource(source, base, length),
    async need(at, length, signal) {
      const run = under(at, length);
      for (let i = run.first; i < run.first + run.count; i++) {
        putBit(guarded, i, true);
      }
      await wait(run, signal);
    },
    prefetch: (at, length, signal) => wait(under(at, length), signal),
    has,
    async peek(at, into) {
      const before = drops;
      return inFile(at, into.length) &&
        await disk.pread(fd, into, at) === into.length && drops === before;
    },
    freeze: () => media.freeze(),
    forget() {
      for (let i = 0; i < count; i++) if (hasBit(here, i)) drop(i);
      return media.given();
    },
    present() {
      const bits = here.slice();
      for (const i of media.spilled()) putBit(bits, i, false);
      return bits;
    },
    addOrigin: fetcher.addOrigin,
    drop: () => fetcher.drop(isWaitedFor),
    evictable(now) {
      const times = harvest(now);
      return {
        count,
        lastUsed: (i) =>
          !settled && hasBit(here, i) && !hasBit(guarded, i)
            ? times[i]
            : undefined,
        bytes: (i) => Math.min(unit, size - i * unit),
        evict(i) {
          stats.evicted++;
          drop(i);
        },
        given: media.given,
      };
    },
    settle,
    late: media.late,
    close,
    [Symbol.dispose]: close,
  };
}
