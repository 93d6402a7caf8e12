// SPDX-License-Identifier: Apache-2.0
/**
 * A cache directory on disk: what is in it, and who holds it.
 *
 * @module
 */
import { EngineError } from "../../../ffi/errors.ts";
import { LOCK, O } from "../../../ffi/files.ts";
import type { Disk } from "./disk.ts";

const BLOCK = 512;

/** A file of the directory. */
export interface PoolFile {
  name: string;
  path: string;
  /** bytes allocated */
  bytes: number;
  /** bytes to its end */
  length: number;
  /** ms since 1970 */
  lastUsed: number;
}

/** Names that the cache gives: `sha256:` and hex digits. */
export function isDigest(name: string): boolean {
  return /^[a-z0-9]+:[0-9a-f]{32,}$/.test(name);
}

/** Where what is known of a cache directory is kept. */
export function stateDirOf(dir: string): string {
  return `${dir.replace(/\/+$/, "")}.state`;
}

function why(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** True when a disk, asked for something, did not answer. */
export function isHung(error: unknown): boolean {
  return error instanceof EngineError && error.code === "ETIMEDOUT";
}

/**
 * Everything below a directory that takes space.
 *
 * @throws {EngineError} ETIMEDOUT: the disk hangs
 */
export async function walk(
  disk: Disk,
  dir: string,
  below = "",
): Promise<PoolFile[]> {
  const files: PoolFile[] = [];
  const list = () => Array.fromAsync(Deno.readDir(dir));
  try {
    const entries = await disk.call(`cannot list ${dir}`, list);
    for (const { name, isDirectory } of entries) {
      const path = `${dir}/${name}`;
      if (isDirectory) {
        files.push(...await walk(disk, path, `${below}${name}/`));
        continue;
      }
      try {
        const look = () => Deno.lstat(path);
        const info = await disk.call(`cannot look at ${path}`, look);
        files.push({
          name: `${below}${name}`,
          path,
          bytes: (info.blocks ?? 0) * BLOCK,
          length: info.size,
          lastUsed: Math.max(
            info.mtime?.getTime() ?? 0,
            info.atime?.getTime() ?? 0,
          ),
        });
      } catch (error) {
        if (isHung(error)) throw error;
        // Gone since.
      }
    }
  } catch (error) {
    if (isHung(error)) throw error;
    // Gone, or not to be read: nothing that can be evicted.
  }
  return files;
}

/** Who holds a directory. */
export interface Holder {
  /** True when this process holds it, from now on. */
  hold(): Promise<boolean>;
  /** True when another process did, the last time that was tried. */
  isElsewhere(): boolean;
  release(): Promise<void>;
}

/** Makes the holder of a directory; nothing is touched yet. */
export function createHolder(
  { disk, dir, stateDir, log, onHold, borrow }: {
    disk: Disk;
    dir: string;
    stateDir: string;
    log: (line: string) => void;
    onHold: () => void;
    /** another one's is not read past */
    borrow: boolean;
  },
): Holder {
  let lock: { fd: number; inode: number | null } | undefined;
  let saidHeld = false;
  let elsewhere = false;
  let holding: Promise<boolean> | undefined;

  const release = async () => {
    const held = lock;
    lock = undefined;
    if (held !== undefined) await disk.close(held.fd);
  };
  const makeDir = (path: string, mode: number) =>
    disk.call(
      `cannot make ${path}`,
      () => Deno.mkdir(path, { recursive: true, mode }),
    );
  /** Somebody may have removed the directory that is held. */
  const isStill = async (): Promise<boolean> => {
    if (lock === undefined) return false;
    try {
      return (await disk.stat(dir)).ino === lock.inode;
    } catch (error) {
      // What hangs is held all the same.
      if (isHung(error)) throw error;
      return false;
    }
  };
  const take = async (): Promise<boolean> => {
    await release();
    await makeDir(dir, 0o755);
    const fd = await disk.open(dir, O.RDONLY);
    try {
      if (!await disk.flock(fd, LOCK.EX | LOCK.NB)) {
        await disk.close(fd);
        return false;
      }
      lock = { fd, inode: (await disk.stat(dir)).ino };
      return true;
    } catch (error) {
      await disk.close(fd);
      throw error;
    }
  };
  const tryHold = async (): Promise<boolean> => {
    try {
      if (await isStill()) return true;
      elsewhere = false;
      if (await take()) {
        saidHeld = false;
        await makeStateDir();
        onHold();
        return true;
      }
      elsewhere = true;
      if (!saidHeld && !borrow) {
        log(`WARNING another process uses the cache ${dir}, reading past it`);
      }
    } catch (error) {
      if (!saidHeld) {
        log(
          `WARNING cannot use the cache ${dir}, reading past it: ${why(error)}`,
        );
      }
    }
    saidHeld = true;
    return false;
  };
  const makeStateDir = async () => {
    try {
      await makeDir(stateDir, 0o700);
    } catch (error) {
      log(
        `WARNING cannot use ${stateDir}: ${why(error)}: what the cache holds ` +
          "is told by its files alone",
      );
    }
  };
  return {
    hold: () => holding ??= tryHold().finally(() => holding = undefined),
    isElsewhere: () => elsewhere,
    async release() {
      await holding;
      await release();
    },
  };
}
