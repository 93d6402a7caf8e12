// SPDX-License-Identifier: Apache-2.0
/**
 * Whole files to ZFile and back (spec/zfile.md, section 6).
 *
 * @module
 */
import { closeFd, O, openFd } from "../../ffi/files.ts";
import {
  compress,
  extract,
  type JobOptions,
  verify,
} from "../../ffi/pipelines.ts";
import { FormatError } from "../format/error.ts";
import { fileInfo } from "./files.ts";
import { unwrapFile } from "./open.ts";
import { createOutput } from "./output.ts";
import {
  engineOutput,
  withSmallerBlocks,
  wrapTar,
  type WriteOptions,
  type Written,
  type ZfileOptions,
  zfileParams,
} from "./write.ts";

/** What to compress. */
export interface CompressOptions extends Omit<WriteOptions, "zfile"> {
  /** a path, or undefined for standard input */
  input: string | undefined;
  zfile: ZfileOptions;
}

/** True for what can be read from its beginning again. */
function canReadAgain(input: string | undefined): boolean {
  return input !== undefined && fileInfo(input)?.isFile === true;
}

/**
 * Compresses a file, pipe or standard input.
 *
 * @throws {LayerError | EngineError} nothing was left behind
 */
export async function compressFile(options: CompressOptions): Promise<Written> {
  const { input, zfile, threads = 1, tar = false } = options;
  const open = () => input === undefined ? 0 : openFd(input, O.RDONLY);
  let fd = open();
  const output = (() => {
    try {
      return createOutput(options.output, {
        replace: options.replace ?? false,
      });
    } catch (error) {
      if (input !== undefined) closeFd(fd);
      throw error;
    }
  })();
  try {
    const to = engineOutput(output, tar);
    const again = canReadAgain(input);
    let runs = 0;
    const { result, blockSize } = await withSmallerBlocks(
      zfile.blockSize,
      output,
      again,
      (size) => {
        if (runs++ > 0) {
          closeFd(fd);
          fd = open();
        }
        return compress(
          fd,
          zfileParams(zfile, size, threads, false),
          to,
          options,
        );
      },
    );
    const size = tar ? wrapTar(output, result.size) : result.size;
    await output.publish();
    return { size, originalSize: result.input, zfile: result, blockSize };
  } finally {
    output.abort();
    if (input !== undefined) closeFd(fd);
  }
}

/** Where to extract to. */
export interface ExtractOptions extends JobOptions {
  input: string;
  output: string;
  replace?: boolean;
  /** @default 1 */
  threads?: number;
}

/** The input is no ZFile, tar-wrapped or not. */
export class NotZfileError extends FormatError {}

/**
 * Decompresses a ZFile, out of its tar wrapper where it has one.
 *
 * @throws {NotZfileError} the input is none
 * @throws {FormatError | EngineError} nothing was left behind
 */
export async function extractFile(options: ExtractOptions): Promise<void> {
  const file = await unwrapFile(options.input);
  try {
    if (file.zfile === undefined) {
      throw new NotZfileError(`${options.input} is no ZFile`);
    }
    const output = createOutput(options.output, {
      replace: options.replace ?? false,
      mode: 0o700,
    });
    try {
      await extract(
        file.source,
        { fd: output.fd, stream: output.stream },
        options.threads ?? 1,
        options,
      );
      await output.publish();
    } finally {
      output.abort();
    }
  } finally {
    file.close();
  }
}

/** What verifying found. */
export interface VerifyResult {
  /** every block is followed by a crc */
  checksums: boolean;
  blocks: number;
  /** how many blocks are bad */
  bad: number;
  /** numbers of the first bad ones */
  first: readonly number[];
}

/**
 * Decodes every block of a ZFile and compares every checksum.
 *
 * @throws {NotZfileError} the input is none
 * @throws {FormatError | EngineError} header, trailer or jump table are bad
 */
export async function verifyFile(
  path: string,
  options: JobOptions & { threads?: number } = {},
): Promise<VerifyResult> {
  const file = await unwrapFile(path);
  try {
    if (file.zfile === undefined) {
      throw new NotZfileError(`${path} is no ZFile`);
    }
    const { bad, first } = await verify(
      file.source,
      options.threads ?? 1,
      options,
    );
    const { final } = file.zfile;
    return {
      checksums: final.verify === 1,
      blocks: Number(final.indexSize),
      bad,
      first,
    };
  } finally {
    file.close();
  }
}
