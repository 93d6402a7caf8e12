// SPDX-License-Identifier: Apache-2.0
/**
 * Serves images over NBD until it is told to end.
 *
 * @module
 */
import type { Address } from "../device/listen.ts";
import { startNbdServer } from "../device/nbd/server.ts";
import { ImageError } from "../image/image.ts";
import { fullPath } from "../layer/files.ts";
import type { Exporter } from "./exporter.ts";
import type { ServedImage, Service } from "./service.ts";

/** One image to serve. */
export interface ServedConfig {
  /** path of its configuration */
  path: string;
  /** names it for a live snapshot; may be empty */
  devId: string;
}

/** What to serve, and where. */
export interface ServeOptions {
  address: Address;
  /** not empty; the first is the default export */
  images: readonly ServedConfig[];
  /** other machines may reach the address */
  insecure: boolean;
  /** ends the service */
  signal: AbortSignal;
  /** called once, when clients can connect */
  onReady: (uri: string, images: readonly ServedImage[]) => void;
}

/** How long requests may take to end when the service ends. */
const GRACE_MS = 5000;

/** `CONFIG[;dev_id]`. */
export function parseServed(text: string): ServedConfig {
  const cut = text.lastIndexOf(";");
  return cut < 0
    ? { path: text, devId: "" }
    : { path: text.slice(0, cut), devId: text.slice(cut + 1) };
}

/** What an image is exported as. */
function exportName({ path, devId }: ServedConfig): string {
  return devId === "" ? fullPath(path) : devId;
}

/** @throws {ImageError} two images have one name */
function refuseDuplicates(images: readonly ServedConfig[]): void {
  const seen = new Set<string>();
  for (const name of images.map(exportName)) {
    if (seen.has(name)) throw new ImageError(`duplicated dev id: ${name}`);
    seen.add(name);
  }
}

/** The metrics' endpoint, where the configuration asks for it. */
async function openExporter(service: Service): Promise<Exporter | undefined> {
  const { settings, meters, log } = service;
  if (!settings.exporterConfig.enable) return undefined;
  const { startExporter } = await import("./exporter.ts");
  const exporter = startExporter(settings.exporterConfig, {
    meters,
    devices: () =>
      service.images().map(({ name, image: { device } }) => ({ name, device })),
  });
  log.info(`metrics at ${exporter.url}`);
  return exporter;
}

async function openOne(
  service: Service,
  { path, devId }: ServedConfig,
): Promise<ServedImage> {
  try {
    return await service.open({ path, devId, transport: "nbd" });
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    throw new ImageError(
      `cannot serve ${path}: ${error.message}`,
      undefined,
      { cause: error },
    );
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

async function serveImages(
  service: Service,
  options: ServeOptions,
): Promise<void> {
  const images: ServedImage[] = [];
  for (const one of options.images) images.push(await openOne(service, one));
  const tell = (error?: unknown) =>
    Promise.all(images.map((served) => served.writeResult(error)));
  const exporter = await openExporter(service);
  try {
    const server = await startNbdServer(
      options.address,
      images.map(({ name, path, image }) => ({
        name,
        description: fullPath(path),
        device: image.device,
      })),
      { insecure: options.insecure },
    ).catch(async (error) => {
      await tell(error);
      throw error;
    });
    await tell();
    options.onReady(server.uri, images);
    await ended(options.signal);
    await server.close(GRACE_MS);
  } finally {
    await exporter?.close();
  }
}

/**
 * Serves images until `signal`; then everything that was written is on disk.
 * The service is closed at the end.
 *
 * @throws {ConfigError | ImageError | AddressError | EngineError} it could
 *   not begin, or not write everything at the end
 */
export async function serve(
  service: Service,
  options: ServeOptions,
): Promise<void> {
  try {
    refuseDuplicates(options.images);
    await serveImages(service, options);
  } catch (error) {
    // What went wrong first counts.
    await service.close().catch((other) =>
      service.log.error(`cannot close everything: ${String(other)}`)
    );
    throw error;
  }
  await service.close();
}
