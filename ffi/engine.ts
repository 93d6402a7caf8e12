// SPDX-License-Identifier: Apache-2.0
/**
 * Typed calls of the C library: handles instead of pointers, numbers instead
 * of bigints where the format's limits allow, errors instead of `-errno`.
 * Nothing is decided here; `c/overlaybd.h` says what each call does.
 *
 * @module
 */
import { check, EngineError } from "./errors.ts";
import { cstring, lib } from "./library.ts";

/** A size or offset in bytes or sectors; a bigint past 2^53. */
export type U64 = number | bigint;

/** Bytes that C may read or fill while a call runs. */
export type Bytes = Uint8Array<ArrayBuffer>;

/** A reference to an object of the C library; `close()` may be repeated. */
export interface Handle<Kind extends string> extends Disposable {
  readonly kind: Kind;
  /** @throws {TypeError} after `close()` */
  readonly pointer: Deno.PointerObject;
  close(): void;
}
export type Source = Handle<"source">;
export type Index = Handle<"index">;
export type View = Handle<"view">;
export type Upper = Handle<"upper">;
export type Device = Handle<"device">;
export type Plan = Handle<"plan">;

export function u64(value: U64): bigint {
  return typeof value === "bigint" ? value : BigInt(value);
}

function handle<Kind extends string>(
  kind: Kind,
  out: BigUint64Array,
  unref: (pointer: Deno.PointerValue) => void,
): Handle<Kind> {
  let pointer = Deno.UnsafePointer.create(out[0] ?? 0n);
  const close = () => {
    const last = pointer;
    pointer = null;
    if (last !== null) unref(last);
  };
  return {
    kind,
    get pointer() {
      if (pointer === null) throw new TypeError(`this ${kind} is closed`);
      return pointer;
    },
    close,
    [Symbol.dispose]: close,
  };
}

function slot(): BigUint64Array<ArrayBuffer> {
  return new BigUint64Array(1);
}

/** Handles as a C array of pointers. */
function pointers(
  list: readonly Handle<string>[],
): BigUint64Array<ArrayBuffer> {
  return BigUint64Array.from(
    list,
    (item) => Deno.UnsafePointer.value(item.pointer),
  );
}

function view(bytes: ArrayBufferView): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

// ---- engine ---------------------------------------------------------

/** Which code paths run: `"crc=isal lookup=avx512"`. */
export function describeEngine(): string {
  const text = lib.obd_engine_describe();
  return text === null ? "" : Deno.UnsafePointerView.getCString(text);
}

/** Ends the library's threads; @throws {EngineError} EBUSY while one is used */
export function stopEngine(): void {
  check(lib.obd_engine_stop(), "cannot stop the engine");
}

// ---- files ----------------------------------------------------------

/** Flags of {@linkcode openFd}: the kernel's O_* for x86-64 and aarch64. */
export const O = {
  RDONLY: 0,
  WRONLY: 1,
  RDWR: 2,
  CREAT: 0o100,
  EXCL: 0o200,
  TRUNC: 0o1000,
  NONBLOCK: 0o4000,
  DIRECT: Deno.build.arch === "aarch64" ? 0o200000 : 0o40000,
  /** `__O_TMPFILE | O_DIRECTORY`; the second differs on aarch64. */
  TMPFILE: Deno.build.arch === "aarch64" ? 0o20040000 : 0o20200000,
} as const;

/** Operations of {@linkcode flock}. */
export const LOCK = { SH: 1, EX: 2, NB: 4, UN: 8 } as const;

/** open(2). The descriptor is close-on-exec. */
export function openFd(path: string, flags: number, mode = 0): number {
  return check(
    lib.obd_io_open(cstring(path), flags, mode),
    `cannot open ${path}`,
  );
}

export function closeFd(fd: number): void {
  check(lib.obd_io_close(fd), "cannot close a file");
}

/** Reads at `at`; fewer bytes than asked only at the end of the file. */
export function preadFd(fd: number, into: Bytes, at: U64): number {
  return check(
    lib.obd_io_pread(fd, into, BigInt(into.byteLength), u64(at)),
    `cannot read ${into.byteLength} bytes at ${at}`,
  );
}

export function pwriteFd(fd: number, from: Bytes, at: U64): void {
  check(
    lib.obd_io_pwrite(fd, from, BigInt(from.byteLength), u64(at)),
    `cannot write ${from.byteLength} bytes at ${at}`,
  );
}

/** Writes all of it to a pipe or device, wherever that stands. */
export async function writeFd(fd: number, from: Bytes): Promise<void> {
  check(
    await lib.obd_io_write_async(fd, from, BigInt(from.byteLength)),
    `cannot write ${from.byteLength} bytes`,
  );
}

/** fsync(2), or fdatasync(2) when `dataOnly`. */
export async function syncFd(fd: number, dataOnly = false): Promise<void> {
  check(await lib.obd_io_sync_async(fd, dataOnly ? 1 : 0), "cannot sync");
}

export function truncateFd(fd: number, size: U64): void {
  check(lib.obd_io_truncate(fd, u64(size)), `cannot truncate to ${size}`);
}

/** Where data (`"data"`) or a hole starts at or after `at`; undefined: none. */
export function seekFd(
  fd: number,
  at: U64,
  what: "data" | "hole",
): number | undefined {
  const ENXIO = 6;
  const rc = Number(lib.obd_io_seek(fd, u64(at), what === "data" ? 3 : 4));
  return rc === -ENXIO ? undefined : check(rc, `cannot seek to ${at}`);
}

/** Size in bytes of a regular file or block device. */
export function sizeOfFd(fd: number): number {
  return check(lib.obd_io_size(fd), "cannot get the size");
}

/** flock(2); false when another process holds it and NB was asked. */
export function flock(fd: number, operation: number): boolean {
  const EAGAIN = 11;
  const rc = lib.obd_io_flock(fd, operation);
  if (rc === -EAGAIN) return false;
  check(rc, "cannot lock");
  return true;
}

/** Names an O_TMPFILE descriptor; @throws {EngineError} EEXIST if taken */
export function linkFd(fd: number, path: string): void {
  check(lib.obd_io_link(fd, cstring(path)), `cannot create ${path}`);
}

export function renamePath(from: string, to: string): void {
  check(
    lib.obd_io_rename(cstring(from), cstring(to)),
    `cannot rename ${from} to ${to}`,
  );
}

export function unlinkPath(path: string): void {
  check(lib.obd_io_unlink(cstring(path)), `cannot remove ${path}`);
}

/** A listening socket: `"unix:/path"`, `"tcp:127.0.0.1:0"`. */
export function listenFd(address: string, backlog = 128): number {
  return check(
    lib.obd_io_listen(cstring(address), backlog),
    `cannot listen on ${address}`,
  );
}

/**
 * Lets this process open as many files as it may, `hard` at least where that
 * can be had; @returns how many
 */
export function raiseNofile(hard: number): number {
  return check(lib.obd_io_nofile(u64(hard)), "cannot raise RLIMIT_NOFILE");
}

export function portOfFd(fd: number): number {
  return check(lib.obd_io_port(fd), "cannot get the port");
}

/** Records every file operation of the library from now on; null stops. */
export function traceIo(path: string | null): void {
  check(
    lib.obd_io_trace(path === null ? null : cstring(path)),
    `cannot trace to ${path}`,
  );
}

/** Operations of {@linkcode faultIo}: `OBD_IO_*`. */
export const IO = {
  OPEN: 0,
  PREAD: 1,
  PWRITE: 2,
  SYNC: 3,
  TRUNCATE: 4,
  ALLOCATE: 5,
  LINK: 6,
  RENAME: 7,
  UNLINK: 8,
} as const;

/** Makes the nth next operation, and count-1 after it, fail with errno. */
export function faultIo(
  op: number,
  nth: number,
  errno: number,
  count = 1,
): void {
  check(lib.obd_io_fault(op, nth, errno, count), "cannot inject a failure");
}

// ---- checksums ------------------------------------------------------

/** CRC-32C register without inversions (spec/zfile.md, section 5). */
export function crc32c(start: number, bytes: Bytes): number {
  return lib.obd_crc32c(start, bytes, BigInt(bytes.byteLength));
}

/** OBD_ALGO_*: ZFile's algorithm numbers. */
export const ALGO = { lz4: 1, zstd: 2 } as const;

// ---- sources --------------------------------------------------------

/** Bytes [base, base + size) of an open file; takes the descriptor over. */
export function fileSource(fd: number, base: U64, size: U64): Source {
  const out = slot();
  check(
    lib.obd_source_file(fd, u64(base), u64(size), out),
    "cannot read a file",
  );
  return handle("source", out, lib.obd_source_unref);
}

/** Reads past the page cache, through `fd`: the same file with O_DIRECT. */
export function directSource(file: Source, fd: number): void {
  check(lib.obd_source_direct(file.pointer, fd), "cannot read past the cache");
}

/** A remote blob kept in a sparse file, absent until {@linkcode fill}. */
export function cacheSource(
  fd: number,
  size: U64,
  unit: number,
  id: U64,
): Source {
  const out = slot();
  check(
    lib.obd_source_cache(fd, u64(size), unit, u64(id), out),
    "cannot use a cache file",
  );
  return handle("source", out, lib.obd_source_unref);
}

/** `struct obd_zfile_info`, from a parsed ZFile header or trailer. */
export interface ZfileInfo {
  indexOffset: U64;
  blocks: U64;
  originalSize: U64;
  blockSize: number;
  algo: number;
  verify: boolean;
  /** undefined: the jump table carries no checksum */
  indexCrc: number | undefined;
  dictSize: number;
}

/**
 * The decompressed bytes of a ZFile.  Reads and checks the jump table.
 *
 * @throws {EngineError} EINVAL field out of bounds, ERANGE table outside the
 *   file, EBADMSG index crc, EPROTO entry too small or past the table,
 *   EUCLEAN blocks disagree with the original size
 */
export async function zfileSource(
  inner: Source,
  info: ZfileInfo,
): Promise<Source> {
  const raw = new Uint8Array(48);
  const v = view(raw);
  v.setBigUint64(0, u64(info.indexOffset), true);
  v.setBigUint64(8, u64(info.blocks), true);
  v.setBigUint64(16, u64(info.originalSize), true);
  v.setUint32(24, info.blockSize, true);
  v.setUint32(28, info.algo, true);
  v.setUint32(32, info.verify ? 1 : 0, true);
  v.setUint32(36, info.indexCrc ?? 0, true);
  v.setUint32(40, info.indexCrc === undefined ? 0 : 1, true);
  v.setUint32(44, info.dictSize, true);
  const out = slot();
  check(
    await lib.obd_source_zfile_async(inner.pointer, raw, out),
    "cannot open a ZFile",
  );
  return handle("source", out, lib.obd_source_unref);
}

export function sourceSize(source: Source): number {
  return Number(lib.obd_source_size(source.pointer));
}

/**
 * Reads at `at` of what the source shows; fewer bytes than asked only at its
 * end.
 *
 * @throws {EngineError} EUCLEAN for a damaged block, EIO for a short file
 */
export function readSource(source: Source, into: Bytes, at: U64): number {
  return check(
    lib.obd_source_pread(
      source.pointer,
      into,
      BigInt(into.byteLength),
      u64(at),
    ),
    `cannot read ${into.byteLength} bytes at ${at}`,
  );
}

/** Where a ZFile's block is stored: offset and length, crc included. */
export function zfileBlock(
  zfile: Source,
  block: U64,
): { at: number; length: number } {
  const at = slot();
  const length = new Uint32Array(1);
  check(
    lib.obd_source_block(zfile.pointer, u64(block), at, length),
    `cannot find block ${block}`,
  );
  return { at: Number(at[0]), length: length[0] ?? 0 };
}

/** Units of a cache are there (`errno` 0) or could not be fetched. */
export function fill(
  cache: Source,
  first: U64,
  count: U64,
  errno = 0,
): void {
  check(
    lib.obd_source_fill(cache.pointer, u64(first), u64(count), 0 - errno),
    `cannot fill units ${first}+${count}`,
  );
}

export function evict(cache: Source, first: U64, count: U64): void {
  check(
    lib.obd_source_evict(cache.pointer, u64(first), u64(count)),
    `cannot evict units ${first}+${count}`,
  );
}

export function getBitmap(cache: Source, bits: Bytes): void {
  check(
    lib.obd_source_bitmap_get(
      cache.pointer,
      bits,
      BigInt(bits.byteLength),
    ),
    "cannot read the bitmap",
  );
}

export function setBitmap(cache: Source, bits: Bytes): void {
  check(
    lib.obd_source_bitmap_set(
      cache.pointer,
      bits,
      BigInt(bits.byteLength),
    ),
    "cannot set the bitmap",
  );
}

// ---- index ----------------------------------------------------------

/** Why an index was rejected, `OBD_BAD_*`. */
export type BadReason =
  | "none"
  | "order"
  | "low"
  | "high"
  | "count"
  | "short"
  | "hole"
  | "address";
const BAD: readonly BadReason[] = [
  "none",
  "order",
  "low",
  "high",
  "count",
  "short",
  "hole",
  "address",
];

/** Thrown when an index breaks a rule of spec/lsmt.md, section 8. */
export class BadIndexError extends EngineError {
  readonly reason: BadReason;
  /** number of the record in the file, from 0 */
  readonly record: number;

  constructor(what: string, reason: BadReason, record: number) {
    super(EBADMSG, what);
    this.reason = reason;
    this.record = record;
    this.message = `${what}: record ${record}: ${reason}`;
  }
}
const EBADMSG = 74;

function readBad(raw: Bytes, at: number): [BadReason, number] {
  const v = view(raw);
  const record = Number(v.getBigUint64(at, true));
  return [BAD[v.getUint32(at + 8, true)] ?? "none", record];
}

/** Bytes of one index record. */
export const RECORD_SIZE = 16;

/** @throws {BadIndexError} which rule does not hold, for which record */
export async function loadIndex(
  source: Source,
  at: U64,
  count: U64,
  endSector: U64,
): Promise<Index> {
  const bad = new Uint8Array(16);
  const out = slot();
  const rc = await lib.obd_index_load_async(
    source.pointer,
    u64(at),
    u64(count),
    u64(endSector),
    bad,
    out,
  );
  if (rc === -EBADMSG) {
    throw new BadIndexError("cannot load the index", ...readBad(bad, 0));
  }
  check(rc, "cannot load the index");
  return handle("index", out, lib.obd_index_unref);
}

/** From sorted, disjoint records of 16 bytes each. */
export function newIndex(records: Bytes): Index {
  const out = slot();
  const count = BigInt(records.byteLength / RECORD_SIZE);
  check(lib.obd_index_new(records, count, out), "cannot make an index");
  return handle("index", out, lib.obd_index_unref);
}

/** Topmost first; the result's tag is the position in `layers`. */
export function mergeIndexes(layers: readonly Index[]): Index {
  const out = slot();
  check(
    lib.obd_index_merge(pointers(layers), layers.length, out),
    `cannot merge ${layers.length} indexes`,
  );
  return handle("index", out, lib.obd_index_unref);
}

/** The same on a blocking-call thread: long for many records. */
export async function mergeIndexesAsync(
  layers: readonly Index[],
): Promise<Index> {
  const out = slot();
  check(
    await lib.obd_index_merge_async(pointers(layers), layers.length, out),
    `cannot merge ${layers.length} indexes`,
  );
  return handle("index", out, lib.obd_index_unref);
}

export function indexCount(index: Index): number {
  return Number(lib.obd_index_count(index.pointer));
}

/** Records [first, first + max) as 16 on-disk bytes each. */
export function indexRecords(index: Index, first: number, max: number): Bytes {
  const raw = new Uint8Array(max * RECORD_SIZE);
  const got = check(
    lib.obd_index_records(index.pointer, BigInt(first), BigInt(max), raw),
    "cannot list records",
  );
  return raw.subarray(0, got * RECORD_SIZE);
}

/** The pieces of [lba, lba + sectors), cut to it, at most `max`. */
export function lookup(
  index: Index,
  lba: U64,
  sectors: U64,
  max: number,
): Bytes {
  const raw = new Uint8Array(max * RECORD_SIZE);
  const got = check(
    lib.obd_index_lookup(index.pointer, u64(lba), u64(sectors), raw, max),
    "cannot look up",
  );
  return raw.subarray(0, got * RECORD_SIZE);
}

/** Sum over n look-ups, for the bench. */
export function lookupMany(
  index: Index,
  lbas: BigUint64Array<ArrayBuffer>,
  sectors: number,
): bigint {
  return lib.obd_index_lookup_many(
    index.pointer,
    lbas,
    BigInt(lbas.length),
    sectors,
  );
}

// ---- view and upper -------------------------------------------------

/** `sources[tag]` holds the data of the index's records with that tag. */
export function newView(
  index: Index,
  sources: readonly Source[],
  virtualSize: U64,
): View {
  const out = slot();
  check(
    lib.obd_view_new(
      index.pointer,
      pointers(sources),
      sources.length,
      u64(virtualSize),
      out,
    ),
    "cannot stack layers",
  );
  return handle("view", out, lib.obd_view_unref);
}

/** False once no device shows a view and no request reads through it. */
export function viewBusy(view: View): boolean {
  return check(lib.obd_view_busy(view.pointer), "cannot look at a view") === 1;
}

/** What opening a writable layer found and did. */
export interface UpperReport {
  records: number;
  /** durable marks left by FLUSH */
  marks: number;
  /** first record that was cut; undefined: none */
  cutRecord: number | undefined;
  /** bytes of a torn record at the end of the index, 0..15 */
  tornBytes: number;
  /** end of the data in bytes, a multiple of 512 */
  dataEnd: number;
  /** bytes cut off a sparse layer (a torn seal) */
  trimmed: number;
  /** why records were cut */
  reason: BadReason;
}

/**
 * Opens a writable layer whose headers are checked; takes both descriptors
 * over.  `indexFd` is -1 for a sparse one.
 *
 * @throws {BadIndexError} the layer must be rejected
 */
export async function openUpper(
  kind: "log" | "sparse",
  dataFd: number,
  indexFd: number,
  virtualSize: U64,
  readonly: boolean,
): Promise<{ upper: Upper; report: UpperReport }> {
  const raw = new Uint8Array(64);
  const out = slot();
  const rc = await lib.obd_upper_open_async(
    (kind === "sparse" ? 1 : 0) | (readonly ? 0x100 : 0),
    dataFd,
    indexFd,
    u64(virtualSize),
    raw,
    out,
  );
  const [reason, record] = readBad(raw, 48);
  if (rc === -EBADMSG) {
    throw new BadIndexError("cannot open the writable layer", reason, record);
  }
  check(rc, "cannot open the writable layer");
  const v = view(raw);
  const number = (at: number) => Number(v.getBigUint64(at, true));
  const cut = v.getBigUint64(16, true);
  return {
    upper: handle("upper", out, lib.obd_upper_unref),
    report: {
      records: number(0),
      marks: number(8),
      cutRecord: cut === 0xffff_ffff_ffff_ffffn ? undefined : Number(cut),
      tornBytes: number(24),
      dataEnd: number(32),
      trimmed: number(40),
      reason,
    },
  };
}

/** False: no device and no request uses the layer any more. */
export function upperBusy(upper: Upper): boolean {
  return lib.obd_upper_busy(upper.pointer) !== 0;
}

/** Data, mark, index on disk. */
export async function syncUpper(upper: Upper): Promise<void> {
  check(
    await lib.obd_upper_sync_async(upper.pointer),
    "cannot sync the writable layer",
  );
}

/** The live map, tag 0. */
export function snapshotUpper(upper: Upper): Index {
  const out = slot();
  check(
    lib.obd_upper_snapshot(upper.pointer, out),
    "cannot copy the writable layer's map",
  );
  return handle("index", out, lib.obd_index_unref);
}

/** The same on a blocking-call thread: long for many records. */
export async function snapshotUpperAsync(upper: Upper): Promise<Index> {
  const out = slot();
  check(
    await lib.obd_upper_snapshot_async(upper.pointer, out),
    "cannot copy the writable layer's map",
  );
  return handle("index", out, lib.obd_index_unref);
}

/** The data file, as commit and merge read it. */
export function upperSource(upper: Upper): Source {
  const out = slot();
  check(
    lib.obd_upper_source(upper.pointer, out),
    "cannot read the writable layer",
  );
  return handle("source", out, lib.obd_source_unref);
}

// ---- device ---------------------------------------------------------

/** How long a request may wait for absent data by default: 7 days. */
export const DEFAULT_DEADLINE_MS = 604_800_000;

/** A disk of `virtualSize` bytes; read-only without upper. */
export function newDevice(
  view: View,
  upper: Upper | undefined,
  virtualSize: U64,
  options: { readonly?: boolean; deadlineMs?: number } = {},
): Device {
  const out = slot();
  const readonly = options.readonly ?? upper === undefined;
  check(
    lib.obd_device_new(
      view.pointer,
      upper?.pointer ?? null,
      u64(virtualSize),
      readonly ? 1 : 0,
      BigInt(options.deadlineMs ?? DEFAULT_DEADLINE_MS),
      out,
    ),
    "cannot make a device",
  );
  return handle("device", out, lib.obd_device_unref);
}

export function swapView(device: Device, view: View): void {
  check(
    lib.obd_device_swap(device.pointer, view.pointer),
    "cannot switch a device's layers",
  );
}

/** Later requests may reach up to `size` bytes; a disk never shrinks. */
export function resizeDevice(device: Device, size: U64): void {
  check(
    lib.obd_device_resize(device.pointer, u64(size)),
    `cannot make the disk ${size} bytes large`,
  );
}

/**
 * Changes go to `upper` from now on, over the upper of before.  FLUSH then
 * waits for {@linkcode settleDevice}.
 *
 * @param maxRecords E2BIG: the upper of before has more
 * @param limitMs ETIMEDOUT: running changes did not end in that time
 * @returns how long changes had to wait, in microseconds
 */
export async function pushUpper(
  device: Device,
  upper: Upper,
  maxRecords: number,
  limitMs: number,
): Promise<number> {
  const pause = slot();
  check(
    await lib.obd_device_push_async(
      device.pointer,
      upper.pointer,
      BigInt(maxRecords),
      limitMs,
      pause,
    ),
    "cannot switch the writable layer",
  );
  return Number(pause[0] ?? 0n) / 1000;
}

/** Copies what the new upper holds back; changes wait from then on. */
export async function popUpper(device: Device, limitMs: number): Promise<void> {
  check(
    await lib.obd_device_pop_async(device.pointer, limitMs),
    "cannot bring back the writable layer",
  );
}

const SETTLE = { sealed: 0, popped: 1, kept: 2 } as const;

/** How a push ends; `view`: the lowers with the upper of before on top. */
export type Settled =
  | { how: "sealed"; view: View }
  | { how: "popped" | "kept" };

/** Ends a push: what waits goes on. */
export function settleDevice(device: Device, end: Settled): void {
  check(
    lib.obd_device_settle(
      device.pointer,
      SETTLE[end.how],
      end.how === "sealed" ? end.view.pointer : null,
    ),
    "cannot end the switch of the writable layer",
  );
}

/** Ends every waiting request with `errno` and refuses new ones. */
export function closeDevice(device: Device, errno: number): void {
  check(lib.obd_device_close(device.pointer, -errno), "cannot close a device");
}

/** Ends every request that waits for absent data with `errno`. */
export function endWaiting(device: Device, errno: number): void {
  check(lib.obd_device_abandon(device.pointer, -errno), "cannot end requests");
}

/** Reads on a blocking-call thread: absent data may make it wait. */
export async function readDevice(
  device: Device,
  into: Bytes,
  at: U64,
): Promise<void> {
  check(
    await lib.obd_device_read_async(
      device.pointer,
      into,
      BigInt(into.byteLength),
      u64(at),
    ),
    `cannot read ${into.byteLength} bytes at ${at}`,
  );
}

/** Reads on the calling thread: only where nothing can be absent. */
export function readDeviceSync(device: Device, into: Bytes, at: U64): void {
  check(
    lib.obd_device_read(
      device.pointer,
      into,
      BigInt(into.byteLength),
      u64(at),
    ),
    `cannot read ${into.byteLength} bytes at ${at}`,
  );
}

export function writeDevice(device: Device, from: Bytes, at: U64): void {
  check(
    lib.obd_device_write(
      device.pointer,
      from,
      BigInt(from.byteLength),
      u64(at),
    ),
    `cannot write ${from.byteLength} bytes at ${at}`,
  );
}

/** Writes on a blocking-call thread: absent data may make it wait. */
export async function writeDeviceAsync(
  device: Device,
  from: Bytes,
  at: U64,
): Promise<void> {
  check(
    await lib.obd_device_write_async(
      device.pointer,
      from,
      BigInt(from.byteLength),
      u64(at),
    ),
    `cannot write ${from.byteLength} bytes at ${at}`,
  );
}

export function discardDevice(device: Device, at: U64, length: U64): void {
  check(
    lib.obd_device_discard(device.pointer, u64(at), u64(length)),
    `cannot discard ${length} bytes at ${at}`,
  );
}

export function zeroDevice(device: Device, at: U64, length: U64): void {
  check(
    lib.obd_device_zero(device.pointer, u64(at), u64(length)),
    `cannot zero ${length} bytes at ${at}`,
  );
}

export async function flushDevice(device: Device): Promise<void> {
  check(await lib.obd_device_flush_async(device.pointer), "cannot flush");
}

/** A run of the disk: mapped data, zeroed by a record, or in no layer. */
export interface Extent {
  length: number;
  state: "data" | "zero" | "hole";
}

/** Runs from `at` on, merged; at most `max`. */
export function extents(
  device: Device,
  at: U64,
  length: U64,
  max = 1024,
): Extent[] {
  const raw = new Uint8Array(max * 16);
  const got = check(
    lib.obd_device_extents(device.pointer, u64(at), u64(length), raw, max),
    `cannot list extents at ${at}`,
  );
  const v = view(raw);
  return Array.from({ length: got }, (_, i) => {
    const state = v.getUint32(i * 16 + 8, true);
    return {
      length: Number(v.getBigUint64(i * 16, true)),
      state: state === 0 ? "data" : state === 1 ? "zero" : "hole",
    };
  });
}

/** Running totals of a device. */
export interface DeviceStats {
  reads: number;
  readBytes: number;
  writes: number;
  writtenBytes: number;
  discards: number;
  discardedBytes: number;
  flushes: number;
  errors: number;
  misses: number;
  parked: number;
  corrupt: number;
  allocations: number;
  /** of `corrupt`: fetched again, and right then */
  healed: number;
}

export function deviceStats(device: Device): DeviceStats {
  const raw = new BigUint64Array(13);
  check(lib.obd_device_stat(device.pointer, raw), "cannot get statistics");
  const at = (i: number) => Number(raw[i]);
  return {
    reads: at(0),
    readBytes: at(1),
    writes: at(2),
    writtenBytes: at(3),
    discards: at(4),
    discardedBytes: at(5),
    flushes: at(6),
    errors: at(7),
    misses: at(8),
    parked: at(9),
    corrupt: at(10),
    allocations: at(11),
    healed: at(12),
  };
}

/** How long reads took. */
export interface ReadTimes {
  /** reads of at most 4^i us; in the last one all that took longer */
  buckets: number[];
  /** all of them together */
  seconds: number;
}

const TIMES_BUCKETS = 14;

/** Reads of what was here, sampled, and those that waited for a fetch. */
export function deviceTimes(
  device: Device,
): { local: ReadTimes; fetched: ReadTimes } {
  const raw = new BigUint64Array(2 * (TIMES_BUCKETS + 1));
  check(lib.obd_device_times(device.pointer, raw), "cannot get times");
  const half = (at: number): ReadTimes => ({
    buckets: [...raw.subarray(at, at + TIMES_BUCKETS)].map(Number),
    seconds: Number(raw[at + TIMES_BUCKETS]) / 1e9,
  });
  return { local: half(0), fetched: half(TIMES_BUCKETS + 1) };
}

/** Reads `size` bytes at each offset, for the bench. */
export async function readDeviceMany(
  device: Device,
  offsets: BigUint64Array<ArrayBuffer>,
  size: number,
): Promise<void> {
  check(
    await lib.obd_device_read_many_async(
      device.pointer,
      offsets,
      BigInt(offsets.length),
      size,
    ),
    "cannot read",
  );
}

// ---- NBD ------------------------------------------------------------

/** An NBD server on one listening socket. */
export interface NbdServer {
  /** @throws {EngineError} EEXIST when the name is taken */
  add(name: string, description: string, device: Device): void;
  /**
   * Takes an export back; requests of its clients get `graceMs`.
   *
   * @throws {EngineError} ENOENT when there is none
   */
  remove(name: string, graceMs: number): Promise<void>;
  start(): void;
  connections(): number;
  /** Connections of one export. */
  users(name: string): number;
  /** Ends every connection; running requests get `graceMs`. */
  close(graceMs: number): Promise<void>;
}

/** Takes the listening descriptor over. */
export function newNbdServer(listenFd: number): NbdServer {
  const out = slot();
  check(lib.obd_nbd_new(listenFd, out), "cannot make an NBD server");
  let pointer = Deno.UnsafePointer.create(out[0] ?? 0n);
  return {
    add(name, description, device) {
      check(
        lib.obd_nbd_add(
          pointer,
          cstring(name),
          cstring(description),
          device.pointer,
        ),
        `cannot export ${name}`,
      );
    },
    async remove(name, graceMs) {
      check(
        await lib.obd_nbd_remove_async(pointer, cstring(name), graceMs),
        `cannot take back ${name}`,
      );
    },
    start() {
      check(lib.obd_nbd_start(pointer), "cannot start the NBD server");
    },
    connections() {
      return check(lib.obd_nbd_connections(pointer), "cannot count");
    },
    users(name) {
      return check(
        lib.obd_nbd_users(pointer, cstring(name)),
        `cannot count clients of ${name}`,
      );
    },
    async close(graceMs) {
      const last = pointer;
      pointer = null;
      if (last === null) return;
      check(
        await lib.obd_nbd_close_async(last, graceMs),
        "cannot close the NBD server",
      );
    },
  };
}

// ---- pipelines ------------------------------------------------------

/** How far a pipeline is, in bytes. */
export interface Progress {
  total: number;
  done: number;
  written: number;
}

/** What every long call takes. */
export interface JobOptions {
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: Progress) => void) | undefined;
}

const PROGRESS_INTERVAL_MS = 100;

/** Runs a pipeline with its `struct obd_job`, watched and cancellable. */
async function run<T>(
  options: JobOptions,
  call: (job: Bytes) => Promise<T>,
): Promise<{ result: T; progress: Progress }> {
  const job = new Uint8Array(32);
  const v = view(job);
  const progress = (): Progress => ({
    total: Number(v.getBigUint64(0, true)),
    done: Number(v.getBigUint64(8, true)),
    written: Number(v.getBigUint64(16, true)),
  });
  const cancel = () => v.setUint32(24, 1, true);
  if (options.signal?.aborted) cancel();
  options.signal?.addEventListener("abort", cancel);
  const { onProgress } = options;
  const timer = onProgress === undefined
    ? undefined
    : setInterval(() => onProgress(progress()), PROGRESS_INTERVAL_MS);
  try {
    const result = await call(job);
    const last = progress();
    onProgress?.(last);
    return { result, progress: last };
  } finally {
    clearInterval(timer);
    options.signal?.removeEventListener("abort", cancel);
  }
}

/** The layout that compaction will give, known before anything is written. */
export interface PlanInfo {
  records: number;
  paddedRecords: number;
  indexOffset: number;
  size: number;
}

/** Works out the compaction of spec/lsmt.md, section 4. */
export function newPlan(
  index: Index,
  sources: readonly Source[],
  options: { foldLevels?: boolean } = {},
): { plan: Plan; info: PlanInfo } {
  const raw = new BigUint64Array(4);
  const out = slot();
  check(
    lib.obd_plan_new(
      index.pointer,
      pointers(sources),
      sources.length,
      options.foldLevels === true ? 1 : 0,
      raw,
      out,
    ),
    "cannot plan the layer",
  );
  return {
    plan: handle("plan", out, lib.obd_plan_unref),
    info: {
      records: Number(raw[0]),
      paddedRecords: Number(raw[1]),
      indexOffset: Number(raw[2]),
      size: Number(raw[3]),
    },
  };
}

/** How a ZFile is to be written. */
export interface ZfileParams {
  algo: number;
  blockSize: number;
  verify: boolean;
  rewriteHeader: boolean;
  threads: number;
}

/** What was written. */
export interface ZfileResult {
  input: number;
  indexOffset: number;
  blocks: number;
  size: number;
  indexCrc: number;
}

function zfileParams(params: ZfileParams): Bytes {
  const raw = new Uint32Array([
    params.algo,
    params.blockSize,
    params.verify ? 1 : 0,
    params.rewriteHeader ? 1 : 0,
    params.threads,
    0,
  ]);
  return new Uint8Array(raw.buffer);
}

function zfileResult(raw: Bytes): ZfileResult {
  const v = view(raw);
  return {
    input: Number(v.getBigUint64(0, true)),
    indexOffset: Number(v.getBigUint64(8, true)),
    blocks: Number(v.getBigUint64(16, true)),
    size: Number(v.getBigUint64(24, true)),
    indexCrc: v.getUint32(32, true),
  };
}

/** Where a pipeline writes: `stream` for what cannot seek. */
export interface Output {
  fd: number;
  at?: number;
  stream?: boolean;
}

/**
 * Writes a planned layer, as it is or (with `zfile`) compressed.
 *
 * @returns the layout of the ZFile; undefined without `zfile`
 * @throws {EngineError} E2BIG a 64 KiB block grew too large, ECANCELED, EIO
 */
export async function writePlan(
  plan: Plan,
  blocks: { header: Bytes; trailer: Bytes },
  output: Output,
  options: JobOptions & { zfile?: ZfileParams | undefined; threads?: number },
): Promise<ZfileResult | undefined> {
  const { zfile } = options;
  const params = zfile === undefined ? null : zfileParams(zfile);
  const raw = new Uint8Array(40);
  const { result } = await run(options, (job) =>
    lib.obd_plan_write_async(
      plan.pointer,
      blocks.header,
      blocks.trailer,
      params,
      zfile?.threads ?? options.threads ?? 1,
      output.fd,
      BigInt(output.at ?? 0),
      output.stream === true ? 1 : 0,
      job,
      raw,
    ));
  check(result, "cannot write the layer");
  return zfile === undefined ? undefined : zfileResult(raw);
}

/** Compresses a file or pipe, read in order to its end. */
export async function compress(
  inFd: number,
  params: ZfileParams,
  output: Output,
  options: JobOptions = {},
): Promise<ZfileResult> {
  const raw = new Uint8Array(40);
  const { result } = await run(options, (job) =>
    lib.obd_zfile_compress_async(
      inFd,
      zfileParams(params),
      output.fd,
      BigInt(output.at ?? 0),
      output.stream === true ? 1 : 0,
      job,
      raw,
    ));
  check(result, "cannot compress");
  return zfileResult(raw);
}

/** Decodes all of a ZFile to a file. */
export async function extract(
  zfile: Source,
  output: Output,
  threads: number,
  options: JobOptions = {},
): Promise<void> {
  const { result, progress } = await run(
    options,
    (job) =>
      lib.obd_zfile_extract_async(
        zfile.pointer,
        output.fd,
        threads,
        output.stream === true ? 1 : 0,
        job,
      ),
  );
  check(result, `cannot decompress at ${progress.done}`);
}

/** Decodes all of a ZFile; @returns the numbers of the first bad blocks */
export async function verify(
  zfile: Source,
  threads: number,
  options: JobOptions = {},
): Promise<{ bad: number; first: number[] }> {
  const first = new BigUint64Array(64);
  const { result } = await run(options, (job) =>
    lib.obd_zfile_verify_async(
      zfile.pointer,
      threads,
      job,
      first,
      BigInt(first.length),
    ));
  const bad = check(result, "cannot verify");
  return {
    bad,
    first: Array.from(first.subarray(0, Math.min(bad, first.length)), Number),
  };
}

/** Appends an index as it is, zero-padded to 512; @returns bytes written */
export async function writeIndex(
  index: Index,
  fd: number,
  at: U64,
): Promise<number> {
  return check(
    await lib.obd_index_write_async(index.pointer, fd, u64(at)),
    "cannot write the index",
  );
}
