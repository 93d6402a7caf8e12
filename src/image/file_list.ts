// SPDX-License-Identifier: Apache-2.0
/**
 * A list of files to prefetch in place of a trace: which parts of which
 * layers they lie in (spec/image.md, section 5.4).
 *
 * @module
 */
import { FormatError } from "../format/error.ts";
import { isErofs, openErofs } from "./fs/erofs.ts";
import { isExt4, openExt4 } from "./fs/ext4.ts";
import {
  createTree,
  type FileSystem,
  type FsNode,
  latin1,
  type ReadDisk,
} from "./fs/tree.ts";
import type { LowersDisk } from "./lowers_disk.ts";
import type { LayerRange } from "./plan.ts";

/** Bytes of a list at most. */
export const MAX_LIST = 65536;

/** Ranges that a list may name at most: 32 bytes each. */
const MAX_RANGES = 1 << 20;
const SUPERBLOCK_AT = 1024;
const SUPERBLOCK_SIZE = 1024;

/**
 * The paths of a list, one a line, bytes as latin1.  Spaces and carriage
 * returns around them do not count; lines with control characters are left
 * out.
 */
export function parseFileList(file: Uint8Array): string[] {
  return latin1(file).split("\n")
    .map((line) => line.replace(/^[ \t]+|[ \t\r]+$/g, ""))
    // deno-lint-ignore no-control-regex
    .filter((line) => line !== "" && !/[\x00-\x1f\x7f]/.test(line));
}

/** What a list came to. */
export interface ListedFiles {
  ranges: LayerRange[];
  files: number;
  /** paths, as in the list, where there is no file */
  missing: string[];
}

/**
 * Opens whatever file system is on a disk.
 *
 * @throws {FormatError} it is none that is known, or damaged
 */
export async function openFileSystem(read: ReadDisk): Promise<FileSystem> {
  const superblock = await read(SUPERBLOCK_AT, SUPERBLOCK_SIZE);
  if (isErofs(superblock)) return await openErofs(read);
  if (isExt4(superblock)) return await openExt4(read);
  throw new FormatError("the disk has neither an EROFS nor an ext4 on it");
}

/**
 * Looks up every file of a list.
 *
 * @throws {FormatError} there is no file system that is known
 */
export async function findListed(
  disk: LowersDisk,
  paths: readonly string[],
  signal: AbortSignal,
): Promise<ListedFiles> {
  const fs = await openFileSystem(disk.read);
  const tree = createTree(fs, disk.read);
  const ranges: LayerRange[] = [];
  const missing: string[] = [];
  let files = 0;

  const add = async (node: FsNode) => {
    files++;
    for (const { at, length } of await node.runs()) {
      ranges.push(...disk.serving(at, length));
      if (ranges.length > MAX_RANGES) {
        throw new FormatError(`the list has more than ${MAX_RANGES} ranges`);
      }
    }
  };
  const addPath = async (path: string): Promise<boolean> => {
    const node = await tree.find(path);
    if (path.endsWith("/") && node?.kind === "directory") {
      for await (const file of tree.files(node)) {
        signal.throwIfAborted();
        await add(file);
      }
      return true;
    }
    if (node?.kind !== "file") return false;
    await add(node);
    return true;
  };
  for (const path of paths) {
    signal.throwIfAborted();
    if (!await addPath(path)) missing.push(path);
  }
  return { ranges, files, missing };
}
