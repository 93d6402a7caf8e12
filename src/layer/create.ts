// SPDX-License-Identifier: Apache-2.0
/**
 * Makes an empty writable layer (spec/lsmt.md, sections 5 and 7).
 *
 * @module
 */
import {
  closeFd,
  O,
  openFd,
  preadFd,
  pwriteFd,
  sizeOfFd,
  truncateFd,
  unlinkPath,
} from "../../ffi/files.ts";
import { EngineError } from "../../ffi/errors.ts";
import {
  BLOCK_SIZE,
  encodeLsmtBlock,
  FLAGS,
  MAX_VIRTUAL_SIZE,
  parseIndexHeader,
} from "../format/lsmt.ts";
import { isUuid, NIL_UUID, normalizeUuid, randomUuid } from "../format/uuid.ts";
import { fileInfo, linkInfo } from "./files.ts";
import { createOutput, type OutputFile } from "./output.ts";
import { LayerError } from "./write.ts";

const EEXIST = 17;

/** What to make. */
export interface CreateOptions {
  data: string;
  index: string;
  /** bytes; 0: taken from the layers below when first opened */
  virtualSize: bigint;
  kind: "log" | "sparse" | "raw";
  /** "" or undefined: none */
  parentUuid?: string | undefined;
  /** @default random, version 4 */
  uuid?: string;
}

/** An index file that belongs to no data: what a killed create leaves. */
function isPristineIndex(path: string): boolean {
  if (fileInfo(path)?.isFile !== true) {
    return false;
  }
  const fd = openFd(path, O.RDONLY);
  try {
    const size = sizeOfFd(fd);
    if (size === 0) return true;
    if (size !== BLOCK_SIZE) return false;
    const bytes = new Uint8Array(BLOCK_SIZE);
    preadFd(fd, bytes, 0);
    parseIndexHeader(bytes);
    return true;
  } catch {
    return false;
  } finally {
    closeFd(fd);
  }
}

/** Fills a file that has no name yet. */
function prepare(
  path: string,
  replace: boolean,
  bytes: Uint8Array<ArrayBuffer>,
  size: bigint,
): OutputFile {
  const file = createOutput(path, { replace });
  try {
    if (bytes.length > 0) pwriteFd(file.fd, bytes, 0);
    if (size > BigInt(bytes.length)) truncateFd(file.fd, size);
    return file;
  } catch (error) {
    file.abort();
    throw error;
  }
}

function contents(options: CreateOptions) {
  const { kind, virtualSize } = options;
  const none = new Uint8Array(0);
  if (kind === "raw") {
    return { data: none, dataSize: virtualSize, index: none };
  }
  const parent = options.parentUuid ?? "";
  const common = {
    virtualSize,
    uuid: options.uuid ?? randomUuid(),
    parentUuid: parent === "" ? NIL_UUID : normalizeUuid(parent),
  };
  if (kind === "sparse") {
    return {
      data: encodeLsmtBlock({ ...common, flags: FLAGS.sparseData }),
      dataSize: BigInt(BLOCK_SIZE) + virtualSize,
      index: none,
    };
  }
  return {
    data: encodeLsmtBlock({ ...common, flags: FLAGS.logData }),
    dataSize: BigInt(BLOCK_SIZE),
    index: encodeLsmtBlock({
      ...common,
      flags: FLAGS.index,
      indexOffset: BLOCK_SIZE,
    }),
  };
}

/** A name is taken: by anything, a dangling link included. */
function refuse(path: string): never {
  throw new EngineError(EEXIST, `cannot create ${path}`);
}

function exists(path: string): boolean {
  return linkInfo(path) !== undefined;
}

function checkOptions(options: CreateOptions): void {
  const { virtualSize, parentUuid = "" } = options;
  if (virtualSize < 0n || virtualSize > MAX_VIRTUAL_SIZE) {
    throw new LayerError(
      `cannot make a disk of ${virtualSize} bytes: at most ${MAX_VIRTUAL_SIZE}`,
    );
  }
  if (parentUuid !== "" && !isUuid(parentUuid)) {
    throw new LayerError(
      `cannot use parent uuid ${JSON.stringify(parentUuid)}: expected ` +
        "8-4-4-4-12 hex digits",
    );
  }
}

/**
 * Creates data and index file, both or none: prepared without names, the
 * index named first.  So a killed create leaves at most an index file without
 * data and records, and such a one is replaced.
 *
 * @throws {LayerError} the size or the parent uuid is impossible
 * @throws {EngineError} EEXIST, or why a file cannot be made
 */
export async function createUpper(options: CreateOptions): Promise<void> {
  const { data, index } = options;
  checkOptions(options);
  if (exists(data)) refuse(data);
  const leftover = exists(index);
  if (leftover && !isPristineIndex(index)) refuse(index);
  const bytes = contents(options);
  const dataFile = prepare(data, false, bytes.data, bytes.dataSize);
  try {
    const indexFile = prepare(index, leftover, bytes.index, 0n);
    try {
      await indexFile.publish();
    } finally {
      indexFile.abort();
    }
    try {
      await dataFile.publish();
    } catch (error) {
      unlinkPath(index);
      throw error;
    }
  } finally {
    dataFile.abort();
  }
}
