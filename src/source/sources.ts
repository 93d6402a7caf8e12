// SPDX-License-Identifier: Apache-2.0
/**
 * Where the remote layers of a host's images come from: a registry, through
 * the cache directory that all of them share.
 *
 * @module
 */
import pLimit from "p-limit";
import {
  closeFd,
  flock,
  LOCK,
  O,
  openFd,
  truncateFd,
} from "../../ffi/engine.ts";
import { type CachedBlob, openCachedBlob } from "./cache/blob.ts";
import {
  openStore,
  openUnlinked,
  presentUnits,
  provenSize,
} from "./cache/file.ts";
import { type Blob, SourceError } from "./source.ts";

/** How a set of sources is made. */
export interface SourceSetOptions {
  /** the blob behind a URL; contacts nobody yet */
  openBlob(url: string): Blob;
  cacheDir: string;
  /** fetch granule in bytes: a multiple of 4096 and a power of two */
  refillSize: number;
  /** requests at once, over all blobs */
  maxRequests?: number;
  log: (line: string) => void;
}

/** Blobs that images read from. */
export interface SourceSet extends Disposable {
  /**
   * Opens a blob; everybody who opens one name shares it.
   *
   * @param url `<repoBlobUrl>/<digest>`
   * @throws {SourceError} its size cannot be had
   */
  open(url: string): Promise<CachedBlob>;
  close(): void;
}

const MAX_REQUESTS = 64;

/** An open blob and how many use it. */
interface Shared {
  opening: Promise<CachedBlob>;
  users: number;
}

/** Whole blocks of 512 bytes that a path has. */
function blocksOf(path: string): number {
  return Deno.statSync(path).blocks ?? 0;
}

/** Holds the directory alone; undefined: another process does, or none can. */
function lockDir(
  dir: string,
  log: (line: string) => void,
): number | undefined {
  let fd: number | undefined;
  try {
    Deno.mkdirSync(dir, { recursive: true, mode: 0o755 });
    fd = openFd(dir, O.RDONLY);
    if (flock(fd, LOCK.EX | LOCK.NB)) return fd;
    log(`WARNING another process uses the cache ${dir}, reading past it`);
  } catch (error) {
    log(
      `WARNING cannot use the cache ${dir}, reading past it: ${
        error instanceof Error ? error.message : String(error)
      }`,
    );
  }
  if (fd !== undefined) closeFd(fd);
  return undefined;
}

/** Makes the sources of a host's images. */
export function createSources(options: SourceSetOptions): SourceSet {
  const { cacheDir, refillSize, log } = options;
  const limit = pLimit(options.maxRequests ?? MAX_REQUESTS);
  const open = new Map<string, Shared>();
  // Taken with the first blob: who opens none leaves no directory.
  let lock: { fd: number | undefined } | undefined;

  /** Opens the blob in its file, with what that holds already. */
  const openKept = async (blob: Blob, path: string): Promise<CachedBlob> => {
    const store = openStore(path);
    try {
      const size = provenSize(store.size) ?? await blob.size();
      if (size !== store.size) truncateFd(store.fd, size);
      const present = presentUnits(
        store.fd,
        size,
        refillSize,
        blocksOf(path),
      );
      return openCachedBlob(blob, {
        store,
        size,
        unit: refillSize,
        present,
        limit,
        log,
      });
    } catch (error) {
      closeFd(store.fd);
      throw error;
    }
  };

  const openPast = async (blob: Blob): Promise<CachedBlob> => {
    const size = await blob.size();
    const store = openUnlinked();
    try {
      truncateFd(store.fd, size);
      const present = new Uint8Array(
        Math.ceil(Math.ceil(size / refillSize) / 8),
      );
      return openCachedBlob(blob, {
        store,
        size,
        unit: refillSize,
        present,
        limit,
        log,
      });
    } catch (error) {
      closeFd(store.fd);
      throw error;
    }
  };

  const openOne = async (url: string, name: string): Promise<CachedBlob> => {
    const blob = options.openBlob(url);
    lock ??= { fd: lockDir(cacheDir, log) };
    if (lock.fd === undefined) return await openPast(blob);
    try {
      return await openKept(blob, `${cacheDir}/${name}`);
    } catch (error) {
      if (error instanceof SourceError) throw error;
      log(
        `WARNING the cache cannot keep ${name}, reading past it: ${
          error instanceof Error ? error.message : String(error)
        }`,
      );
      return await openPast(blob);
    }
  };

  const close = () => {
    if (lock?.fd !== undefined) closeFd(lock.fd);
    lock = undefined;
  };
  return {
    async open(url) {
      const name = url.slice(url.lastIndexOf("/") + 1);
      if (!/^[A-Za-z0-9][A-Za-z0-9:._-]*$/.test(name)) {
        throw new SourceError("EINVAL", `cannot open ${url}: bad blob name`);
      }
      const shared = open.get(name) ??
        { opening: openOne(url, name), users: 0 };
      open.set(name, shared);
      shared.users++;
      let closed = false;
      const release = () => {
        if (closed) return;
        closed = true;
        if (--shared.users > 0) return;
        open.delete(name);
        shared.opening.then((blob) => blob.close(), () => {});
      };
      try {
        const blob = await shared.opening;
        return {
          ...blob,
          get tar() {
            return blob.tar;
          },
          set tar(tar) {
            blob.tar = tar;
          },
          close: release,
          [Symbol.dispose]: release,
        };
      } catch (error) {
        release();
        throw error;
      }
    },
    close,
    [Symbol.dispose]: close,
  };
}
