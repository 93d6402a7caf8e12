// SPDX-License-Identifier: Apache-2.0
/**
 * Calls on the cache's disk, which may hang: none runs on the thread of
 * JavaScript, none is waited for longer than a disk takes that is well, and
 * while one is late the disk is left alone.
 *
 * @module
 */
import { EngineError } from "../../../ffi/errors.ts";
import { syncFd } from "../../../ffi/files.ts";
import {
  closeFdAsync,
  flockAsync,
  openFdAsync,
  preadFdAsync,
  punchFdAsync,
  pwriteFdAsync,
  renamePathAsync,
  seekFdAsync,
  sizeOfFdAsync,
  truncateFdAsync,
} from "../../../ffi/files_async.ts";

/** At once: they take threads that everything else needs, too. */
const CALLS_MAX = 8;
const LIMIT_MS = 5_000;
/** What was written may be a lot: a sync may take so many times as long. */
const SYNC_TIMES = 6;
const ETIMEDOUT = 110;

/** How a call is made. */
export interface CallOptions<T> {
  /** takes what nobody waits for any more */
  late?: (result: T) => void;
  limitMs?: number;
}

/** See the module's comment. */
export interface Disk {
  /**
   * Makes one call; the methods below are these.
   *
   * @param what "cannot ..." for the error
   * @throws {EngineError} ETIMEDOUT: it, or another one, takes too long
   */
  call<T>(
    what: string,
    work: () => Promise<T>,
    options?: CallOptions<T>,
  ): Promise<T>;
  /** Calls that were given up and have not ended. */
  late(): number;
  /**
   * Closes what calls use by `work`: only when none of those that are late
   * can use it any more.  Never fails, and waits for no disk that hangs.
   */
  closing(work: () => Promise<void>): Promise<void>;

  open(path: string, flags: number, mode?: number): Promise<number>;
  /** as `closing` does */
  close(fd: number): Promise<void>;
  size(fd: number): Promise<number>;
  flock(...args: Parameters<typeof flockAsync>): Promise<boolean>;
  pread(...args: Parameters<typeof preadFdAsync>): Promise<number>;
  pwrite(...args: Parameters<typeof pwriteFdAsync>): Promise<void>;
  seek(...args: Parameters<typeof seekFdAsync>): Promise<number | undefined>;
  truncate(...args: Parameters<typeof truncateFdAsync>): Promise<void>;
  punch(...args: Parameters<typeof punchFdAsync>): Promise<void>;
  /** of its bytes alone */
  sync(fd: number): Promise<void>;
  rename(from: string, to: string): Promise<void>;
  remove(path: string): Promise<void>;
  stat(path: string): Promise<Deno.FileInfo>;
}

/**
 * Makes the calls of a disk.
 *
 * @param limitMs how long one may take
 */
export function createDisk(limitMs = LIMIT_MS): Disk {
  let running = 0;
  let late = 0;
  /** in turn; each begins, or is refused because the disk hangs */
  const waiting = new Set<() => void>();
  const after: (() => void)[] = [];

  const next = () => {
    for (const turn of waiting) {
      if (running >= CALLS_MAX && late === 0) return;
      waiting.delete(turn);
      turn();
    }
  };
  const begin = async <T>(
    what: string,
    work: () => Promise<T>,
    options: CallOptions<T>,
    { resolve, reject }: PromiseWithResolvers<T>,
  ) => {
    if (late > 0) return reject(new EngineError(ETIMEDOUT, what));
    let over = false;
    running++;
    const timer = setTimeout(() => {
      over = true;
      late++;
      reject(new EngineError(ETIMEDOUT, what));
      next();
    }, options.limitMs ?? limitMs);
    try {
      const result = await work();
      if (over) options.late?.(result);
      else resolve(result);
    } catch (error) {
      reject(error);
    }
    clearTimeout(timer);
    running--;
    if (over && --late === 0) { for (const work of after.splice(0)) work(); }
    next();
  };
  const call = <T>(
    what: string,
    work: () => Promise<T>,
    options: CallOptions<T> = {},
  ): Promise<T> => {
    const result = Promise.withResolvers<T>();
    waiting.add(() => begin(what, work, options, result));
    next();
    return result.promise;
  };
  const closing = async (work: () => Promise<void>): Promise<void> => {
    if (late > 0) return void after.push(() => void closing(work));
    let begun = false;
    const close = () => {
      begun = true;
      return work();
    };
    await call("cannot close a file", close).catch(() => {
      if (!begun) closing(work);
    });
  };
  return {
    call,
    late: () => late,
    closing,
    open: (path, flags, mode) =>
      call(
        `cannot open ${path}`,
        () => openFdAsync(path, flags, mode),
        { late: (fd) => void closeFdAsync(fd) },
      ),
    close: (fd) => closing(() => closeFdAsync(fd)),
    size: (fd) => call("cannot get the size", () => sizeOfFdAsync(fd)),
    flock: (...args) => call("cannot lock", () => flockAsync(...args)),
    pread: (...args) => call("cannot read", () => preadFdAsync(...args)),
    pwrite: (...args) => call("cannot write", () => pwriteFdAsync(...args)),
    seek: (...args) => call("cannot seek", () => seekFdAsync(...args)),
    truncate: (...args) =>
      call("cannot truncate", () => truncateFdAsync(...args)),
    punch: (...args) =>
      call("cannot punch a hole", () => punchFdAsync(...args)),
    sync: (fd) =>
      call("cannot sync", () => syncFd(fd, true), {
        limitMs: SYNC_TIMES * limitMs,
      }),
    rename: (from, to) =>
      call(`cannot rename ${from}`, () => renamePathAsync(from, to)),
    remove: (path) => call(`cannot remove ${path}`, () => Deno.remove(path)),
    stat: (path) => call(`cannot look at ${path}`, () => Deno.stat(path)),
  };
}
