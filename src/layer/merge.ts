// SPDX-License-Identifier: Apache-2.0
/**
 * Flattens a stack into one layer (spec/lsmt.md, section 10).
 *
 * @module
 */
import { type Index, mergeIndexes, type Source } from "../../ffi/engine.ts";
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
  /** topmost first */
  layers: readonly MergeLayer[];
  /** bytes: the stack's */
  virtualSize: bigint;
  /** of the upper's header if there is one, else the bottom layer's */
  parentUuid: string;
}

/**
 * Writes one layer that reads as the whole stack.  Records keep the level
 * they came from, as the original's do, unless that makes them too many.
 *
 * @throws {LayerError | EngineError} nothing was left behind
 */
export async function mergeLayers(options: MergeOptions): Promise<Written> {
  const { layers, parentUuid } = options;
  using index = mergeIndexes(layers.map((layer) => layer.index));
  const sources = layers.map((layer) => layer.source);
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
