// SPDX-License-Identifier: Apache-2.0
/**
 * A second reader of layers, written from spec/lsmt.md and spec/zfile.md
 * alone.  It shares no code with `src/`, `ffi/` or `c/`: what both agree on
 * is right for two independent reasons.  Simple before fast: a disk is read
 * by painting every layer's pieces over zeros, bottom first.
 *
 * @module
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { zstdDecompressSync } from "node:zlib";

const SECTOR = 512;
const BLOCK = 4096;
const INVALID_LBA = 2 ** 50 - 1;
/** Where the data area begins, in sectors: behind the 4096-byte header. */
const FIRST_DATA_SECTOR = 8;
const MAX_RO_RECORDS = 1_000_000;
const MAX_RW_RECORDS = 128_000_000;

/** A rule of the spec does not hold. */
export class SpecError extends Error {
  override readonly name = "SpecError";
}

function ensure(ok: boolean, text: string): asserts ok {
  if (!ok) throw new SpecError(text);
}

/** Bytes that can be read at any place; a read past the end throws. */
export interface ByteSource {
  readonly name: string;
  readonly size: number;
  read(at: number, n: number): Uint8Array;
  close(): void;
}

function fileBytes(path: string): ByteSource & { fd: number } {
  const fd = openSync(path, "r");
  const size = fstatSync(fd).size;
  return {
    name: path,
    fd,
    size,
    read(at, n) {
      const out = new Uint8Array(n);
      let done = 0;
      while (done < n) {
        const got = readSync(fd, out, done, n - done, at + done);
        ensure(got > 0, `${path}: ends at ${at + done}, read ${at}+${n}`);
        done += got;
      }
      return out;
    },
    close: () => closeSync(fd),
  };
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function u64(bytes: Uint8Array, at: number): number {
  const value = view(bytes).getBigUint64(at, true);
  ensure(value <= BigInt(Number.MAX_SAFE_INTEGER), `${value} at ${at}: huge`);
  return Number(value);
}

function u32(bytes: Uint8Array, at: number): number {
  return view(bytes).getUint32(at, true);
}

function byte(bytes: Uint8Array, at: number): number {
  return view(bytes).getUint8(at);
}

function same(bytes: Uint8Array, at: number, expected: string): boolean {
  return bytes.subarray(at, at + expected.length / 2).toHex() === expected;
}

function allZero(bytes: Uint8Array): boolean {
  return bytes.every((b) => b === 0);
}

// ---- checksums and codecs (spec/zfile.md, 4 and 5) ------------------

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0x82F63B78 : c >>> 1;
  return c;
});

/** The CRC-32C register: no inversion before or after. */
export function crcRegister(start: number, bytes: Uint8Array): number {
  let c = start;
  for (const b of bytes) c = (CRC_TABLE[(c ^ b) & 255] ?? 0) ^ (c >>> 8);
  return c >>> 0;
}

/** Decodes one raw LZ4 block, at most `capacity` bytes of output. */
export function lz4Decode(block: Uint8Array, capacity: number): Uint8Array {
  const v = view(block);
  const out = new Uint8Array(capacity);
  let from = 0;
  let to = 0;
  const length = (nibble: number) => {
    let total = nibble;
    if (nibble === 15) {
      let more = 255;
      while (more === 255) {
        more = v.getUint8(from++);
        total += more;
      }
    }
    return total;
  };
  while (from < block.length) {
    const token = v.getUint8(from++);
    const literals = length(token >> 4);
    ensure(from + literals <= block.length, "lz4: literals past the input");
    ensure(to + literals <= capacity, "lz4: literals past the output");
    out.set(block.subarray(from, from + literals), to);
    from += literals;
    to += literals;
    if (from === block.length) return out.subarray(0, to);
    const distance = v.getUint16(from, true);
    from += 2;
    ensure(distance > 0 && distance <= to, "lz4: match before the output");
    const match = length(token & 15) + 4;
    ensure(to + match <= capacity, "lz4: match past the output");
    for (let i = 0; i < match; i++, to++) out[to] = out[to - distance] ?? 0;
  }
  throw new SpecError("lz4: the block ends behind a match");
}

// ---- tar wrapper (spec/lsmt.md, 11) ---------------------------------

function octal(block: Uint8Array, at: number, n: number): number {
  const text = new TextDecoder().decode(block.subarray(at, at + n));
  const digits = text.replaceAll("\0", " ").trim();
  return digits === "" ? 0 : Number.parseInt(digits, 8);
}

function isTarHeader(block: Uint8Array): boolean {
  if (!same(block, 257, "7573746172") || !same(block, 263, "3030")) {
    return false;
  }
  let unsigned = 0;
  let signed = 0;
  block.forEach((b, i) => {
    const value = i >= 148 && i < 156 ? 32 : b;
    unsigned += value;
    signed += value > 127 ? value - 256 : value;
  });
  const sum = octal(block, 148, 8);
  return sum === unsigned || sum === signed;
}

/** Where a tar wrapper's payload lies; undefined when there is none. */
export function tarPayload(
  src: ByteSource,
): { at: number; size: number } | undefined {
  if (src.size < SECTOR) return undefined;
  const first = src.read(0, SECTOR);
  if (!isTarHeader(first)) return undefined;
  const type = String.fromCharCode(byte(first, 156));
  if (type !== "x" && type !== "g") {
    return { at: SECTOR, size: octal(first, 124, 12) };
  }
  const pax = new TextDecoder().decode(src.read(SECTOR, SECTOR));
  const size = Number(/\d+ size=(\d+)\n/.exec(pax)?.[1] ?? 0);
  const second = src.read(2 * SECTOR, SECTOR);
  return { at: 3 * SECTOR, size: size > 0 ? size : octal(second, 124, 12) };
}

function slice(src: ByteSource, base: number, size: number): ByteSource {
  ensure(base + size <= src.size, `${src.name}: tar payload past the end`);
  return {
    name: `${src.name}(tar)`,
    size,
    read(at, n) {
      ensure(at + n <= size, `${src.name}: read past the tar payload`);
      return src.read(base + at, n);
    },
    close: () => src.close(),
  };
}

// ---- ZFile (spec/zfile.md) ------------------------------------------

/** Header or trailer of a ZFile. */
export interface ZfileBlock {
  digest: number;
  flags: number;
  indexOffset: number;
  blocks: number;
  originalSize: number;
  indexCrc: number;
  blockSize: number;
  algo: number;
  verify: number;
  dictSize: number;
}

function isZfile(block: Uint8Array): boolean {
  return same(block, 0, "5a46696c65000100") &&
    same(block, 8, "74756a692e79796640416c6962616261") &&
    (byte(block, 32) & 1) === 1;
}

function parseZfileBlock(raw: Uint8Array): ZfileBlock {
  const bare = raw.slice();
  bare.fill(0, 28, 32);
  const digest = u32(raw, 28);
  const flags = u32(raw, 32);
  if (flags & 16) {
    ensure(crcRegister(0, bare) === digest, "zfile: digest is wrong");
  }
  // Old headers hold garbage in fields that a reader must not look at.
  const field = (at: number) => Number(view(raw).getBigUint64(at, true));
  return {
    digest,
    flags,
    indexOffset: field(40),
    blocks: field(48),
    originalSize: field(56),
    indexCrc: u32(raw, 64),
    blockSize: u32(raw, 72),
    algo: byte(raw, 76),
    verify: byte(raw, 88),
    dictSize: u32(raw, 84),
  };
}

/** An opened ZFile: what it says, and the bytes it holds. */
export interface Zfile extends ByteSource {
  readonly header: ZfileBlock;
  readonly trailer: ZfileBlock | undefined;
  /** stored length of each block, crc included */
  readonly lengths: Uint32Array;
  /** decodes one block, checked */
  block(nr: number): Uint8Array;
}

/** Opens a ZFile; every rule of section 3 is checked. */
export function openZfile(src: ByteSource): Zfile {
  const header = parseZfileBlock(src.read(0, SECTOR));
  let trailer: ZfileBlock | undefined;
  if ((header.flags & 8) === 0) {
    ensure((header.flags & 2) !== 0, "zfile: header without data bit");
    const raw = src.read(src.size - SECTOR, SECTOR);
    ensure(same(raw, 0, "5a46696c65000100"), "zfile: trailer magic");
    trailer = parseZfileBlock(raw);
    ensure((trailer.flags & 7) === 6, "zfile: trailer flags");
  }
  const info = trailer ?? header;
  const { blockSize, blocks, originalSize } = info;
  ensure(blocks <= 1e9, "zfile: index too big");
  ensure(
    info.indexOffset + 4 * blocks <= src.size - SECTOR,
    "zfile: index outside the file",
  );
  ensure(
    blockSize >= 1 && blockSize <= 65536 && Number.isInteger(
      Math.log2(blockSize),
    ),
    `zfile: block size ${blockSize}`,
  );
  ensure(info.algo === 1 || info.algo === 2, `zfile: algo ${info.algo}`);
  const raw = src.read(info.indexOffset, 4 * blocks);
  if (info.flags & 16) {
    ensure(crcRegister(0, raw) === info.indexCrc, "zfile: index crc");
  }
  ensure(
    blocks === Math.ceil(originalSize / blockSize),
    `zfile: ${blocks} blocks for ${originalSize} bytes`,
  );
  const lengths = new Uint32Array(blocks);
  const starts = new Float64Array(blocks + 1);
  let at = SECTOR + info.dictSize;
  for (let i = 0; i < blocks; i++) {
    const n = u32(raw, 4 * i);
    ensure(n > (info.verify ? 4 : 0), `zfile: block ${i} stored in ${n}`);
    lengths[i] = n;
    starts[i] = at;
    at += n;
  }
  ensure(at <= info.indexOffset, "zfile: blocks reach past the index");
  const block = (nr: number) => {
    const stored = src.read(starts[nr] ?? 0, lengths[nr] ?? 0);
    const body = info.verify ? stored.subarray(0, -4) : stored;
    if (info.verify) {
      const crc = u32(stored, stored.length - 4);
      ensure(crcRegister(100007, body) === crc, `zfile: crc of block ${nr}`);
    }
    const want = Math.min(blockSize, originalSize - nr * blockSize);
    const plain = info.algo === 1
      ? lz4Decode(body, blockSize)
      : new Uint8Array(zstdDecompressSync(body));
    ensure(plain.length === want, `zfile: block ${nr}: ${plain.length} bytes`);
    return plain;
  };
  let cached: { nr: number; plain: Uint8Array } | undefined;
  return {
    name: `${src.name}(zfile)`,
    size: originalSize,
    header,
    trailer,
    lengths,
    block,
    read(from, n) {
      ensure(from + n <= originalSize, `${src.name}: read past the zfile`);
      const out = new Uint8Array(n);
      let done = 0;
      while (done < n) {
        const nr = Math.floor((from + done) / blockSize);
        if (cached?.nr !== nr) cached = { nr, plain: block(nr) };
        const piece = cached.plain.subarray(
          from + done - nr * blockSize,
          from + n - nr * blockSize,
        );
        out.set(piece, done);
        done += piece.length;
      }
      return out;
    },
    close: () => src.close(),
  };
}

// ---- LSMT (spec/lsmt.md) --------------------------------------------

/** Header or trailer of a layer. */
export interface LsmtBlock {
  flags: number;
  indexOffset: number;
  records: number;
  virtualSize: number;
  uuid: string;
  parentUuid: string;
  userTag: string;
}

/** One index record; units are sectors. */
export interface Segment {
  lba: number;
  length: number;
  at: number;
  zeroed: boolean;
  tag: number;
}

function text(raw: Uint8Array, at: number, n: number): string {
  const bytes = raw.subarray(at, at + n);
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}

function isLsmt(raw: Uint8Array): boolean {
  return same(raw, 0, "4c534d5400010200") &&
    same(raw, 8, "657e63d29444084ca2d2c8ec4fcfae8a");
}

function parseLsmtBlock(raw: Uint8Array, what: string): LsmtBlock {
  ensure(isLsmt(raw), `${what}: magic`);
  return {
    flags: u32(raw, 28),
    indexOffset: u64(raw, 32),
    records: u64(raw, 40),
    virtualSize: u64(raw, 48),
    uuid: text(raw, 56, 37),
    parentUuid: text(raw, 93, 37),
    userTag: text(raw, 134, 256),
  };
}

/** All records of raw index bytes, padding included. */
export function parseRecords(raw: Uint8Array): Segment[] {
  const v = view(raw);
  const out: Segment[] = [];
  for (let i = 0; i + 16 <= raw.length; i += 16) {
    const w0 = v.getBigUint64(i, true);
    const w1 = v.getBigUint64(i + 8, true);
    out.push({
      lba: Number(w0 & ((1n << 50n) - 1n)),
      length: Number(w0 >> 50n),
      at: Number(w1 & ((1n << 55n) - 1n)),
      zeroed: ((w1 >> 55n) & 1n) === 1n,
      tag: Number(w1 >> 56n),
    });
  }
  return out;
}

function checkRange(seg: Segment, end: number, what: string): void {
  const fits = seg.zeroed
    ? seg.at >= FIRST_DATA_SECTOR && seg.at <= end
    : seg.at >= FIRST_DATA_SECTOR && seg.at < end &&
      seg.at + seg.length > FIRST_DATA_SECTOR && seg.at + seg.length <= end;
  ensure(fits, `${what}: maps ${seg.at}+${seg.length}, data ends at ${end}`);
}

/** A layer as this reader sees it. */
export interface Layer {
  readonly kind: "committed" | "warp" | "log" | "sparse";
  readonly header: LsmtBlock | undefined;
  readonly trailer: LsmtBlock | undefined;
  readonly virtualSize: number;
  /** in the order in which they are painted: the last one wins */
  readonly segments: readonly Segment[];
  /** true: sorted by LBA and disjoint, so that look-up may search */
  readonly sorted: boolean;
  readonly wrapped: readonly ("tar" | "zfile")[];
  readonly zfile: Zfile | undefined;
  /** bytes of source number `tag` */
  readonly sources: readonly ByteSource[];
  close(): void;
}

/** A read-only layer: its file, and for a warp layer also its target. */
export type LayerPath = string | { meta: string; target: string };

/** Opens a committed or sealed layer: peels tar and ZFile, checks all. */
export function openLayer(path: LayerPath): Layer {
  const name = typeof path === "string" ? path : path.meta;
  const wrapped: ("tar" | "zfile")[] = [];
  let src: ByteSource = fileBytes(name);
  let zfile: Zfile | undefined;
  try {
    const tar = tarPayload(src);
    if (tar !== undefined) {
      src = slice(src, tar.at, tar.size);
      wrapped.push("tar");
    }
    ensure(src.size >= SECTOR, `${name}: shorter than 512 bytes`);
    if (isZfile(src.read(0, SECTOR))) {
      zfile = openZfile(src);
      src = zfile;
      wrapped.push("zfile");
    }
    return openPlainLayer(src, name, path, wrapped, zfile);
  } catch (error) {
    src.close();
    throw error;
  }
}

function openPlainLayer(
  src: ByteSource,
  name: string,
  path: LayerPath,
  wrapped: readonly ("tar" | "zfile")[],
  zfile: Zfile | undefined,
): Layer {
  ensure(src.size >= 2 * BLOCK, `${name}: ${src.size} bytes are no layer`);
  const head = src.read(0, BLOCK);
  ensure(isLsmt(head), `${name}: header magic`);
  ensure((u32(head, 28) & 3) === 3, `${name}: header flags`);
  const header = parseLsmtBlock(head, `${name}: header`);
  const trailer = parseLsmtBlock(
    src.read(src.size - BLOCK, BLOCK),
    `${name}: trailer`,
  );
  ensure((trailer.flags & 7) === 6, `${name}: trailer flags`);
  ensure(trailer.records <= MAX_RO_RECORDS, `${name}: too many records`);
  ensure(
    trailer.indexOffset + 16 * trailer.records <= src.size - BLOCK,
    `${name}: index reaches past the trailer`,
  );
  const all = parseRecords(
    src.read(trailer.indexOffset, 16 * trailer.records),
  ).filter((seg) => seg.lba !== INVALID_LBA);
  all.forEach((seg, i) => {
    const next = all[i + 1];
    ensure(
      next === undefined || seg.lba + seg.length <= next.lba,
      `${name}: record ${i} overlaps the next`,
    );
  });
  const base = { header, trailer, virtualSize: trailer.virtualSize, wrapped };
  if (typeof path !== "string") {
    const least = Math.min(...all.map((seg) => seg.tag));
    const target = fileBytes(path.target);
    return {
      ...base,
      kind: "warp",
      sorted: true,
      zfile,
      segments: all.map((seg) => ({ ...seg, tag: seg.tag - least })),
      sources: [src, paddedToSector(target)],
      close() {
        src.close();
        target.close();
      },
    };
  }
  const end = Math.floor(trailer.indexOffset / SECTOR);
  const segments = all.map((seg) => ({ ...seg, tag: 0 }));
  segments.forEach((seg, i) => checkRange(seg, end, `${name}: record ${i}`));
  return {
    ...base,
    kind: "committed",
    sorted: true,
    zfile,
    segments,
    sources: [src],
    close: () => src.close(),
  };
}

/** A warp target may end inside a sector: zeros follow. */
function paddedToSector(src: ByteSource): ByteSource {
  return {
    ...src,
    read(at, n) {
      const out = new Uint8Array(n);
      const have = Math.max(0, Math.min(n, src.size - at));
      ensure(n - have < SECTOR, `${src.name}: the target is too short`);
      out.set(src.read(at, have));
      return out;
    },
  };
}

/** Paths of a writable layer. */
export interface UpperPaths {
  data: string;
  index: string;
}

/** Opens a writable layer, log or sparse, as it lies on disk. */
export function openUpper({ data, index }: UpperPaths): Layer {
  const src = fileBytes(data);
  try {
    const header = parseLsmtBlock(src.read(0, BLOCK), `${data}: header`);
    ensure((header.flags & 1) === 1, `${data}: header bit`);
    if (header.flags & 16) return openSparse(src, header);
    return openLog(src, header, index);
  } catch (error) {
    src.close();
    throw error;
  }
}

function openLog(src: ByteSource, header: LsmtBlock, index: string): Layer {
  const file = fileBytes(index);
  try {
    const head = parseLsmtBlock(file.read(0, BLOCK), `${index}: header`);
    ensure((head.flags & 7) === 1, `${index}: header flags`);
    ensure(head.indexOffset === BLOCK, `${index}: index offset`);
    const count = Math.floor((file.size - BLOCK) / 16);
    ensure(count <= MAX_RW_RECORDS, `${index}: too many records`);
    const segments = parseRecords(file.read(BLOCK, 16 * count))
      .filter((seg) => seg.lba !== INVALID_LBA && seg.length > 0);
    const end = Math.floor(src.size / SECTOR);
    segments.forEach((seg, i) => checkRange(seg, end, `${index}: ${i}`));
    return {
      kind: "log",
      header,
      trailer: undefined,
      virtualSize: head.virtualSize,
      segments: segments.map((seg) => ({ ...seg, tag: 0 })),
      sorted: false,
      wrapped: [],
      zfile: undefined,
      sources: [src],
      close: () => src.close(),
    };
  } finally {
    file.close();
  }
}

const LIBC = Deno.build.os === "linux" ? "libc.so.6" : "";

/** lseek(2) through libc itself: Deno has no SEEK_DATA. */
function seek(fd: number, at: number, whence: 3 | 4): number | undefined {
  const libc = Deno.dlopen(
    LIBC,
    { lseek: { parameters: ["i32", "i64", "i32"], result: "i64" } } as const,
  );
  try {
    const got = Number(libc.symbols.lseek(fd, BigInt(at), whence));
    return got < 0 ? undefined : got;
  } finally {
    libc.close();
  }
}

/** Byte ranges of a file that hold data, holes left out. */
export function dataRanges(
  fd: number,
  from: number,
  size: number,
): { at: number; end: number }[] {
  const out: { at: number; end: number }[] = [];
  let at = from;
  while (at < size) {
    const start = seek(fd, at, 3);
    if (start === undefined) break;
    const end = seek(fd, start, 4) ?? size;
    out.push({ at: start, end });
    at = end;
  }
  return out;
}

function openSparse(
  src: ByteSource & { fd: number },
  header: LsmtBlock,
): Layer {
  // A torn seal leaves bytes behind the disk: not part of it.
  const size = Math.min(src.size, BLOCK + header.virtualSize);
  const segments = dataRanges(src.fd, BLOCK, size).map(({ at, end }) => ({
    lba: Math.floor((at - BLOCK) / SECTOR),
    length: Math.ceil((Math.min(end, size) - at) / SECTOR),
    at: Math.floor(at / SECTOR),
    zeroed: false,
    tag: 0,
  }));
  return {
    kind: "sparse",
    header,
    trailer: undefined,
    virtualSize: header.virtualSize,
    segments,
    sorted: true,
    wrapped: [],
    zfile: undefined,
    sources: [src],
    close: () => src.close(),
  };
}

// ---- a stack --------------------------------------------------------

/** A stack of layers as one disk. */
export interface Disk extends Disposable {
  readonly size: number;
  readonly layers: readonly Layer[];
  read(offset: number, length: number): Uint8Array;
  close(): void;
}

function firstReaching(segs: readonly Segment[], lba: number): number {
  let low = 0;
  let high = segs.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    const seg = segs[mid];
    if (seg !== undefined && seg.lba + seg.length <= lba) low = mid + 1;
    else high = mid;
  }
  return low;
}

function paint(layer: Layer, lba: number, out: Uint8Array): void {
  const end = lba + out.length / SECTOR;
  const first = layer.sorted ? firstReaching(layer.segments, lba) : 0;
  for (let i = first; i < layer.segments.length; i++) {
    const seg = layer.segments[i];
    if (seg === undefined) break;
    if (layer.sorted && seg.lba >= end) break;
    const from = Math.max(lba, seg.lba);
    const to = Math.min(end, seg.lba + seg.length);
    if (from >= to) continue;
    const into = (from - lba) * SECTOR;
    if (seg.zeroed) {
      out.fill(0, into, (to - lba) * SECTOR);
      continue;
    }
    const src = layer.sources[seg.tag];
    ensure(src !== undefined, `no source ${seg.tag}`);
    const at = (seg.at + from - seg.lba) * SECTOR;
    out.set(src.read(at, (to - from) * SECTOR), into);
  }
}

/** Virtual size of a stack (spec/lsmt.md, section 10). */
function stackSize(layers: readonly Layer[]): number {
  for (const layer of layers.toReversed()) {
    if (layer.virtualSize !== 0) return layer.virtualSize;
  }
  return 0;
}

/**
 * Opens a stack, bottom first, under an optional writable layer.
 *
 * @throws {SpecError} when a layer breaks a rule
 */
export function readDisk(
  lowers: readonly LayerPath[],
  upper?: UpperPaths,
): Disk {
  ensure(lowers.length <= 255, `${lowers.length} layers`);
  const layers: Layer[] = [];
  const close = () => layers.splice(0).forEach((layer) => layer.close());
  try {
    for (const path of lowers) layers.push(openLayer(path));
    if (upper !== undefined) layers.push(openUpper(upper));
  } catch (error) {
    close();
    throw error;
  }
  return {
    size: stackSize(layers),
    layers,
    read(offset, length) {
      ensure(offset % SECTOR === 0 && length % SECTOR === 0, "unaligned");
      const out = new Uint8Array(length);
      for (const layer of layers) paint(layer, offset / SECTOR, out);
      return out;
    },
    close,
    [Symbol.dispose]: close,
  };
}

// ---- what a writer must have done -----------------------------------

function checkPlainBlock(raw: Uint8Array, what: string): void {
  ensure(u32(raw, 24) === 390, `${what}: used size`);
  ensure(byte(raw, 130) === 0 && byte(raw, 131) === 0, `${what}: levels`);
  ensure(byte(raw, 132) === 1 && byte(raw, 133) === 1, `${what}: version`);
  ensure(allZero(raw.subarray(390)), `${what}: reserved bytes`);
  for (const at of [56, 93]) {
    ensure(
      /^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$/.test(text(raw, at, 37)),
      `${what}: uuid text`,
    );
  }
}

/**
 * Proves that a committed layer is what section 4 makes: header, sectors in
 * LBA order, folded records, padding to 256, trailer.
 */
export function checkCommitted(path: string): Layer {
  const layer = openLayer(path);
  try {
    const { header, trailer } = layer;
    const src = layer.sources[0];
    ensure(header !== undefined && trailer !== undefined, "no trailer");
    ensure(src !== undefined, "no source");
    const head = src.read(0, BLOCK);
    const tail = src.read(src.size - BLOCK, BLOCK);
    checkPlainBlock(head, "header");
    checkPlainBlock(tail, "trailer");
    ensure(header.flags === 7 && trailer.flags === 6, "flags");
    ensure(header.indexOffset === 0 && header.records === 0, "header index");
    ensure(
      head.subarray(48, 390).toHex() === tail.subarray(48, 390).toHex(),
      "header and trailer differ",
    );
    ensure(trailer.records % 256 === 0, "index is not padded to 256");
    ensure(
      trailer.indexOffset + 16 * trailer.records + BLOCK === src.size,
      "the trailer does not follow the index",
    );
    const raw = parseRecords(
      src.read(trailer.indexOffset, 16 * trailer.records),
    );
    const real = raw.filter((seg) => seg.lba !== INVALID_LBA);
    ensure(raw.length - real.length < 256, "too much padding");
    ensure(
      raw.slice(real.length).every((seg) =>
        seg.lba === INVALID_LBA && seg.length === 0 && seg.at === 0 &&
        !seg.zeroed && seg.tag === 0
      ),
      "padding is not at the end",
    );
    let running = FIRST_DATA_SECTOR;
    real.forEach((seg, i) => {
      ensure(seg.length > 0, `record ${i}: empty`);
      ensure(seg.at === running, `record ${i}: at ${seg.at}, not ${running}`);
      if (!seg.zeroed) running += seg.length;
      const next = real[i + 1];
      const mend = seg.zeroed ? seg.at : seg.at + seg.length;
      ensure(
        next === undefined || seg.lba + seg.length !== next.lba ||
          mend !== next.at || seg.zeroed !== next.zeroed ||
          seg.tag !== next.tag || seg.length + Math.min(next.length, 64) >=
            16383,
        `record ${i}: not folded with the next`,
      );
    });
    ensure(
      running * SECTOR === trailer.indexOffset,
      "the data area is not what the records say",
    );
    return layer;
  } finally {
    layer.close();
  }
}

/** Proves every rule for ZFiles that a writer must keep; decodes it all. */
export function checkZfile(path: string): Zfile {
  let src: ByteSource = fileBytes(path);
  const whole = src;
  try {
    const tar = tarPayload(src);
    if (tar !== undefined) src = slice(src, tar.at, tar.size);
    const zfile = openZfile(src);
    const head = src.read(0, SECTOR);
    const tail = src.read(src.size - SECTOR, SECTOR);
    for (const [raw, what] of [[head, "header"], [tail, "trailer"]] as const) {
      const block = parseZfileBlock(raw);
      ensure((block.flags & 16) !== 0, `${what}: no digest`);
      ensure(u32(raw, 24) === 96 && u32(raw, 36) === 0, `${what}: fixed`);
      ensure(allZero(raw.subarray(89)), `${what}: reserved bytes`);
    }
    const end = parseZfileBlock(tail);
    ensure(end.flags === 0x16, "trailer flags");
    ensure(
      zfile.header.flags === 0x13 || zfile.header.flags === 0x1B,
      "header flags",
    );
    const rewritten = zfile.header.flags === 0x1B;
    ensure(
      !rewritten ||
        head.subarray(40, 512).toHex() === tail.subarray(40, 512).toHex(),
      "the rewritten header is not the trailer's",
    );
    ensure(
      rewritten || allZero(head.subarray(40, 72)),
      "the first header has index fields",
    );
    const stored = zfile.lengths.reduce((sum, n) => sum + n, 0);
    ensure(SECTOR + stored === end.indexOffset, "a gap before the index");
    ensure(
      end.indexOffset + 4 * end.blocks + SECTOR === src.size,
      "a gap before the trailer",
    );
    const group = 65536 / end.blockSize;
    let sum = 0;
    zfile.lengths.forEach((n, nr) => {
      if (nr % group === 0) sum = 0;
      ensure(sum < 65535, `block ${nr}: the original's delta overflows`);
      sum += n;
      ensure(n <= 65536, `block ${nr}: ${n} bytes: the original cannot read`);
      zfile.block(nr);
    });
    return zfile;
  } finally {
    whole.close();
  }
}

/** Proves that our own tar wrapper is byte for byte the table's. */
export function checkTar(path: string): { at: number; size: number } {
  const src = fileBytes(path);
  try {
    const found = tarPayload(src);
    ensure(found !== undefined, `${path}: no tar`);
    ensure(found.at === 1536, `${path}: payload at ${found.at}`);
    const end = 1536 + Math.ceil(found.size / SECTOR) * SECTOR;
    ensure(src.size === end + 1024, `${path}: ${src.size} bytes`);
    ensure(
      allZero(src.read(1536 + found.size, src.size - 1536 - found.size)),
      `${path}: end blocks`,
    );
    const [pax, body, file] = [0, 512, 1024].map((at) => src.read(at, 512));
    ensure(
      pax !== undefined && body !== undefined && file !== undefined,
      "blocks",
    );
    let record = `size=${found.size}\n`;
    const digits = `${record.length + 3}`.length;
    let total = record.length + 1 + digits;
    if (`${total}`.length !== digits) total++;
    record = `${total} ${record}`;
    ensure(text(body, 0, 512) === record, `${path}: pax record`);
    const expect = (raw: Uint8Array, at: number, want: string) =>
      ensure(
        new TextDecoder().decode(raw.subarray(at, at + want.length)) === want,
        `${path}: ${JSON.stringify(want)} at ${at}`,
      );
    expect(pax, 0, "overlaybd.pax\0");
    expect(
      pax,
      124,
      `${record.length.toString(8).padStart(11)} `,
    );
    expect(pax, 156, "x");
    expect(file, 0, "overlaybd.commit\0");
    expect(file, 100, "100644 \0     0 \0     0 \0");
    expect(file, 124, "          0           0 ");
    expect(file, 156, "0");
    expect(file, 265, "root\0");
    expect(file, 297, "root\0");
    for (const raw of [pax, file]) {
      expect(raw, 257, "ustar\x0000");
      const sum = raw.reduce(
        (all, b, i) => all + (i >= 148 && i < 156 ? 32 : b),
        0,
      );
      expect(raw, 148, `${sum.toString(8).padStart(6)} \0`);
    }
    return found;
  } finally {
    src.close();
  }
}

/** Opens a ZFile by path, out of its tar wrapper if it has one. */
export function openZfileAt(path: string): Zfile {
  let src: ByteSource = fileBytes(path);
  const tar = tarPayload(src);
  if (tar !== undefined) src = slice(src, tar.at, tar.size);
  return openZfile(src);
}
