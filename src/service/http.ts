// SPDX-License-Identifier: Apache-2.0
/**
 * What the service answers by HTTP, as its configuration enables it: the
 * metrics' endpoint, the original's snapshots, and API v1.
 *
 * @module
 */
import type { Devices } from "./devices.ts";
import type { MeasuredRing } from "./own_metrics.ts";
import type { Service } from "./service.ts";

/** What requests work on. */
export interface HttpOptions {
  devices: Devices;
  /** clients find devices that can be used */
  ready: () => boolean;
  /** the rings that are served now, for the metrics */
  rings?: (() => Iterable<MeasuredRing>) | undefined;
  /** where API v1 listens instead of where the configuration says */
  listen?: string | undefined;
}

/** Everything that answers. */
export interface RunningHttp {
  /** where API v1 is; undefined: nowhere */
  api: string | undefined;
  close(): Promise<void>;
}

/** One server of the list. */
interface Part {
  url: string;
  close(): Promise<void>;
}

async function startExporter(
  service: Service,
  { rings }: HttpOptions,
): Promise<Part> {
  const { startExporter } = await import("./exporter.ts");
  const { settings, meters, counters, log } = service;
  const exporter = startExporter(settings.exporterConfig, {
    meters,
    counters,
    rings,
    devices: () =>
      service.images().map(({ name, image: { device, stack } }) => ({
        name,
        device,
        remote: stack.lowers.some((layer) => layer.remote !== undefined),
      })),
  });
  const { meterReads } = await import("./read_meter.ts");
  const reads = meterReads(
    meters.pread,
    () => service.images().map(({ image }) => image.device),
  );
  log.info(`metrics at ${exporter.url}`);
  return {
    url: exporter.url,
    async close() {
      reads[Symbol.dispose]();
      await exporter.close();
    },
  };
}

async function startSnapshots(service: Service): Promise<Part> {
  const { startSnapshotServer } = await import("./api/snapshot.ts");
  const { settings: { serviceConfig }, log } = service;
  const server = startSnapshotServer(serviceConfig.address, service);
  log.info(`snapshots at ${server.url}`);
  return server;
}

async function startApi(
  service: Service,
  { devices, ready, listen }: HttpOptions,
): Promise<Part> {
  // Its libraries take longer to load than all else.
  const { createApi } = await import("./api/app.ts");
  const { startApiServer } = await import("./api/server.ts");
  const { reloadService } = await import("./reload.ts");
  const { settings: { apiConfig }, log } = service;
  const app = createApi({
    service,
    devices,
    ready,
    reload: () => reloadService(service),
  });
  const api = await startApiServer(
    { ...apiConfig, ...(listen === undefined ? {} : { address: listen }) },
    (request) => app.fetch(request),
    log.with({ area: "api" }),
  );
  log.info(`API at ${api.url}`);
  return api;
}

/**
 * Starts whatever the configuration enables.
 *
 * @throws {ExporterError | AddressError | EngineError} one of them cannot;
 *   none runs
 */
export async function startHttp(
  service: Service,
  options: HttpOptions,
): Promise<RunningHttp> {
  const { settings } = service;
  const running: Part[] = [];
  const close = async () => {
    await Promise.all(running.map((part) => part.close()));
  };
  try {
    if (settings.exporterConfig.enable) {
      running.push(await startExporter(service, options));
    }
    if (settings.serviceConfig.enable) {
      running.push(await startSnapshots(service));
    }
    let api: Part | undefined;
    if (settings.apiConfig.enable || options.listen !== undefined) {
      api = await startApi(service, options);
      running.push(api);
    }
    return { api: api?.url, close };
  } catch (error) {
    await close();
    throw error;
  }
}
