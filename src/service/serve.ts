// SPDX-License-Identifier: Apache-2.0
/**
 * Serves images over NBD until it is told to end.
 *
 * @module
 */
import { endWaiting } from "../../ffi/device.ts";
import type { Address } from "../device/listen.ts";
import { type RunningServer, startNbdServer } from "../device/nbd/server.ts";
import { ImageError } from "../image/error.ts";
import { fullPath } from "../layer/files.ts";
import { createDevices } from "./devices.ts";
import { type RunningHttp, startHttp } from "./http.ts";
import { GRACE_MS, nbdKind } from "./nbd.ts";
import type { ServedConfig } from "./served.ts";
import type { ServedImage, Service } from "./service.ts";
import { surviveErrors } from "./survive.ts";

/** What to serve, and where. */
export interface ServeOptions {
  address: Address;
  /** shown from the start; the first is the default export */
  images: readonly ServedConfig[];
  /** where API v1 listens, whatever the configuration says */
  listen?: string | undefined;
  /** other machines may reach the address */
  insecure: boolean;
  /** ends the service */
  signal: AbortSignal;
  /** called once, when clients can connect; api: undefined without one */
  onReady: (
    uri: string,
    images: readonly ServedImage[],
    api: string | undefined,
  ) => void;
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

const WAITS_MS = 50;
const ESHUTDOWN = 108;

async function openOne(
  service: Service,
  { path, devId }: ServedConfig,
  signal: AbortSignal,
): Promise<ServedImage> {
  try {
    return await service.open({ path, devId, transport: "nbd" }, signal);
  } catch (error) {
    signal.throwIfAborted();
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
  for (const one of options.images) {
    images.push(await openOne(service, one, options.signal));
  }
  const tell = (error?: unknown) =>
    Promise.all(images.map((served) => served.writeResult(error)));
  let server: RunningServer | undefined;
  let http: RunningHttp | undefined;
  let ready = false;
  try {
    server = await startNbdServer(
      options.address,
      images.map(({ name, path, image }) => ({
        name,
        description: fullPath(path),
        device: image.device,
      })),
      { insecure: options.insecure },
    );
    http = await startHttp(service, {
      devices: createDevices(service, [nbdKind(service, server)]),
      ready: () => ready,
      listen: options.listen,
    });
  } catch (error) {
    await tell(error);
    await server?.close(0);
    throw error;
  }
  try {
    await tell();
    ready = true;
    options.onReady(server.uri, images, http.api);
    await ended(options.signal);
  } finally {
    ready = false;
    service.stopOpening();
    // No device comes or goes any more when the server ends.
    await http.close();
    // Nor does anything wait for what may not come.
    const endWaits = () => {
      for (const { image } of service.images()) {
        endWaiting(image.device, ESHUTDOWN);
      }
    };
    endWaits();
    const waits = setInterval(endWaits, WAITS_MS);
    try {
      await server.close(GRACE_MS);
    } finally {
      clearInterval(waits);
    }
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
  using _survive = surviveErrors(service.log);
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
