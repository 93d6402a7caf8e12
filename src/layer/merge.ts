// SPDX-License-Identifier: Apache-2.0
/**
 * Flattens a stack into one layer (spec/lsmt.md, section 10).
 *
 * @module
 */
import type { Index, Source } from "../../ffi/handle.ts";
import {
  indexCount,
  indexRecords,
  mergeIndexes,
  newIndex,
  RECORD_SIZE,
} from "../../ffi/index.ts";
import { isUuid, NIL_UUID, normalizeUuid } from "../format/uuid.ts";
import {
  needsFolding,
  writeLayer,
  type WriteOptions,
  type Written,
} from "./write.ts";

/** One layer of the stack. */
export interface MergeLayer {
  index: Index;
  source: Source;
}

/** What to flatten. */
export interface MergeOptions extends WriteOptions {
  /** read-only layers, topmost first */
  layers: readonly MergeLayer[];
  /** a writable layer above them */
  upper?: MergeLayer | undefined;
  /** bytes: the stack's */
  virtualSize: bigint;
  /** of the upper's header if there is one, else the bottom layer's */
  parentUuid: string;
}

/** Offset of the tag in a record: the top byte of its second word. */
const TAG_AT = 15;

/**
 * The original numbers read-only layers 0 (topmost) to n - 1 and a writable
 * one above them n: the same records with the first source moved last.
 */
function moveFirstLast(index: Index, sources: number): Index {
  const records = indexRecords(index, 0, indexCount(index));
  for (let at = TAG_AT; at < records.length; at += RECORD_SIZE) {
    records[at] = ((records[at] ?? 0) + sources - 1) % sources;
  }
  return newIndex(records);
}

/** The merged map and the sources that its tags name. */
function mergeStack(
  layers: readonly MergeLayer[],
  upper: MergeLayer | undefined,
): { index: Index; sources: Source[] } {
  const sources = layers.map((layer) => layer.source);
  if (upper === undefined) {
    return { index: mergeIndexes(layers.map((it) => it.index)), sources };
  }
  using merged = mergeIndexes([upper, ...layers].map((it) => it.index));
  const all = [...sources, upper.source];
  return { index: moveFirstLast(merged, all.length), sources: all };
}

/**
 * Writes one layer that reads as the whole stack.  Records keep the level
 * they came from, as the original's do, unless that makes them too many.
 *
 * @throws {LayerError | EngineError} nothing was left behind
 */
export async function mergeLayers(options: MergeOptions): Promise<Written> {
  const { parentUuid } = options;
  const { index, sources } = mergeStack(options.layers, options.upper);
  using _ = index;
  return await writeLayer({
    index,
    sources,
    foldLevels: needsFolding(index, sources),
    fields: {
      virtualSize: options.virtualSize,
      uuid: NIL_UUID,
      parentUuid: isUuid(parentUuid) ? normalizeUuid(parentUuid) : NIL_UUID,
    },
    tooMany: "the image is too fragmented for one layer",
  }, { ...options, rewriteHeader: false });
}
