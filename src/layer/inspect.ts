// SPDX-License-Identifier: Apache-2.0
/**
 * Everything that a layer file says about itself.
 *
 * @module
 */
import { closeFd, O, openFd, preadFd, sizeOfFd } from "../../ffi/files.ts";
import type { Index, Source } from "../../ffi/handle.ts";
import { indexCount, indexRecords } from "../../ffi/index.ts";
import { readSource, sourceSize } from "../../ffi/sources.ts";
import { FormatError } from "../format/error.ts";
import {
  BLOCK_SIZE,
  FLAG,
  isLsmt,
  type LsmtBlock,
  parseIndexHeader,
  parseLsmtHeader,
  parseRecords,
  RECORD_SIZE,
} from "../format/lsmt.ts";
import type { TarPayload } from "../format/tar.ts";
import type { ZfileBlock } from "../format/zfile.ts";
import { openLayer, unwrapFile, type ZfileBlocks } from "./open.ts";

/** What kind of file it is. */
export type FileKind =
  | "committed"
  | "sealed"
  | "sealed-sparse"
  | "writable-log"
  | "writable-sparse"
  | "writable-index"
  | "zfile";

/** A header or trailer, readable. */
export type BlockReport = Omit<LsmtBlock, "userTag"> & { userTag: string };

/** Totals over the records of an index. */
export interface IndexReport {
  /** without padding */
  records: number;
  padding: number;
  dataRecords: number;
  zeroedRecords: number;
  /** bytes */
  dataBytes: number;
  /** bytes */
  zeroedBytes: number;
  /** bytes from 0 to the end of the last record */
  extent: number;
}

/** How a ZFile is made. */
export interface ZfileReport {
  header: ZfileBlock;
  trailer: ZfileBlock | null;
  algorithm: "lz4" | "zstd";
  blockSize: number;
  blocks: number;
  checksums: boolean;
  /** bytes, out of the tar wrapper */
  storedBytes: number;
  /** bytes */
  originalBytes: number;
  /** original by stored */
  ratio: number;
}

/** What {@linkcode inspectFile} finds. */
export interface InspectReport {
  path: string;
  kind: FileKind;
  /** bytes */
  fileSize: number;
  tar: TarPayload | null;
  zfile: ZfileReport | null;
  virtualSize: bigint | null;
  uuid: string | null;
  parentUuid: string | null;
  userTag: string | null;
  header: BlockReport | null;
  trailer: BlockReport | null;
  index: IndexReport | null;
}

const BATCH = 65536;

function blockReport(block: LsmtBlock): BlockReport {
  return { ...block, userTag: new TextDecoder().decode(block.userTag) };
}

function zfileReport(zfile: ZfileBlocks): ZfileReport {
  const { final, size } = zfile;
  const original = Number(final.originalSize);
  return {
    header: zfile.header,
    trailer: zfile.trailer ?? null,
    algorithm: final.algo === 1 ? "lz4" : "zstd",
    blockSize: final.blockSize,
    blocks: Number(final.indexSize),
    checksums: final.verify === 1,
    storedBytes: size,
    originalBytes: original,
    ratio: original / size,
  };
}

/** Totals of an index that was loaded. */
export function indexReport(index: Index, onDisk: number): IndexReport {
  const count = indexCount(index);
  const report: IndexReport = {
    records: count,
    padding: onDisk - count,
    dataRecords: 0,
    zeroedRecords: 0,
    dataBytes: 0,
    zeroedBytes: 0,
    extent: 0,
  };
  for (let first = 0; first < count; first += BATCH) {
    for (const record of parseRecords(indexRecords(index, first, BATCH))) {
      const bytes = record.length * 512;
      if (record.zeroed) {
        report.zeroedRecords++;
        report.zeroedBytes += bytes;
      } else {
        report.dataRecords++;
        report.dataBytes += bytes;
      }
      report.extent = record.offset * 512 + bytes;
    }
  }
  return report;
}

function firstBlock(path: string): { bytes: Uint8Array; size: number } {
  const fd = openFd(path, O.RDONLY);
  try {
    const bytes = new Uint8Array(BLOCK_SIZE);
    const got = preadFd(fd, bytes, 0);
    return { bytes: bytes.subarray(0, got), size: sizeOfFd(fd) };
  } finally {
    closeFd(fd);
  }
}

/** A report with nothing in it but the header. */
function headerOnly(
  path: string,
  kind: FileKind,
  fileSize: number,
  header: LsmtBlock,
): InspectReport {
  const block = blockReport(header);
  return {
    path,
    kind,
    fileSize,
    tar: null,
    zfile: null,
    virtualSize: header.virtualSize,
    uuid: block.uuid,
    parentUuid: block.parentUuid,
    userTag: block.userTag,
    header: block,
    trailer: null,
    index: null,
  };
}

/** True when the last block of a file is a trailer. */
function hasTrailer(source: Source): boolean {
  const size = sourceSize(source);
  if (size < 2 * BLOCK_SIZE) return false;
  const bytes = new Uint8Array(BLOCK_SIZE);
  readSource(source, bytes, size - BLOCK_SIZE);
  return isLsmt(bytes) && ((bytes[28] ?? 0) & FLAG.header) === 0;
}

/** Header of a writable layer's index file; undefined for other files. */
function indexFile(path: string): InspectReport | undefined {
  const { bytes, size } = firstBlock(path);
  if (bytes.length < BLOCK_SIZE || !isLsmt(bytes)) return undefined;
  if (((bytes[28] ?? 0) & FLAG.data) !== 0) return undefined;
  const header = parseIndexHeader(bytes);
  const records = Math.floor((size - BLOCK_SIZE) / RECORD_SIZE);
  return {
    ...headerOnly(path, "writable-index", size, header),
    index: recordTotals(path, records),
  };
}

/** Totals over the records of an index file as they were appended. */
function recordTotals(path: string, records: number): IndexReport {
  const totals: IndexReport = {
    records: 0,
    padding: 0,
    dataRecords: 0,
    zeroedRecords: 0,
    dataBytes: 0,
    zeroedBytes: 0,
    extent: 0,
  };
  const fd = openFd(path, O.RDONLY);
  try {
    const batch = new Uint8Array(BATCH * RECORD_SIZE);
    for (let first = 0; first < records; first += BATCH) {
      const at = BLOCK_SIZE + first * RECORD_SIZE;
      const got = preadFd(fd, batch, at);
      for (const record of parseRecords(batch.subarray(0, got))) {
        if (record.offset === 2 ** 50 - 1) {
          totals.padding++;
          continue;
        }
        const bytes = record.length * 512;
        totals.records++;
        totals[record.zeroed ? "zeroedRecords" : "dataRecords"]++;
        totals[record.zeroed ? "zeroedBytes" : "dataBytes"] += bytes;
        totals.extent = Math.max(totals.extent, record.offset * 512 + bytes);
      }
    }
  } finally {
    closeFd(fd);
  }
  return totals;
}

async function layerReport(path: string): Promise<InspectReport> {
  using layer = await openLayer(path);
  const trailer = blockReport(layer.trailer);
  return {
    path,
    kind: layer.kind,
    fileSize: layer.fileSize,
    tar: layer.tar ?? null,
    zfile: layer.zfile === undefined ? null : zfileReport(layer.zfile),
    virtualSize: layer.virtualSize,
    uuid: trailer.uuid,
    parentUuid: trailer.parentUuid,
    userTag: trailer.userTag,
    header: blockReport(layer.header),
    trailer,
    index: indexReport(layer.index, Number(layer.trailer.indexSize)),
  };
}

/**
 * Reads every field of a layer, a writable layer's file or any ZFile.
 *
 * @throws {FormatError} it is none of them, or damaged
 * @throws {EngineError} it cannot be read
 */
export async function inspectFile(path: string): Promise<InspectReport> {
  const index = indexFile(path);
  if (index !== undefined) return index;
  const file = await unwrapFile(path);
  try {
    const head = new Uint8Array(BLOCK_SIZE);
    const got = readSource(file.source, head, 0);
    if (!isLsmt(head.subarray(0, got))) {
      if (file.zfile === undefined) {
        throw new FormatError(
          `${path} is no layer: neither LSMT nor ZFile, in a tar or not`,
        );
      }
      return {
        path,
        kind: "zfile",
        fileSize: file.fileSize,
        tar: file.tar ?? null,
        zfile: zfileReport(file.zfile),
        virtualSize: null,
        uuid: null,
        parentUuid: null,
        userTag: null,
        header: null,
        trailer: null,
        index: null,
      };
    }
    if (file.zfile === undefined && !hasTrailer(file.source)) {
      const header = parseLsmtHeader(head);
      const kind = (header.flags & FLAG.sparse) !== 0
        ? "writable-sparse"
        : "writable-log";
      if ((header.flags & FLAG.sealed) === 0) {
        return headerOnly(path, kind, file.fileSize, header);
      }
    }
  } finally {
    file.close();
  }
  return await layerReport(path);
}
