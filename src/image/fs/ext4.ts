// SPDX-License-Identifier: Apache-2.0
/**
 * Where the files of an ext2, ext3 or ext4 file system lie.  Reads what
 * mke2fs writes; every number is checked before it is used, and no tree is
 * followed deeper than its kind can be.
 *
 * @module
 */
import { FormatError } from "../../format/error.ts";
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
} from "./tree.ts";

const SUPERBLOCK_AT = 1024;
const SUPERBLOCK_SIZE = 1024;
const MAGIC = 0xef53;
const ROOT = 2;

const INCOMPAT = {
  journalDevice: 0x8,
  metaGroups: 0x10,
  wide: 0x80,
} as const;
const COMPAT_SPARSE_SUPER2 = 0x200;
const RO_SPARSE_SUPER = 0x1;
const FLAG = { extents: 0x80000, inline: 0x10000000 } as const;

const EXTENT_MAGIC = 0xf30a;
const EXTENT_DEPTH_MAX = 5;
/** Longer extents are allocated and not written: zeros. */
const EXTENT_LENGTH_MAX = 32768;
const INODE_BLOCK_AT = 40;
const INODE_BLOCK_SIZE = 60;

/** What the superblock says. */
interface Geometry {
  blockSize: number;
  blocks: number;
  inodes: number;
  inodesPerGroup: number;
  blocksPerGroup: number;
  firstBlock: number;
  inodeSize: number;
  descSize: number;
  /** descriptors of groups from here on lie in their groups; else infinite */
  firstMetaGroup: number;
  hasBackup(group: number): boolean;
}

function isPower(n: number, base: number): boolean {
  let power = base;
  while (power < n) power *= base;
  return power === n;
}

/** True when a superblock begins like ext4's. */
export function isExt4(superblock: Uint8Array): boolean {
  return fields(superblock).getUint16(56, true) === MAGIC;
}

function parseSuperblock(raw: Uint8Array): Geometry {
  const v = fields(raw);
  const incompat = v.getUint32(96, true);
  const wide = (incompat & INCOMPAT.wide) !== 0;
  const revision = v.getUint32(76, true);
  const log = v.getUint32(24, true);
  if (log > 6) throw new FormatError(`ext4: block size 2^${10 + log}`);
  if ((incompat & INCOMPAT.journalDevice) !== 0) {
    throw new FormatError("ext4: it is a journal");
  }
  const sparse = (v.getUint32(100, true) & RO_SPARSE_SUPER) !== 0;
  const sparse2 = (v.getUint32(92, true) & COMPAT_SPARSE_SUPER2) !== 0;
  const backups = [v.getUint32(0x24c, true), v.getUint32(0x250, true)];
  const geometry: Geometry = {
    blockSize: 1024 << log,
    blocks: v.getUint32(4, true) + (wide ? v.getUint32(0x150, true) : 0) *
        2 ** 32,
    inodes: v.getUint32(0, true),
    inodesPerGroup: v.getUint32(40, true),
    blocksPerGroup: v.getUint32(32, true),
    firstBlock: v.getUint32(20, true),
    inodeSize: revision === 0 ? 128 : v.getUint16(88, true),
    descSize: wide ? v.getUint16(254, true) : 32,
    firstMetaGroup: (incompat & INCOMPAT.metaGroups) !== 0
      ? v.getUint32(0x104, true)
      : Infinity,
    hasBackup: (group) => {
      if (group === 0) return true;
      if (sparse2) return backups.includes(group);
      return !sparse || group === 1 ||
        [3, 5, 7].some((base) => isPower(group, base));
    },
  };
  const { blockSize, inodeSize, descSize } = geometry;
  const sound = geometry.inodesPerGroup > 0 && geometry.blocksPerGroup > 0 &&
    inodeSize >= 128 && inodeSize <= blockSize && descSize >= 32 &&
    descSize <= blockSize && (!wide || descSize >= 64);
  if (!sound) throw new FormatError("ext4: the superblock is damaged");
  return geometry;
}

/** The directory entries in one block. */
function* blockEntries(block: Uint8Array): Generator<DirEntry> {
  const v = fields(block);
  const HEAD = 8;
  for (let at = 0; at + HEAD <= block.length;) {
    const id = v.getUint32(at, true);
    const raw = v.getUint16(at + 4, true);
    // What 16 bits cannot hold: a whole block of 64 KiB.
    const length = raw === 0 || raw === 0xffff ? block.length : raw;
    const nameLength = block[at + 6] ?? 0;
    if (length < HEAD + nameLength || at + length > block.length) return;
    if (id !== 0 && nameLength > 0) {
      const name = block.subarray(at + HEAD, at + HEAD + nameLength);
      yield { name: latin1(name), id };
    }
    at += length;
  }
}

/** Collects the blocks of a file. */
interface Collector {
  add(firstBlock: number, count: number, diskBlock: number): void;
  readonly full: boolean;
}

/**
 * Recognises and opens a file system.
 *
 * @throws {FormatError} its superblock is damaged
 */
export async function openExt4(read: ReadDisk): Promise<FileSystem> {
  const geometry = parseSuperblock(await read(SUPERBLOCK_AT, SUPERBLOCK_SIZE));
  const { blockSize, descSize } = geometry;

  const blockAt = (block: number): number => {
    if (block < 0 || block >= geometry.blocks) {
      throw new FormatError(`ext4: block ${block} of ${geometry.blocks}`);
    }
    return block * blockSize;
  };
  const readBlock = (block: number) => read(blockAt(block), blockSize);

  const descriptorAt = (group: number): number => {
    const perBlock = Math.floor(blockSize / descSize);
    const meta = Math.floor(group / perBlock);
    const inside = (group % perBlock) * descSize;
    if (meta < geometry.firstMetaGroup) {
      return blockAt(geometry.firstBlock + 1 + meta) + inside;
    }
    const first = meta * perBlock;
    const block = geometry.firstBlock + first * geometry.blocksPerGroup +
      (geometry.hasBackup(first) ? 1 : 0);
    return blockAt(block) + inside;
  };

  const inodeAt = async (id: number): Promise<number> => {
    if (id < 1 || id > geometry.inodes) {
      throw new FormatError(`ext4: inode ${id} of ${geometry.inodes}`);
    }
    const group = Math.floor((id - 1) / geometry.inodesPerGroup);
    const v = fields(await read(descriptorAt(group), descSize));
    const table = v.getUint32(8, true) +
      (descSize >= 64 ? v.getUint32(0x28, true) * 2 ** 32 : 0);
    return blockAt(table) +
      ((id - 1) % geometry.inodesPerGroup) * geometry.inodeSize;
  };

  const extentTree = async (
    node: Uint8Array,
    into: Collector,
    depthMax: number,
  ): Promise<void> => {
    const v = fields(node);
    const entries = v.getUint16(2, true);
    const depth = v.getUint16(6, true);
    const ENTRY = 12;
    if (
      v.getUint16(0, true) !== EXTENT_MAGIC || depth > depthMax ||
      ENTRY * (entries + 1) > node.length
    ) throw new FormatError("ext4: an extent tree is damaged");
    for (let i = 1; i <= entries && !into.full; i++) {
      const at = i * ENTRY;
      const low = v.getUint32(at + (depth === 0 ? 8 : 4), true);
      const high = v.getUint16(at + (depth === 0 ? 6 : 8), true);
      const block = low + high * 2 ** 32;
      if (depth > 0) {
        await extentTree(await readBlock(block), into, depth - 1);
        continue;
      }
      const length = v.getUint16(at + 4, true);
      if (length > EXTENT_LENGTH_MAX) continue;
      into.add(v.getUint32(at, true), length, block);
    }
  };

  /** Pointers to blocks, or to blocks of pointers. */
  const pointers = async (
    table: DataView,
    first: number,
    level: number,
    into: Collector,
    blocks: number,
  ): Promise<void> => {
    const perBlock = blockSize / 4;
    const span = perBlock ** level;
    const count = table.byteLength / 4;
    for (let i = 0; i < count && !into.full; i++) {
      const from = first + i * span;
      if (from >= blocks) return;
      const block = table.getUint32(i * 4, true);
      if (block === 0) continue;
      if (level === 0) into.add(from, 1, block);
      else {
        const next = fields(await readBlock(block));
        await pointers(next, from, level - 1, into, blocks);
      }
    }
  };

  const DIRECT = 12;
  const blockMap = async (raw: Uint8Array, into: Collector, size: number) => {
    const blocks = Math.ceil(size / blockSize);
    const perBlock = blockSize / 4;
    const part = (from: number, to: number) =>
      fields(raw.subarray(from * 4, to * 4));
    await pointers(part(0, DIRECT), 0, 0, into, blocks);
    let first = DIRECT;
    for (let level = 1; level <= 3; level++) {
      const slot = DIRECT + level - 1;
      await pointers(part(slot, slot + 1), first, level, into, blocks);
      first += perBlock ** level;
    }
  };

  const collect = (size: number): Collector & { runs: Run[] } => {
    const runs: Run[] = [];
    return {
      runs,
      get full() {
        return runs.length >= MAX_RUNS;
      },
      add(firstBlock, count, diskBlock) {
        const from = firstBlock * blockSize;
        if (count === 0 || from >= size) return;
        blockAt(diskBlock);
        const at = blockAt(diskBlock + count - 1) - (count - 1) * blockSize;
        const length = Math.min(count * blockSize, size - from);
        const last = runs.at(-1);
        if (
          last !== undefined && last.from + last.length === from &&
          last.at + last.length === at
        ) last.length += length;
        else runs.push({ from, at, length });
      },
    };
  };

  const node = async (id: number): Promise<FsNode> => {
    const at = await inodeAt(id);
    const raw = await read(at, 128);
    const v = fields(raw);
    const kind = kindOf(v.getUint16(0, true));
    const flags = v.getUint32(32, true);
    const size = v.getUint32(4, true) +
      (kind === "link" ? 0 : v.getUint32(108, true) * 2 ** 32);
    const map = raw.subarray(
      INODE_BLOCK_AT,
      INODE_BLOCK_AT + INODE_BLOCK_SIZE,
    );
    const runs = async (): Promise<Run[]> => {
      if ((flags & FLAG.inline) !== 0) return [];
      if ((flags & FLAG.extents) !== 0) {
        const into = collect(size);
        await extentTree(map, into, EXTENT_DEPTH_MAX);
        return into.runs;
      }
      if (kind === "link" && size < INODE_BLOCK_SIZE) {
        return [{ from: 0, at: at + INODE_BLOCK_AT, length: size }];
      }
      if (kind === "other") return [];
      const into = collect(size);
      await blockMap(map, into, size);
      return into.runs;
    };
    return { id, kind, size, runs };
  };

  return {
    type: "ext4",
    root: ROOT,
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
