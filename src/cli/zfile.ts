// SPDX-License-Identifier: Apache-2.0
/**
 * `zfile`: compress, extract, verify (spec/tools.md, section 4).
 *
 * @module
 */
import {
  compressFile,
  extractFile,
  NotZfileError,
  verifyFile,
} from "../layer/zfile.ts";
import { FormatError } from "../format/error.ts";
import {
  algorithmName,
  blockSizeBytes,
  reportWritten,
  threadCount,
} from "./compression.ts";
import { errnoOf, EXIT, ExitError, reason } from "./exit.ts";
import { strerror, warnWithout } from "./original.ts";
import type { Call } from "./program.ts";
import { showProgress } from "./progress.ts";
import { InterruptedError, interruptible } from "./signals.ts";
import type { Args } from "./table.ts";

type ZfileArgs = Args<"zfile">;

const EIO = 5;

/** What ended a run, in the original's words; `what` is `"compress"`. */
function zfileFailure(
  call: Call,
  error: unknown,
  what: string,
  paths: readonly string[],
): ExitError {
  if (error instanceof ExitError) return error;
  const text = reason(error);
  if (!call.original) {
    return new ExitError(EXIT.failure, `${call.program}: ${text}`);
  }
  if (error instanceof NotZfileError) {
    return new ExitError(
      EXIT.failure,
      "format error! <source_file> should be a zfile.",
    );
  }
  const errno = errnoOf(error) ?? EIO;
  const path = paths.find((name) =>
    text.startsWith(`cannot open ${name}: `) ||
    text.startsWith(`cannot create ${name}: `)
  );
  return new ExitError(
    EXIT.failure,
    path === undefined
      ? `${what} failed, errno:${errno}: ${text}`
      : `failed to open file ${path}: ${strerror(errno)}`,
  );
}

async function compress(args: ZfileArgs, call: Call): Promise<number> {
  // One file name: standard input is compressed to it.
  const input = args.target_file === undefined ? undefined : args.source_file;
  const output = args.target_file ?? args.source_file;
  const algorithm = algorithmName(args.algorithm);
  if (algorithm === undefined) {
    console.error(
      `WARNING no algorithm is called '${args.algorithm}': lz4 is used`,
    );
  }
  const blockSize = blockSizeBytes(
    args.blockSize,
    "invalid '--bs' parameters.",
  );
  const startedAt = performance.now();
  console.log(`compress file ${input ?? "stdin"} as ${output}`);
  try {
    using bar = showProgress("compress");
    const written = await interruptible((signal) =>
      compressFile({
        input,
        output,
        replace: args.force,
        tar: args.tar,
        zfile: { algorithm: algorithm ?? "lz4", blockSize },
        threads: threadCount(args.threads, call),
        signal,
        onProgress: bar.onProgress,
      })
    );
    bar[Symbol.dispose]();
    reportWritten(output, written, startedAt, call, args.verbose);
  } catch (error) {
    throw zfileFailure(call, error, "compress", [
      output,
      ...input === undefined ? [] : [input],
    ]);
  }
  console.log("compress file done.");
  return EXIT.ok;
}

async function extract(args: ZfileArgs, call: Call): Promise<number> {
  const { source_file: input, target_file: output } = args;
  if (output === undefined) {
    throw new ExitError(
      EXIT.failure,
      "target_file is required with -x: standard input cannot be extracted",
    );
  }
  console.log(`decompress file ${input} as ${output}`);
  try {
    using bar = showProgress("extract");
    await interruptible((signal) =>
      extractFile({
        input,
        output,
        replace: args.force,
        threads: threadCount(args.threads, call),
        signal,
        onProgress: bar.onProgress,
      })
    );
  } catch (error) {
    throw zfileFailure(call, error, "decompress", [input, output]);
  }
  console.log("decompress file done.");
  return EXIT.ok;
}

/** Why a file is not valid, or undefined when it is. */
async function findFault(
  args: ZfileArgs,
  call: Call,
): Promise<string | undefined> {
  const { source_file: path } = args;
  using bar = showProgress("verify");
  try {
    const found = await interruptible((signal) =>
      verifyFile(path, {
        threads: threadCount(args.threads, call),
        signal,
        onProgress: bar.onProgress,
      })
    );
    if (found.bad > 0) {
      return `${found.bad} of ${found.blocks} blocks are bad, ` +
        `the first is ${found.first[0]}`;
    }
    return found.checksums ? undefined : "its blocks have no checksums";
  } catch (error) {
    if (error instanceof FormatError) return reason(error);
    throw error;
  }
}

async function verify(args: ZfileArgs, call: Call): Promise<number> {
  const { source_file: path } = args;
  let fault: string | undefined;
  try {
    fault = await findFault(args, call);
  } catch (error) {
    if (error instanceof InterruptedError) throw error;
    throw new ExitError(
      EXIT.failure,
      call.original
        ? `failed to open file ${path}: ${strerror(errnoOf(error) ?? EIO)}`
        : `${call.program}: ${reason(error)}`,
    );
  }
  if (fault === undefined) {
    console.log(`${path} is a valid zfile blob.`);
    return EXIT.ok;
  }
  console.log(
    `${path} is not a valid zfile blob or checksum can't be found.`,
  );
  throw new ExitError(EXIT.failure, fault);
}

/** Runs `overlaybd-zfile source_file [target_file]`. */
export async function run(args: ZfileArgs, call: Call): Promise<number> {
  const compression = [
    ...args.algorithm === undefined ? [] : ["--algorithm"],
    ...args.blockSize === undefined ? [] : ["--bs"],
  ];
  if (args.verify) {
    warnWithout([
      ...compression,
      ...args.extract ? ["-x"] : [],
      ...args.force ? ["-f"] : [],
      ...args.target_file === undefined ? [] : ["target_file"],
    ], "with '--verify'");
    return await verify(args, call);
  }
  if (!args.extract) return await compress(args, call);
  warnWithout(compression, "with '-x'");
  return await extract(args, call);
}
