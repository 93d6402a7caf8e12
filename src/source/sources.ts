// SPDX-License-Identifier: Apache-2.0
/**
 * Where the remote layers of a host's images come from: a registry, through
 * the cache directory that all of them share.
 *
 * @module
 */
import type { CachedBlob } from "./cache/blob.ts";
import { createDisk, type Disk } from "./cache/disk.ts";
import { type CacheManager, createManager } from "./cache/manage.ts";
import { createPool, type EvictionReport, type Pool } from "./cache/pool.ts";
import { createScheduler } from "./cache/schedule.ts";
import { createSpillBudget } from "./cache/spill.ts";
import {
  type OpenedBlob,
  openKept,
  openPast,
  type Shared,
} from "./cache/store.ts";
import type { Peer } from "./registry/peer.ts";
import { type Blob, blobName, endable, SourceError } from "./source.ts";

/** One operation for the audit file (spec/service-config.md, section 5). */
export interface SourceAudit {
  op: "download" | "file:write";
  /** `/` and the URL; empty for the cache's own files */
  pathname: string;
  offset: number;
  /** bytes, -1 after a failure */
  size: number;
  latencyUs: number;
}

/** How a set of sources is made. */
export interface SourceSetOptions {
  /** the blob behind a URL, maybe through peers; contacts nobody yet */
  openBlob(url: string, peer?: Peer): Blob;
  /** `file`; `download`: beside each layer; `ocf` is served by `file` */
  cacheType?: string;
  cacheDir: string;
  /** bytes that the directory may hold; undefined: no limit */
  cacheSize?: number;
  /** bytes that its file system should have free */
  diskFloor?: number;
  /** bytes that a miss brings: a multiple of 4096 and a power of two */
  refillSize: number;
  /** requests at once, over all blobs */
  maxRequests?: number;
  /** while another process holds the directory, blobs are read through it */
  borrow?: boolean;
  /** ms after which a write to the cache is given up; for tests */
  writeMs?: number;
  /** and any other call on its disk; for tests */
  diskMs?: number;
  /** waits between attempts, or until the signal; for tests */
  sleep?: (ms: number, signal: AbortSignal) => Promise<void>;
  log: (line: string) => void;
  audit?: (done: SourceAudit) => void;
  onEviction?: (report: EvictionReport) => void;
  /** a read from a registry has ended well */
  onDownload?: (bytes: number, us: number) => void;
}

/** What is known of a blob beside its URL. */
export interface OpenBlobOptions {
  /** of the layer: where `cacheType` `download` puts it */
  dir?: string;
  /** bytes, 0: not known */
  size?: number;
  /** fetched through it, and past the cache: peers have one */
  peer?: Peer;
  /** ends the opening, and whoever waits for ranges of it */
  signal?: AbortSignal | undefined;
}

/** Blobs that images read from. */
export interface SourceSet extends AsyncDisposable {
  readonly pool: Pool;
  /** that the cache lies on */
  readonly disk: Disk;
  /** what an operator may ask of the cache */
  readonly manager: CacheManager;
  /**
   * Opens a blob; everybody who opens one name shares it.
   *
   * @param url `<repoBlobUrl>/<digest>`
   * @throws {SourceError} its size cannot be had
   */
  open(url: string, options?: OpenBlobOptions): Promise<CachedBlob>;
  /** the open blobs, by name; those of peers by another */
  blobs(): Map<string, OpenedBlob>;
  /** Ends all fetches; resolves when every file is left as it should be. */
  close(): Promise<void>;
}

const MAX_REQUESTS = 64;
/** What one blob may have of them. */
const SHARE = 16;
/**
 * What is fetched ahead of reads, a trace, comes in units no larger than
 * this, whatever a miss brings.
 */
const UNIT_MAX = 64 << 10;
/** Bytes of units that no cache file keeps, over all blobs. */
const SPILL_MAX = 256 << 20;
const GIB = 2 ** 30;

/** An open blob and how many use it. */
interface User {
  opening: Promise<OpenedBlob>;
  /** once it is open */
  opened: OpenedBlob | undefined;
  users: number;
  stop: AbortController;
}

function why(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Makes the sources of a host's images. */
export function createSources(options: SourceSetOptions): SourceSet {
  const { cacheDir, refillSize: refill, log } = options;
  const unit = Math.min(refill, UNIT_MAX);
  const inLayers = options.cacheType === "download";
  if (options.cacheType === "ocf") {
    log("WARNING cacheType ocf: the file cache is used in its place");
  }
  const capacity = inLayers ? undefined : options.cacheSize;
  let manager: CacheManager | undefined;
  const disk = createDisk(options.diskMs);
  const pool = createPool({
    dir: cacheDir,
    disk,
    capacity,
    floor: options.diskFloor ?? GIB,
    borrow: options.borrow ?? false,
    log,
    onEviction: (report) => options.onEviction?.(report),
    onHold: () => listen(),
  });
  let control: Promise<{ close(): Promise<void> } | undefined> | undefined;
  /** Who holds the directory answers for it. */
  const listen = () => {
    control ??= (async () => {
      try {
        const { controlPath, serveControl } = await import(
          "./cache/control.ts"
        );
        const { createLender } = await import("./cache/lend.ts");
        if (ended) return undefined;
        return await serveControl(disk, controlPath(pool.stateDir), {
          manager: set.manager,
          lender: createLender(set),
        });
      } catch (error) {
        log(`WARNING no command can ask for ${cacheDir}: ${why(error)}`);
        return undefined;
      }
    })();
  };
  const shared: Shared = {
    unit,
    disk,
    refill,
    scheduler: createScheduler(options.maxRequests ?? MAX_REQUESTS, SHARE),
    spill: createSpillBudget(SPILL_MAX),
    log,
    onFull: pool.makeRoom,
    writeMs: options.writeMs,
    sleep: options.sleep,
    onDownload(name, offset, size, latencyUs) {
      const pathname = `/${name}`;
      options.audit?.({ op: "download", pathname, offset, size, latencyUs });
      if (size >= 0) options.onDownload?.(size, latencyUs);
    },
    onWrite(offset, size, latencyUs) {
      const pathname = "";
      options.audit?.({ op: "file:write", pathname, offset, size, latencyUs });
      if (size > 0) pool.wrote(size);
    },
  };
  const open = new Map<string, User>();
  const closing = new Map<string, Promise<void>>();
  let ended = false;

  const openInPool = async (
    blob: Blob,
    name: string,
    size: number,
    signal: AbortSignal,
  ): Promise<OpenedBlob | undefined> => {
    if (!await pool.hold()) return undefined;
    const kept = {
      name,
      path: `${cacheDir}/${name}`,
      statePath: pool.statePath(name),
      size,
      lock: false,
    };
    let opened: OpenedBlob;
    try {
      await pool.opening(name);
      opened = await openKept(blob, kept, shared, signal);
    } catch (error) {
      pool.closed(name);
      throw error;
    }
    pool.opened(name, opened.blob);
    return {
      ...opened,
      async close() {
        await opened.close();
        pool.closed(name);
      },
    };
  };
  const openInLayer = async (
    blob: Blob,
    name: string,
    { dir, size }: { dir: string; size: number },
    signal: AbortSignal,
  ): Promise<OpenedBlob | undefined> => {
    if (dir === "") {
      log(`WARNING ${name} has no directory to be kept in`);
      return undefined;
    }
    return await openKept(
      blob,
      {
        name,
        path: `${dir}/.download`,
        statePath: undefined,
        size,
        lock: true,
      },
      shared,
      signal,
    );
  };
  const openOne = async (
    url: string,
    name: string,
    { dir = "", size = 0, peer }: OpenBlobOptions,
    signal: AbortSignal,
  ): Promise<OpenedBlob> => {
    const blob = options.openBlob(url, peer);
    if (peer !== undefined) return await openPast(blob, shared, signal);
    await closing.get(name);
    const borrows = options.borrow === true && !inLayers &&
      !await pool.hold();
    if (borrows && pool.isElsewhere()) {
      const { controlPath } = await import("./cache/control.ts");
      const { borrowedBlob } = await import("./cache/lend.ts");
      const holder = controlPath(pool.stateDir);
      const lent = borrowedBlob(holder, url, blob, log);
      return await openPast(lent, shared, signal);
    }
    let kept: OpenedBlob | undefined;
    try {
      kept = inLayers
        ? await openInLayer(blob, name, { dir, size }, signal)
        : await openInPool(blob, name, size, signal);
    } catch (error) {
      if (error instanceof SourceError) throw error;
      log(
        `WARNING the cache cannot keep ${name}, reading past it: ${why(error)}`,
      );
    }
    return kept ?? await openPast(blob, shared, signal);
  };
  const end = (name: string, user: User) => {
    open.delete(name);
    user.stop.abort();
    const done = user.opening.then((opened) => opened.close(), () => {})
      .finally(() => {
        if (closing.get(name) === done) closing.delete(name);
      });
    closing.set(name, done);
  };

  /** One user's hold on a blob that others may use, too. */
  const holdOn = (
    name: string,
    user: User,
    { blob }: OpenedBlob,
    signal: AbortSignal | undefined,
  ) => {
    let closed = false;
    // Of this user's own waiting.
    const stop = new AbortController();
    const abort = () => stop.abort(signal?.reason);
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort, { once: true });
    const close = () => {
      if (closed) return;
      closed = true;
      signal?.removeEventListener("abort", abort);
      stop.abort();
      if (--user.users > 0) blob.drop();
      else if (open.get(name) === user) end(name, user);
    };
    return {
      ...blob,
      need: (at: number, length: number) => blob.need(at, length, stop.signal),
      prefetch: (at: number, length: number) =>
        blob.prefetch(at, length, stop.signal),
      get tar() {
        return blob.tar;
      },
      set tar(tar) {
        blob.tar = tar;
      },
      close,
      [Symbol.dispose]: close,
    };
  };

  let closed: Promise<void> | undefined;
  const close = () => closed ??= closeAll();
  const closeAll = async () => {
    ended = true;
    for (const [name, user] of open) end(name, user);
    await Promise.all(closing.values());
    await (await control)?.close();
    await pool.close();
  };
  const set: SourceSet = {
    pool,
    disk,
    get manager() {
      return manager ??= createManager(set, { unit, capacity });
    },
    async open(url, about = {}) {
      const { peer } = about;
      const name = blobName(url);
      const key = peer === undefined ? name : `${name} by ${peer.address}`;
      if (ended) throw new SourceError("EIO", `cannot open ${url}: closed`);
      let user = open.get(key);
      if (user === undefined) {
        const stop = new AbortController();
        const opening = openOne(url, name, about, stop.signal);
        const fresh: User = { opening, opened: undefined, users: 0, stop };
        opening.then((opened) => fresh.opened = opened, () => {});
        user = fresh;
        open.set(key, user);
      } else {
        user.opening.then(
          ({ blob }) => blob.addOrigin(options.openBlob(url, peer)),
          () => {},
        );
      }
      user.users++;
      const used = user;
      const leave = () => {
        if (--used.users === 0 && open.get(key) === used) end(key, used);
      };
      const { signal } = about;
      try {
        const opened = await endable(used.opening, signal, url);
        return holdOn(key, used, opened, signal);
      } catch (error) {
        leave();
        throw error;
      }
    },
    blobs() {
      const all = new Map<string, OpenedBlob>();
      for (const [name, { opened }] of open) {
        if (opened !== undefined) all.set(name, opened);
      }
      return all;
    },
    close,
    [Symbol.asyncDispose]: close,
  };
  return set;
}
