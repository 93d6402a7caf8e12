// SPDX-License-Identifier: Apache-2.0
/**
 * Names of files and what stands behind them.  In place of node:path and
 * node:fs, which take longer to load than Deno takes to start.
 *
 * @module
 */
import type { Bytes } from "../../ffi/handle.ts";
import { EngineError, osErrno } from "../../ffi/errors.ts";

const EIO = 5;

/** An absolute path without `.`, `..` and double slashes. */
export function fullPath(path: string, from = Deno.cwd()): string {
  const whole = path.startsWith("/") ? path : `${from}/${path}`;
  const parts: string[] = [];
  for (const part of whole.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return `/${parts.join("/")}`;
}

/** What stands before the last slash: `"/"`, or `"."` where there is none. */
export function directoryOf(path: string): string {
  const cut = path.lastIndexOf("/");
  return cut < 0 ? "." : path.slice(0, cut) || "/";
}

/** What stands behind the last slash. */
export function nameOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

/** What a call of Deno threw, as an error with its errno. */
export function withErrno(error: unknown, what: string): unknown {
  if (!(error instanceof Error)) return error;
  return new EngineError(osErrno(error) ?? EIO, what);
}

function infoOf(
  look: (path: string) => Deno.FileInfo,
  path: string,
): Deno.FileInfo | undefined {
  try {
    return look(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw withErrno(error, `cannot open ${path}`);
  }
}

/**
 * All of a small file.
 *
 * @throws {EngineError} it cannot be read
 */
export async function readWhole(path: string): Promise<Bytes> {
  try {
    return await Deno.readFile(path);
  } catch (error) {
    throw withErrno(error, `cannot read ${path}`);
  }
}

/**
 * stat(2); undefined when there is nothing.
 *
 * @throws {EngineError} a directory on the way cannot be searched
 */
export function fileInfo(path: string): Deno.FileInfo | undefined {
  return infoOf(Deno.statSync, path);
}

/**
 * Refuses what may make whoever opens it wait for ever, and with that, on the
 * JavaScript thread, every disk of the process.
 *
 * @throws {EngineError} ESPIPE
 */
export function refusePipe(path: string): void {
  const ESPIPE = 29;
  if (fileInfo(path)?.isFifo !== true) return;
  throw new EngineError(ESPIPE, `cannot open ${path}, a pipe`);
}

/** lstat(2), the same. */
export function linkInfo(path: string): Deno.FileInfo | undefined {
  return infoOf(Deno.lstatSync, path);
}

/** Where a path really leads, also when its last link dangles. */
export function followLinks(path: string): string {
  let at = path;
  for (let hops = 0; hops < 40; hops++) {
    if (linkInfo(at)?.isSymlink !== true) return at;
    const target = Deno.readLinkSync(at);
    at = target.startsWith("/") ? target : `${directoryOf(at)}/${target}`;
  }
  throw new EngineError(40, `cannot create ${path}`);
}
