// SPDX-License-Identifier: Apache-2.0
/**
 * Makes an empty writable layer (spec/lsmt.md, sections 5 and 7).
 *
 * @module
 */
import { statSync } from "node:fs";
import { dirname } from "node:path";
import {
  closeFd,
  O,
  openFd,
  preadFd,
  pwriteFd,
  sizeOfFd,
  syncFd,
  truncateFd,
  unlinkPath,
} from "../../ffi/engine.ts";
import { EngineError } from "../../ffi/errors.ts";
import {
  BLOCK_SIZE,
  encodeLsmtBlock,
  FLAGS,
  parseIndexHeader,
} from "../format/lsmt.ts";
import { isUuid, normalizeUuid, randomUuid } from "../format/uuid.ts";
import { nameFile, syncDirectory } from "./output.ts";

const EEXIST = 17;

/** Largest disk in bytes: 2^50 sectors. */
export const MAX_VIRTUAL_SIZE = (1n << 50n) * 512n;

/** What to make. */
export interface CreateOptions {
  data: string;
  index: string;
  /** bytes; 0: taken from the layers below when first opened */
  virtualSize: bigint;
  kind: "log" | "sparse" | "raw";
  /** valid, or undefined for none */
  parentUuid?: string | undefined;
  /** @default random, version 4 */
  uuid?: string;
}

/** An index file that belongs to no data: what a killed create leaves. */
function isPristineIndex(path: string): boolean {
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

/** An unnamed file with the given first bytes. */
function prepare(path: string, bytes: Uint8Array<ArrayBuffer>, size: bigint) {
  let fd: number;
  try {
    fd = openFd(dirname(path), O.TMPFILE | O.RDWR, 0o644);
  } catch (error) {
    throw error instanceof EngineError
      ? new EngineError(error.errno, `cannot create ${path}`)
      : error;
  }
  try {
    if (bytes.length > 0) pwriteFd(fd, bytes, 0);
    if (size > BigInt(bytes.length)) truncateFd(fd, size);
    return fd;
  } catch (error) {
    closeFd(fd);
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
    parentUuid: isUuid(parent) ? normalizeUuid(parent) : "",
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

/**
 * Creates data and index file, both or none.  An index file without data and
 * without records is replaced; it is what an interrupted create leaves.
 *
 * @throws {EngineError} EEXIST, or why a file cannot be made
 */
export async function createUpper(options: CreateOptions): Promise<void> {
  const { data, index } = options;
  if (statSync(data, { throwIfNoEntry: false }) !== undefined) {
    throw new EngineError(EEXIST, `cannot create ${data}`);
  }
  const leftover = statSync(index, { throwIfNoEntry: false }) !== undefined;
  if (leftover && !isPristineIndex(index)) {
    throw new EngineError(EEXIST, `cannot create ${index}`);
  }
  const bytes = contents(options);
  const dataFd = prepare(data, bytes.data, bytes.dataSize);
  try {
    const indexFd = prepare(index, bytes.index, 0n);
    try {
      await syncFd(dataFd);
      await syncFd(indexFd);
      nameFile(indexFd, index, leftover);
      try {
        nameFile(dataFd, data, false);
      } catch (error) {
        unlinkPath(index);
        throw error;
      }
    } finally {
      closeFd(indexFd);
    }
  } finally {
    closeFd(dataFd);
  }
  await syncDirectory(dirname(data));
  if (dirname(index) !== dirname(data)) await syncDirectory(dirname(index));
}
