// SPDX-License-Identifier: Apache-2.0
/**
 * Serves images over NBD until it is told to end.
 *
 * @module
 */
import {
  type NbdAddress,
  type RunningServer,
  startNbdServer,
} from "../device/nbd/server.ts";
import { type ImageConfig, readImageConfig } from "../image/config.ts";
import { ImageError, type OpenImage, openImage } from "../image/image.ts";
import { fullPath } from "../layer/files.ts";
import { createRangeClient } from "../source/range.ts";
import { createSources, type SourceSet } from "../source/sources.ts";
import type { ServiceConfig } from "./config.ts";
import type { Exporter } from "./exporter.ts";
import { type Log, writeResult } from "./result.ts";

/** One image to serve. */
export interface ServedConfig {
  /** path of its configuration */
  path: string;
  /** what it is exported as */
  name: string;
}

/** What to serve, and where. */
export interface ServeOptions {
  address: NbdAddress;
  /** not empty; the first is the default export */
  images: readonly ServedConfig[];
  service: ServiceConfig;
  /** other machines may reach the address */
  insecure: boolean;
  /** ends the service */
  signal: AbortSignal;
  log: Log;
  /** called once, when clients can connect */
  onReady: (uri: string) => void;
}

/** The metrics' endpoint, where the configuration asks for it. */
async function openExporter(
  images: readonly Served[],
  { service, log }: ServeOptions,
): Promise<Exporter | undefined> {
  if (!service.exporterConfig.enable) return undefined;
  const { startExporter } = await import("./exporter.ts");
  const { createMeter } = await import("./metrics.ts");
  const exporter = startExporter(service.exporterConfig, {
    meters: { pread: createMeter(), download: createMeter() },
    devices: () =>
      images.map(({ name, image: { device } }) => ({ name, device })),
  });
  log(`metrics at ${exporter.url}`);
  return exporter;
}

/** How long requests may take to end when the service ends. */
const GRACE_MS = 5000;

/** `CONFIG[;dev_id]`: without a dev_id the name is the config's full path. */
export function parseServed(text: string): ServedConfig {
  const cut = text.lastIndexOf(";");
  const path = cut < 0 ? text : text.slice(0, cut);
  const devId = cut < 0 ? "" : text.slice(cut + 1);
  return { path, name: devId === "" ? fullPath(path) : devId };
}

/** @throws {ImageError} two images have one name */
function refuseDuplicates(images: readonly ServedConfig[]): void {
  const seen = new Set<string>();
  for (const { name } of images) {
    if (seen.has(name)) throw new ImageError(`duplicated dev id: ${name}`);
    seen.add(name);
  }
}

/** An image being served. */
interface Served extends ServedConfig {
  config: ImageConfig;
  image: OpenImage;
}

async function openOne(
  served: ServedConfig,
  options: ServeOptions,
  sources: SourceSet,
): Promise<Served> {
  const config = await readImageConfig(served.path);
  try {
    const image = await openImage(config, {
      deadlineMs: options.service.readDeadlineSeconds * 1000,
      sources,
    });
    for (const warning of image.stack.warnings) {
      options.log(`WARNING ${warning}`);
    }
    return { ...served, config, image };
  } catch (error) {
    await writeResult(config.resultFile, error, options.log);
    const why = error instanceof Error ? error.message : String(error);
    throw new ImageError(`cannot serve ${served.path}: ${why}`, undefined, {
      cause: error,
    });
  }
}

/** Closes every image, and then throws the first failure. */
async function closeAll(images: readonly Served[], log: Log): Promise<void> {
  let failure: { error: unknown } | undefined;
  for (const { image, name } of images) {
    try {
      await image.close();
    } catch (error) {
      log(`cannot close ${name}: ${String(error)}`);
      failure ??= { error };
    }
  }
  if (failure !== undefined) throw failure.error;
}

async function startServer(
  images: readonly Served[],
  options: ServeOptions,
): Promise<RunningServer> {
  const { address, insecure, log } = options;
  const writeResults = async (error: unknown) => {
    for (const { config } of images) {
      await writeResult(config.resultFile, error, log);
    }
  };
  try {
    const server = await startNbdServer(
      address,
      images.map(({ name, path, image }) => ({
        name,
        description: fullPath(path),
        device: image.device,
      })),
      { insecure },
    );
    await writeResults(undefined);
    return server;
  } catch (error) {
    await writeResults(error);
    throw error;
  }
}

/** Waits for the signal; the timer keeps the process alive meanwhile. */
function ended(signal: AbortSignal): Promise<void> {
  const FOREVER_MS = 2 ** 31 - 1;
  return new Promise((done) => {
    const timer = setInterval(() => {}, FOREVER_MS);
    const end = () => {
      clearInterval(timer);
      done();
    };
    if (signal.aborted) end();
    else signal.addEventListener("abort", end, { once: true });
  });
}

/**
 * Serves images until `signal`; then everything that was written is on disk.
 *
 * @throws {ConfigError | ImageError | AddressError | EngineError} it could
 *   not begin, or not write everything at the end
 */
export async function serve(options: ServeOptions): Promise<void> {
  refuseDuplicates(options.images);
  const { cacheConfig, userAgent } = options.service;
  using client = createRangeClient({ userAgent });
  using sources = createSources({
    openBlob: client.openBlob,
    cacheDir: cacheConfig.cacheDir,
    refillSize: cacheConfig.refillSize,
    log: options.log,
  });
  const images: Served[] = [];
  try {
    for (const served of options.images) {
      images.push(await openOne(served, options, sources));
    }
    const exporter = await openExporter(images, options);
    try {
      const server = await startServer(images, options);
      options.onReady(server.uri);
      await ended(options.signal);
      await server.close(GRACE_MS);
    } finally {
      await exporter?.close();
    }
  } catch (error) {
    // What went wrong first counts; closing has logged its own failures.
    await closeAll(images, options.log).catch(() => {});
    throw error;
  }
  await closeAll(images, options.log);
}
