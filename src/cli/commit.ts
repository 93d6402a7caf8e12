// SPDX-License-Identifier: Apache-2.0
/**
 * `commit`: a writable layer becomes a read-only one (spec/tools.md,
 * section 3).
 *
 * @module
 */
import type { SourcesOf } from "../image/disk.ts";
import { commitLayer, type CommitOptions, sealLayer } from "../layer/commit.ts";
import {
  algorithmName,
  blockSizeBytes,
  reportWritten,
  threadCount,
} from "./compression.ts";
import { EXIT, ExitError } from "./exit.ts";
import { failure, notBuilt, warnWithout } from "./original.ts";
import { newUpload, UploadError, uploadFirst, warnUpload } from "./upload.ts";
import type { Call } from "./program.ts";
import { showProgress } from "./progress.ts";
import { InterruptedError, interruptible } from "./signals.ts";
import type { Args } from "./table.ts";

type CommitArgs = Args<"commit">;

const MAX_MESSAGE = 256;

/** Options that only count in some company, and stand alone here. */
function warnIneffective(args: CommitArgs): void {
  const given = (name: string, value: unknown) =>
    value === undefined || value === false ? [] : [name];
  const compression = [
    ...given("-t", args.tar),
    ...given("--bs", args.blockSize),
    ...given("--algorithm", args.algorithm),
    ...given("--compress_threads", args.threads),
  ];
  if (args.seal) {
    warnWithout([
      ...given("-z", args.compress),
      ...compression,
      ...given("-f", args.force),
      ...given("-m", args.message),
      ...given("--uuid", args.uuid),
      ...given("--parent-uuid", args.parent),
      ...given("--commit_sealed", args.commitSealed),
      ...given("--fill", args.fill),
      ...given("commit_file", args.commit_file),
    ], "with '--seal'");
  } else if (!args.compress) {
    const upload = given("--upload", args.upload);
    warnWithout([...compression, ...upload], "without '-z'");
  }
  warnUpload(args);
}

/** Where the output goes, and from which index. */
function paths(args: CommitArgs): { index?: string; output: string } {
  if (args.commitSealed) {
    if (args.index_file === undefined) {
      throw new ExitError(
        EXIT.failure,
        "commit_file is required: with --commit_sealed it is the second argument",
      );
    }
    if (args.commit_file !== undefined) {
      throw new ExitError(
        EXIT.failure,
        `with --commit_sealed the second argument is the output: ` +
          `'${args.commit_file}' is one too many`,
      );
    }
    return { output: args.index_file };
  }
  if (args.index_file === undefined || args.commit_file === undefined) {
    const missing = args.index_file === undefined
      ? "index_file"
      : "commit_file";
    throw new ExitError(EXIT.failure, `${missing} is required`);
  }
  return { index: args.index_file, output: args.commit_file };
}

function userTag(args: CommitArgs): Uint8Array {
  const bytes = new TextEncoder().encode(args.message ?? "");
  if (bytes.length > MAX_MESSAGE) {
    const ENOBUFS = 105;
    throw new ExitError(
      EXIT.failure,
      `failed to perform commit(), ${ENOBUFS}: No buffer space available: ` +
        `the message has ${bytes.length} bytes, at most ${MAX_MESSAGE} fit`,
    );
  }
  return bytes;
}

function commitOptions(args: CommitArgs, call: Call): CommitOptions {
  const algorithm = algorithmName(args.algorithm);
  if (algorithm === undefined) {
    throw new ExitError(EXIT.failure, "invalid '--algorithm' parameters.");
  }
  const blockSize = blockSizeBytes(
    args.blockSize,
    "invalid '--bs' parameters.",
  );
  return {
    data: args.data_file,
    ...paths(args),
    sealed: args.commitSealed,
    userTag: userTag(args),
    uuid: args.uuid,
    parentUuid: args.parent,
    replace: args.force,
    zfile: args.compress ? { algorithm, blockSize } : undefined,
    tar: args.tar,
    threads: threadCount(args.threads, call),
  };
}

/**
 * The layers of a config below its upper, for `--fill`; remote ones are
 * fetched when it is clear that their data is needed.
 */
async function openFill(
  path: string,
  sourcesOf: SourcesOf,
  parts: DisposableStack,
): Promise<NonNullable<CommitOptions["fill"]>> {
  const { readImageConfig } = await import("../image/config.ts");
  const { openStack } = await import("../image/image.ts");
  const { makeWhole } = await import("./whole.ts");
  const config = { ...await readImageConfig(path), upper: undefined };
  const sources = await sourcesOf(config);
  const stack = await openStack(config, { readonly: true, sources });
  const unused = parts.use(new DisposableStack());
  unused.use(stack);
  return async () => {
    unused.move();
    return parts.use(await makeWhole(config, stack, sources)).stack.lowers;
  };
}

/** Runs `work` with the layers that `--fill` names. */
async function withFill<T>(
  args: CommitArgs,
  work: (fill: CommitOptions["fill"]) => Promise<T>,
): Promise<T> {
  const { fill } = args;
  if (fill === undefined) return await work(undefined);
  const { withSources } = await import("./sources.ts");
  return await withSources(args.serviceConfig, async (sourcesOf) => {
    using parts = new DisposableStack();
    return await work(await openFill(fill, sourcesOf, parts));
  });
}

async function seal(args: CommitArgs, call: Call): Promise<number> {
  const { index_file: index } = args;
  if (index === undefined) {
    throw new ExitError(EXIT.failure, "index_file is required with --seal");
  }
  try {
    const { warnings } = await sealLayer(args.data_file, index);
    for (const warning of warnings) console.error(`WARNING ${warning}`);
  } catch (error) {
    throw failure(call, error, "perform seal", [args.data_file, index]);
  }
  return EXIT.ok;
}

async function commit(args: CommitArgs, call: Call): Promise<number> {
  const options = commitOptions(args, call);
  const startedAt = performance.now();
  try {
    using bar = showProgress("commit");
    using upload = args.compress
      ? await newUpload(args, args.serviceConfig)
      : undefined;
    const written = await withFill(
      args,
      (fill) =>
        interruptible((signal) =>
          commitLayer({
            ...options,
            ...fill === undefined ? {} : { fill },
            ...uploadFirst(upload, bar, signal),
            signal,
            onProgress: bar.onProgress,
          })
        ),
    );
    bar[Symbol.dispose]();
    upload?.print(call);
    for (const warning of written.warnings) {
      console.error(`WARNING ${warning}`);
    }
    reportWritten(options.output, written, startedAt, call, args.verbose);
  } catch (error) {
    if (error instanceof InterruptedError) throw error;
    if (error instanceof UploadError) {
      throw error.asExit(call, "failed to commit or upload");
    }
    throw failure(call, error, "perform commit()", [
      options.output,
      options.data,
      ...options.index === undefined ? [] : [options.index],
    ]);
  }
  console.log("overlaybd-commit has committed files SUCCESSFULLY");
  return EXIT.ok;
}

/** Runs `overlaybd-commit data_file [index_file] [commit_file]`. */
export async function run(args: CommitArgs, call: Call): Promise<number> {
  if (args.tar && args.upload !== undefined) {
    throw new ExitError(
      EXIT.failure,
      "unsupport option with '-t' and '--upload' at the same time.",
    );
  }
  if (args.turboOci) throw notBuilt(call, "--turboOCI");
  warnIneffective(args);
  return args.seal ? await seal(args, call) : await commit(args, call);
}
