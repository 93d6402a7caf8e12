// SPDX-License-Identifier: Apache-2.0
/**
 * Runs a program on the product and on a plain array side by side.
 *
 * @module
 */
import { equal, fail } from "node:assert/strict";
import { join } from "node:path";
import { commitLayer, sealLayer } from "../../src/layer/commit.ts";
import { mergeLayers } from "../../src/layer/merge.ts";
import { openLayer } from "../../src/layer/open.ts";
import { openUpper } from "../../src/layer/upper.ts";
import { snapshotUpper, upperSource } from "../../ffi/upper.ts";
import {
  growClosed,
  newUpper,
  type OpenDisk,
  openDisk,
} from "../lib/product.ts";
import { noise } from "../lib/random.ts";
import { readDisk, type UpperPaths } from "../lib/spec_reader.ts";
import {
  type Format,
  HUGE_PLACES,
  HUGE_SECTORS,
  type Op,
  type Program,
  type Range,
} from "./program.ts";

const SECTOR = 512;
/** Sectors on each side of a far place that a huge program may touch. */
const WINDOW = 64;
/** More lowers than this are merged before the next one. */
const MAX_LOWERS = 6;

/** How a run is watched. */
export interface RunOptions {
  /** the independent reader reads every state that is left on disk, too */
  independent: boolean;
  /** changes what the product read, to prove that it is looked at */
  lie?: (bytes: Uint8Array) => void;
}

/**
 * The disk as it should be.  A huge one is kept as its windows only:
 * everything else stays zero.
 */
class Plain {
  readonly windows: { lba: number; bytes: Uint8Array }[];

  constructor(sectors: number, huge: boolean) {
    this.windows = huge
      ? HUGE_PLACES.map((lba) => ({
        lba,
        bytes: new Uint8Array(
          Math.min(2 * WINDOW, HUGE_SECTORS - lba) * SECTOR,
        ),
      }))
      : [{ lba: 0, bytes: new Uint8Array(sectors * SECTOR) }];
  }

  /** A growing disk gains zeros; a huge one does not grow. */
  grow(sectors: number): void {
    const [only] = this.windows;
    if (only === undefined) return;
    const bytes = new Uint8Array(sectors * SECTOR);
    bytes.set(only.bytes);
    only.bytes = bytes;
  }

  set({ lba, sectors }: Range, bytes: Uint8Array | undefined): void {
    for (const window of this.windows) {
      const end = window.lba + window.bytes.length / SECTOR;
      const from = Math.max(lba, window.lba);
      const to = Math.min(lba + sectors, end);
      if (from >= to) continue;
      const into = (from - window.lba) * SECTOR;
      const piece = bytes?.subarray((from - lba) * SECTOR, (to - lba) * SECTOR);
      if (piece === undefined) {
        window.bytes.fill(0, into, (to - window.lba) * SECTOR);
      } else window.bytes.set(piece, into);
    }
  }

  get({ lba, sectors }: Range): Uint8Array {
    const out = new Uint8Array(sectors * SECTOR);
    for (const window of this.windows) {
      const end = window.lba + window.bytes.length / SECTOR;
      const from = Math.max(lba, window.lba);
      const to = Math.min(lba + sectors, end);
      if (from >= to) continue;
      out.set(
        window.bytes.subarray(
          (from - window.lba) * SECTOR,
          (to - window.lba) * SECTOR,
        ),
        (from - lba) * SECTOR,
      );
    }
    return out;
  }
}

interface State {
  dir: string;
  plain: Plain;
  sectors: number;
  huge: boolean;
  lowers: string[];
  upper: UpperPaths;
  sparse: boolean;
  disk: OpenDisk;
  made: number;
  options: RunOptions;
}

/** Bytes of a write: seed 0 is zeros, others noise. */
function content(seed: number, sectors: number): Uint8Array<ArrayBuffer> {
  const n = sectors * SECTOR;
  return seed === 0 ? new Uint8Array(n) : noise(seed, n);
}

/** A program's range as it lies on this disk. */
function place(state: State, range: Range): Range {
  if (!state.huge) {
    const lba = range.lba % state.sectors;
    return { lba, sectors: Math.min(range.sectors, state.sectors - lba) };
  }
  const window = state.plain.windows[range.lba % state.plain.windows.length];
  if (window === undefined) fail("no window");
  const length = window.bytes.length / SECTOR;
  const inside = Math.floor(range.lba / 8) % length;
  return {
    lba: window.lba + inside,
    sectors: Math.min(range.sectors, length - inside),
  };
}

function same(got: Uint8Array, want: Uint8Array, what: string, lba: number) {
  if (equalWords(got, want)) return;
  const at = got.findIndex((byte, i) => byte !== want[i]);
  fail(`${what}: sector ${lba + Math.floor(at / SECTOR)} is wrong`);
}

/** memcmp, four bytes at a time. */
function equalWords(a: Uint8Array, b: Uint8Array): boolean {
  const x = aligned(a);
  const y = aligned(b);
  for (let i = 0; i < x.length; i++) if (x[i] !== y[i]) return false;
  return true;
}

function aligned(bytes: Uint8Array): Uint32Array {
  const at = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  return new Uint32Array(at.buffer, at.byteOffset, at.length >> 2);
}

function compareAll(
  state: State,
  read: (at: number, n: number) => Uint8Array,
  what: string,
): void {
  for (const { lba, bytes } of state.plain.windows) {
    const got = read(lba * SECTOR, bytes.length);
    state.options.lie?.(got);
    same(got, bytes, what, lba);
  }
}

/** Closes the disk; what is left on disk must be all of it. */
async function close(state: State): Promise<void> {
  await state.disk.close();
  if (!state.options.independent) return;
  using disk = readDisk(state.lowers, state.upper);
  equal(disk.size, state.sectors * SECTOR, "independent reader: size");
  compareAll(state, disk.read, "independent reader");
}

async function open(state: State): Promise<void> {
  state.disk = await openDisk({ lowers: state.lowers, upper: state.upper });
  equal(state.disk.size, state.sectors * SECTOR, "size");
  equal(state.disk.warnings.length, 0, state.disk.warnings.join("; "));
}

function nextPath(state: State, suffix: string): string {
  return join(state.dir, `${state.made++}.${suffix}`);
}

/** A new upper over the lowers; half of them take the stack's size. */
async function freshUpper(state: State, sparse: boolean): Promise<void> {
  const inherits = state.lowers.length > 0 && state.made % 2 === 0;
  const size = inherits ? 0 : state.sectors * SECTOR;
  state.sparse = sparse;
  state.upper = await newUpper(nextPath(state, "upper"), { size, sparse });
  await open(state);
}

/** A format as `commitLayer` and `mergeLayers` take it. */
function written(output: string, format: Format) {
  const { algorithm, blockKiB, tar, threads } = format;
  return {
    output,
    threads,
    tar: tar && blockKiB !== 0,
    zfile: blockKiB === 0
      ? undefined
      : { algorithm, blockSize: blockKiB * 1024 },
  };
}

function removeUpper({ upper }: State): void {
  Deno.removeSync(upper.data);
  Deno.removeSync(upper.index);
}

/** Flattens the lowers and the upper, as the merge command does. */
async function merge(state: State, format: Format): Promise<void> {
  const output = nextPath(state, "merged");
  {
    using held = new DisposableStack();
    const lowers = [];
    for (const path of state.lowers) {
      lowers.push(held.use(await openLayer(path)));
    }
    const upper = held.use(
      await openUpper({ ...state.upper, readonly: true }),
    );
    await mergeLayers({
      ...written(output, format),
      layers: lowers.toReversed(),
      upper: {
        index: held.use(snapshotUpper(upper.upper)),
        source: held.use(upperSource(upper.upper)),
      },
      virtualSize: BigInt(state.sectors * SECTOR),
      parentUuid: upper.header.parentUuid,
    });
  }
  removeUpper(state);
  state.lowers.splice(0).forEach((path) => Deno.removeSync(path));
  state.lowers.push(output);
}

/** A discard on a sparse upper may do nothing: sector by sector. */
function adoptDiscard(state: State, range: Range): void {
  const before = state.plain.get(range);
  const got = state.disk.read(range.lba * SECTOR, range.sectors * SECTOR);
  for (let i = 0; i < range.sectors; i++) {
    const [from, to] = [i * SECTOR, (i + 1) * SECTOR];
    const sector = got.subarray(from, to);
    const zero = sector.every((byte) => byte === 0);
    if (!zero) {
      same(sector, before.subarray(from, to), "discard", range.lba + i);
    }
  }
  state.plain.set(range, got);
}

/** What block status calls zero reads as zeros, and all is covered. */
function checkExtents(state: State, range: Range, bytes: Uint8Array): void {
  let at = 0;
  const runs = state.disk.extents(range.lba * SECTOR, bytes.length, 4096);
  for (const { length, state: kind } of runs) {
    equal(length % SECTOR, 0, "an extent is whole sectors");
    const piece = bytes.subarray(at, at + length);
    if (kind !== "data" && piece.some((byte) => byte !== 0)) {
      fail(`extents: ${kind} at sector ${range.lba + at / SECTOR} holds data`);
    }
    at += length;
  }
  equal(at, bytes.length, "extents cover the range");
}

async function step(state: State, op: Op): Promise<void> {
  const { disk, plain } = state;
  switch (op.kind) {
    case "write": {
      const range = place(state, op);
      const bytes = content(op.seed, range.sectors);
      disk.write(range.lba * SECTOR, bytes);
      return plain.set(range, bytes);
    }
    case "discard": {
      const range = place(state, op);
      disk.discard(range.lba * SECTOR, range.sectors * SECTOR);
      if (state.sparse) return adoptDiscard(state, range);
      return plain.set(range, undefined);
    }
    case "zero": {
      const range = place(state, op);
      disk.zero(range.lba * SECTOR, range.sectors * SECTOR);
      return plain.set(range, undefined);
    }
    case "read": {
      const { lba, sectors } = place(state, op);
      const got = disk.read(lba * SECTOR, sectors * SECTOR);
      same(got, plain.get({ lba, sectors }), "read", lba);
      return checkExtents(state, { lba, sectors }, got);
    }
    case "flush":
      return await disk.flush();
    case "reopen":
      await close(state);
      return await open(state);
    case "seal": {
      await close(state);
      await sealLayer(state.upper.data, state.upper.index);
      Deno.removeSync(state.upper.index);
      state.lowers.push(state.upper.data);
      return await afterLayer(state, op.sparse);
    }
    case "commit": {
      await close(state);
      const output = nextPath(state, "layer");
      await commitLayer({ ...state.upper, ...written(output, op.format) });
      removeUpper(state);
      state.lowers.push(output);
      return await afterLayer(state, op.sparse);
    }
    case "merge":
      await close(state);
      await merge(state, op.format);
      return await freshUpper(state, op.sparse);
    case "recommit":
      return await recommit(state);
    case "grow":
      return await grow(state, op);
  }
}

/** Keeps a stack small: a tall one is merged under the new upper. */
async function afterLayer(state: State, sparse: boolean): Promise<void> {
  await freshUpper(state, sparse);
  if (state.lowers.length <= MAX_LOWERS) return;
  await close(state);
  await merge(state, {
    algorithm: "lz4",
    blockKiB: 4,
    tar: false,
    threads: 1,
  });
  await freshUpper(state, sparse);
}

/** `--commit_sealed` of the topmost lower, if it is a plain file. */
async function recommit(state: State): Promise<void> {
  const top = state.lowers.at(-1);
  if (top === undefined || !isPlainLayer(top)) return;
  await close(state);
  const output = nextPath(state, "again");
  await commitLayer({ data: top, sealed: true, output });
  Deno.removeSync(top);
  state.lowers.splice(-1, 1, output);
  await open(state);
}

function isPlainLayer(path: string): boolean {
  using file = Deno.openSync(path);
  const magic = new Uint8Array(4);
  file.readSync(magic);
  return new TextDecoder().decode(magic) === "LSMT";
}

async function grow(
  state: State,
  { sectors, live }: Op & { kind: "grow" },
): Promise<void> {
  if (state.huge) return;
  if (!live) await close(state);
  state.sectors += sectors;
  if (live) {
    await state.disk.grow(state.sectors * SECTOR);
    equal(state.disk.size, state.sectors * SECTOR, "size");
    return state.plain.grow(state.sectors);
  }
  await growClosed(state, state.sectors * SECTOR);
  state.plain.grow(state.sectors);
  await open(state);
}

/**
 * Runs a program in an empty directory.
 *
 * @throws {AssertionError} which sector differs, after which operation
 */
export async function runProgram(
  program: Program,
  dir: string,
  options: RunOptions,
): Promise<void> {
  const sectors = program.huge ? HUGE_SECTORS : program.size;
  const base = join(dir, "first");
  const upper = await newUpper(base, {
    size: sectors * SECTOR,
    sparse: program.sparse,
  });
  const state: State = {
    dir,
    plain: new Plain(sectors, program.huge),
    sectors,
    huge: program.huge,
    lowers: [],
    upper,
    sparse: program.sparse,
    disk: await openDisk({ lowers: [], upper }),
    made: 0,
    options,
  };
  try {
    for (const [nr, op] of program.ops.entries()) {
      try {
        await step(state, op);
      } catch (cause) {
        throw new Error(`operation ${nr} (${op.kind}): ${cause}`, { cause });
      }
    }
    compareAll(state, state.disk.read, "at the end");
    await close(state);
    await open(state);
    compareAll(state, state.disk.read, "after reopen");
  } finally {
    await state.disk.close();
  }
}
