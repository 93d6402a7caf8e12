// SPDX-License-Identifier: Apache-2.0
/**
 * Opens a read-only layer: out of its tar wrapper, out of its ZFile, then as
 * LSMT (spec/lsmt.md, sections 1, 8 and 11; spec/zfile.md, section 3).
 *
 * @module
 */
import { crc32c } from "../../ffi/crc32c.ts";
import { closeFd, O, openFd, preadFd, sizeOfFd } from "../../ffi/files.ts";
import type { Bytes, Index, Source } from "../../ffi/handle.ts";
import {
  BadIndexError,
  type BadReason,
  loadIndex,
  RECORD_SIZE,
} from "../../ffi/index.ts";
import { nameSource } from "../../ffi/slow.ts";
import {
  fileSource,
  readSource,
  sourceSize,
  zfileBlock,
  type ZfileInfo,
  zfileSource,
} from "../../ffi/sources.ts";
import { EngineError } from "../../ffi/errors.ts";
import { FormatError } from "../format/error.ts";
import {
  BLOCK_SIZE,
  FLAG,
  isLsmt,
  type LsmtBlock,
  parseLsmtHeader,
  parseLsmtTrailer,
} from "../format/lsmt.ts";
import { probeTar, TAR_PROBE, type TarPayload } from "../format/tar.ts";
import {
  checkIndexRange,
  isZfile,
  parseZfileHeader,
  parseZfileTrailer,
  ZFILE_BLOCK,
  type ZfileBlock,
  ZFLAG,
} from "../format/zfile.ts";
import { type IoEngine, useEngine } from "./engine.ts";
import { refusePipe } from "./files.ts";

/** Header and trailer of a ZFile, and the one that counts. */
export interface ZfileBlocks {
  header: ZfileBlock;
  /** undefined when the header carries the final values */
  trailer: ZfileBlock | undefined;
  final: ZfileBlock;
  /** bytes, out of the tar wrapper */
  size: number;
}

/** Waits until bytes [at, at + length) can be read. */
type Need = (at: number, length: number) => Promise<void>;

const atOnce: Need = () => Promise.resolve();

/** A blob that is fetched as it is read. */
export interface RemoteFile {
  /** for messages */
  readonly name: string;
  /** bytes of the blob */
  readonly size: number;
  readonly source: Source;
  /** its tar wrapper, once somebody has found it */
  tar: TarPayload | undefined;
  /** from now on `source` shows this part alone */
  window(base: number, size: number): void;
  /** Waits until a range of the whole blob is here, and keeps it. */
  need: Need;
  /** Waits the same way, and keeps nothing. */
  prefetch: Need;
  close(): void;
}

/** A file without its wrappers. */
export interface Unwrapped {
  path: string;
  /** bytes of the file itself */
  fileSize: number;
  tar: TarPayload | undefined;
  zfile: ZfileBlocks | undefined;
  /** what is inside, decompressed */
  source: Source;
  /** the ZFile's stored bytes; the same as `source` without one */
  stored: Source;
  close(): void;
}

/** An open read-only layer. */
export interface OpenLayer extends Unwrapped, Disposable {
  kind: "committed" | "sealed" | "sealed-sparse";
  header: LsmtBlock;
  trailer: LsmtBlock;
  index: Index;
  /** bytes, from the trailer */
  virtualSize: bigint;
}

/** What each rejection of an index means, in words. */
const INDEX_RULE: Readonly<Record<BadReason, string>> = {
  none: "breaks a rule",
  order: "ends after the next one begins",
  low: "is mapped before sector 8, into the header",
  high: "is mapped past the end of the data",
  count: "is one too many",
  short: "lies past the end of the file",
  hole: "points into a hole of the data file",
  address: "passes the last logical sector, 2^50 - 1",
};

/** A rejected index as one sentence. */
export function describeBadIndex(error: BadIndexError): string {
  return `index record ${error.record} ${INDEX_RULE[error.reason]}`;
}

function fail(path: string, cause: unknown): never {
  const why = cause instanceof BadIndexError
    ? describeBadIndex(cause)
    : cause instanceof Error
    ? cause.message
    : String(cause);
  if (cause instanceof EngineError && !(cause instanceof BadIndexError)) {
    const text = why.startsWith("cannot open") ? why : `${path}: ${why}`;
    throw new EngineLayerError(cause, text);
  }
  throw new FormatError(`cannot open layer ${path}: ${why}`, { cause });
}

/** An EngineError that says which layer it was. */
class EngineLayerError extends EngineError {
  constructor(cause: EngineError, message: string) {
    super(cause.errno, message);
    this.message = message;
    this.cause = cause;
  }
}

/** Reads exactly n bytes. */
async function readAll(
  source: Source,
  n: number,
  at: number,
  need: Need,
): Promise<Bytes> {
  await need(at, n);
  const bytes = new Uint8Array(n);
  const got = readSource(source, bytes, at);
  if (got !== n) {
    throw new FormatError(`the file ends at ${at + got}, not at ${at + n}`);
  }
  return bytes;
}

/** Says why C refused a jump table. */
function jumpTableReason(error: unknown): unknown {
  if (!(error instanceof EngineError)) return error;
  const text: Readonly<Record<string, string>> = {
    EINVAL: "the ZFile has a field out of bounds",
    ERANGE: "the jump table lies outside the file",
    EBADMSG: "the jump table does not match its checksum",
    EPROTO: "the jump table has an entry that is too small, or blocks that " +
      "reach into it",
    EUCLEAN: "the number of blocks disagrees with the original size",
  };
  const why = text[error.code];
  return why === undefined ? error : new FormatError(why, { cause: error });
}

/** Reads the blocks of a ZFile and opens what it holds. */
async function openZfile(
  stored: Source,
  need: Need,
): Promise<{ blocks: ZfileBlocks; source: Source }> {
  const size = sourceSize(stored);
  const header = parseZfileHeader(
    await readAll(stored, ZFILE_BLOCK, 0, need),
    crc32c,
  );
  const final = (header.flags & ZFLAG.headerOverwritten) !== 0n;
  if (!final && size < 2 * ZFILE_BLOCK) {
    throw new FormatError(`the ZFile has ${size} bytes, it ends early`);
  }
  const trailer = final ? undefined : parseZfileTrailer(
    await readAll(stored, ZFILE_BLOCK, size - ZFILE_BLOCK, need),
    size,
    crc32c,
  );
  const block = trailer ?? header;
  checkIndexRange(block, size);
  const info: ZfileInfo = {
    indexOffset: block.indexOffset,
    blocks: block.indexSize,
    originalSize: block.originalSize,
    blockSize: block.blockSize,
    algo: block.algo,
    verify: block.verify === 1,
    indexCrc: (block.flags & ZFLAG.digest) !== 0n ? block.indexCrc : undefined,
    dictSize: block.dictSize,
  };
  const JUMP_ENTRY = 4;
  await need(
    Number(block.indexOffset),
    Number(block.indexSize) * JUMP_ENTRY,
  );
  try {
    const source = await zfileSource(stored, info);
    return { blocks: { header, trailer, final: block, size }, source };
  } catch (error) {
    throw jumpTableReason(error);
  }
}

/** What is left of a file without its tar wrapper. */
interface Payload {
  fileSize: number;
  tar: TarPayload | undefined;
  stored: Source;
  /** offsets as in `stored` */
  need: Need;
  close(): void;
}

function checkPayload(tar: TarPayload | undefined, fileSize: number): void {
  const end = (tar?.at ?? 0) + (tar?.size ?? fileSize);
  if (end > fileSize) {
    throw new FormatError(
      `its tar header says that it ends at ${end}, ` +
        `the file ends at ${fileSize}`,
    );
  }
}

/** Takes a file out of its tar wrapper; the descriptor goes with the source. */
function openPayload(
  path: string,
  raw: boolean,
  engine?: IoEngine,
): Payload {
  refusePipe(path);
  const fd = openFd(path, O.RDONLY);
  try {
    const fileSize = sizeOfFd(fd);
    const head = new Uint8Array(TAR_PROBE);
    const got = preadFd(fd, head, 0);
    const tar = raw ? undefined : probeTar(head.subarray(0, got));
    checkPayload(tar, fileSize);
    const stored = fileSource(fd, tar?.at ?? 0, tar?.size ?? fileSize);
    if (engine !== undefined) useEngine(stored, path, engine);
    const close = () => stored.close();
    return { fileSize, tar, stored, need: atOnce, close };
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

/**
 * Bytes at a blob's end that opening it needs: the trailer, before it the
 * jump table (4 bytes for 4 KiB of content), before that the LSMT index.
 * What is missing of them costs another round trip, and no more.
 *
 * @param head its beginning, out of its tar wrapper
 * @param end where its payload ends
 */
function likelyTail(head: Bytes, base: number, end: number): number {
  const MIN = 256 << 10;
  const MAX = 2 << 20;
  const PART = 128;
  const guess = Math.min(MAX, Math.max(MIN, Math.ceil(end / PART)));
  if (!isZfile(head)) return guess;
  try {
    const { flags, indexOffset } = parseZfileHeader(head, crc32c);
    if ((flags & ZFLAG.headerOverwritten) === 0n) return guess;
    const table = end - base - Number(indexOffset);
    // A record has 16 bytes: for 4 KiB at worst, for 128 KiB as a rule.
    const INDEX_MIN = 64 << 10;
    const index = Math.max(INDEX_MIN, Math.min(MIN, 4 * table));
    return table > MAX ? guess : table + index;
  } catch {
    // Opening it says what is wrong.
    return guess;
  }
}

/** The same for a blob: all that opening needs, in two requests. */
async function remotePayload(file: RemoteFile): Promise<Payload> {
  const { size: fileSize, source: stored } = file;
  const head = new Uint8Array(Math.min(TAR_PROBE + ZFILE_BLOCK, fileSize));
  await file.need(0, head.length);
  // Somebody who opened it before may have taken it out of its wrapper.
  const whole = sourceSize(stored) === fileSize;
  if (whole) readSource(stored, head, 0);
  const tar = whole ? probeTar(head.subarray(0, TAR_PROBE)) : file.tar;
  checkPayload(tar, fileSize);
  const base = tar?.at ?? 0;
  if (whole) {
    const end = base + (tar?.size ?? fileSize);
    const tail = Math.min(end, likelyTail(head.subarray(base), base, end));
    await file.prefetch(end - tail, tail);
  }
  if (tar !== undefined && whole) {
    file.window(tar.at, tar.size);
    file.tar = tar;
  }
  return {
    fileSize,
    tar,
    stored,
    need: (at, length) => file.need(base + at, length),
    close: file.close,
  };
}

/** Where a range of a ZFile's content is stored. */
function needStored(zfile: Source, blockSize: number, need: Need): Need {
  return async (at, length) => {
    if (length <= 0) return;
    const first = zfileBlock(zfile, Math.floor(at / blockSize));
    const last = zfileBlock(zfile, Math.floor((at + length - 1) / blockSize));
    await need(first.at, last.at + last.length - first.at);
  };
}

/** Opens a file out of its ZFile, whatever is inside. */
async function unwrap(
  path: string,
  payload: Payload,
  raw: boolean,
): Promise<Unwrapped & { need: Need }> {
  const { fileSize, tar, stored, need } = payload;
  try {
    const size = sourceSize(stored);
    const head = await readAll(stored, Math.min(ZFILE_BLOCK, size), 0, need);
    if (raw || !isZfile(head)) {
      const { close } = payload;
      const zfile = undefined;
      const source = stored;
      return { path, fileSize, tar, zfile, source, stored, need, close };
    }
    const { blocks, source } = await openZfile(stored, need);
    const close = () => {
      source.close();
      payload.close();
    };
    return {
      path,
      fileSize,
      tar,
      zfile: blocks,
      source,
      stored,
      need: needStored(source, blocks.final.blockSize, need),
      close,
    };
  } catch (error) {
    payload.close();
    throw error;
  }
}

/**
 * Opens a file out of its tar wrapper and ZFile, whatever is inside.
 *
 * @throws {FormatError | EngineError} what is wrong with the wrappers
 */
export async function unwrapFile(path: string): Promise<Unwrapped> {
  try {
    return await unwrap(path, openPayload(path, false), false);
  } catch (error) {
    return fail(path, error);
  }
}

/** Reads header, trailer and index of what is inside. */
async function openLsmt(
  { need, ...file }: Unwrapped & { need: Need },
): Promise<OpenLayer> {
  const size = sourceSize(file.source);
  if (size < 2 * BLOCK_SIZE) {
    throw new FormatError(
      `it has ${size} bytes, a layer at least ${2 * BLOCK_SIZE}`,
    );
  }
  const header = parseLsmtHeader(
    await readAll(file.source, BLOCK_SIZE, 0, need),
  );
  const trailer = parseLsmtTrailer(
    await readAll(file.source, BLOCK_SIZE, size - BLOCK_SIZE, need),
    size,
  );
  await need(
    Number(trailer.indexOffset),
    Number(trailer.indexSize) * RECORD_SIZE,
  );
  const index = await loadIndex(
    file.source,
    trailer.indexOffset,
    trailer.indexSize,
    trailer.indexOffset / 512n,
  );
  const close = () => {
    index.close();
    file.close();
  };
  const sealed = (header.flags & FLAG.sealed) === 0;
  return {
    ...file,
    kind: !sealed
      ? "committed"
      : (header.flags & FLAG.sparse) !== 0
      ? "sealed-sparse"
      : "sealed",
    header,
    trailer,
    index,
    virtualSize: trailer.virtualSize,
    close,
    [Symbol.dispose]: close,
  };
}

/** A local layer whose slow reads are known by its path. */
function named(layer: OpenLayer, path: string): OpenLayer {
  const name = nameSource(layer.source, path);
  const close = () => {
    name[Symbol.dispose]();
    layer.close();
  };
  return { ...layer, close, [Symbol.dispose]: close };
}

/**
 * Opens a committed or sealed layer.
 *
 * @param options `raw`: neither tar nor ZFile is looked for, as
 *   `commit --commit_sealed` opens its input; `engine`: how its file is read
 * @throws {FormatError} which rule does not hold
 * @throws {EngineError} it cannot be read
 */
export async function openLayer(
  path: string,
  options: { raw?: boolean; engine?: IoEngine | undefined } = {},
): Promise<OpenLayer> {
  try {
    const raw = options.raw ?? false;
    const payload = openPayload(path, raw, options.engine);
    const file = await unwrap(path, payload, raw);
    try {
      return named(await openLsmt(file), path);
    } catch (error) {
      file.close();
      throw error;
    }
  } catch (error) {
    return fail(path, error);
  }
}

/**
 * Opens a committed layer that is fetched as it is read; takes `file` over.
 *
 * @throws {FormatError} which rule does not hold
 * @throws what `file.need` throws
 */
export async function openRemoteLayer(file: RemoteFile): Promise<OpenLayer> {
  try {
    const payload = await remotePayload(file);
    return await openLsmt(await unwrap(file.name, payload, false));
  } catch (error) {
    file.close();
    if (error instanceof FormatError || error instanceof EngineError) {
      return fail(file.name, error);
    }
    throw error;
  }
}

/** True when a file begins like a layer: LSMT, ZFile, or a tar around one. */
export function looksLikeLayer(path: string): boolean {
  refusePipe(path);
  const fd = openFd(path, O.RDONLY);
  try {
    const head = new Uint8Array(TAR_PROBE + ZFILE_BLOCK);
    const got = head.subarray(0, preadFd(fd, head, 0));
    const tar = probeTar(got);
    const inner = got.subarray(tar?.at ?? 0);
    return isLsmt(inner) || isZfile(inner);
  } finally {
    closeFd(fd);
  }
}
