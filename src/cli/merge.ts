// SPDX-License-Identifier: Apache-2.0
/**
 * `merge`: an image becomes one layer (spec/tools.md, section 5).
 *
 * @module
 */
import { snapshotUpper, upperSource } from "../../ffi/upper.ts";
import { readImageConfig } from "../image/config.ts";
import type { SourcesOf } from "../image/disk.ts";
import type { OpenStack } from "../image/image.ts";
import { type MergeLayer, mergeLayers } from "../layer/merge.ts";
import { readServiceConfig } from "../service/config.ts";
import { withResultFile } from "../service/result.ts";
import { reportWritten, threadCount } from "./compression.ts";
import { EXIT, ExitError, reason } from "./exit.ts";
import { warnWithout } from "./original.ts";
import { newUpload, UploadError, uploadFirst, warnUpload } from "./upload.ts";
import type { Call } from "./program.ts";
import { showProgress } from "./progress.ts";
import { InterruptedError, interruptible } from "./signals.ts";
import { withSources } from "./sources.ts";
import { openWhole } from "./whole.ts";
import type { Args } from "./table.ts";

type MergeArgs = Args<"merge">;

const BLOCK_SIZE = 4096;

/** `what` in the original's words, and why. */
function mergeFailure(call: Call, what: string, error?: unknown): ExitError {
  const why = error === undefined ? "output is required" : reason(error);
  return new ExitError(
    EXIT.failure,
    call.original ? `${what}: ${why}` : `${call.program}: ${why}`,
  );
}

/** The writable layer as it is now; let go with `resources`. */
function upperOf(
  stack: OpenStack,
  resources: DisposableStack,
): MergeLayer | undefined {
  if (stack.upper === undefined) return undefined;
  return {
    index: resources.use(snapshotUpper(stack.upper.upper)),
    source: resources.use(upperSource(stack.upper.upper)),
  };
}

async function merge(
  args: MergeArgs & { output: string },
  stack: OpenStack,
  call: Call,
): Promise<void> {
  const startedAt = performance.now();
  using resources = new DisposableStack();
  const bar = resources.use(showProgress("merge"));
  using upload = args.compress
    ? await newUpload(args, args.serviceConfig)
    : undefined;
  const parent = stack.upper?.header ?? stack.lowers[0]?.header;
  const written = await interruptible((signal) =>
    mergeLayers({
      layers: stack.lowers.toReversed(),
      upper: upperOf(stack, resources),
      virtualSize: stack.virtualSize,
      parentUuid: parent?.parentUuid ?? "",
      output: args.output,
      replace: true,
      zfile: args.compress
        ? { algorithm: "lz4", blockSize: BLOCK_SIZE }
        : undefined,
      threads: threadCount(args.threads, call),
      ...uploadFirst(upload, bar, signal),
      signal,
      onProgress: bar.onProgress,
    })
  );
  bar[Symbol.dispose]();
  upload?.print(call);
  reportWritten(args.output, written, startedAt, call, args.verbose);
}

function warnIneffective(args: MergeArgs): void {
  warnUpload(args);
  if (args.upload !== undefined && !args.compress) {
    warnWithout(["--upload"], "with '--compress=false'");
  }
  if (args.tar) warnWithout(["-t"], "by merge");
}

async function openAndMerge(
  args: MergeArgs & { output: string },
  sourcesOf: SourcesOf,
  call: Call,
): Promise<void> {
  const open = async () => {
    const config = await readImageConfig(args.image_config_path);
    return await withResultFile(
      config.resultFile,
      () => openWhole(config, sourcesOf),
    );
  };
  using whole = await open().catch((error) => {
    if (error instanceof InterruptedError) throw error;
    throw mergeFailure(call, "failed to create image file", error);
  });
  const { stack } = whole;
  for (const warning of stack.warnings) console.error(`WARNING ${warning}`);
  try {
    await merge(args, stack, call);
  } catch (error) {
    if (error instanceof InterruptedError) throw error;
    if (error instanceof UploadError) {
      throw error.asExit(call, "failed to upload");
    }
    const atOutput = reason(error).startsWith(
      `cannot create ${args.output}: `,
    );
    throw mergeFailure(
      call,
      atOutput ? "failed to create output file" : "failed to compact",
      error,
    );
  }
}

/** Runs `overlaybd-merge image_config_path output`. */
export async function run(args: MergeArgs, call: Call): Promise<number> {
  warnIneffective(args);
  const { output } = args;
  if (output === undefined) {
    throw mergeFailure(call, "failed to create output file");
  }
  const settings = await readServiceConfig(args.serviceConfig)
    .catch((error) => {
      throw mergeFailure(call, "failed to create image file", error);
    });
  await withSources(
    settings,
    (sourcesOf) => openAndMerge({ ...args, output }, sourcesOf, call),
  );
  return EXIT.ok;
}
