// SPDX-License-Identifier: Apache-2.0
/**
 * Opens a blob in the file that keeps it, with what that holds already, and
 * leaves it so that the next one may believe it (spec/cache.md, sections 1.2
 * and 1.6).
 *
 * @module
 */
import { LOCK, truncateFd } from "../../../ffi/files.ts";
import type { Bytes } from "../../../ffi/handle.ts";
import { type Blob, type RangeBody, SourceError } from "../source.ts";
import { type BlobOptions, openCachedBlob, type OwnedBlob } from "./blob.ts";
import { sha256Of } from "./digest.ts";
import { createDisk, type Disk } from "./disk.ts";
import { openStore, openUnlinked, presentUnits, provenSize } from "./file.ts";
import { loadSaved, type Presence, save, stampOf } from "./state.ts";
import { countBits, hasBit, newBits } from "./units.ts";

/** What every blob of a set is opened with. */
export type Shared = Omit<
  BlobOptions,
  "fd" | "path" | "kept" | "size" | "present" | "head" | "onChange" | "onWhole"
>;

/** Where a blob is kept. */
export interface Kept {
  /** `sha256:<hex>` */
  name: string;
  path: string;
  /** where its state is saved; undefined: nowhere */
  statePath: string | undefined;
  /** bytes, where the image's configuration says so; 0: it does not */
  size: number;
  /** nobody else may write it: the directory is not locked */
  lock: boolean;
}

/** An open blob with its file. */
export interface OpenedBlob {
  blob: OwnedBlob;
  /**
   * The sha256 of what is in the file; undefined: not all of it is, or the
   * blob was closed meanwhile.
   *
   * @throws {EngineError} it cannot be read
   */
  digest(signal?: AbortSignal): Promise<string | undefined>;
  /** the digest is known to be right */
  verified(): boolean;
  /** the digest that was found in its place, if it was wrong */
  wrong(): string | undefined;
  /** Ends it; the file is left so that it is believed. */
  close(): Promise<void>;
}

/** What is known before anybody is asked. */
interface Known {
  size: number | undefined;
  presence: Presence | undefined;
}

function why(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function known(
  disk: Disk,
  { path, statePath, size }: Kept,
  length: number,
): Promise<Known> {
  const saved = statePath === undefined
    ? undefined
    : await loadSaved(disk, statePath, path);
  const { presence } = saved ?? {};
  if (saved?.size === length) return { size: length, presence };
  const told = size > 0 && size === length ? size : undefined;
  return { size: told ?? provenSize(length), presence: undefined };
}

/** Asks for the first units, whose answer tells the size. */
async function firstUnits(
  blob: Blob,
  refill: number,
  signal: AbortSignal,
): Promise<RangeBody> {
  const HEAD_MAX = 4 << 20;
  return await blob.range(0, Math.min(refill, HEAD_MAX), signal);
}

/**
 * Opens a blob in its file.
 *
 * @throws {SourceError} its size cannot be had
 * @throws {EngineError} the file cannot be used
 */
export async function openKept(
  origin: Blob,
  kept: Kept,
  shared: Shared,
  signal: AbortSignal,
): Promise<OpenedBlob> {
  const { name, path, statePath } = kept;
  const { unit, refill, log, disk } = shared;
  const { fd, size: length } = await openStore(disk, path);
  let head: RangeBody | undefined;
  let blob: OwnedBlob;
  let verified = false;
  let wrong: string | undefined;
  let changed: Promise<void> | undefined;
  /** how often something was written to the file, or taken out of it */
  let edits = 0;
  const onChange = (size: number): Promise<void> => {
    edits++;
    verified = false;
    return changed ??= statePath === undefined
      ? Promise.resolve()
      // Else its stamp says that it is out of date.
      : save(disk, statePath, { size, presence: undefined }).catch(() => {});
  };
  const stop = new AbortController();
  let checking: Promise<void> | undefined;
  try {
    if (kept.lock && !await disk.flock(fd, LOCK.EX | LOCK.NB)) {
      throw new Error("another process writes it");
    }
    const before = await known(disk, kept, length);
    const found = before.presence !== undefined || length === 0
      ? undefined
      : await presentUnits(disk, fd, path, length, unit);
    const begun = before.presence !== undefined ||
      (found !== undefined && hasBit(found, 0));
    // Without its head nothing of it can be used: its size is asked for, too.
    let size = begun ? before.size : undefined;
    if (size === undefined) {
      if (begun) size = await origin.size(signal);
      else {
        head = await firstUnits(origin, refill, signal);
        size = head.total;
      }
    }
    const total = size;
    let present: Bytes;
    if (before.presence?.unit === unit) {
      present = before.presence.bits;
      verified = before.presence.verified;
    } else {
      present = found !== undefined && total === length
        ? found
        : await presentUnits(disk, fd, path, total, unit);
    }
    if (length !== total) {
      await onChange(total);
      await disk.truncate(fd, total);
    }
    blob = openCachedBlob(origin, {
      ...shared,
      fd,
      path,
      kept: true,
      size: total,
      present,
      head,
      onChange: () => onChange(total),
      onWhole: () => checking ??= check(),
    });
  } catch (error) {
    head?.cancel();
    await disk.close(fd);
    throw error;
  }
  const isWhole = () =>
    countBits(blob.present()) === Math.ceil(blob.size / unit);
  /** Of what stays as it is meanwhile; undefined: not all of it is there. */
  const look = async (signal: AbortSignal): Promise<string | undefined> => {
    while (isWhole()) {
      const before = edits;
      const digest = await sha256Of(fd, blob.size, signal, disk.pread);
      if (edits !== before) continue;
      verified = digest === name;
      return digest;
    }
    return undefined;
  };
  /** What no checksum covers is covered by the digest, once all is there. */
  const check = async () => {
    if (verified || !name.startsWith("sha256:")) return;
    try {
      const digest = await look(stop.signal);
      if (digest === undefined || verified) return;
      wrong = digest;
      log(`ERROR ${origin.name} is ${digest}: all of it is fetched again`);
      await blob.forget();
    } catch (error) {
      if (!stop.signal.aborted) {
        log(`WARNING cannot check ${path}: ${why(error)}`);
      }
    } finally {
      checking = undefined;
    }
  };
  const leave = async () => {
    if (statePath === undefined) return;
    if (changed !== undefined) {
      // This tells sooner than a sync whether the disk is well.
      await disk.stat(path);
      await disk.sync(fd);
    }
    const presence = {
      stamp: await stampOf(disk, path),
      unit,
      verified,
      bits: blob.present(),
    };
    await save(disk, statePath, { size: blob.size, presence });
  };
  return {
    blob,
    verified: () => verified,
    wrong: () => wrong,
    async digest(within) {
      if (!isWhole()) return undefined;
      await checking;
      if (verified) return name;
      // Its descriptor may be another file's once it is closed.
      const ends = within === undefined ? [] : [within];
      try {
        return await look(AbortSignal.any([stop.signal, ...ends]));
      } catch (error) {
        if (stop.signal.aborted) return undefined;
        throw error;
      }
    },
    async close() {
      stop.abort();
      await blob.settle();
      await checking;
      try {
        // Nothing comes back from a disk that hangs.
        if (blob.late() === 0) await leave();
      } catch {
        // Its files tell by themselves what they hold.
      }
      await blob.close();
    },
  };
}

/**
 * Opens a blob in a file without a name.
 *
 * @throws {SourceError} its size cannot be had
 */
export async function openPast(
  origin: Blob,
  shared: Shared,
  signal: AbortSignal,
): Promise<OpenedBlob> {
  const head = await firstUnits(origin, shared.refill, signal);
  const { fd } = openUnlinked();
  // Memory: no business of the cache's disk.
  const disk = createDisk();
  try {
    truncateFd(fd, head.total);
    const blob = openCachedBlob(origin, {
      ...shared,
      fd,
      disk,
      path: undefined,
      kept: false,
      size: head.total,
      present: newBits(Math.ceil(head.total / shared.unit)),
      head,
      onChange: () => Promise.resolve(),
      onWhole: () => {},
    });
    return {
      blob,
      digest: () => Promise.resolve(undefined),
      verified: () => false,
      wrong: () => undefined,
      async close() {
        await blob.settle();
        await blob.close();
      },
    };
  } catch (error) {
    head.cancel();
    await disk.close(fd);
    throw new SourceError("EIO", `cannot read ${origin.name}: ${why(error)}`, {
      cause: error,
    });
  }
}
