// SPDX-License-Identifier: Apache-2.0
/**
 * What an operator asks of a cache: what is in it, is it right, make room,
 * keep this, fetch that.
 *
 * @module
 */
import { blobName } from "../source.ts";
import type { Progress } from "../../../ffi/pipelines.ts";
import type { SourceSet } from "../sources.ts";
import { limitsOf } from "./evict.ts";
import { DigestError, sha256Of } from "./digest.ts";
import { openStore, presentUnits } from "./file.ts";
import { isDigest, type PoolFile } from "./directory.ts";
import { loadSaved } from "./state.ts";
import { countBits } from "./units.ts";
import { keepWhole } from "./whole.ts";

/** A blob of the cache. */
export interface CacheEntry {
  name: string;
  /** bytes of the blob, as far as it is known */
  size: number;
  /** bytes of it that are allocated */
  bytes: number;
  whole: boolean;
  /** its sha256 was right when it became whole */
  verified: boolean;
  open: boolean;
  pinned: boolean;
  /** ISO 8601 */
  lastUsed: string;
}

/** A cache as a whole; sizes in bytes. */
export interface CacheStat {
  dir: string;
  stateDir: string;
  /** of the process that holds it */
  pid: number;
  /** null: no limit */
  capacity: number | null;
  /** above it something is evicted */
  waterMark: number | null;
  used: number;
  free: number;
  blobs: number;
  openBlobs: number;
  pinned: number;
  /** in the directory, but no blobs: counted, never evicted */
  foreignBytes: number;
  /** of blobs that are open now */
  fetches: number;
  fetchedBytes: number;
  corrupt: number;
  evictedUnits: number;
}

/** What was found out about a blob. */
export interface Verified {
  name: string;
  /** `wrong`: it was dropped; `partial`: not all of it is here */
  state: "right" | "wrong" | "partial" | "missing";
}

/** A blob to fetch. */
export interface PullBlob {
  url: string;
  /** of the layer, for `cacheType` `download` */
  dir: string;
  /** bytes, 0: not known */
  size: number;
}

/** A blob that was fetched. */
export interface Pulled {
  url: string;
  size: number;
  /** bytes that had to be fetched */
  fetched: number;
}

/** See the module's comment; each may fail with what it met first. */
export interface CacheManager {
  list(): Promise<CacheEntry[]>;
  stat(): Promise<CacheStat>;
  /** @param names of blobs; none: all of them */
  verify(names: readonly string[]): Promise<Verified[]>;
  /** Drops the blobs named, or what is least used above `target` bytes. */
  prune(
    names: readonly string[],
    target: number | undefined,
  ): Promise<{ freed: number; used: number }>;
  /** @returns all that are pinned then */
  pin(names: readonly string[], on: boolean): Promise<string[]>;
  /**
   * Fetches whole blobs.  When one cannot be had, all end.
   *
   * @param signal ends it; unknown to another process's cache
   */
  pull(
    blobs: readonly PullBlob[],
    onProgress?: (progress: Progress) => void,
    signal?: AbortSignal,
  ): Promise<Pulled[]>;
}

/** Each is a file beside the cache, and known to this process. */
const PINS_MAX = 100_000;

/** Blobs that are pulled at once. */
const PULLS = 4;

function checkName(name: string): string {
  if (isDigest(name)) return name;
  throw new Error(`${name} is no digest: sha256: and hex digits are expected`);
}

/** Makes the manager of a set's cache. */
export function createManager(
  sources: SourceSet,
  limits: { unit: number; capacity: number | undefined },
): CacheManager {
  const { pool, disk } = sources;
  const { unit, capacity } = limits;

  /** What a file on disk holds, without opening its blob. */
  const look = async ({ name, path }: PoolFile) => {
    const saved = await loadSaved(disk, pool.statePath(name), path);
    const { fd, size: length } = await openStore(disk, path);
    try {
      const size = saved?.size ?? length;
      const kept = saved?.presence;
      const bits = kept !== undefined && kept.unit === unit
        ? kept.bits
        : await presentUnits(disk, fd, path, size, unit);
      const whole = countBits(bits) === Math.ceil(size / unit);
      return { size, whole, verified: kept?.verified ?? false };
    } finally {
      await disk.close(fd);
    }
  };
  const list = async (): Promise<CacheEntry[]> => {
    const open = sources.blobs();
    const entries: CacheEntry[] = [];
    const pins = await pool.pins();
    for (const file of await pool.files()) {
      const { name } = file;
      if (!isDigest(name)) continue;
      const opened = open.get(name);
      const at = Math.max(file.lastUsed, await pool.lastUse(name));
      const state = opened === undefined ? await look(file) : {
        size: opened.blob.size,
        whole: opened.blob.has(0, opened.blob.size),
        verified: opened.verified(),
      };
      entries.push({
        name,
        ...state,
        bytes: file.bytes,
        open: opened !== undefined,
        pinned: pins.has(name),
        lastUsed: new Date(opened === undefined ? at : Date.now())
          .toISOString(),
      });
    }
    return entries.sort((a, b) => a.name < b.name ? -1 : 1);
  };
  const drop = async (file: PoolFile): Promise<void> => {
    const opened = sources.blobs().get(file.name);
    await (opened === undefined ? pool.remove(file) : opened.blob.forget());
  };
  const verifyOne = async (file: PoolFile): Promise<Verified["state"]> => {
    const opened = sources.blobs().get(file.name);
    let digest: string | undefined;
    if (opened !== undefined) digest = await opened.digest();
    else {
      const { whole, size } = await look(file);
      if (!whole) return "partial";
      const { fd } = await openStore(disk, file.path);
      try {
        digest = await sha256Of(fd, size, undefined, disk.pread);
      } finally {
        await disk.close(fd);
      }
    }
    if (digest === undefined) return "partial";
    if (digest === file.name) return "right";
    await drop(file);
    return "wrong";
  };
  const named = async (names: readonly string[]) => {
    const files = (await pool.files()).filter(({ name }) => isDigest(name));
    return names.length === 0
      ? files.map(({ name }) => ({
        name,
        file: files.find((file) => file.name === name),
      }))
      : names.map(checkName).map((name) => ({
        name,
        file: files.find((file) => file.name === name),
      }));
  };

  const pullOne = async (
    { url, dir, size }: PullBlob,
    onBytes: (bytes: number, known: number) => void,
    signal: AbortSignal,
  ): Promise<Pulled> => {
    using blob = await sources.open(url, { dir, size, signal });
    const before = blob.stats.fetchedBytes;
    onBytes(0, blob.size);
    const name = blobName(url);
    const opened = sources.blobs().get(name);
    const kept = opened !== undefined &&
      await keepWhole(
        name,
        opened,
        blob.prefetch,
        (n) => onBytes(n, 0),
        signal,
      ).catch((cause) => {
        if (!(cause instanceof DigestError)) throw cause;
        throw new Error(`cannot pull ${url}: ${cause.message}`, { cause });
      });
    if (!kept) {
      throw new Error(`cannot pull ${url}: the cache does not keep it`);
    }
    return { url, size: blob.size, fetched: blob.stats.fetchedBytes - before };
  };

  return {
    list,
    async stat() {
      const files = await pool.files();
      const blobs = files.filter(({ name }) => isDigest(name));
      const sum = (some: readonly PoolFile[]) =>
        some.reduce((bytes, file) => bytes + file.bytes, 0);
      const open = [...sources.blobs().values()];
      const total = (
        of: (stats: (typeof open)[0]["blob"]["stats"]) => number,
      ) => open.reduce((n, { blob }) => n + of(blob.stats), 0);
      return {
        dir: pool.dir,
        stateDir: pool.stateDir,
        pid: Deno.pid,
        capacity: capacity ?? null,
        waterMark: capacity === undefined ? null : limitsOf(capacity).water,
        used: sum(files),
        free: await pool.free(),
        blobs: blobs.length,
        openBlobs: open.length,
        pinned: (await pool.pins()).size,
        foreignBytes: sum(files) - sum(blobs),
        fetches: total((stats) => stats.fetches),
        fetchedBytes: total((stats) => stats.fetchedBytes),
        corrupt: total((stats) => stats.corrupt),
        evictedUnits: total((stats) => stats.evicted),
      };
    },
    async verify(names) {
      const results: Verified[] = [];
      for (const { name, file } of await named(names)) {
        const state = file === undefined ? "missing" : await verifyOne(file);
        results.push({ name, state });
      }
      return results;
    },
    async prune(names, target) {
      let freed = 0;
      if (names.length > 0) {
        for (const { name, file } of await named(names)) {
          if (file === undefined) throw new Error(`the cache has no ${name}`);
          await drop(file);
          freed += file.bytes;
        }
      } else {
        const goal = target ??
          (capacity === undefined ? Infinity : limitsOf(capacity).water);
        freed = (await pool.prune(goal)).actualEvict;
      }
      const left = await pool.files();
      return { freed, used: left.reduce((sum, { bytes }) => sum + bytes, 0) };
    },
    async pin(names, on) {
      const known = names.map(checkName);
      const { size } = await pool.pins();
      if (on && size + known.length > PINS_MAX) {
        throw new Error(`no more than ${PINS_MAX} blobs can be pinned`);
      }
      for (const name of known) await pool.pin(name, on);
      return [...await pool.pins()].sort();
    },
    async pull(blobs, onProgress, signal) {
      let done = 0;
      let total = 0;
      const onBytes = (bytes: number, known: number) => {
        done += bytes;
        total += known;
        onProgress?.({ total, done, written: done });
      };
      const { default: pLimit } = await import("p-limit");
      const limit = pLimit(PULLS);
      const stop = new AbortController();
      const ends = AbortSignal.any(
        signal === undefined ? [stop.signal] : [stop.signal, signal],
      );
      const pulls = blobs.map((blob) =>
        limit(() => pullOne(blob, onBytes, ends))
      );
      try {
        return await Promise.all(pulls);
      } finally {
        stop.abort();
        await Promise.allSettled(pulls);
      }
    },
  };
}
