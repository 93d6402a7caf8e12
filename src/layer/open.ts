// SPDX-License-Identifier: Apache-2.0
/**
 * Opens a read-only layer: out of its tar wrapper, out of its ZFile, then as
 * LSMT (spec/lsmt.md, sections 1, 8 and 11; spec/zfile.md, section 3).
 *
 * @module
 */
import {
  BadIndexError,
  type BadReason,
  type Bytes,
  closeFd,
  crc32c,
  fileSource,
  type Index,
  loadIndex,
  O,
  openFd,
  preadFd,
  readSource,
  sizeOfFd,
  type Source,
  sourceSize,
  type ZfileInfo,
  zfileSource,
} from "../../ffi/engine.ts";
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

/** Header and trailer of a ZFile, and the one that counts. */
export interface ZfileBlocks {
  header: ZfileBlock;
  /** undefined when the header carries the final values */
  trailer: ZfileBlock | undefined;
  final: ZfileBlock;
  /** bytes, out of the tar wrapper */
  size: number;
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
function readAll(source: Source, n: number, at: number): Bytes {
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
): Promise<{ blocks: ZfileBlocks; source: Source }> {
  const size = sourceSize(stored);
  const header = parseZfileHeader(readAll(stored, ZFILE_BLOCK, 0), crc32c);
  const final = (header.flags & ZFLAG.headerOverwritten) !== 0n;
  if (!final && size < 2 * ZFILE_BLOCK) {
    throw new FormatError(`the ZFile has ${size} bytes, it ends early`);
  }
  const trailer = final ? undefined : parseZfileTrailer(
    readAll(stored, ZFILE_BLOCK, size - ZFILE_BLOCK),
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
  try {
    const source = await zfileSource(stored, info);
    return { blocks: { header, trailer, final: block, size }, source };
  } catch (error) {
    throw jumpTableReason(error);
  }
}

/** Takes a file out of its tar wrapper; the descriptor goes with the source. */
function openPayload(
  path: string,
  raw: boolean,
): { fileSize: number; tar: TarPayload | undefined; stored: Source } {
  const fd = openFd(path, O.RDONLY);
  try {
    const fileSize = sizeOfFd(fd);
    const head = new Uint8Array(TAR_PROBE);
    const got = preadFd(fd, head, 0);
    const tar = raw ? undefined : probeTar(head.subarray(0, got));
    const at = tar?.at ?? 0;
    const size = tar?.size ?? fileSize;
    if (at + size > fileSize) {
      throw new FormatError(
        `its tar header says that it ends at ${at + size}, ` +
          `the file ends at ${fileSize}`,
      );
    }
    return { fileSize, tar, stored: fileSource(fd, at, size) };
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

/** Opens a file out of tar and ZFile, whatever is inside. */
async function unwrap(path: string, raw: boolean): Promise<Unwrapped> {
  const { fileSize, tar, stored } = openPayload(path, raw);
  try {
    const size = sourceSize(stored);
    const head = readAll(stored, Math.min(ZFILE_BLOCK, size), 0);
    if (raw || !isZfile(head)) {
      const close = () => stored.close();
      return {
        path,
        fileSize,
        tar,
        zfile: undefined,
        source: stored,
        stored,
        close,
      };
    }
    const { blocks, source } = await openZfile(stored);
    const close = () => {
      source.close();
      stored.close();
    };
    return { path, fileSize, tar, zfile: blocks, source, stored, close };
  } catch (error) {
    stored.close();
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
    return await unwrap(path, false);
  } catch (error) {
    return fail(path, error);
  }
}

/** Reads header, trailer and index of what is inside. */
async function openLsmt(file: Unwrapped): Promise<OpenLayer> {
  const size = sourceSize(file.source);
  if (size < 2 * BLOCK_SIZE) {
    throw new FormatError(
      `it has ${size} bytes, a layer at least ${2 * BLOCK_SIZE}`,
    );
  }
  const header = parseLsmtHeader(readAll(file.source, BLOCK_SIZE, 0));
  const trailer = parseLsmtTrailer(
    readAll(file.source, BLOCK_SIZE, size - BLOCK_SIZE),
    size,
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

/**
 * Opens a committed or sealed layer.
 *
 * @param options `raw`: neither tar nor ZFile is looked for, as
 *   `commit --commit_sealed` opens its input
 * @throws {FormatError} which rule does not hold
 * @throws {EngineError} it cannot be read
 */
export async function openLayer(
  path: string,
  options: { raw?: boolean } = {},
): Promise<OpenLayer> {
  try {
    const file = await unwrap(path, options.raw ?? false);
    try {
      return await openLsmt(file);
    } catch (error) {
      file.close();
      throw error;
    }
  } catch (error) {
    return fail(path, error);
  }
}

/** True when a file begins like a layer: LSMT, ZFile, or a tar around one. */
export function looksLikeLayer(path: string): boolean {
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
