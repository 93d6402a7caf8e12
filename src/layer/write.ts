// SPDX-License-Identifier: Apache-2.0
/**
 * Writes a compacted layer or a ZFile to an output, tar-wrapped if asked.
 *
 * @module
 */
import { pwriteFd } from "../../ffi/files.ts";
import type { Index, Source } from "../../ffi/handle.ts";
import {
  type JobOptions,
  newPlan,
  type Output,
  writePlan,
  type ZfileParams,
  type ZfileResult,
} from "../../ffi/pipelines.ts";
import { ALGO } from "../../ffi/sources.ts";
import { EngineError } from "../../ffi/errors.ts";
import {
  encodeLsmtBlock,
  FLAGS,
  MAX_RECORDS,
  type NewLsmtBlock,
} from "../format/lsmt.ts";
import { TAR_HEAD, tarHead, tarTail } from "../format/tar.ts";
import { createOutput, type OutputFile } from "./output.ts";

/** A layer or ZFile cannot be made; the message says why and what to do. */
export class LayerError extends Error {
  override readonly name = "LayerError";
}

/** How a ZFile is asked for. */
export interface ZfileOptions {
  algorithm: keyof typeof ALGO;
  /** bytes: 4, 8, 16, 32 or 64 KiB */
  blockSize: number;
}

/** Where and how to write. */
export interface WriteOptions extends JobOptions {
  output: string;
  replace?: boolean;
  /** undefined: not compressed */
  zfile?: ZfileOptions | undefined;
  /** tar wrapper around a ZFile */
  tar?: boolean;
  /** @default 1 */
  threads?: number;
  /** Uses the finished file before it has its name; not for a pipe. */
  beforePublish?: (fd: number, size: number) => Promise<void>;
}

/** What was written. */
export interface Written {
  /** bytes of the output */
  size: number;
  /** bytes of the layer or file inside, not compressed */
  originalSize: number;
  zfile: ZfileResult | undefined;
  /** asked for 64 KiB, written with 32: see {@linkcode withSmallerBlocks} */
  blockSize: number | undefined;
}

const E2BIG = 7;

/**
 * Runs a compression; when 64 KiB blocks grow past what the original can
 * read back, again with 32 KiB (spec/defects.md, 3).
 */
export async function withSmallerBlocks<T>(
  blockSize: number,
  output: OutputFile,
  again: boolean,
  run: (blockSize: number) => Promise<T>,
): Promise<{ result: T; blockSize: number }> {
  try {
    return { result: await run(blockSize), blockSize };
  } catch (error) {
    if (!(error instanceof EngineError) || error.errno !== E2BIG) throw error;
    if (!again || output.stream) {
      throw new LayerError(
        "cannot compress in blocks of 64 KiB: one grew past 65536 bytes, " +
          "which the original cannot read, and the input cannot be read " +
          "twice: use --bs 32",
        { cause: error },
      );
    }
    output.restart();
    return { result: await run(32768), blockSize: 32768 };
  }
}

/** ZFile parameters for the engine. */
export function zfileParams(
  options: ZfileOptions,
  blockSize: number,
  threads: number,
  rewriteHeader: boolean,
): ZfileParams {
  return {
    algo: ALGO[options.algorithm],
    blockSize,
    verify: true,
    rewriteHeader,
    threads,
  };
}

/** The engine's view of an output, behind the tar header if there is one. */
export function engineOutput(output: OutputFile, tar: boolean): Output {
  if (tar && output.stream) {
    throw new LayerError(
      "cannot write a tar wrapper to a pipe or device: its header comes last",
    );
  }
  return { fd: output.fd, at: tar ? TAR_HEAD : 0, stream: output.stream };
}

/** Puts the tar header before, and the end blocks behind, a payload. */
export function wrapTar(output: OutputFile, payload: number): number {
  const tail = tarTail(payload);
  pwriteFd(output.fd, tail, TAR_HEAD + payload);
  pwriteFd(output.fd, tarHead(payload, output.mode), 0);
  return TAR_HEAD + payload + tail.length;
}

/** The fields of a compacted layer's header and trailer. */
export type LayerFields = Pick<
  NewLsmtBlock,
  "virtualSize" | "uuid" | "parentUuid" | "userTag"
>;

/** What a compacted layer is made of. */
export interface LayerInput {
  /** tag = position in `sources` */
  index: Index;
  sources: readonly Source[];
  fields: LayerFields;
  /** fold across sources, tag 0 everywhere */
  foldLevels?: boolean;
  /** what to do about too many records, for the message */
  tooMany: string;
}

/** True when the records, unfolded across sources, are too many to read. */
export function needsFolding(
  index: Index,
  sources: readonly Source[],
): boolean {
  const { plan, info } = newPlan(index, sources);
  plan.close();
  return info.paddedRecords > MAX_RECORDS;
}

async function writeTo(
  output: OutputFile,
  input: LayerInput,
  options: WriteOptions & { rewriteHeader: boolean },
): Promise<Written> {
  const { zfile, threads = 1 } = options;
  const tar = options.tar === true && zfile !== undefined;
  const { plan, info } = newPlan(input.index, input.sources, {
    foldLevels: input.foldLevels ?? false,
  });
  using _ = plan;
  if (info.paddedRecords > MAX_RECORDS) {
    throw new LayerError(
      `cannot write ${options.output}: its index would have ` +
        `${info.paddedRecords} records, and no reader takes more than ` +
        `${MAX_RECORDS}: ${input.tooMany}`,
    );
  }
  const blocks = {
    header: encodeLsmtBlock({ ...input.fields, flags: FLAGS.committedHeader }),
    trailer: encodeLsmtBlock({
      ...input.fields,
      flags: FLAGS.trailer,
      indexOffset: info.indexOffset,
      indexSize: info.paddedRecords,
    }),
  };
  const to = engineOutput(output, tar);
  const run = (blockSize: number) =>
    writePlan(plan, blocks, to, {
      signal: options.signal,
      onProgress: options.onProgress,
      threads,
      zfile: zfile === undefined ? undefined : zfileParams(
        zfile,
        blockSize,
        threads,
        options.rewriteHeader && !output.stream,
      ),
    });
  const wanted = zfile?.blockSize ?? 0;
  const { result, blockSize } = await withSmallerBlocks(
    wanted,
    output,
    true,
    run,
  );
  const payload = result?.size ?? info.size;
  return {
    size: tar ? wrapTar(output, payload) : payload,
    originalSize: info.size,
    zfile: result,
    blockSize: zfile === undefined ? undefined : blockSize,
  };
}

/**
 * Writes a compacted layer (spec/lsmt.md, section 4), durable and whole or
 * not at all.
 *
 * @param options `rewriteHeader`: the ZFile header carries the final values,
 *   as `commit` does and `merge` does not
 * @throws {LayerError | EngineError} nothing was left behind
 */
export async function writeLayer(
  input: LayerInput,
  options: WriteOptions & { rewriteHeader: boolean },
): Promise<Written> {
  const output = createOutput(options.output, {
    replace: options.replace ?? false,
  });
  try {
    if (options.beforePublish !== undefined && output.stream) {
      throw new LayerError(
        `cannot upload what is written to ${options.output}: ` +
          "it is a pipe or a device",
      );
    }
    const written = await writeTo(output, input, options);
    await options.beforePublish?.(output.fd, written.size);
    await output.publish();
    return written;
  } finally {
    output.abort();
  }
}
