// SPDX-License-Identifier: Apache-2.0
/**
 * What an open image does on its own: recording or replaying a trace, and
 * bringing its layers here (spec/image.md, sections 3, 5 and 6).
 *
 * @module
 */
import type { DownloadConfig, ImageConfig } from "./config.ts";
import { type Download, startDownload } from "./download.ts";
import type { OpenImage, OpenStack } from "./image.ts";
import { type ImageAudit, type ImageLog, NO_LOG, reasonOf } from "./log.ts";
import { choosePrefetch, type Replay, startReplay } from "./prefetch.ts";
import { type Recording, startRecording } from "./record.ts";
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

function record(
  view: ShownView,
  path: string,
  log: ImageLog,
): Recording | undefined {
  try {
    return startRecording({ device: view.device, path, log });
  } catch (error) {
    log.error(`cannot record to ${path}: ${reasonOf(error)}`);
    return undefined;
  }
}

/** Starts what the configuration asks for. */
export function startBackground(
  { config, stack, view, alone }: {
    config: ImageConfig;
    stack: OpenStack;
    view: ShownView;
    alone: OpenImage["alone"];
  },
  options: BackgroundOptions,
): Background {
  const { prefetchConcurrency: concurrency, audit } = options;
  const log = options.log ?? NO_LOG;
  const mode = choosePrefetch(config);
  const recording = mode.kind === "record" && concurrency !== undefined
    ? record(view, mode.path, log)
    : undefined;
  const settings = config.download ?? options.download;
  const wanted = options.download !== undefined &&
    settings?.enable === true && recording === undefined;
  const download = wanted
    ? startDownload({
      ...{ stack, view, alone, settings, log, audit },
      maxMBpsOfAll: options.download?.maxMBps ?? 0,
    })
    : undefined;
  const replay = mode.kind === "replay" && concurrency !== undefined &&
      concurrency > 0
    ? startReplay({ stack, path: mode.path, concurrency, log })
    : undefined;
  return {
    recording,
    replay,
    download,
    async close() {
      await Promise.all([download?.close(), replay?.close()]);
      await recording?.close();
    },
  };
}
