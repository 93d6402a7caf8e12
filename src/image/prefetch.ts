// SPDX-License-Identifier: Apache-2.0
/**
 * Fetching what a container's start will read, before it does: from a trace
 * or from a list of files (spec/image.md, section 5).
 *
 * @module
 */
import { crc32c } from "../../ffi/engine.ts";
import { isTrace, parseTrace } from "../format/trace.ts";
import { fileInfo, readWhole } from "../layer/files.ts";
import type { ImageConfig } from "./config.ts";
import { findListed, MAX_LIST, parseFileList } from "./file_list.ts";
import type { OpenStack } from "./image.ts";
import { type ImageLog, reasonOf } from "./log.ts";
import { openLowersDisk, unlessAborted } from "./lowers_disk.ts";
import { type Fetch, type LayerRange, planFetches } from "./plan.ts";

/** What is done with a trace. */
export type PrefetchMode =
  | { kind: "none" }
  | { kind: "record" | "replay"; path: string };

/** A trace that is longer is not replayed: 2.8 million records. */
const MAX_TRACE = 64 << 20;

/** Size of a regular file; undefined: there is none. */
function sizeOf(path: string): number | undefined {
  try {
    const info = fileInfo(path);
    return info?.isFile === true ? info.size : undefined;
  } catch {
    return undefined;
  }
}

/** What an image's configuration asks for; it has one kind of trace only. */
export function choosePrefetch(config: ImageConfig): PrefetchMode {
  const { lowers, recordTracePath: path } = config;
  const carrier = config.accelerationLayer ? lowers.at(-1) : undefined;
  if (carrier !== undefined) {
    const trace = `${carrier.dir}/trace`;
    const there = carrier.dir !== "" && (sizeOf(trace) ?? 0) > 0;
    return there ? { kind: "replay", path: trace } : { kind: "none" };
  }
  const size = path === "" ? undefined : sizeOf(path);
  if (size === undefined) return { kind: "none" };
  return { kind: size === 0 ? "record" : "replay", path };
}

/** A replay that goes on. */
export interface Replay {
  /** resolves when it has ended, whatever way; never rejects */
  readonly ended: Promise<void>;
  /** Ends it at once. */
  close(): Promise<void>;
}

/** What a replay needs. */
export interface ReplayOptions {
  stack: OpenStack;
  /** trace or list */
  path: string;
  /** fetches at once, at least 1 */
  concurrency: number;
  log: ImageLog;
}

/** Fetches in order, `concurrency` at a time. */
async function fetchAll(
  fetches: readonly Fetch[],
  { stack, concurrency, log }: ReplayOptions,
  signal: AbortSignal,
): Promise<void> {
  let next = 0;
  let failed = 0;
  const worker = async () => {
    while (!signal.aborted) {
      const fetch = fetches[next++];
      if (fetch === undefined) return;
      const { layer, blob, at, length } = fetch;
      // A layer that is local by now needs nothing.
      if (stack.lowers[layer]?.remote?.blob !== blob) continue;
      try {
        await unlessAborted(blob.prefetch(at, length), signal);
      } catch (error) {
        if (signal.aborted) return;
        if (failed++ === 0) log.warn(`Prefetch: ${reasonOf(error)}`);
      }
    }
  };
  await Promise.all(Array.from({ length: concurrency }, worker));
  if (failed > 1) log.warn(`Prefetch: ${failed} fetches failed`);
}

/** Files of a list as ranges of layers. */
async function listedRanges(
  file: Uint8Array,
  { stack, path, log }: ReplayOptions,
  signal: AbortSignal,
): Promise<LayerRange[]> {
  const paths = parseFileList(file);
  const disk = openLowersDisk(stack.lowers, stack.virtualSize, signal);
  try {
    const { ranges, files, missing } = await findListed(disk, paths, signal);
    log.info(`Prefetch: ${path} lists ${files} files`);
    if (missing.length > 0) {
      log.warn(
        `Prefetch: ${missing.length} paths of ${path} name no file, ` +
          `the first is ${missing[0]}`,
      );
    }
    return ranges;
  } finally {
    await disk.close();
  }
}

async function replay(
  options: ReplayOptions,
  signal: AbortSignal,
): Promise<void> {
  const { stack, path, concurrency, log } = options;
  const began = performance.now();
  const size = sizeOf(path) ?? 0;
  if (size > MAX_TRACE) {
    log.error(`Prefetch: ${path} has ${size} bytes, more than ${MAX_TRACE}`);
    return;
  }
  const file = await readWhole(path);
  let ranges: LayerRange[];
  if (isTrace(file)) {
    ranges = parseTrace(file, crc32c).filter(({ op }) => op === "read");
  } else if (file.length > MAX_LIST) {
    log.error(
      `Prefetch: ${path} is no trace, and as a list of files it is longer ` +
        `than ${MAX_LIST} bytes`,
    );
    return;
  } else ranges = await listedRanges(file, options, signal);
  log.info(
    `Prefetch: Replay ${ranges.length} records from ${stack.lowers.length} ` +
      `layers, concurrency ${concurrency}`,
  );
  const fetches = await planFetches(stack.lowers, ranges, signal);
  await fetchAll(fetches, options, signal);
  if (signal.aborted) return;
  log.info(
    `Prefetch: Replay ${ranges.length} records done, time cost ${
      Math.round(performance.now() - began)
    } ms`,
  );
}

/** Starts to fetch what a trace or a list names. */
export function startReplay(options: ReplayOptions): Replay {
  const stop = new AbortController();
  const ended = replay(options, stop.signal).catch((error) => {
    if (stop.signal.aborted) return;
    options.log.error(
      `Prefetch: cannot replay ${options.path}: ${reasonOf(error)}`,
    );
  });
  return {
    ended,
    close() {
      stop.abort();
      return ended;
    },
  };
}
