// SPDX-License-Identifier: Apache-2.0
/**
 * Files that appear whole or not at all: written without a name, synced, then
 * linked.  A process that is killed before leaves nothing.
 *
 * @module
 */
import {
  closeFd,
  linkFd,
  O,
  openFd,
  renamePath,
  syncFd,
  truncateFd,
  unlinkPath,
} from "../../ffi/files.ts";
import { EngineError } from "../../ffi/errors.ts";
import {
  directoryOf,
  fileInfo,
  followLinks,
  linkInfo,
  nameOf,
} from "./files.ts";

const S_IFREG = 0o100000;
const ENOENT = 2;
const EEXIST = 17;
const EISDIR = 21;
const EINVAL = 22;
const EOPNOTSUPP = 95;

/** A file being written. */
export interface OutputFile {
  fd: number;
  /** a pipe or device: written in place and in order, cannot seek */
  stream: boolean;
  /** `st_mode` that the file will have */
  mode: number;
  /** Empties it, to start again. */
  restart(): void;
  /** Makes it durable and gives it its name. */
  publish(): Promise<void>;
  /** Lets it go without a trace; harmless after `publish()`. */
  abort(): void;
}

/** How an output is made. */
export interface OutputOptions {
  /** an existing file is replaced, once the new one is durable */
  replace?: boolean;
  /** permissions, before the umask */
  mode?: number;
}

/** A pipe, device or terminal: opened as it is. */
function openInPlace(path: string): OutputFile {
  const fd = openFd(path, O.WRONLY);
  let open = true;
  const close = () => {
    if (open) closeFd(fd);
    open = false;
  };
  return {
    fd,
    stream: true,
    mode: S_IFREG | 0o644,
    restart: () => {
      throw new Error(`cannot start ${path} again: it is no regular file`);
    },
    publish: () => {
      close();
      return Promise.resolve();
    },
    abort: close,
  };
}

/** A name beside `path` that nobody else uses. */
function temporaryName(path: string): string {
  const unique = crypto.randomUUID().slice(0, 8);
  return `${directoryOf(path)}/.${nameOf(path)}.${Deno.pid}-${unique}`;
}

/** An unnamed file beside `path`, or a named one where that is not to be had. */
function openUnnamed(
  path: string,
  mode: number,
): { fd: number; name: string | undefined } {
  try {
    return {
      fd: openFd(directoryOf(path), O.TMPFILE | O.RDWR, mode),
      name: undefined,
    };
  } catch (error) {
    const unsupported = error instanceof EngineError &&
      (error.errno === EOPNOTSUPP || error.errno === EISDIR);
    if (!unsupported) {
      throw error instanceof EngineError
        ? new EngineError(error.errno, `cannot create ${path}`)
        : error;
    }
    const name = temporaryName(path);
    return { fd: openFd(name, O.CREAT | O.EXCL | O.RDWR, mode), name };
  }
}

/** Makes names in a directory durable. */
export async function syncDirectory(dir: string): Promise<void> {
  const fd = openFd(dir, O.RDONLY);
  try {
    await syncFd(fd);
  } catch (error) {
    // Some network file systems cannot: they keep names by themselves.
    if (!(error instanceof EngineError) || error.errno !== EINVAL) throw error;
  } finally {
    closeFd(fd);
  }
}

/**
 * Gives an unnamed file its name.
 *
 * @param replace an existing file goes in the same moment
 * @throws {EngineError} EEXIST when the name is taken and `replace` is not set
 */
export function nameFile(fd: number, path: string, replace: boolean): void {
  if (!replace) return linkFd(fd, path);
  const name = temporaryName(path);
  linkFd(fd, name);
  try {
    renamePath(name, path);
  } catch (error) {
    unlinkPath(name);
    throw error;
  }
}

/**
 * Says early that an output's name is taken, before long work is begun.
 *
 * @throws {EngineError} EEXIST, or EISDIR
 */
export function refuseExisting(path: string, replace: boolean): void {
  const existing = fileInfo(path);
  if (existing?.isDirectory === true) {
    throw new EngineError(EISDIR, `cannot create ${path}`);
  }
  if (existing !== undefined && !existing.isFile) return;
  if (!replace && linkInfo(path) !== undefined) {
    throw new EngineError(EEXIST, `cannot create ${path}`);
  }
}

/**
 * Starts an output.
 *
 * @param path what it will be called; symbolic links are followed
 * @throws {EngineError} EEXIST when it exists and `replace` is not set, or
 *   why the directory cannot be written
 */
export function createOutput(
  path: string,
  options: OutputOptions = {},
): OutputFile {
  const replace = options.replace ?? false;
  refuseExisting(path, replace);
  const existing = fileInfo(path);
  if (existing !== undefined && !existing.isFile) return openInPlace(path);
  const real = followLinks(path);
  const mode = options.mode ?? 0o644;
  const { fd, name } = openUnnamed(real, mode);
  let open = true;
  const abort = () => {
    if (!open) return;
    open = false;
    closeFd(fd);
    if (name !== undefined) unlinkPath(name);
  };
  return {
    fd,
    stream: false,
    mode: S_IFREG | (mode & ~Deno.umask()),
    restart: () => truncateFd(fd, 0),
    publish: async () => {
      try {
        await syncFd(fd);
        nameFile(fd, real, replace);
      } catch (error) {
        throw error instanceof EngineError
          ? new EngineError(error.errno, `cannot create ${path}`)
          : error;
      } finally {
        abort();
      }
      try {
        await syncDirectory(directoryOf(real));
      } catch (error) {
        // What was replaced is gone; a new name can be taken back.
        if (existing === undefined) unlinkPath(real);
        throw error;
      }
    },
    abort,
  };
}

/** True when an error says that a file is not there. */
export function isMissing(error: unknown): boolean {
  return error instanceof EngineError && error.errno === ENOENT;
}
