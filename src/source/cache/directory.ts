// SPDX-License-Identifier: Apache-2.0
/**
 * A cache directory on disk: what is in it, and who holds it.
 *
 * @module
 */
import { closeFd, flock, LOCK, O, openFd } from "../../../ffi/files.ts";

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

/** Everything below a directory that takes space. */
export async function walk(dir: string, below = ""): Promise<PoolFile[]> {
  const files: PoolFile[] = [];
  try {
    for await (const { name, isDirectory } of Deno.readDir(dir)) {
      const path = `${dir}/${name}`;
      if (isDirectory) {
        files.push(...await walk(path, `${below}${name}/`));
        continue;
      }
      try {
        const info = await Deno.lstat(path);
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
      } catch {
        // Gone since.
      }
    }
  } catch {
    // Gone, or not to be read: nothing that can be evicted.
  }
  return files;
}

/** Who holds a directory. */
export interface Holder {
  /** True when this process holds it, from now on. */
  hold(): boolean;
  /** True when another process did, the last time that was tried. */
  isElsewhere(): boolean;
  release(): void;
}

/** Makes the holder of a directory; nothing is touched yet. */
export function createHolder(
  { dir, stateDir, log, onHold, borrow }: {
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

  const release = () => {
    if (lock !== undefined) closeFd(lock.fd);
    lock = undefined;
  };
  const hold = (): boolean => {
    try {
      // Somebody may have removed the directory that is held.
      if (lock !== undefined) {
        const info = Deno.statSync(dir);
        if (info.ino === lock.inode) return true;
      }
    } catch {
      // Made anew below.
    }
    release();
    let fd: number | undefined;
    elsewhere = false;
    try {
      Deno.mkdirSync(dir, { recursive: true, mode: 0o755 });
      fd = openFd(dir, O.RDONLY);
      if (flock(fd, LOCK.EX | LOCK.NB)) {
        lock = { fd, inode: Deno.statSync(dir).ino };
        saidHeld = false;
        makeStateDir();
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
    if (fd !== undefined) closeFd(fd);
    return false;
  };
  const makeStateDir = () => {
    try {
      Deno.mkdirSync(stateDir, { recursive: true, mode: 0o700 });
    } catch (error) {
      log(
        `WARNING cannot use ${stateDir}: ${why(error)}: what the cache holds ` +
          "is told by its files alone",
      );
    }
  };
  return { hold, isElsewhere: () => elsewhere, release };
}
