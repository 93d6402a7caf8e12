// SPDX-License-Identifier: Apache-2.0
/**
 * The service: what its configuration means, where its lines go, and the
 * images that it has open, however they are shown (spec/image.md,
 * sections 3, 7 and 8).
 *
 * @module
 */
import {
  ConfigError,
  decodeImageConfig,
  type ImageConfig,
  readConfigBytes,
  readImageConfig,
} from "../image/config.ts";
import { ImageError } from "../image/error.ts";
import { type OpenImage, openImage } from "../image/image.ts";
import { finishSnapshot } from "../image/intent.ts";
import type { SnapshotReport } from "../image/snapshot.ts";
import { createIoEngine } from "../layer/engine.ts";
import { fullPath } from "../layer/files.ts";
import { createSources, type SourceSet } from "../source/sources.ts";
import { cacheManager } from "./cache.ts";
import { throughPeers } from "./peers.ts";
import { createPulls, type Pulls } from "./pulls.ts";
import { openRegistry } from "./registry.ts";
import { type Audit, changingAudit } from "./audit.ts";
import type { LoadedConfig, ServiceConfig } from "./config.ts";
import { type CountersOfService, createCounters } from "./counters.ts";
import { pickEngine } from "./engine.ts";
import type { Logger, ServiceLog } from "./log.ts";
import { downloadNow, resultPath } from "./opening.ts";
import { createMeter, type Meters } from "./metrics.ts";
import { RequestError } from "./refusal.ts";
import { writeResult } from "./result.ts";

/** How images are shown to the world. */
export type Transport = "nbd" | "tcmu";

/** Which image, and how it is shown. */
export interface OpenRequest {
  /** of its configuration, absolute or relative to the working directory */
  path: string;
  /** names it for a live snapshot; empty: it has no such name */
  devId: string;
  transport: Transport;
}

/** An image that the service has open. */
export interface ServedImage extends OpenRequest {
  /** unlike any other of this process */
  readonly id: number;
  /** its dev_id, else the full path of its configuration */
  readonly name: string;
  /** as it is now: a snapshot changes it */
  readonly config: ImageConfig;
  readonly image: OpenImage;
  /** for lines about this image */
  readonly log: Logger;
  /** Writes into its result file that it is shown, or why it is not. */
  writeResult(error?: unknown): Promise<void>;
  /** Flushes what was written, then lets it go; may be repeated. */
  close(): Promise<void>;
}

/** A name that only one image may have is taken. */
export class DuplicateError extends ImageError {}

/** See the module's comment. */
export interface Service {
  /** the configuration as it was read first */
  readonly started: LoadedConfig;
  /** and as it counts now */
  readonly loaded: LoadedConfig;
  readonly settings: ServiceConfig;
  readonly log: ServiceLog;
  readonly audit: Audit;
  readonly meters: Meters;
  readonly counters: CountersOfService;
  /** where remote layers come from */
  readonly sources: SourceSet;
  /** remote layers that are brought by request */
  readonly pulls: Pulls;
  /**
   * Opens an image.  Its result file says why when that fails; success is
   * told by `writeResult()` once the transport shows it.
   *
   * @param signal nobody wants it any more: its dev_id is free at once, and
   *   what is opened all the same is closed
   * @throws {ConfigError | ImageError}
   * @throws {RequestError} the service ends
   * @throws the signal's reason
   */
  open(request: OpenRequest, signal?: AbortSignal): Promise<ServedImage>;
  /** every open image, in the order of opening */
  images(): ServedImage[];
  /** the open image with a dev_id, which is not empty */
  find(devId: string): ServedImage | undefined;
  /** told when the disk of an image has become larger */
  readonly grown: Set<(served: ServedImage) => void>;
  /** Other settings count from now on. */
  apply(loaded: LoadedConfig): void;
  /**
   * Takes a live snapshot: the image's upper becomes its topmost lower, and
   * the configuration at `newPath` takes the place of the image's.
   *
   * @throws {SnapshotError} why not; the image is as it was
   */
  snapshot(served: ServedImage, newPath: string): Promise<SnapshotReport>;
  /** Refuses images from now on, those that are being opened, too. */
  stopOpening(): void;
  /**
   * Closes every image, those that are being opened, too.
   *
   * @throws {EngineError} the first that could not be written to disk
   */
  close(): Promise<void>;
}

/** What a service is made of. */
export interface ServiceParts {
  loaded: LoadedConfig;
  log: ServiceLog;
  audit: Audit;
  /** makes the audit anew when its settings change; without it, it stays */
  openAudit?: (config: ServiceConfig) => Audit;
}

/** Makes a service; nothing is open yet. */
export function createService(parts: ServiceParts): Service {
  const { loaded: started, log } = parts;
  const settings = started.config;
  const audit = changingAudit(parts.audit);
  let loaded = started;
  const meters = { pread: createMeter(), download: createMeter() };
  const warn = (line: string) => log.warn(line.replace(/^WARNING /, ""));
  const counters = createCounters();
  const client = openRegistry(() => loaded.config, warn, {
    onAnswer: counters.answered,
    onRetry: counters.retried,
  });
  const engine = pickEngine(settings.ioEngine, log.info);
  const { cacheConfig } = settings;
  const sources = createSources({
    openBlob: client.openBlob,
    cacheType: cacheConfig.cacheType,
    cacheDir: cacheConfig.cacheDir,
    cacheSize: cacheConfig.cacheSizeGB * 2 ** 30,
    refillSize: cacheConfig.refillSize,
    log: warn,
    audit: audit.record,
    onEviction: (done) => {
      counters.evicted(done.actualEvict);
      audit.eviction(done);
    },
    onDownload: meters.download.record,
  });
  const pulls = createPulls(
    () => cacheManager(loaded.config, sources, { mustExist: false }),
    log,
  );
  const open = new Set<ServedImage>();
  const grown: Service["grown"] = new Set();
  const devIds = new Map<string, ServedImage | undefined>();
  let nextId = 1;
  const ended = new AbortController();
  const stopOpening = () =>
    ended.abort(new RequestError("ending", "the service ends"));
  const opening = new Set<Promise<unknown>>();

  const openConfigured = async (
    request: OpenRequest,
    config: ImageConfig,
    about: Logger,
    signal: AbortSignal,
  ): Promise<ServedImage> => {
    const { path, devId } = request;
    if (devIds.has(devId)) {
      throw new DuplicateError(`duplicated dev id: ${devId}`);
    }
    let held = devId !== "";
    const release = () => {
      if (held) devIds.delete(devId);
      held = false;
    };
    if (held) devIds.set(devId, undefined);
    signal.addEventListener("abort", release);
    let image: OpenImage;
    try {
      image = await openImage(config, {
        deadlineMs: loaded.config.readDeadlineSeconds * 1000,
        sources: await throughPeers(loaded.config, {
          ...sources,
          open: (url, about) => sources.open(url, { ...about, signal }),
        }, about),
        download: config.download === undefined
          ? await downloadNow(loaded, about)
          : loaded.config.download,
        prefetchConcurrency: loaded.config.prefetchConfig.concurrency,
        log: about,
        audit,
        engine: engine && createIoEngine(engine, about.info),
      });
      if (signal.aborted) {
        await image.close();
        throw signal.reason;
      }
    } catch (error) {
      release();
      throw error;
    } finally {
      signal.removeEventListener("abort", release);
    }
    for (const warning of image.stack.warnings) about.warn(warning);
    about.info(
      `new imageFile, bs: 512, size: ${image.stack.virtualSize}`,
    );
    let closing: Promise<void> | undefined;
    const close = async () => {
      open.delete(served);
      try {
        await image.close();
      } finally {
        release();
      }
    };
    const served: ServedImage = {
      ...request,
      id: nextId++,
      name: devId === "" ? fullPath(path) : devId,
      get config() {
        return image.config;
      },
      image,
      log: about,
      writeResult: (error) =>
        writeResult(resultPath(config, path), error, about.warn),
      close: () => closing ??= close(),
    };
    image.grown.add(() => {
      for (const tell of grown) tell(served);
    });
    open.add(served);
    if (devId !== "") devIds.set(devId, served);
    return served;
  };

  const openFile = async (
    request: OpenRequest,
    signal: AbortSignal,
  ): Promise<ServedImage> => {
    const { path, devId } = request;
    const about = log.with({ device: devId === "" ? path : devId });
    let config: ImageConfig | undefined;
    try {
      config = decodeImageConfig(await readConfigBytes(path), path);
      for (const done of await finishSnapshot(path)) {
        about.warn(done);
        config = await readImageConfig(path);
      }
      return await openConfigured(request, config, about, signal);
    } catch (error) {
      // The file may be another device's by now.
      if (signal.aborted) throw signal.reason;
      const said = config ?? (error instanceof ConfigError ? error : null);
      if (said !== null) {
        await writeResult(resultPath(said, path), error, about.warn);
      }
      throw error;
    }
  };

  return {
    started,
    get loaded() {
      return loaded;
    },
    get settings() {
      return loaded.config;
    },
    log,
    audit,
    meters,
    counters,
    sources,
    pulls,
    open(request, signal) {
      if (ended.signal.aborted) return Promise.reject(ended.signal.reason);
      const wanted = signal === undefined ? [] : [signal];
      const work = openFile(
        request,
        AbortSignal.any([ended.signal, ...wanted]),
      );
      opening.add(work);
      return work.finally(() => opening.delete(work));
    },
    images: () => [...open],
    find: (devId) => devIds.get(devId),
    grown,
    apply(next) {
      const before = loaded.config;
      loaded = next;
      const { logLevel } = next.config.logConfig;
      if (logLevel !== before.logConfig.logLevel) log.level = logLevel;
      const same = before.enableAudit === next.config.enableAudit &&
        before.auditPath === next.config.auditPath;
      if (!same && parts.openAudit !== undefined) {
        audit.change(parts.openAudit(next.config));
      }
    },
    async snapshot(served, newPath) {
      const { image, path } = served;
      // Its code is needed by few.
      const { snapshotImage } = await import("../image/snapshot.ts");
      const report = await snapshotImage(image, path, newPath);
      counters.paused(report.pauseUs / 1e6);
      for (const warning of report.warnings) served.log.warn(warning);
      served.log.info(
        `snapshot of ${path}: writes waited ${report.pauseUs.toFixed(0)} us`,
      );
      return report;
    },
    stopOpening,
    async close() {
      stopOpening();
      await Promise.allSettled([...opening, pulls.close()]);
      const closed = await Promise.allSettled(
        [...open].map((served) => served.close()),
      );
      await sources.close();
      client.close();
      audit[Symbol.dispose]();
      const failed = closed.find((result) => result.status === "rejected");
      if (failed !== undefined) throw failed.reason;
    },
  };
}
