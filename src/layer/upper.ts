// SPDX-License-Identifier: Apache-2.0
/**
 * Opens a writable layer, append-only or sparse (spec/lsmt.md, sections 5
 * and 7).
 *
 * @module
 */
import {
  closeFd,
  flock,
  LOCK,
  O,
  openFd,
  preadFd,
  pwriteFd,
  sizeOfFd,
  syncFd,
  truncateFd,
} from "../../ffi/files.ts";
import type { Upper } from "../../ffi/handle.ts";
import { BadIndexError } from "../../ffi/index.ts";
import {
  openUpper as openEngineUpper,
  type UpperReport,
} from "../../ffi/upper.ts";
import { FormatError } from "../format/error.ts";
import {
  BLOCK_SIZE,
  checkVirtualSize,
  FLAG,
  type LsmtBlock,
  parseIndexHeader,
  parseLsmtHeader,
  parseLsmtTrailer,
} from "../format/lsmt.ts";
import { refusePipe } from "./files.ts";
import { describeBadIndex } from "./open.ts";

/** Byte of a header at which the virtual size stands. */
export const VIRTUAL_SIZE_AT = 48;

/** Another process has the layer open. */
export class BusyError extends Error {
  override readonly name = "BusyError";
}

/** What to open, and how. */
export interface UpperOptions {
  data: string;
  /** not read for a sparse layer */
  index: string;
  /** nothing is written, and other readers are let in */
  readonly: boolean;
  /** bytes: taken over by a layer that was created with size 0 */
  inheritedSize?: bigint;
  /** takes off the seal of a sparse layer, which is writable then */
  unseal?: boolean;
}

/** An open writable layer. */
export interface OpenUpper extends Disposable {
  kind: "log" | "sparse";
  paths: { data: string; index: string };
  upper: Upper;
  /** of the data file, lent as long as the layer is open */
  dataFd: number;
  /** of the data file */
  header: LsmtBlock;
  /** bytes */
  virtualSize: bigint;
  report: UpperReport;
  /** what opening mended or left out, one sentence each */
  warnings: readonly string[];
  close(): void;
}

/** What /proc/locks says, "" where there is no /proc. */
function procLocks(): string {
  try {
    return Deno.readTextFileSync("/proc/locks");
  } catch {
    return "";
  }
}

/**
 * The process that holds a flock on the file, from /proc/locks; undefined
 * when it lives in another pid namespace, or cannot be told.
 */
export function lockHolder(path: string): number | undefined {
  const { dev, ino } = Deno.statSync(path);
  const major = (dev >> 8) & 0xfff;
  const minor = (dev & 0xff) | ((dev >> 12) & 0xfff00);
  const hex = (n: number) => n.toString(16).padStart(2, "0");
  const device = `${hex(major)}:${hex(minor)}`;
  const held = procLocks().split("\n").map((line) => line.trim().split(/\s+/))
    .filter((fields) =>
      fields[1] === "FLOCK" && fields[5]?.endsWith(`:${ino}`) === true
    );
  // btrfs and overlayfs show another device to stat than to locks.
  const fields = held.find((f) => f[5] === `${device}:${ino}`) ??
    (held.length === 1 ? held[0] : undefined);
  const pid = Number(fields?.[4] ?? 0);
  return pid > 0 ? pid : undefined;
}

/**
 * Locks a writable layer's data file for as long as `fd` is open.
 *
 * @throws {BusyError} another process has it; names its pid
 */
export function lockUpper(fd: number, path: string, readonly: boolean): void {
  if (flock(fd, (readonly ? LOCK.SH : LOCK.EX) | LOCK.NB)) return;
  const pid = lockHolder(path);
  const who = pid === undefined ? "another process" : `process ${pid}`;
  throw new BusyError(`cannot open ${path}: it is in use by ${who}`);
}

function readBlock(fd: number, path: string, at = 0): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(BLOCK_SIZE);
  const got = preadFd(fd, bytes, at);
  if (got < BLOCK_SIZE) {
    throw new FormatError(
      `${path} has ${at + got} bytes, a writable layer at least ${BLOCK_SIZE}`,
    );
  }
  return bytes;
}

/** True when a file ends with the trailer of a sealed layer. */
function isSealed(fd: number): boolean {
  const size = sizeOfFd(fd);
  if (size < 2 * BLOCK_SIZE) return false;
  const bytes = new Uint8Array(BLOCK_SIZE);
  preadFd(fd, bytes, size - BLOCK_SIZE);
  try {
    parseLsmtTrailer(bytes, size);
    return true;
  } catch {
    return false;
  }
}

/** Rewrites the virtual size of a header in place. */
export function writeVirtualSize(fd: number, size: bigint): void {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, size, true);
  pwriteFd(fd, bytes, VIRTUAL_SIZE_AT);
}

/** Gives a layer of size 0 the size of the stack below it. */
async function inheritSize(
  dataFd: number,
  indexFd: number,
  size: bigint,
): Promise<void> {
  writeVirtualSize(dataFd, size);
  if (indexFd < 0) truncateFd(dataFd, BigInt(BLOCK_SIZE) + size);
  await syncFd(dataFd);
  if (indexFd < 0) return;
  // Last, for it decides: as long as it says 0, the next open comes here.
  writeVirtualSize(indexFd, size);
  await syncFd(indexFd);
}

function warningsOf(path: string, report: UpperReport): string[] {
  const warnings: string[] = [];
  if (report.tornBytes > 0) {
    warnings.push(
      `${path} ends with ${report.tornBytes} bytes of a torn record, left out`,
    );
  }
  if (report.cutRecord !== undefined) {
    warnings.push(
      `${path}: record ${report.cutRecord} and all behind it were never ` +
        "flushed and did not survive, left out",
    );
  }
  if (report.trimmed > 0) {
    warnings.push(
      `${path}: ${report.trimmed} bytes of an unfinished seal, left out`,
    );
  }
  return warnings;
}

/**
 * Makes a layer as empty as it was created, on disk, too.  Nobody may use it,
 * and nobody may from now on: it is to be closed.
 */
export async function emptyUpper(
  { kind, paths, dataFd, virtualSize }: OpenUpper,
): Promise<void> {
  if (kind === "log") {
    const fd = openFd(paths.index, O.RDWR);
    try {
      truncateFd(fd, BLOCK_SIZE);
      await syncFd(fd);
    } finally {
      closeFd(fd);
    }
  }
  truncateFd(dataFd, BLOCK_SIZE);
  if (kind === "sparse") truncateFd(dataFd, BigInt(BLOCK_SIZE) + virtualSize);
  await syncFd(dataFd);
}

/** Opens the index file of a log layer and reads its header. */
function openIndex(
  options: UpperOptions,
  flags: number,
): { fd: number; header: LsmtBlock } {
  refusePipe(options.index);
  const fd = openFd(options.index, flags);
  try {
    return { fd, header: parseIndexHeader(readBlock(fd, options.index)) };
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

async function open(
  options: UpperOptions,
  dataFd: number,
  flags: number,
  opened: { indexFd: number },
): Promise<OpenUpper> {
  lockUpper(dataFd, options.data, options.readonly);
  const header = parseLsmtHeader(readBlock(dataFd, options.data));
  checkVirtualSize(header);
  const sparse = (header.flags & FLAG.sparse) !== 0;
  if (sparse && options.unseal !== true && isSealed(dataFd)) {
    throw new FormatError("it is sealed: it cannot be written any more");
  }
  const index = sparse ? undefined : openIndex(options, flags);
  opened.indexFd = index?.fd ?? -1;
  let virtualSize = index?.header.virtualSize ?? header.virtualSize;
  const inherited = options.inheritedSize ?? 0n;
  if (virtualSize === 0n && inherited > 0n) {
    virtualSize = inherited;
    if (!options.readonly) {
      await inheritSize(dataFd, opened.indexFd, inherited);
    }
  }
  const { upper, report } = await openEngineUpper(
    sparse ? "sparse" : "log",
    dataFd,
    opened.indexFd,
    virtualSize,
    options.readonly,
  );
  return {
    kind: sparse ? "sparse" : "log",
    paths: { data: options.data, index: options.index },
    upper,
    dataFd,
    header,
    virtualSize,
    report,
    warnings: warningsOf(sparse ? options.data : options.index, report),
    close: () => upper.close(),
    [Symbol.dispose]: () => upper.close(),
  };
}

/**
 * Opens a writable layer.  It stays locked until `close()`: against everybody
 * when it is to be written, against writers when not.
 *
 * @throws {BusyError} another process has it
 * @throws {FormatError} which rule does not hold
 * @throws {EngineError} it cannot be read or written
 */
export async function openUpper(options: UpperOptions): Promise<OpenUpper> {
  const flags = options.readonly ? O.RDONLY : O.RDWR;
  refusePipe(options.data);
  const dataFd = openFd(options.data, flags);
  const opened = { indexFd: -1 };
  try {
    return await open(options, dataFd, flags, opened);
  } catch (error) {
    closeFd(dataFd);
    if (opened.indexFd >= 0) closeFd(opened.indexFd);
    if (error instanceof BadIndexError) {
      throw new FormatError(
        `cannot open writable layer ${options.data}: ${
          describeBadIndex(error)
        }`,
        { cause: error },
      );
    }
    if (error instanceof FormatError) {
      throw new FormatError(
        `cannot open writable layer ${options.data}: ${error.message}`,
        { cause: error },
      );
    }
    throw error;
  }
}
