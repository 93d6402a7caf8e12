// SPDX-License-Identifier: Apache-2.0
/**
 * Brings the remote layers of an open image into their directories, and
 * switches the running device to them (spec/image.md, section 6).
 *
 * @module
 */
import { unlinkPath } from "../../ffi/files.ts";
import { EngineError } from "../../ffi/errors.ts";
import { fileInfo } from "../layer/files.ts";
import { openLayer } from "../layer/open.ts";
import { DigestError } from "../source/cache/digest.ts";
import type { DownloadConfig } from "./config.ts";
import { fetchLayer, layerPaths } from "./fetch_layer.ts";
import type { OpenImage, OpenStack } from "./image.ts";
import type { OpenLower } from "./lowers.ts";
import { type ImageAudit, type ImageLog, reasonOf } from "./log.ts";
import { createPace, sleep } from "./pace.ts";
import type { ShownView } from "./view.ts";

/** How far one layer is. */
export interface LayerProgress {
  url: string;
  dir: string;
  /** of the whole layer */
  bytes: number;
  /** brought by this download; of a layer that is done, all */
  done: number;
  state: "waiting" | "running" | "done" | "failed";
}

/** A download that goes on. */
export interface Download {
  /** in the order in which layers are brought */
  readonly layers: readonly Readonly<LayerProgress>[];
  /** resolves when it has ended, whatever way; never rejects */
  readonly ended: Promise<void>;
  /** Ends it at once; what has come stays for the next time. */
  close(): Promise<void>;
}

/** What a download needs. */
export interface DownloadOptions {
  stack: OpenStack;
  view: ShownView;
  /** Runs what changes the layers, one after the other. */
  alone: OpenImage["alone"];
  /** of this image */
  settings: DownloadConfig;
  /** MiB/s over all images together; 0 or less: without limit */
  maxMBpsOfAll: number;
  log: ImageLog;
  audit?: ImageAudit | undefined;
}

const MIB = 1 << 20;
const MIN_BLOCK = 4096;
const MAX_BLOCK = 16 * MIB;
const MAX_REQUEST = 16 * MIB;
const RETRY_MIN_MS = 200;
const RETRY_MAX_MS = 30_000;
const DEFAULT_EXTRA_S = 30;

/** All downloads of the process. */
const everybody = createPace();
/** Who is at work in a directory. */
const busyDirs = new Map<string, Promise<void>>();

/** Runs work alone in a directory. */
async function aloneIn<T>(
  dir: string,
  signal: AbortSignal,
  work: () => Promise<T>,
): Promise<T> {
  for (;;) {
    const busy = busyDirs.get(dir);
    if (busy === undefined) break;
    await Promise.race([busy, sleep(1000, signal)]);
  }
  signal.throwIfAborted();
  const done = Promise.withResolvers<void>();
  busyDirs.set(dir, done.promise);
  try {
    return await work();
  } finally {
    busyDirs.delete(dir);
    done.resolve();
  }
}

/** A lower that can be brought into its directory. */
interface Candidate {
  layer: OpenLower;
  remote: NonNullable<OpenLower["remote"]>;
  progress: LayerProgress;
}

function progressOf(
  { url, dir, blob }: NonNullable<OpenLower["remote"]>,
): LayerProgress {
  return { url, dir, bytes: blob.size, done: 0, state: "waiting" };
}

/** Remote lowers with a directory, in the order in which they were opened. */
function candidatesOf(stack: OpenStack): Candidate[] {
  return stack.lowers
    .flatMap((layer) =>
      layer.remote === undefined || layer.remote.dir === "" ? [] : [{
        layer,
        remote: layer.remote,
        progress: progressOf(layer.remote),
      }]
    )
    .sort((a, b) => a.remote.nr - b.remote.nr);
}

function exists(path: string): boolean {
  try {
    return fileInfo(path) !== undefined;
  } catch {
    return false;
  }
}

/** Trying again would not help. */
function isHopeless(error: unknown): boolean {
  return error instanceof EngineError;
}

/**
 * Shows a layer's local file in place of its blob; nothing else changes the
 * layers meanwhile.
 */
async function switchLayer(
  { layer }: Candidate,
  path: string,
  { stack, view, log }: DownloadOptions,
  signal: AbortSignal,
): Promise<void> {
  const local = await openLayer(path, { engine: stack.engine });
  const position = stack.lowers.indexOf(layer);
  if (signal.aborted || position < 0) {
    local.close();
    return;
  }
  try {
    await view.show(stack.lowers.with(position, local), stack.virtualSize);
  } catch (error) {
    local.close();
    throw error;
  }
  stack.lowers[position] = local;
  view.retire(layer);
  log.info(`switch to localfile '${path}' success.`);
}

/** Brings one layer, in as many attempts as are allowed. */
async function bringLayer(
  candidate: Candidate,
  options: DownloadOptions,
  pace: (bytes: number) => Promise<void>,
  signal: AbortSignal,
): Promise<boolean> {
  const { settings, log, audit } = options;
  const { url, blob, dir, digest } = candidate.remote;
  const { temp, commit } = layerPaths(dir);
  const blockSize = Math.min(
    MAX_BLOCK,
    Math.max(MIN_BLOCK, settings.blockSize),
  );
  const perSecond = settings.maxMBps * MIB;
  const requestSize = Math.max(
    blockSize,
    perSecond <= 0 ? MAX_REQUEST : Math.min(MAX_REQUEST, perSecond),
  );
  let forced = false;
  for (let attempt = 1; attempt <= settings.tryCnt; attempt++) {
    if (exists(commit)) return true;
    candidate.progress.done = 0;
    try {
      await fetchLayer({
        ...{ url, blob, dir, digest, blockSize, requestSize, forced, pace },
        ...{ signal, log, audit },
      });
      return true;
    } catch (error) {
      signal.throwIfAborted();
      const wrong = error instanceof DigestError;
      log.warn(
        wrong ? error.message : `cannot download ${url}: ${reasonOf(error)}`,
      );
      forced ||= wrong;
      const last = attempt === settings.tryCnt || isHopeless(error);
      // Wrong bytes are no use to the next one, and a full disk is full.
      if (last && (wrong || isHopeless(error))) removeQuietly(temp);
      if (last) return false;
      const pause = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** attempt);
      await sleep(pause, signal);
    }
  }
  return false;
}

function removeQuietly(path: string): void {
  try {
    unlinkPath(path);
  } catch {
    // It may never have been made, or its directory is gone.
  }
}

async function work(
  candidates: readonly Candidate[],
  delayMs: number,
  options: DownloadOptions,
  signal: AbortSignal,
): Promise<void> {
  const { settings, log, maxMBpsOfAll } = options;
  const own = createPace();
  const pace = async (bytes: number) => {
    await own.take(bytes, settings.maxMBps * MIB, signal);
    await everybody.take(bytes, maxMBpsOfAll * MIB, signal);
  };
  await sleep(delayMs, signal);
  for (const candidate of candidates) {
    const { remote: { dir, digest, url }, progress } = candidate;
    if (!/^sha256:[0-9a-f]{64}$/.test(digest)) {
      log.warn(`${url} is not downloaded: its digest is no sha256`);
      progress.state = "failed";
      continue;
    }
    progress.state = "running";
    const paced = async (bytes: number) => {
      await pace(bytes);
      // What is asked for twice comes once.
      progress.done = Math.min(progress.done + bytes, progress.bytes);
    };
    const here = await aloneIn(
      dir,
      signal,
      () => bringLayer(candidate, options, paced, signal),
    );
    progress.state = here ? "done" : "failed";
    if (!here) continue;
    progress.done = progress.bytes;
    const { commit } = layerPaths(dir);
    try {
      await options.alone(() =>
        switchLayer(candidate, commit, options, signal)
      );
    } catch (error) {
      signal.throwIfAborted();
      log.error(`cannot switch to ${commit}: ${reasonOf(error)}`);
    }
  }
}

/** Starts to bring what is remote, after the delay that is configured. */
export function startDownload(options: DownloadOptions): Download | undefined {
  const { stack, settings, log } = options;
  const candidates = candidatesOf(stack);
  if (candidates.length === 0) {
    log.info("no need to download");
    return undefined;
  }
  const extra = settings.delayExtra <= 0
    ? DEFAULT_EXTRA_S
    : settings.delayExtra;
  const delay = Math.max(0, settings.delay) + Math.random() * extra;
  const { maxMBps, tryCnt, blockSize } = settings;
  log.info(
    `background download is enabled, delay ${Math.floor(delay)}, ` +
      `maxMBps ${maxMBps}, tryCnt ${tryCnt}, blockSize ${blockSize}`,
  );
  const stop = new AbortController();
  const run = async () => {
    log.info("BACKGROUND DOWNLOAD THREAD STARTED.");
    try {
      await work(candidates, delay * 1000, options, stop.signal);
    } catch (error) {
      if (!stop.signal.aborted) {
        log.error(`the background download ends: ${reasonOf(error)}`);
      }
    }
    log.info("BACKGROUND DOWNLOAD THREAD EXIT.");
  };
  const ended = run();
  return {
    ended,
    layers: candidates.map(({ progress }) => progress),
    close() {
      stop.abort();
      return ended;
    },
  };
}
