// SPDX-License-Identifier: Apache-2.0
/**
 * Where the files of an EROFS file system lie.  Reads what mkfs.erofs writes
 * on one device; every number is checked before it is used.
 *
 * @module
 */
import { FormatError } from "../../format/error.ts";
import { packedInode, readCompressedMap } from "./erofs_map.ts";
import {
  type DirEntry,
  fields,
  type FileSystem,
  type FsNode,
  kindOf,
  latin1,
  MAX_RUNS,
  type ReadDisk,
  type Run,
  u64,
} from "./tree.ts";

const SUPERBLOCK_AT = 1024;
const SUPERBLOCK_SIZE = 128;
const MAGIC = 0xe0f5e1e2;
/** From here on inodes and addresses look different. */
const INCOMPAT_UNKNOWN = ~0x7f;

const LAYOUT = {
  plain: 0,
  compressed: 1,
  inline: 2,
  compact: 3,
  chunks: 4,
} as const;
const HOLE = 0xffff_ffff;

/** True when a superblock begins like EROFS's. */
export function isErofs(superblock: Uint8Array): boolean {
  return fields(superblock).getUint32(0, true) === MAGIC;
}

/** Fields of an inode, and what it takes to find its content. */
interface Inode {
  at: number;
  layout: number;
  size: number;
  /** raw_blkaddr, compressed blocks or chunk format */
  u: number;
  /** behind inode and extended attributes */
  tailAt: number;
}

/** Adds a part of a file; neighbours become one. */
function push(runs: Run[], from: number, at: number, length: number): void {
  const last = runs.at(-1);
  if (length <= 0) return;
  if (
    last !== undefined && last.from + last.length === from &&
    last.at + last.length === at
  ) last.length += length;
  else runs.push({ from, at, length });
}

/** The entries of one block of a directory. */
function* blockEntries(block: Uint8Array): Generator<DirEntry> {
  const ENTRY = 12;
  if (block.length < ENTRY) return;
  const v = fields(block);
  const end = v.getUint16(8, true);
  if (end < ENTRY || end > block.length || end % ENTRY !== 0) return;
  for (let at = 0; at < end; at += ENTRY) {
    const from = v.getUint16(at + 8, true);
    const next = at + ENTRY < end
      ? v.getUint16(at + ENTRY + 8, true)
      : block.length;
    if (from < end || next <= from || next > block.length) return;
    const name = block.subarray(from, next);
    const nul = name.indexOf(0);
    yield {
      name: latin1(nul < 0 ? name : name.subarray(0, nul)),
      id: u64(v, at),
    };
  }
}

/**
 * Recognises and opens a file system.
 *
 * @throws {FormatError} it is damaged, or newer than this
 */
export async function openErofs(read: ReadDisk): Promise<FileSystem> {
  const v = fields(await read(SUPERBLOCK_AT, SUPERBLOCK_SIZE));
  const blockBits = v.getUint8(12);
  const incompat = v.getUint32(80, true);
  if (blockBits < 9 || blockBits > 16) {
    throw new FormatError(`erofs: block size 2^${blockBits}`);
  }
  if ((incompat & INCOMPAT_UNKNOWN) !== 0) {
    throw new FormatError(`erofs: features 0x${incompat.toString(16)}`);
  }
  const blockSize = 1 << blockBits;
  const metaAt = v.getUint32(40, true) * blockSize;
  const root = v.getUint16(14, true);
  const packed = packedInode(v);

  const parseInode = async (nid: number): Promise<[Inode, number]> => {
    const at = metaAt + nid * 32;
    const head = await read(at, 32);
    const v = fields(head);
    const format = v.getUint16(0, true);
    const wide = (format & 1) !== 0;
    const attributes = v.getUint16(2, true);
    const inode: Inode = {
      at,
      layout: format >> 1 & 7,
      size: wide ? u64(v, 8) : v.getUint32(8, true),
      u: v.getUint32(16, true),
      tailAt: at + (wide ? 64 : 32) +
        (attributes === 0 ? 0 : 12 + 4 * (attributes - 1)),
    };
    return [inode, v.getUint16(4, true)];
  };

  const flat = ({ size, u, layout, tailAt }: Inode): Run[] => {
    const runs: Run[] = [];
    const tail = layout === LAYOUT.inline ? size % blockSize : 0;
    push(runs, 0, u * blockSize, size - tail);
    push(runs, size - tail, tailAt, tail);
    return runs;
  };

  const chunked = async ({ size, u, tailAt }: Inode): Promise<Run[]> => {
    const INDEXED = 0x20;
    const chunkSize = blockSize * 2 ** (u & 0x1f);
    const entry = (u & INDEXED) !== 0 ? 8 : 4;
    const count = Math.min(Math.ceil(size / chunkSize), MAX_RUNS);
    const at = Math.ceil(tailAt / entry) * entry;
    const table = fields(await read(at, count * entry));
    const runs: Run[] = [];
    for (let i = 0; i < count; i++) {
      const block = table.getUint32(i * entry + (entry === 8 ? 4 : 0), true);
      const other = entry === 8 && table.getUint16(i * entry + 2, true) !== 0;
      // What lies on another device is not here.
      if (block === HOLE || other) continue;
      const from = i * chunkSize;
      push(runs, from, block * blockSize, Math.min(chunkSize, size - from));
    }
    return runs;
  };

  /** What a file, or a part of one, is decoded from. */
  const stored = async (
    inode: Inode,
    from = 0,
    to = inode.size,
    depth = 0,
  ): Promise<Run[]> => {
    const { layout, tailAt, size } = inode;
    if (layout === LAYOUT.plain || layout === LAYOUT.inline) {
      return flat(inode).flatMap((run) => {
        const skip = Math.max(0, from - run.from);
        const length = Math.min(run.length, to - run.from) - skip;
        return length <= 0
          ? []
          : [{ from: run.from + skip, at: run.at + skip, length }];
      });
    }
    const full = layout === LAYOUT.compressed;
    const map = await readCompressedMap(
      read,
      { tailAt, size, full },
      blockBits,
    );
    const { extents, fragment } = map;
    const runs: Run[] = [];
    for (const [i, { from: start, at, length }] of extents.entries()) {
      const end = extents[i + 1]?.from ?? fragment?.from ?? size;
      if (start >= to || end <= from) continue;
      const last = runs.at(-1);
      // Neighbours on the disk are one, wherever they are in the file.
      if (last !== undefined && last.at + last.length === at) {
        last.length += length;
      } else runs.push({ from: start, at, length });
    }
    const start = Math.max(from, fragment?.from ?? to);
    // The packed inode has no fragments of its own.
    if (fragment === undefined || packed === undefined || depth > 0) {
      return runs;
    }
    if (start >= to) return runs;
    const [inPacked] = await parseInode(packed);
    const at = fragment.offset + start - fragment.from;
    return [...runs, ...await stored(inPacked, at, at + to - start, 1)];
  };

  const node = async (nid: number): Promise<FsNode> => {
    const [inode, mode] = await parseInode(nid);
    const runs = async (): Promise<Run[]> => {
      switch (inode.layout) {
        case LAYOUT.plain:
        case LAYOUT.inline:
          return flat(inode);
        case LAYOUT.chunks:
          return await chunked(inode);
        case LAYOUT.compressed:
        case LAYOUT.compact:
          if (kindOf(mode) === "file") return await stored(inode);
          throw new FormatError(`erofs: inode ${nid} is compressed`);
        default:
          throw new FormatError(`erofs: layout ${inode.layout} of ${nid}`);
      }
    };
    return { id: nid, kind: kindOf(mode), size: inode.size, runs };
  };

  return {
    type: "erofs",
    root,
    node,
    entries(bytes) {
      const list: DirEntry[] = [];
      for (let at = 0; at < bytes.length; at += blockSize) {
        list.push(...blockEntries(bytes.subarray(at, at + blockSize)));
      }
      return list;
    },
  };
}
