// SPDX-License-Identifier: Apache-2.0
/**
 * Whole blobs: for work that reads a layer from end to end on threads of its
 * own and cannot wait for what is missing.
 *
 * @module
 */
import { closeFd, pwriteFd } from "../../../ffi/files.ts";
import { blobName } from "../source.ts";
import type { OpenBlobOptions, SourceSet } from "../sources.ts";
import type { CachedBlob } from "./blob.ts";
import { DigestError, sha256Of } from "./digest.ts";
import { openUnlinkedOnDisk } from "./file.ts";
import type { OpenedBlob } from "./store.ts";

/** Bytes of one blob that are asked for at once. */
const WINDOW = 16 << 20;
const PIECE = 1 << 20;
const TRIES = 2;

/**
 * Brings what is missing of a blob into the cache, and compares its digest.
 *
 * @param opened the blob, as its set has it
 * @param fetch waits for a range: `need` keeps it there, `prefetch` does not
 * @returns false: the cache does not keep it
 * @throws {DigestError} what came, twice, is something else
 * @throws {SourceError} it cannot be had
 */
export async function keepWhole(
  name: string,
  opened: OpenedBlob,
  fetch: (at: number, length: number) => Promise<void>,
  onBytes: (bytes: number) => void,
  signal: AbortSignal,
): Promise<boolean> {
  const { blob } = opened;
  // Once more for what was damaged on its way, or lay here damaged.
  for (let left = TRIES; left > 0; left--) {
    for (let at = 0; at < blob.size; at += WINDOW) {
      const n = Math.min(WINDOW, blob.size - at);
      await fetch(at, n);
      if (left === TRIES) onBytes(n);
    }
    const digest = await opened.digest(signal);
    if (digest === name) return true;
    const wrong = digest ?? opened.wrong();
    if (wrong === undefined) return false;
    if (left === 1) throw new DigestError(`what came is ${wrong}`);
    await blob.forget();
  }
  return false;
}

/** Other names say nothing of what they stand for. */
function hasSha256(name: string): boolean {
  return name.startsWith("sha256:");
}

/** A file that has all of a blob, as long as it is not closed. */
export interface WholeFile extends Disposable {
  path: string;
}

/** Copies a blob into a file on disk that has no name. */
async function copyWhole(
  name: string,
  blob: CachedBlob,
  signal: AbortSignal,
  onBytes: (bytes: number) => void,
): Promise<WholeFile> {
  const { fd } = openUnlinkedOnDisk();
  try {
    for (let at = 0; at < blob.size;) {
      const length = Math.min(WINDOW, blob.size - at);
      const body = await blob.origin.range(at, length, signal);
      for (const end = at + length; at < end;) {
        const want = Math.min(PIECE, end - at);
        const bytes = await body.read(new Uint8Array(want));
        if (bytes.length !== want) {
          throw new DigestError(`it ends at ${at + bytes.length}`);
        }
        pwriteFd(fd, bytes, at);
        at += want;
        onBytes(want);
      }
    }
    const digest = hasSha256(name)
      ? await sha256Of(fd, blob.size, signal)
      : name;
    if (digest !== name) throw new DigestError(`what came is ${digest}`);
  } catch (error) {
    closeFd(fd);
    throw error;
  }
  return {
    path: `/proc/self/fd/${fd}`,
    [Symbol.dispose]: () => closeFd(fd),
  };
}

/**
 * Brings a whole blob: into the cache, or, where that cannot keep it, into a
 * file on disk that goes with the scope.
 *
 * @param onBytes told of bytes as they are here
 * @throws {DigestError} what came is something else
 * @throws {SourceError} it cannot be had
 * @throws {EngineError} there is no room for it
 */
export async function openWholeFile(
  sources: SourceSet,
  url: string,
  { signal, onBytes, ...about }: OpenBlobOptions & {
    signal: AbortSignal;
    onBytes: (bytes: number) => void;
  },
): Promise<WholeFile> {
  const blob = await sources.open(url, { ...about, signal });
  try {
    const name = blobName(url);
    const opened = sources.blobs().get(name);
    let done = 0;
    const count = (bytes: number) => {
      done += bytes;
      onBytes(bytes);
    };
    const { path } = blob;
    if (
      path !== undefined && opened !== undefined && hasSha256(name) &&
      await keepWhole(name, opened, blob.need, count, signal)
    ) {
      return { path, [Symbol.dispose]: blob.close };
    }
    const copy = await copyWhole(name, blob, signal, (bytes) => {
      // Not what the cache had to give up again.
      if (done < blob.size) count(bytes);
    });
    blob.close();
    return copy;
  } catch (error) {
    blob.close();
    throw error;
  }
}
