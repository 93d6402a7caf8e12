// SPDX-License-Identifier: Apache-2.0
/**
 * A cache directory: who holds it, which files are in it, what is evicted
 * when (spec/cache.md, sections 1.1, 1.5 and 1.6).  What is known beyond the
 * files themselves lies beside the directory, in `<dir>.state`: everything
 * inside it is counted and evicted by the original.
 *
 * @module
 */
import type { OwnedBlob } from "./blob.ts";
import type { Disk } from "./disk.ts";
import {
  createHolder,
  isDigest,
  isHung,
  type PoolFile,
  stateDirOf,
  walk,
} from "./directory.ts";
import {
  evictionNeed,
  evictOldest,
  limitsOf,
  type UnitVictims,
  type Victim,
} from "./evict.ts";
import { removeSaved } from "./state.ts";

/** What an eviction pass did, in bytes. */
export interface EvictionReport {
  actualEvict: number;
  evictByCache: number;
  evictByDisk: number;
  totalUsed: number;
}

/** How a pool is made. */
export interface PoolOptions {
  dir: string;
  disk: Disk;
  /** bytes of all its files together; undefined: nothing is evicted */
  capacity: number | undefined;
  /** bytes that its file system should have free */
  floor: number;
  /** another process's directory is not read past */
  borrow: boolean;
  log: (line: string) => void;
  onEviction: (report: EvictionReport) => void;
  /** the directory is held from now on */
  onHold: () => void;
}

/** See the module's comment. */
export interface Pool {
  readonly dir: string;
  readonly stateDir: string;
  /** @throws {EngineError} the directory cannot be looked at */
  exists(): Promise<boolean>;
  /** True when this process holds the directory, from now on. */
  hold(): Promise<boolean>;
  /** True when another process did, the last time that was tried. */
  isElsewhere(): boolean;
  /** where a blob's state is saved */
  statePath(name: string): string;
  /** A blob is to be opened in one of its files: that stays, or is gone. */
  opening(name: string): Promise<void>;
  /** It is open: its units may be evicted. */
  opened(name: string, blob: OwnedBlob): void;
  closed(name: string): void;
  isOpen(name: string): boolean;
  /** Bytes were written: there may be too many now. */
  wrote(bytes: number): void;
  /** The disk is full: resolves when what can be done was. */
  makeRoom(): Promise<void>;
  /** Evicts down to `target` bytes, whatever the limits say. */
  prune(target: number): Promise<EvictionReport>;
  /** Drops one that is not open. */
  remove(file: PoolFile): Promise<void>;
  files(): Promise<PoolFile[]>;
  /** when a blob was closed last, in ms since 1970; 0: nobody knows */
  lastUse(name: string): Promise<number>;
  pins(): Promise<ReadonlySet<string>>;
  pin(name: string, on: boolean): Promise<void>;
  /** bytes free on the file system */
  free(): Promise<number>;
  close(): Promise<void>;
}

type Timer = ReturnType<typeof setTimeout>;

const TICK_MS = 10_000;
/** Passes that nobody waits for are this far apart. */
const REST_MS = 200;
/** What a full disk should have free for the next writes. */
const ROOM = 64 << 20;
const PIN = ".pin";
const STATE = ".presence";

function why(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Makes the pool of a directory; nothing is touched yet. */
export function createPool(options: PoolOptions): Pool {
  const { dir, disk, capacity, floor, log } = options;
  const stateDir = stateDirOf(dir);
  const statePath = (name: string) => `${stateDir}/${name}${STATE}`;
  const open = new Map<string, OwnedBlob | undefined>();
  const holder = createHolder({ ...options, stateDir });
  let pinned: Promise<Set<string>> | undefined;
  // Allocated as far as it is known: counted anew by every pass.
  let used = 0;
  let fresh = true;
  let timer: Timer | undefined;
  let passing: Promise<EvictionReport> | undefined;
  let soon: Timer | undefined;
  let room: Promise<void> | undefined;

  const readPins = async (): Promise<Set<string>> => {
    const list = () => Array.fromAsync(Deno.readDir(stateDir));
    const names = await disk.call(`cannot list ${stateDir}`, list)
      .catch((error) => {
        // Nobody knows them: nothing may go.
        if (isHung(error)) throw error;
        // No state, no pins.
        return [];
      });
    return new Set(
      names.map(({ name }) => name).filter((name) => name.endsWith(PIN))
        .map((name) => name.slice(0, -PIN.length)),
    );
  };
  const pins = () =>
    pinned ??= readPins().catch((error) => {
      pinned = undefined;
      throw error;
    });

  const free = async (): Promise<number> => {
    // node:fs takes long to load, and few programs come here.
    const { statfs } = await import("node:fs/promises");
    const look = () => statfs(dir);
    const { bavail, bsize } = await disk.call(`cannot look at ${dir}`, look);
    return bavail * bsize;
  };
  const lastUse = async (name: string): Promise<number> => {
    const info = await disk.stat(statePath(name)).catch(() => undefined);
    return info?.mtime?.getTime() ?? 0;
  };
  const removing = new Map<string, Promise<void>>();
  const removeFile = async ({ name, path }: PoolFile): Promise<void> => {
    // It may have been opened since.
    if (open.has(name)) throw new Error(`${name} is in use`);
    const gone = (async () => {
      await disk.remove(path);
      await removeSaved(disk, statePath(name));
    })();
    removing.set(name, gone);
    try {
      await gone;
    } finally {
      removing.delete(name);
    }
  };
  /** What is not ours is counted and stays. */
  const closedFiles = async (
    files: readonly PoolFile[],
    pins: ReadonlySet<string>,
  ): Promise<Victim[]> => {
    const all: Victim[] = [];
    for (const file of files) {
      const { name, bytes } = file;
      if (!isDigest(name) || open.has(name) || pins.has(name)) continue;
      if (bytes === 0) continue;
      const lastUsed = Math.max(file.lastUsed, await lastUse(name));
      all.push({ lastUsed, bytes, evict: () => removeFile(file) });
    }
    return all;
  };
  const openUnits = (pins: ReadonlySet<string>): UnitVictims[] => {
    const now = Date.now();
    const all: UnitVictims[] = [];
    for (const [name, blob] of open) {
      if (blob !== undefined && !pins.has(name)) {
        all.push(blob.evictable(now));
      }
    }
    return all;
  };
  const pass = async (
    bytesToGo: (used: number, free: number) => {
      byCache: number;
      byDisk: number;
      bytes: number;
    },
  ): Promise<EvictionReport> => {
    const files = await walk(disk, dir);
    const space = await free();
    const stay = await pins();
    used = files.reduce((sum, file) => sum + file.bytes, 0);
    fresh = false;
    const need = bytesToGo(used, space);
    const report = {
      actualEvict: 0,
      evictByCache: need.byCache,
      evictByDisk: need.byDisk,
      totalUsed: used,
    };
    if (need.bytes <= 0) return report;
    report.actualEvict = await evictOldest(
      await closedFiles(files, stay),
      openUnits(stay),
      need.bytes,
    );
    used -= report.actualEvict;
    options.onEviction(report);
    return report;
  };
  /** One at a time: who asks meanwhile has the next one. */
  const inTurn = async (
    bytesToGo: Parameters<typeof pass>[0],
  ): Promise<EvictionReport> => {
    while (passing !== undefined) await passing.catch(() => {});
    passing = pass(bytesToGo);
    try {
      return await passing;
    } finally {
      passing = undefined;
    }
  };
  const regular = async () => {
    if (capacity === undefined) return;
    try {
      await inTurn((now, space) =>
        evictionNeed({ used: now, free: space }, capacity, floor)
      );
    } catch (error) {
      log(`WARNING cannot evict from ${dir}: ${why(error)}`);
    }
  };
  const roomPass = async () => {
    if (capacity === undefined) return;
    try {
      await inTurn((now, space) => {
        const need = evictionNeed({ used: now, free: space }, capacity, floor);
        // A quota may be what is full, not the file system.
        const byDisk = Math.max(need.byDisk, ROOM);
        const bytes = Math.min(now, Math.max(byDisk, need.byCache));
        return { byCache: need.byCache, byDisk, bytes };
      });
    } catch (error) {
      log(`WARNING cannot evict from ${dir}: ${why(error)}`);
    }
  };
  const tick = async () => {
    if (capacity === undefined || passing !== undefined) return;
    const low = async () => await free().catch(() => floor) < floor;
    if (fresh || used > limitsOf(capacity).water || await low()) {
      await regular();
    }
  };
  const start = () => {
    if (capacity === undefined || timer !== undefined) return;
    timer = setInterval(tick, TICK_MS);
    timer.unref();
    tick();
  };
  const stop = () => {
    clearInterval(timer);
    clearTimeout(soon);
    timer = undefined;
    soon = undefined;
  };

  return {
    dir,
    stateDir,
    async exists() {
      try {
        await disk.stat(dir);
        return true;
      } catch (error) {
        if (error instanceof Deno.errors.NotFound) return false;
        throw error;
      }
    },
    hold: holder.hold,
    isElsewhere: holder.isElsewhere,
    statePath,
    async opening(name) {
      open.set(name, undefined);
      await removing.get(name)?.catch(() => {});
    },
    opened(name, blob) {
      open.set(name, blob);
      start();
    },
    closed(name) {
      open.delete(name);
      if (open.size === 0) stop();
    },
    isOpen: (name) => open.has(name),
    wrote(bytes) {
      used += bytes;
      if (capacity === undefined || soon !== undefined) return;
      if (used < limitsOf(capacity).risk) return;
      soon = setTimeout(async () => {
        await regular();
        soon = undefined;
      }, REST_MS);
    },
    makeRoom() {
      // Every write fails on a full disk: one pass is for all of them.
      room ??= roomPass().finally(() => room = undefined);
      return room;
    },
    prune: (target) =>
      inTurn((now) => {
        const bytes = Math.max(0, now - target);
        return { byCache: bytes, byDisk: 0, bytes };
      }),
    remove: removeFile,
    files: () => walk(disk, dir),
    lastUse,
    pins,
    async pin(name, on) {
      const path = `${stateDir}/${name}${PIN}`;
      const set = await pins();
      if (on) {
        await disk.call(`cannot pin ${name}`, async () => {
          await Deno.mkdir(stateDir, { recursive: true, mode: 0o700 });
          await Deno.writeTextFile(path, "", { mode: 0o600 });
        });
        set.add(name);
      } else if (set.delete(name)) await disk.remove(path);
    },
    free,
    async close() {
      stop();
      await holder.release();
    },
  };
}
