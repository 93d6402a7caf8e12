// SPDX-License-Identifier: Apache-2.0
/**
 * Fetching what a container's start will read, before it does: from a trace
 * or from a list of files (spec/image.md, section 5).
 *
 * @module
 */
import { crc32c } from "../../ffi/crc32c.ts";
import { isTrace, parseTrace } from "../format/trace.ts";
import { fileInfo, readWhole } from "../layer/files.ts";
import type { CachedBlob } from "../source/cache/blob.ts";
import { findListed, MAX_LIST, parseFileList } from "./file_list.ts";
import type { OpenStack } from "./image.ts";
import { type ImageLog, reasonOf } from "./log.ts";
import { openLowersDisk, unlessAborted } from "./lowers_disk.ts";
import { type Fetch, type LayerRange, planFetches } from "./plan.ts";

/**
 * Of the requests that a blob may have at once the rest is for what somebody
 * waits for: a miss must not stand behind what may never be read.
 */
const MAX_OF_BLOB = 12;

/** A trace that is longer is not replayed: 2.8 million records. */
const MAX_TRACE = 64 << 20;

/** How far a replay is. */
export interface ReplayProgress {
  /** trace or list */
  path: string;
  /** fetches that it comes to; undefined: not known yet */
  fetches: number | undefined;
  done: number;
  failed: number;
  state: "running" | "done" | "failed";
}

/** A replay that goes on. */
export interface Replay {
  readonly progress: Readonly<ReplayProgress>;
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

/** Takes fetches in order, but so many of one blob at once at most. */
function createQueue(fetches: readonly Fetch[]): {
  /** undefined: none may begin now */
  take(): Fetch | undefined;
  done(fetch: Fetch): void;
} {
  const lines = new Map<CachedBlob, { left: number[]; running: number }>();
  // Backwards, so that the next is at the end.
  for (let i = fetches.length; i-- > 0;) {
    const fetch = fetches[i];
    if (fetch === undefined) continue;
    const line = lines.get(fetch.blob) ?? { left: [], running: 0 };
    lines.set(fetch.blob, line);
    line.left.push(i);
  }
  return {
    take() {
      let first: { left: number[]; running: number } | undefined;
      for (const line of lines.values()) {
        const nr = line.left.at(-1);
        if (nr === undefined || line.running >= MAX_OF_BLOB) continue;
        if (nr < (first?.left.at(-1) ?? Infinity)) first = line;
      }
      const nr = first?.left.pop();
      if (first === undefined || nr === undefined) return undefined;
      first.running++;
      return fetches[nr];
    },
    done({ blob }) {
      const line = lines.get(blob);
      if (line !== undefined) line.running--;
    },
  };
}

/** Fetches in order, `concurrency` at a time. */
async function fetchAll(
  fetches: readonly Fetch[],
  { stack, concurrency, log }: ReplayOptions,
  progress: ReplayProgress,
  signal: AbortSignal,
): Promise<void> {
  const queue = createQueue(fetches);
  const running = new Set<Promise<void>>();
  const run = async (fetch: Fetch) => {
    const { layer, blob, at, length } = fetch;
    // A layer that is local by now needs nothing.
    const gone = () => stack.lowers[layer]?.remote?.blob !== blob;
    try {
      if (!gone()) await unlessAborted(blob.prefetch(at, length), signal);
      progress.done++;
    } catch (error) {
      if (signal.aborted) return;
      if (gone()) progress.done++;
      else if (progress.failed++ === 0) {
        log.warn(`Prefetch: ${reasonOf(error)}`);
      }
    } finally {
      queue.done(fetch);
    }
  };
  while (!signal.aborted) {
    const fetch = running.size < concurrency ? queue.take() : undefined;
    if (fetch !== undefined) {
      const work = run(fetch);
      running.add(work);
      work.finally(() => running.delete(work));
    } else if (running.size > 0) await Promise.race(running);
    else break;
  }
  const { failed } = progress;
  if (failed > 1) log.warn(`Prefetch: ${failed} fetches failed`);
}

/** Files of a list as ranges of layers. */
async function listedRanges(
  file: Uint8Array,
  { stack, path, log }: ReplayOptions,
  signal: AbortSignal,
): Promise<LayerRange[]> {
  const paths = parseFileList(file);
  const disk = openLowersDisk(stack, signal);
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
  progress: ReplayProgress,
  signal: AbortSignal,
): Promise<void> {
  const { stack, path, concurrency, log } = options;
  const began = performance.now();
  const size = fileInfo(path)?.size ?? 0;
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
  progress.fetches = fetches.length;
  await fetchAll(fetches, options, progress, signal);
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
  const progress: ReplayProgress = {
    path: options.path,
    fetches: undefined,
    done: 0,
    failed: 0,
    state: "running",
  };
  const ended = replay(options, progress, stop.signal).then(() => {
    progress.state = progress.fetches === undefined ? "failed" : "done";
  }, (error) => {
    progress.state = "failed";
    if (stop.signal.aborted) return;
    options.log.error(
      `Prefetch: cannot replay ${options.path}: ${reasonOf(error)}`,
    );
  });
  return {
    progress,
    ended,
    close() {
      stop.abort();
      return ended;
    },
  };
}
