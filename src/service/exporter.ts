// SPDX-License-Identifier: Apache-2.0
/**
 * The metrics' endpoint, and what it shows of devices (spec/api.md,
 * section 2).
 *
 * @module
 */
import { type Device, deviceStats } from "../../ffi/engine.ts";
import type { DeviceStats } from "../../ffi/engine.ts";
import { VERSION } from "../format/version.ts";
import type { ServiceConfig } from "./config_schema.ts";
import {
  type Meters,
  type Metric,
  metricsText,
  originalText,
} from "./metrics.ts";

/** The endpoint cannot listen. */
export class ExporterError extends Error {
  override readonly name = "ExporterError";
}

/** One disk whose figures are shown. */
export interface MeasuredDevice {
  /** its dev_id or the config's path: as many as there are open devices */
  name: string;
  device: Device;
}

/** What is shown. */
export interface ExporterOptions {
  meters: Meters;
  /** the devices that are open now */
  devices: () => Iterable<MeasuredDevice>;
}

/** A running endpoint. */
export interface Exporter {
  /** `http://127.0.0.1:9863/metrics` */
  url: string;
  close(): Promise<void>;
}

const STARTED_AT_SECONDS = performance.timeOrigin / 1000;

/** Figures of a device: member, metric behind `overlaybd_device_`, help. */
const DEVICE_COUNTERS:
  readonly (readonly [keyof DeviceStats, string, string])[] = [
    ["reads", "reads_total", "Read requests that have ended."],
    ["readBytes", "read_bytes_total", "Bytes read."],
    ["writes", "writes_total", "Write requests that have ended."],
    ["writtenBytes", "written_bytes_total", "Bytes written."],
    [
      "discards",
      "discards_total",
      "Discard and zero requests that have ended.",
    ],
    ["discardedBytes", "discarded_bytes_total", "Bytes discarded or zeroed."],
    ["flushes", "flushes_total", "Flush requests that have ended."],
    ["errors", "errors_total", "Requests that have failed."],
    ["misses", "misses_total", "Units that had to be fetched."],
    ["parked", "parked_total", "Requests that waited for a fetch."],
    ["corrupt", "corrupt_blocks_total", "Blocks that failed their checksum."],
  ];

/** Our metrics, in the order of the text. */
export function ownMetrics(devices: readonly MeasuredDevice[]): Metric[] {
  const figures = devices.map(({ name, device }) => ({
    labels: { device: name },
    stats: deviceStats(device),
  }));
  const { rss } = Deno.memoryUsage();
  const one = (name: string, help: string, value: number): Metric => ({
    name,
    type: "gauge",
    help,
    samples: [{ value }],
  });
  return [
    {
      name: "overlaybd_build_info",
      type: "gauge",
      help: "The running version; always 1.",
      samples: [{ labels: { version: VERSION }, value: 1 }],
    },
    one("overlaybd_devices", "Open devices.", devices.length),
    one(
      "process_start_time_seconds",
      "When the service started, in seconds since 1970.",
      STARTED_AT_SECONDS,
    ),
    one("process_resident_memory_bytes", "Memory that is resident.", rss),
    ...DEVICE_COUNTERS.map(([member, name, help]): Metric => ({
      name: `overlaybd_device_${name}`,
      type: "counter",
      help,
      samples: figures.map(({ labels, stats }) => ({
        labels,
        value: stats[member],
      })),
    })),
  ];
}

/** Everything at once. */
export function exporterText(options: ExporterOptions): string {
  return originalText(Deno.hostname(), options.meters, Date.now()) +
    metricsText(ownMetrics([...options.devices()]));
}

/**
 * Starts the endpoint.  Every method is answered, and every path that begins
 * with the prefix, as ever.
 *
 * @throws {ExporterError} the address is no one's or taken
 */
export function startExporter(
  config: ServiceConfig["exporterConfig"],
  options: ExporterOptions,
): Exporter {
  const { address, port, uriPrefix } = config;
  const answer = (request: Request) =>
    new URL(request.url).pathname.startsWith(uriPrefix)
      ? new Response(exporterText(options), {
        headers: { "content-type": "text/plain; version=0.0.4" },
      })
      : new Response(null, { status: 404 });
  try {
    const server = Deno.serve(
      { hostname: address, port, onListen() {} },
      answer,
    );
    const host = address.includes(":") ? `[${address}]` : address;
    return {
      url: `http://${host}:${server.addr.port}${uriPrefix}`,
      close: () => server.shutdown(),
    };
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new ExporterError(
      "Failed to start http server for metrics exporter: " +
        `exporterConfig ${address}:${port}: ${why}`,
      { cause },
    );
  }
}
