// SPDX-License-Identifier: Apache-2.0
/**
 * Brings a whole layer into its directory: `.download`, checked against its
 * digest, then `overlaybd.commit` (spec/image.md, section 6).
 *
 * @module
 */
import {
  closeFd,
  flock,
  LOCK,
  O,
  openFd,
  pwriteFd,
  renamePath,
  syncFd,
  truncateFd,
} from "../../ffi/files.ts";
import type { Bytes } from "../../ffi/handle.ts";
import type { CachedBlob } from "../source/cache/blob.ts";
import { DigestError, sha256Of } from "../source/cache/digest.ts";
import { createDisk } from "../source/cache/disk.ts";
import { presentUnits } from "../source/cache/file.ts";
import { type RangeBody, SourceError } from "../source/source.ts";
import type { ImageAudit, ImageLog } from "./log.ts";
import { unlessAborted } from "./lowers_disk.ts";
import { sleep } from "./pace.ts";

/** What is brought, and how. */
export interface FetchLayerOptions {
  url: string;
  blob: CachedBlob;
  /** `sha256:` and 64 hex digits */
  digest: string;
  dir: string;
  /** bytes written at a time */
  blockSize: number;
  /** bytes of one request, at least `blockSize` */
  requestSize: number;
  /** neither what is there nor what the cache has can be right */
  forced: boolean;
  /** Waits until so many bytes may be written. */
  pace: (bytes: number) => Promise<void>;
  signal: AbortSignal;
  log: ImageLog;
  audit: ImageAudit | undefined;
}

/** The file that a layer is brought into, and where it is found then. */
export function layerPaths(dir: string): { temp: string; commit: string } {
  return { temp: `${dir}/.download`, commit: `${dir}/overlaybd.commit` };
}

const STEP_TIMEOUT_MS = 30_000;
const STEP_TRIES = 2;
const LOCK_POLL_MS = 200;

function pathOfFd(fd: number): string {
  return `/proc/self/fd/${fd}`;
}

/** Whether a name still stands for an open file. */
function isStill(fd: number, path: string): boolean {
  try {
    const [named, open] = [Deno.statSync(path), Deno.statSync(pathOfFd(fd))];
    return named.ino === open.ino && named.dev === open.dev;
  } catch {
    return false;
  }
}

/** Ends a request that nothing comes from for too long. */
function watchdog(signal: AbortSignal): {
  signal: AbortSignal;
  step<T>(work: () => Promise<T>): Promise<T>;
} {
  const stop = new AbortController();
  return {
    signal: AbortSignal.any([signal, stop.signal]),
    async step(work) {
      const timer = setTimeout(() => {
        stop.abort(new DOMException("Signal timed out.", "TimeoutError"));
      }, STEP_TIMEOUT_MS);
      try {
        return await work();
      } finally {
        clearTimeout(timer);
      }
    },
  };
}

/** Writes [from, to) of a blob as it comes. */
async function fetchRun(
  fd: number,
  from: number,
  to: number,
  options: FetchLayerOptions,
): Promise<void> {
  const { blob, blockSize, signal, audit, url } = options;
  let buffer: Bytes = new Uint8Array(Math.min(blockSize, to - from));
  let body: RangeBody | undefined;
  let dog = watchdog(signal);
  let tries = 0;
  for (let at = from; at < to;) {
    const length = Math.min(blockSize, to - at);
    await options.pace(length);
    const began = performance.now();
    const done = (size: number) =>
      audit?.record({
        op: "bk_download",
        pathname: url,
        offset: at,
        size,
        latencyUs: (performance.now() - began) * 1000,
      });
    try {
      const bytes: Bytes = await dog.step(async () => {
        body ??= await blob.origin.range(at, to - at, dog.signal);
        if (body.total !== blob.size) {
          throw new SourceError(
            "EIO",
            `${blob.name} has ${body.total} bytes, not ${blob.size}`,
          );
        }
        return await (body as RangeBody).read(
          new Uint8Array(buffer.buffer, 0, length),
        );
      });
      if (bytes.length !== length) {
        throw new SourceError("EIO", `${blob.name} ends early`);
      }
      pwriteFd(fd, bytes, at);
      buffer = bytes;
      done(length);
      at += length;
      tries = 0;
    } catch (error) {
      done(-1);
      body?.cancel();
      signal.throwIfAborted();
      if (!(error instanceof SourceError) || ++tries === STEP_TRIES) {
        throw error;
      }
      // The rest is asked for anew; the buffer may be gone with the body.
      body = undefined;
      dog = watchdog(signal);
      buffer = new Uint8Array(Math.min(blockSize, to - at));
    }
  }
  body?.cancel();
}

/** Brings what is missing of the file. */
async function fillFile(fd: number, options: FetchLayerOptions) {
  const { blob, blockSize, forced, signal } = options;
  const { size } = blob;
  const count = Math.ceil(size / blockSize);
  const { temp } = layerPaths(options.dir);
  const present = forced
    ? new Uint8Array(Math.ceil(count / 8))
    : await presentUnits(createDisk(), fd, temp, size, blockSize);
  truncateFd(fd, size);
  const has = (i: number) => ((present[i >> 3] ?? 0) >> (i & 7) & 1) === 1;
  const lengthOf = (i: number) => Math.min(blockSize, size - i * blockSize);
  const scratch = new Uint8Array(Math.min(blockSize, size));
  const copied = async (i: number) => {
    const bytes = scratch.subarray(0, lengthOf(i));
    if (forced || !await blob.peek(i * blockSize, bytes)) return false;
    await options.pace(bytes.length);
    pwriteFd(fd, bytes, i * blockSize);
    return true;
  };
  const perRequest = Math.max(1, Math.floor(options.requestSize / blockSize));
  /** first block that is to be fetched and has not been; -1: none */
  let from = -1;
  const fetchUpTo = async (end: number) => {
    if (from < 0) return;
    const first = from;
    from = -1;
    const to = Math.min(size, end * blockSize);
    await fetchRun(fd, first * blockSize, to, options);
  };
  for (let i = 0; i < count; i++) {
    signal.throwIfAborted();
    if (i % 64 === 0) await new Promise((done) => setTimeout(done));
    if (has(i) || await copied(i)) await fetchUpTo(i);
    else if (from < 0) from = i;
    else if (i - from === perRequest) {
      await fetchUpTo(i);
      from = i;
    }
  }
  await fetchUpTo(count);
}

/** The cache keeps the blob in the very file: it brings what is missing. */
async function fillThroughCache(options: FetchLayerOptions): Promise<void> {
  const { blob, forced, signal, requestSize, audit, url } = options;
  const { size, unit } = blob;
  if (forced) await blob.forget();
  const step = Math.max(1, Math.floor(requestSize / unit)) * unit;
  for (let at = 0; at < size; at += step) {
    const length = Math.min(step, size - at);
    if (blob.has(at, length)) continue;
    await options.pace(length);
    const began = performance.now();
    await unlessAborted(blob.prefetch(at, length), signal);
    audit?.record({
      op: "bk_download",
      pathname: url,
      offset: at,
      size: length,
      latencyUs: (performance.now() - began) * 1000,
    });
  }
}

/**
 * Waits until no other process brings the same layer.  Once it has, the file
 * is that layer, and nobody's to be written.
 */
async function lockFile(
  fd: number,
  path: string,
  signal: AbortSignal,
): Promise<void> {
  while (!flock(fd, LOCK.EX | LOCK.NB)) await sleep(LOCK_POLL_MS, signal);
  if (!isStill(fd, path)) {
    throw new SourceError("EIO", `${path} is another file now`);
  }
}

async function syncDir(dir: string): Promise<void> {
  const fd = openFd(dir, O.RDONLY);
  try {
    await syncFd(fd);
  } finally {
    closeFd(fd);
  }
}

/**
 * Brings a layer; the file stays for another try when that fails.
 *
 * @throws {DigestError} its bytes are wrong
 * @throws {SourceError} they cannot be had
 * @throws {EngineError} they cannot be kept
 * @throws the signal's reason
 */
export async function fetchLayer(options: FetchLayerOptions): Promise<void> {
  const { dir, blob, digest, signal, log, url } = options;
  const { temp, commit } = layerPaths(dir);
  const fd = openFd(temp, O.RDWR | O.CREAT, 0o644);
  let syncing: Promise<void> | undefined;
  try {
    const ofCache = blob.path === temp;
    if (!ofCache) await lockFile(fd, temp, signal);
    log.info(`download blob start. (${url})`);
    await (ofCache ? fillThroughCache(options) : fillFile(fd, options));
    log.info(`download blob done. (${temp})`);
    const { corrupt } = blob.stats;
    const got = await sha256Of(fd, blob.size, signal);
    if (ofCache && (!blob.has(0, blob.size) || blob.stats.corrupt > corrupt)) {
      throw new SourceError("EIO", `${temp} has changed meanwhile`);
    }
    if (got !== digest) {
      throw new DigestError(
        `verify checksum ${temp} failed (expect: ${digest}, got: ${got})`,
      );
    }
    syncing = syncFd(fd);
    await unlessAborted(syncing, signal);
    if (!isStill(fd, temp)) throw new Error(`${temp} is another file now`);
    if (ofCache) blob.freeze();
    renamePath(temp, commit);
    log.info(`download verify done. rename(${temp},${commit}) success`);
  } finally {
    // Not to be closed under a call that runs on another thread.
    const close = () => closeFd(fd);
    if (syncing === undefined) close();
    else syncing.then(close, close);
  }
  await syncDir(dir);
}
