// SPDX-License-Identifier: Apache-2.0
/**
 * Where a compressed file of EROFS is stored: its index has an entry for each
 * logical cluster, most often a block, and says where a physical cluster
 * begins, in 8 bytes an entry or packed into 4 or 2.
 *
 * @module
 */
import { FormatError } from "../../format/error.ts";
import { fields, MAX_RUNS, type ReadDisk, u64 } from "./tree.ts";

/** What of an inode says where its index is. */
export interface CompressedInode {
  /** behind inode and extended attributes */
  tailAt: number;
  /** bytes */
  size: number;
  /** entries of 8 bytes, else packed */
  full: boolean;
}

/** A part of a file, and the bytes of the disk that it is decoded from. */
export interface Extent {
  /** in the file */
  from: number;
  at: number;
  length: number;
}

/** What is known of a file. */
export interface CompressedMap {
  /** by `from` */
  extents: Extent[];
  /** its end, from byte `from` on, lies in the packed inode at `offset` */
  fragment: { from: number; offset: number } | undefined;
}

const HEADER = 8;
/** Fields of the header: features of this file. */
const ADVICE = {
  twoBytes: 0x1,
  bigHead1: 0x2,
  bigHead2: 0x4,
  inlineTail: 0x8,
  fragmentTail: 0x20,
} as const;
const WHOLE_FRAGMENT = 1n << 63n;

const TYPE = { plain: 0, head1: 1, inner: 2, head2: 3 } as const;
/** In an inner cluster's number: the rest is the blocks of its head. */
const BLOCKS = 0x800;
const BLOCKS_BITS = 12;

/** One logical cluster. */
interface Cluster {
  type: number;
  /** of a head: where in the cluster it begins */
  offset: number;
  /** of a head: its first block */
  block: number;
  /** of an inner cluster: blocks of its head; 0: it does not say */
  blocks: number;
}

/** The clusters of one pack of `count` entries. */
function unpack(
  pack: DataView,
  count: number,
  clusterBits: number,
  big: boolean,
): Cluster[] {
  const numberBits = Math.max(clusterBits, BLOCKS_BITS);
  const bits = (pack.byteLength - 4) * 8 / count;
  const base = pack.getUint32(pack.byteLength - 4, true);
  const raw = Array.from({ length: count }, (_, i) => {
    const at = i * bits;
    const value = pack.getUint32(at >> 3, true) >>> (at & 7);
    return {
      number: value & ((1 << numberBits) - 1),
      type: value >>> numberBits & 3,
    };
  });
  /** Blocks of the pack's heads before entry `i`. */
  const before = (i: number): number => {
    let blocks = big ? 0 : 1;
    while (i > 0) {
      const entry = raw[--i];
      if (entry === undefined) break;
      const { number, type } = entry;
      if (type !== TYPE.inner) blocks++;
      else if (!big) {
        i -= number;
        if (i >= 0) blocks++;
      } else if ((number & BLOCKS) !== 0) {
        i--;
        blocks += number & ~BLOCKS;
      } else if (number <= 1) throw new FormatError("erofs: a bad cluster");
      else i -= number - 2;
    }
    return blocks;
  };
  return raw.map(({ number, type }, i) =>
    type === TYPE.inner
      ? {
        type,
        offset: 0,
        block: 0,
        blocks: (number & BLOCKS) !== 0 ? number & ~BLOCKS : 0,
      }
      : { type, offset: number, block: base + before(i), blocks: 0 }
  );
}

/** The clusters of an index, and where it ends on the disk. */
async function readIndex(
  read: ReadDisk,
  { full }: CompressedInode,
  head: number,
  count: number,
  clusterBits: number,
  advice: number,
): Promise<{ clusters: Cluster[]; end: number }> {
  if (full) {
    const at = head + HEADER + 8;
    const v = fields(await read(at, count * 8));
    const clusters = Array.from({ length: count }, (_, i) => {
      const type = v.getUint16(i * 8, true) & 3;
      const word = v.getUint16(i * 8 + 4, true);
      return {
        type,
        offset: v.getUint16(i * 8 + 2, true),
        block: type === TYPE.inner ? 0 : v.getUint32(i * 8 + 4, true),
        blocks: type === TYPE.inner && (word & BLOCKS) !== 0
          ? word & ~BLOCKS
          : 0,
      };
    });
    return { clusters, end: at + count * 8 };
  }
  // Entries of 4 bytes up to a multiple of 32, of 2 as long as they fill
  // packs of 16, and of 4 again.
  const start = head + HEADER;
  const first = (32 - start % 32) % 32 / 4;
  const short = (advice & ADVICE.twoBytes) !== 0 && first < count
    ? count - first - (count - first) % 16
    : 0;
  const long = count - short;
  const bytes = await read(start, short * 2 + Math.ceil(long / 2) * 8);
  const clusters: Cluster[] = [];
  const big = (advice & ADVICE.bigHead1) !== 0;
  let at = 0;
  while (clusters.length < count) {
    const nr = clusters.length;
    const entries = nr >= first && nr < first + short ? 16 : 2;
    const size = entries === 16 ? 32 : 8;
    const pack = fields(bytes.subarray(at, at + size));
    clusters.push(...unpack(pack, entries, clusterBits, big));
    at += size;
  }
  return { clusters: clusters.slice(0, count), end: start + at };
}

/**
 * Reads where a compressed file lies; of one with too many clusters only the
 * beginning.
 *
 * @param blockBits of the file system
 * @throws {FormatError} it is damaged
 */
export async function readCompressedMap(
  read: ReadDisk,
  inode: CompressedInode,
  blockBits: number,
): Promise<CompressedMap> {
  const head = Math.ceil(inode.tailAt / 8) * 8;
  const v = fields(await read(head, HEADER));
  const whole = v.getBigUint64(0, true);
  if ((whole & WHOLE_FRAGMENT) !== 0n) {
    const offset = Number(whole & ~WHOLE_FRAGMENT);
    return { extents: [], fragment: { from: 0, offset } };
  }
  const advice = v.getUint16(4, true);
  const clusterBits = blockBits + (v.getUint8(7) & 7);
  const clusterSize = 2 ** clusterBits;
  const all = Math.ceil(inode.size / clusterSize);
  const count = Math.min(all, MAX_RUNS);
  const { clusters, end } = await readIndex(
    read,
    inode,
    head,
    count,
    clusterBits,
    advice,
  );

  const lengthOf = (type: number, nr: number): number => {
    const big = type === TYPE.head1
      ? ADVICE.bigHead1
      : type === TYPE.head2
      ? ADVICE.bigHead2
      : 0;
    const blocks = (advice & big) !== 0 ? clusters[nr + 1]?.blocks ?? 0 : 0;
    return blocks === 0 ? clusterSize : blocks * 2 ** blockBits;
  };
  const extents: Extent[] = [];
  let tail: Cluster | undefined;
  for (const [nr, cluster] of clusters.entries()) {
    const { type, offset, block } = cluster;
    const from = nr * clusterSize + offset;
    if (type === TYPE.inner || from >= inode.size) continue;
    const at = block * 2 ** blockBits;
    extents.push({ from, at, length: lengthOf(type, nr) });
    tail = cluster;
  }
  const last = extents.at(-1);
  if (last === undefined || tail === undefined || count < all) {
    return { extents, fragment: undefined };
  }
  if ((advice & ADVICE.inlineTail) !== 0) {
    last.at = end;
    last.length = v.getUint16(2, true);
  } else if ((advice & ADVICE.fragmentTail) !== 0) {
    extents.pop();
    const high = inode.full ? tail.block * 2 ** 32 : 0;
    const offset = v.getUint32(0, true) + high;
    return { extents, fragment: { from: last.from, offset } };
  }
  return { extents, fragment: undefined };
}

/** The packed inode of a superblock; undefined: it has none. */
export function packedInode(superblock: DataView): number | undefined {
  const FRAGMENTS = 0x20;
  const features = superblock.getUint32(80, true);
  const nid = u64(superblock, 96);
  return (features & FRAGMENTS) === 0 || nid === 0 ? undefined : nid;
}
