// SPDX-License-Identifier: Apache-2.0
/**
 * What a disk may hold after power loss, worked out from the order in which
 * the library really wrote and synced (`obd_io_trace`).
 *
 * The model of a file between two syncs:
 *  - a sector holds any version that was written to it, or the old bytes:
 *    writes to different sectors reach the disk in any order, writes to one
 *    sector in the order they were made;
 *  - a block that the file did not have before appears whole or stays a
 *    hole: file systems map it only once its data is on disk;
 *  - the file has any length that it had in between, and what is inside
 *    the length but never reached the disk reads as zeros, a hole where a
 *    whole block is missing.
 * For a data file that is appended to (`tail: "coupled"`), a block is not
 * partly older than the length: no format without checksums could tell
 * such zeros from data.
 * Names follow their order, up to any point behind the directory's sync.
 *
 * @module
 */
import { fail, ok } from "node:assert/strict";
import { truncateSync } from "node:fs";

const SECTOR = 512;
const BLOCK = 4096;

/** One line of the trace. */
export interface TraceOp {
  seq: number;
  op: string;
  inode: number;
  at: number;
  n: number;
  result: number;
  /** bytes of a pwrite */
  data: Uint8Array | undefined;
}

/** Reads a trace; failed operations changed nothing and are left out. */
export function readTrace(path: string): TraceOp[] {
  const bytes = Deno.readFileSync(`${path}.data`);
  let from = 0;
  const lines = Deno.readTextFileSync(path).trimEnd().split("\n");
  return lines.filter((line) => line !== "").map((line) => {
    const [seq, op = "", inode, at, n, result] = line.split(" ");
    const moved = op === "pwrite" && Number(result) > 0 ? Number(result) : 0;
    const data = moved > 0 ? bytes.subarray(from, from + moved) : undefined;
    from += moved;
    return {
      seq: Number(seq),
      op,
      inode: Number(inode),
      at: Number(at),
      n: Number(n),
      result: Number(result),
      data,
    };
  });
}

/** Lines in a trace so far: where an acknowledgement stands in it. */
export function traceLength(path: string): number {
  let lines = 0;
  for (const byte of Deno.readFileSync(path)) if (byte === 10) lines++;
  return lines;
}

/** A file as a list of blocks; an absent block is a hole. */
export interface FileImage {
  size: number;
  blocks: Map<number, Uint8Array>;
}

/** The file at a path, holes as the independent reader would see them. */
export function loadImage(path: string): FileImage {
  const bytes = Deno.readFileSync(path);
  const blocks = new Map<number, Uint8Array>();
  for (let at = 0; at < bytes.length; at += BLOCK) {
    const block = new Uint8Array(BLOCK);
    block.set(bytes.subarray(at, at + BLOCK));
    // A hole and a block of zeros differ only in what SEEK_DATA says; the
    // workloads here begin with files whose zero blocks are holes.
    if (block.some((byte) => byte !== 0)) blocks.set(at / BLOCK, block);
  }
  return { size: bytes.length, blocks };
}

/** Writes an image to a path, holes left as holes. */
export function storeImage(image: FileImage, path: string): void {
  using file = Deno.openSync(path, {
    write: true,
    create: true,
    truncate: true,
  });
  for (const [nr, block] of image.blocks) {
    const n = Math.min(BLOCK, image.size - nr * BLOCK);
    if (n <= 0) continue;
    file.seekSync(nr * BLOCK, Deno.SeekMode.Start);
    let done = 0;
    while (done < n) done += file.writeSync(block.subarray(done, n));
  }
  truncateSync(path, image.size);
}

function copyImage({ size, blocks }: FileImage): FileImage {
  return {
    size,
    blocks: new Map([...blocks].map(([nr, block]) => [nr, block.slice()])),
  };
}

/** Plays one operation on an image, as the kernel's cache would. */
export function playOp(image: FileImage, op: TraceOp): void {
  if (op.op === "truncate") {
    truncateImage(image, op.at);
  } else if (op.op === "allocate") {
    punchImage(image, op);
  } else if (op.op === "pwrite" && op.data !== undefined) {
    writeImage(image, op.at, op.data);
  }
}

function truncateImage(image: FileImage, size: number): void {
  for (const [nr, block] of image.blocks) {
    if (nr * BLOCK >= size) image.blocks.delete(nr);
    else if ((nr + 1) * BLOCK > size) block.fill(0, size - nr * BLOCK);
  }
  image.size = size;
}

function punchImage(image: FileImage, { at, n }: TraceOp): void {
  for (const [nr, block] of image.blocks) {
    const from = Math.max(at, nr * BLOCK);
    const to = Math.min(at + n, (nr + 1) * BLOCK);
    if (from >= to) continue;
    if (to - from === BLOCK) image.blocks.delete(nr);
    else block.fill(0, from - nr * BLOCK, to - nr * BLOCK);
  }
}

function writeImage(image: FileImage, at: number, data: Uint8Array): void {
  for (let done = 0; done < data.length;) {
    const nr = Math.floor((at + done) / BLOCK);
    const into = at + done - nr * BLOCK;
    const part = data.subarray(done, done + BLOCK - into);
    let block = image.blocks.get(nr);
    if (block === undefined) {
      block = new Uint8Array(BLOCK);
      image.blocks.set(nr, block);
    }
    block.set(part, into);
    done += part.length;
  }
  image.size = Math.max(image.size, at + data.length);
}

/** What a file may look like: see the module's comment. */
export interface FileHistory {
  /** everything up to the last sync */
  durable: FileImage;
  /** operations since */
  pending: TraceOp[];
  tail: "coupled" | "free";
}

/** Operations that change a file. */
export const CHANGING = new Set(["pwrite", "truncate", "allocate"]);

/**
 * What each file may hold after the first lines of a trace.
 *
 * @param until the first line that did not happen
 */
export function historiesAt(
  initial: ReadonlyMap<number, FileImage>,
  trace: readonly TraceOp[],
  until: number,
  tail: (inode: number) => FileHistory["tail"],
): Map<number, FileHistory> {
  const out = new Map<number, FileHistory>();
  for (const [ino, image] of initial) {
    out.set(ino, { durable: copyImage(image), pending: [], tail: tail(ino) });
  }
  for (const op of trace) {
    if (op.seq >= until) break;
    const history = out.get(op.inode);
    if (history === undefined || op.result < 0) continue;
    if (CHANGING.has(op.op)) history.pending.push(op);
    else if (op.op === "sync") {
      for (const pending of history.pending) playOp(history.durable, pending);
      history.pending = [];
    }
  }
  return out;
}

/** The file that the death of the process leaves: all that was written. */
export function deadImage({ durable, pending }: FileHistory): FileImage {
  const image = copyImage(durable);
  for (const op of pending) playOp(image, op);
  return image;
}

/** Fails unless every sector is that of one of the disks. */
export function checkSectors(
  got: Uint8Array,
  candidates: readonly Uint8Array[],
  what: string,
): void {
  for (let at = 0; at < got.length; at += SECTOR) {
    const sector = got.subarray(at, at + SECTOR);
    const known = candidates.some((disk) =>
      equalBytes(sector, disk.subarray(at, at + SECTOR))
    );
    if (!known) fail(`${what}: sector ${at / SECTOR} is nothing ever written`);
  }
}

/** One choice among the versions of a sector or of the size. */
type Choose = (options: number) => number;

/** Sectors of a block, as `nr * 8 + i`. */
const SECTORS_PER_BLOCK = BLOCK / SECTOR;

/**
 * One state of a file after power loss.
 *
 * @param choose picks one of `options` versions, 0 the oldest
 */
export function crashImage(history: FileHistory, choose: Choose): FileImage {
  const { durable, pending, tail } = history;
  if (pending.length === 0) return copyImage(durable);
  const versions = [copyImage(durable)];
  for (const op of pending) {
    const last = versions.at(-1);
    ok(last !== undefined);
    const next = copyImage(last);
    playOp(next, op);
    versions.push(next);
  }
  const sizes = [...new Set(versions.map((image) => image.size))];
  const size = sizes[choose(sizes.length)] ?? durable.size;
  const out: FileImage = { size, blocks: new Map() };
  const touched = new Set(
    versions.flatMap((image) => [...image.blocks.keys()]),
  );
  for (const nr of touched) {
    const block = crashBlock(versions, nr, size, tail, choose);
    if (block !== undefined) out.blocks.set(nr, block);
  }
  truncateImage(out, size);
  return out;
}

function crashBlock(
  versions: readonly FileImage[],
  nr: number,
  size: number,
  tail: "coupled" | "free",
  choose: Choose,
): Uint8Array | undefined {
  const old = versions[0]?.blocks.get(nr);
  const distinct: (Uint8Array | undefined)[] = [];
  for (const image of versions) {
    const block = image.blocks.get(nr);
    const last = distinct.at(-1);
    const same = distinct.length > 0 && (block === last ||
      (block !== undefined && last !== undefined && equalBytes(block, last)));
    if (!same) distinct.push(block);
  }
  if (distinct.length === 1) return old?.slice();
  const present = distinct.filter((block) => block !== undefined);
  if (tail === "coupled") {
    // Only versions that have all that the length covers, or a hole.
    const whole = versions.filter((image) => image.size >= size)
      .map((image) => image.blocks.get(nr));
    const options = old === undefined ? [undefined, ...whole] : [
      ...((versions[0]?.size ?? 0) >= Math.min(size, (nr + 1) * BLOCK)
        ? [old]
        : []),
      ...whole,
    ];
    return options[choose(options.length)]?.slice();
  }
  if (old === undefined || present.length < distinct.length) {
    // Mapped or unmapped meanwhile: whole versions only.
    return distinct[choose(distinct.length)]?.slice();
  }
  const out = new Uint8Array(BLOCK);
  for (let i = 0; i < SECTORS_PER_BLOCK; i++) {
    const [from, to] = [i * SECTOR, (i + 1) * SECTOR];
    const sectors = present.map((block) => block.subarray(from, to));
    const kinds = sectors.filter((sector, at) => {
      const before = sectors[at - 1];
      return before === undefined || !equalBytes(sector, before);
    });
    out.set(kinds[choose(kinds.length)] ?? kinds[0] ?? [], from);
  }
  return out;
}

export function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/**
 * Calls `visit` with every sequence of choices, or with `cap` random ones
 * when there are more.  `build` makes one state by asking `choose`.
 */
export function eachState<T>(
  build: (choose: Choose) => T,
  cap: number,
  random: () => number,
): T[] {
  const out: T[] = [];
  let path: { taken: number; options: number }[] = [];
  // Depth first through the tree of choices; each build replays a path.
  for (;;) {
    let depth = 0;
    out.push(build((options) => {
      const step = path[depth] ?? { taken: 0, options };
      path[depth++] = step;
      return step.taken;
    }));
    path = path.slice(0, depth);
    let last = path.at(-1);
    while (last !== undefined && last.taken + 1 >= last.options) {
      path.pop();
      last = path.at(-1);
    }
    if (last === undefined) return out;
    last.taken++;
    if (out.length >= cap) break;
  }
  out.length = Math.floor(cap / 2);
  while (out.length < cap) {
    out.push(build((options) => Math.floor(random() * options)));
  }
  return out;
}
