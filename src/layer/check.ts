// SPDX-License-Identifier: Apache-2.0
/**
 * Checks a layer file against every rule of the formats and every checksum.
 *
 * @module
 */
import { crc32c } from "../../ffi/crc32c.ts";
import type { Bytes, Source } from "../../ffi/handle.ts";
import { type JobOptions, verify } from "../../ffi/pipelines.ts";
import { readSource, sourceSize, zfileBlock } from "../../ffi/sources.ts";
import { EngineError } from "../../ffi/errors.ts";
import { FormatError } from "../format/error.ts";
import {
  BLOCK_SIZE,
  INVALID_LBA,
  isLsmt,
  type LsmtBlock,
  parseRecords,
  RECORD_SIZE,
  USED_SIZE,
} from "../format/lsmt.ts";
import { isUuid } from "../format/uuid.ts";
import { parseZfileTrailer, ZFILE_BLOCK, ZFLAG } from "../format/zfile.ts";
import { inspectFile, type InspectReport } from "./inspect.ts";
import {
  type OpenLayer,
  openLayer,
  unwrapFile,
  type Unwrapped,
  type ZfileBlocks,
} from "./open.ts";

/** Something that a check found. */
export interface Finding {
  /** `error`: damaged; `warning`: readable, but not as it should be;
   * `note`: unusual, allowed */
  severity: "error" | "warning" | "note";
  /** short and stable, for programs */
  code: string;
  /** file, and where in it */
  where: string;
  text: string;
}

/** Collects findings about one file. */
type Report = (
  severity: Finding["severity"],
  code: string,
  text: string,
  at?: number,
) => void;

/** What says that the bytes are bad; all else, that nothing is known. */
const DAMAGE = new Set(["EIO", "EUCLEAN", "EBADMSG", "EPROTO", "ERANGE"]);

/** The text of damage; passes on what says that nothing could be checked. */
function damage(error: unknown): string {
  if (error instanceof FormatError) return error.message;
  if (error instanceof EngineError && DAMAGE.has(error.code)) {
    return error.message;
  }
  throw error;
}

function readAt(source: Source, at: number, n: number): Bytes {
  const bytes = new Uint8Array(n);
  return bytes.subarray(0, readSource(source, bytes, at));
}

/** How many bytes of a range are not zero. */
function garbage(bytes: Uint8Array): number {
  return bytes.reduce((n, byte) => byte === 0 ? n : n + 1, 0);
}

// ---- tar ------------------------------------------------------------

/** A wrapped layer ends with its payload, padded, and two zero blocks. */
function checkTar(file: Unwrapped, report: Report): void {
  if (file.tar === undefined) return;
  const { at, size } = file.tar;
  const end = Math.ceil((at + size) / 512) * 512 + 1024;
  if (file.fileSize < end) {
    report(
      "warning",
      "tar-end",
      `the tar ends at ${file.fileSize}, without its two end blocks`,
    );
  }
}

// ---- ZFile ----------------------------------------------------------

/** Bytes of a header or trailer that have no meaning, beside the flags. */
function zfileGarbage(block: Uint8Array): number {
  return garbage(block.subarray(68, 72)) + garbage(block.subarray(79, 84)) +
    garbage(block.subarray(89));
}

function checkZfileBlocks(
  stored: Source,
  zfile: ZfileBlocks,
  report: Report,
): void {
  const { header, trailer, final, size } = zfile;
  if ((final.flags & ZFLAG.digest) === 0n) {
    report(
      "note",
      "no-digest",
      "header and jump table carry no checksum (an old file)",
    );
  }
  if (final.verify !== 1) {
    report(
      "note",
      "no-block-crc",
      "blocks carry no checksum: damage shows only where it breaks them",
    );
  }
  const last = readAt(stored, size - ZFILE_BLOCK, ZFILE_BLOCK);
  if (trailer === undefined) {
    // No reader looks at it, but both should say the same.
    try {
      const unread = parseZfileTrailer(last, size, crc32c);
      if (unread.indexOffset !== final.indexOffset) {
        report("warning", "trailer-differs", "header and trailer disagree");
      }
    } catch (error) {
      report("warning", "trailer", `${damage(error)} (no reader looks at it)`);
    }
  } else if (
    header.blockSize !== trailer.blockSize || header.algo !== trailer.algo
  ) {
    report(
      "note",
      "header-differs",
      `the header says algorithm ${header.algo}, block size ` +
        `${header.blockSize}; the trailer, which counts, ${trailer.algo} and ` +
        `${trailer.blockSize}`,
    );
  }
  for (
    const [name, bytes] of [
      ["header", readAt(stored, 0, ZFILE_BLOCK)],
      ["trailer", last],
    ] as const
  ) {
    const n = zfileGarbage(bytes);
    if (n > 0) {
      report("note", "reserved", `${n} reserved bytes of the ${name} are set`);
    }
  }
}

/** What the original's reader has no room for (spec/zfile.md, section 3). */
function checkOriginalLimits(file: Unwrapped, report: Report): void {
  const { blockSize = 0, indexSize = 0n } = file.zfile?.final ?? {};
  // Between these sizes no block can grow that much.
  if (blockSize >= 4096 && blockSize <= 32768) return;
  const group = 65536 / blockSize;
  let sum = 0;
  for (let block = 0; block < indexSize; block++) {
    const { length } = zfileBlock(file.source, block);
    if (length > 65536) {
      report(
        "warning",
        "block-too-long",
        `block ${block} has ${length} bytes: the original cannot read it`,
        zfileBlock(file.source, block).at,
      );
      return;
    }
    sum = block % group === 0 ? 0 : sum;
    if (sum >= 65535) {
      report(
        "warning",
        "group-too-long",
        `blocks up to ${block} are too long together: the original refuses ` +
          "the file",
      );
      return;
    }
    sum += length;
  }
}

/** Every block decoded, every checksum compared. */
async function checkBlocks(
  file: Unwrapped,
  report: Report,
  options: JobOptions,
): Promise<void> {
  if (file.zfile === undefined) return;
  checkZfileBlocks(file.stored, file.zfile, report);
  checkOriginalLimits(file, report);
  const threads = Math.min(navigator.hardwareConcurrency, 8);
  const { bad, first } = await verify(file.source, threads, options);
  for (const block of first) {
    const { at, length } = zfileBlock(file.source, block);
    report(
      "error",
      "block",
      `block ${block} (${length} bytes stored, original offset ${
        block * file.zfile.final.blockSize
      }) fails its checksum or does not decode`,
      at + (file.tar?.at ?? 0),
    );
  }
  if (bad > first.length) {
    report("error", "block", `${bad - first.length} more bad blocks`);
  }
}

// ---- LSMT -----------------------------------------------------------

function checkUuids(block: LsmtBlock, report: Report): void {
  for (
    const [name, uuid] of [
      ["uuid", block.uuid],
      ["parent uuid", block.parentUuid],
    ] as const
  ) {
    if (!isUuid(uuid)) {
      report(
        "warning",
        "uuid",
        `the ${name} is ${JSON.stringify(uuid)}, no uuid`,
      );
    }
  }
}

/** Bytes that nobody reads: behind the used part of a block. */
function checkReserved(
  source: Source,
  at: number,
  name: string,
  report: Report,
): void {
  const block = readAt(source, at, BLOCK_SIZE);
  const n = garbage(block.subarray(USED_SIZE)) +
    garbage(block.subarray(130, 132));
  if (n > 0) {
    report("note", "reserved", `${n} reserved bytes of the ${name} are set`);
  }
}

/** What readers forgive in an index: tags, padding in odd places. */
function checkRecords(layer: OpenLayer, report: Report): void {
  const { indexOffset, indexSize } = layer.trailer;
  const at = Number(indexOffset);
  const bytes = readAt(layer.source, at, Number(indexSize) * RECORD_SIZE);
  let padding = 0;
  let inside = 0;
  let tagged = 0;
  for (const record of parseRecords(bytes)) {
    if (record.offset === INVALID_LBA) {
      padding++;
      continue;
    }
    inside = padding;
    if (record.tag !== 0) tagged++;
  }
  if (inside > 0) {
    report("note", "padding", `${inside} padding records between others`);
  }
  if (tagged > 0) {
    report("note", "tags", `${tagged} records carry a tag, ignored`);
  }
  const end = at + bytes.length;
  const trailerAt = sourceSize(layer.source) - BLOCK_SIZE;
  const rest = Math.min(trailerAt - end, BLOCK_SIZE);
  if (garbage(readAt(layer.source, end, rest)) > 0) {
    report(
      "note",
      "gap",
      `bytes between the index's end at ${end} and the trailer are set`,
    );
  }
}

function checkFields(layer: OpenLayer, report: Report): void {
  const { header, trailer, source } = layer;
  checkUuids(trailer, report);
  checkReserved(source, 0, "header", report);
  checkReserved(source, sourceSize(source) - BLOCK_SIZE, "trailer", report);
  checkRecords(layer, report);
  if (header.virtualSize !== trailer.virtualSize) {
    report(
      "note",
      "size-differs",
      `the header says a virtual size of ${header.virtualSize}, ` +
        `the trailer, which counts, ${trailer.virtualSize}`,
    );
  }
  if (trailer.virtualSize % 512n !== 0n) {
    report(
      "warning",
      "size-odd",
      `the virtual size ${trailer.virtualSize} is no multiple of 512`,
    );
  }
  if (layer.kind !== "committed") {
    report(
      "note",
      "sealed",
      "sealed in place: it may hold overwritten data",
    );
  }
}

const PIECE = 4 << 20;

/** The bytes of a layer that no checksum covers can at least be read. */
async function checkReadable(
  layer: OpenLayer,
  report: Report,
  options: JobOptions,
): Promise<void> {
  if (layer.zfile !== undefined) return;
  const total = sourceSize(layer.source);
  const piece = new Uint8Array(Math.min(PIECE, total));
  for (let at = 0; at < total; at += piece.length) {
    options.signal?.throwIfAborted();
    const want = piece.subarray(0, Math.min(piece.length, total - at));
    try {
      readSource(layer.source, want, at);
    } catch (error) {
      report("error", "read", damage(error), at + (layer.tar?.at ?? 0));
      return;
    }
    const done = at + want.length;
    options.onProgress?.({ total, done, written: 0 });
    await new Promise<void>((done) => setImmediate(done));
  }
}

/** One file of a writable layer; its records are checked with the image. */
function checkWritable(
  inspected: InspectReport,
  source: Source,
  report: Report,
): void {
  const { kind, fileSize, header } = inspected;
  report(
    "note",
    "writable",
    "a writable layer's file: check a config to check its records",
  );
  if (header === null) return;
  checkUuids({ ...header, userTag: new Uint8Array() }, report);
  checkReserved(source, 0, "header", report);
  const torn = (fileSize - BLOCK_SIZE) % RECORD_SIZE;
  if (kind === "writable-index" && torn > 0) {
    report("warning", "torn", `${torn} bytes of a torn record at the end`);
  }
  const wanted = BigInt(BLOCK_SIZE) + header.virtualSize;
  if (kind === "writable-sparse" && BigInt(fileSize) !== wanted) {
    report(
      "warning",
      "sparse-size",
      `the file has ${fileSize} bytes, its disk needs ${wanted}`,
    );
  }
}

async function checkOpened(
  path: string,
  report: Report,
  options: JobOptions,
): Promise<void> {
  const file = await unwrapFile(path);
  try {
    checkTar(file, report);
    await checkBlocks(file, report, options);
    const isLayer = isLsmt(readAt(file.source, 0, BLOCK_SIZE));
    if (!isLayer && file.zfile !== undefined) return;
    const inspected = await inspectFile(path);
    if (inspected.kind.startsWith("writable")) {
      checkWritable(inspected, file.source, report);
      return;
    }
    using layer = await openLayer(path);
    checkFields(layer, report);
    await checkReadable(layer, report, options);
  } finally {
    file.close();
  }
}

/**
 * Checks a read-only layer, a writable layer's file or a ZFile.
 *
 * @returns what was found; sound when none has severity `error`
 * @throws {EngineError} it is not there or cannot be read, or the check was
 *   stopped: nothing is known
 */
export async function checkLayer(
  path: string,
  options: JobOptions = {},
): Promise<Finding[]> {
  const findings: Finding[] = [];
  const report: Report = (severity, code, text, at) => {
    const where = at === undefined ? path : `${path}, byte ${at}`;
    findings.push({ severity, code, where, text });
  };
  try {
    await checkOpened(path, report, options);
  } catch (error) {
    // Bad blocks are the reason already when what they hold does not open.
    const text = damage(error);
    if (!findings.some((f) => f.severity === "error")) {
      report("error", "format", text);
    }
  }
  return findings;
}
