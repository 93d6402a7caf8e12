// SPDX-License-Identifier: Apache-2.0
/**
 * Turns a writable layer into a read-only one: compacted into a new file, or
 * sealed in place (spec/lsmt.md, sections 4 and 6).
 *
 * @module
 */
import {
  preadFd,
  pwriteFd,
  sizeOfFd,
  syncFd,
  truncateFd,
} from "../../ffi/files.ts";
import type { Index, Source } from "../../ffi/handle.ts";
import { indexCount } from "../../ffi/index.ts";
import { writeIndex } from "../../ffi/pipelines.ts";
import {
  snapshotUpper,
  snapshotUpperAsync,
  upperSource,
} from "../../ffi/upper.ts";
import {
  BLOCK_SIZE,
  encodeLsmtBlock,
  FLAG,
  FLAGS,
  type LsmtBlock,
  MAX_RECORDS,
  parseLsmtHeader,
} from "../format/lsmt.ts";
import { isUuid, NIL_UUID, normalizeUuid } from "../format/uuid.ts";
import { fillGaps, type FillLayer } from "./fill.ts";
import { openLayer } from "./open.ts";
import { refuseExisting } from "./output.ts";
import { type OpenUpper, openUpper } from "./upper.ts";
import {
  LayerError,
  type LayerInput,
  needsFolding,
  writeLayer,
  type WriteOptions,
  type Written,
} from "./write.ts";

/** What to commit, and what to write into it. */
export interface CommitOptions extends WriteOptions {
  /** the writable layer's data file, or with `sealed` a read-only layer */
  data: string;
  /** the writable layer's index file; not used with `sealed` */
  index?: string | undefined;
  /** `data` is a sealed or committed layer, not wrapped in anything */
  sealed?: boolean;
  /** at most 256 bytes */
  userTag?: Uint8Array;
  /** @default the nil uuid */
  uuid?: string | undefined;
  /** @default what the layer's header says */
  parentUuid?: string | undefined;
  /** gives lower layers, bottom first: where the index would have too many
   * records, their data closes gaps */
  fill?: () => Promise<readonly FillLayer[]>;
}

/** The input of a commit, opened. */
interface CommitInput extends Disposable {
  index: Index;
  source: Source;
  header: LsmtBlock;
  warnings: readonly string[];
}

async function openSealed(path: string): Promise<CommitInput> {
  const layer = await openLayer(path, { raw: true });
  return { ...layer, warnings: [] };
}

async function openWritable(data: string, index: string): Promise<CommitInput> {
  const upper = await openUpper({ data, index, readonly: true });
  try {
    const map = snapshotUpper(upper.upper);
    const source = upperSource(upper.upper);
    return {
      index: map,
      source,
      header: upper.header,
      warnings: upper.warnings,
      [Symbol.dispose]: () => {
        source.close();
        map.close();
        upper.close();
      },
    };
  } catch (error) {
    upper.close();
    throw error;
  }
}

/** A uuid as headers keep it; nil when there is no valid one. */
function uuidOr(text: string | undefined, otherwise: string): string {
  const value = text === undefined || text === "" ? otherwise : text;
  return isUuid(value) ? normalizeUuid(value) : NIL_UUID;
}

/**
 * Compacts a writable, sealed or committed layer into a new file.
 *
 * @returns what was written, and what opening the input left out
 * @throws {LayerError | FormatError | BusyError | EngineError} nothing was
 *   left behind
 */
export async function commitLayer(
  options: CommitOptions,
): Promise<Written & { warnings: readonly string[] }> {
  refuseExisting(options.output, options.replace ?? false);
  using input = options.sealed === true
    ? await openSealed(options.data)
    : await openWritable(options.data, options.index ?? "");
  const layer: LayerInput = {
    index: input.index,
    sources: [input.source],
    fields: {
      virtualSize: input.header.virtualSize,
      uuid: uuidOr(options.uuid, NIL_UUID),
      parentUuid: uuidOr(options.parentUuid, input.header.parentUuid),
      userTag: options.userTag ?? new Uint8Array(0),
    },
    tooMany: "`commit --fill CONFIG` closes the gaps between records with " +
      "the data of the layers below, so that fewer are needed",
  };
  // What is uploaded while it is written has its final values at the end.
  const rewriteHeader = options.beforePublish === undefined;
  const write = { ...options, rewriteHeader };
  if (
    options.fill === undefined || !needsFolding(input.index, [input.source])
  ) {
    return { ...await writeLayer(layer, write), warnings: input.warnings };
  }
  using filled = fillGaps(
    input.index,
    input.source,
    await options.fill(),
  );
  const written = await writeLayer({
    ...layer,
    ...filled,
    foldLevels: true,
    tooMany: "even with all gaps closed",
  }, write);
  return { ...written, warnings: input.warnings };
}

/**
 * Seals an open writable layer, which nothing may change meanwhile or after:
 * appends its index and a trailer to the data file.  On failure the file is
 * cut back to what it was.
 *
 * @throws {LayerError} it has more records than a reader takes
 * @throws {EngineError} it cannot be written
 */
export async function sealUpper(
  { upper, paths: { data }, dataFd: fd }: OpenUpper,
): Promise<void> {
  using map = await snapshotUpperAsync(upper);
  const records = indexCount(map);
  if (records > MAX_RECORDS) {
    throw new LayerError(
      `cannot seal ${data}: its index would have ${records} records, and ` +
        `no reader takes more than ${MAX_RECORDS}: commit it instead, ` +
        "which folds records",
    );
  }
  const before = sizeOfFd(fd);
  // A torn last sector is no data: the index begins at a sector.
  const at = Math.ceil(before / 512) * 512;
  const header = new Uint8Array(BLOCK_SIZE);
  preadFd(fd, header, 0);
  const { flags, virtualSize, uuid, parentUuid } = parseLsmtHeader(header);
  try {
    await syncFd(fd, true);
    const length = await writeIndex(map, fd, at);
    // A trailer says "sealed": it must not reach the disk before what it
    // points at, or power loss leaves neither an upper nor a layer.
    await syncFd(fd, true);
    const trailer = encodeLsmtBlock({
      flags: (flags & FLAG.sparse) !== 0 ? FLAGS.sparseTrailer : FLAGS.trailer,
      indexOffset: at,
      indexSize: records,
      virtualSize,
      uuid: uuidOr(uuid, NIL_UUID),
      parentUuid: uuidOr(parentUuid, NIL_UUID),
    });
    pwriteFd(fd, trailer, at + length);
    await syncFd(fd);
  } catch (error) {
    await unsealUpper(fd, before);
    throw error;
  }
}

/** Takes a seal off again: the data file has `before` bytes, on disk, too. */
export async function unsealUpper(fd: number, before: number): Promise<void> {
  truncateFd(fd, before);
  await syncFd(fd);
}

/**
 * Seals a writable layer in place.  On failure it is what it was.
 *
 * @returns what opening it left out
 */
export async function sealLayer(
  data: string,
  index: string,
): Promise<{ warnings: readonly string[] }> {
  using upper = await openUpper({ data, index, readonly: false });
  await sealUpper(upper);
  return { warnings: upper.warnings };
}
