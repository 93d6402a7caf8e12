// SPDX-License-Identifier: Apache-2.0
/**
 * What an open image does on its own: recording or replaying a trace, and
 * bringing its layers here (spec/image.md, sections 3, 5 and 6).  Each is
 * loaded only where it happens.
 *
 * @module
 */
import { fileInfo } from "../layer/files.ts";
import type { DownloadConfig, ImageConfig } from "./config.ts";
import type { Download } from "./download.ts";
import type { OpenImage, OpenStack } from "./image.ts";
import { type ImageAudit, type ImageLog, NO_LOG, reasonOf } from "./log.ts";
import type { Replay } from "./prefetch.ts";
import type { Recording } from "./record.ts";
import type { ShownView } from "./view.ts";

/** What a service wants of its images; a tool wants nothing. */
export interface BackgroundOptions {
  /** for images without `download` of their own; undefined: none at all */
  download?: DownloadConfig | undefined;
  /** fetches at once; 0: traces are not replayed; undefined: nor recorded */
  prefetchConcurrency?: number | undefined;
  log?: ImageLog | undefined;
  audit?: ImageAudit | undefined;
}

/** See the module's comment; what is undefined does not happen. */
export interface Background {
  readonly recording: Recording | undefined;
  readonly replay: Replay | undefined;
  readonly download: Download | undefined;
  /** Ends all of it. */
  close(): Promise<void>;
}

/** The image that it happens to. */
export interface BackgroundParts {
  config: ImageConfig;
  stack: OpenStack;
  view: ShownView;
  alone: OpenImage["alone"];
}

/** What is done with a trace. */
type PrefetchMode =
  | { kind: "none" }
  | { kind: "record" | "replay"; path: string };

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
function choosePrefetch(config: ImageConfig): PrefetchMode {
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

async function record(
  { view: { device } }: BackgroundParts,
  path: string,
  log: ImageLog,
): Promise<Recording | undefined> {
  try {
    const { startRecording } = await import("./record.ts");
    return startRecording({ device, path, log });
  } catch (error) {
    log.error(`cannot record to ${path}: ${reasonOf(error)}`);
    return undefined;
  }
}

async function replay(
  { stack }: BackgroundParts,
  path: string,
  concurrency: number,
  log: ImageLog,
): Promise<Replay> {
  const { startReplay } = await import("./prefetch.ts");
  return startReplay({ stack, path, concurrency, log });
}

async function download(
  { config, stack, view, alone }: BackgroundParts,
  options: BackgroundOptions,
  log: ImageLog,
): Promise<Download | undefined> {
  const settings = config.download ?? options.download;
  if (options.download === undefined || settings?.enable !== true) {
    return undefined;
  }
  const { startDownload } = await import("./download.ts");
  return startDownload({
    ...{ stack, view, alone, settings, log, audit: options.audit },
    maxMBpsOfAll: options.download.maxMBps,
  });
}

/** Starts what the configuration asks for. */
export async function startBackground(
  parts: BackgroundParts,
  options: BackgroundOptions,
): Promise<Background> {
  const { prefetchConcurrency: concurrency } = options;
  const log = options.log ?? NO_LOG;
  const mode = choosePrefetch(parts.config);
  const recording = mode.kind === "record" && concurrency !== undefined
    ? await record(parts, mode.path, log)
    : undefined;
  const downloading = recording === undefined
    ? await download(parts, options, log)
    : undefined;
  const replaying = mode.kind === "replay" && (concurrency ?? 0) > 0
    ? await replay(parts, mode.path, concurrency ?? 0, log)
    : undefined;
  return {
    recording,
    replay: replaying,
    download: downloading,
    async close() {
      await Promise.all([downloading?.close(), replaying?.close()]);
      await recording?.close();
    },
  };
}
