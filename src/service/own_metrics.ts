// SPDX-License-Identifier: Apache-2.0
/**
 * Our own metrics: devices, registries, the cache, rings, snapshots.
 *
 * @module
 */
import {
  type DeviceStats,
  deviceStats,
  deviceTimes,
  type ReadTimes,
} from "../../ffi/device.ts";
import type { Device } from "../../ffi/handle.ts";
import { VERSION } from "../format/version.ts";
import type { Counters, Histogram } from "./counters.ts";
import type { Meters, Metric } from "./metrics.ts";

/** One disk whose figures are shown. */
export interface MeasuredDevice {
  /** its dev_id or the config's path: as many as there are open devices */
  name: string;
  device: Device;
  /** some of its layers come from a registry */
  remote: boolean;
}

/** A TCMU device's command ring. */
export interface MeasuredRing {
  name: string;
  depth: number;
  depthMax: number;
}

/** Where the figures come from. */
export interface Measured {
  meters: Meters;
  counters: Counters;
  /** the devices that are open now */
  devices: () => Iterable<MeasuredDevice>;
  /** the rings that are served now */
  rings?: (() => Iterable<MeasuredRing>) | undefined;
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
    [
      "healed",
      "healed_blocks_total",
      "Blocks that failed their checksum, and were right when fetched again.",
    ],
  ];

/** 4^i us, as the C library counts. */
const READ_BOUNDS = Array.from({ length: 13 }, (_, i) => 4 ** i / 1e6);

function histogramOf({ buckets, seconds }: ReadTimes): Histogram {
  return { bounds: READ_BOUNDS, counts: buckets, sum: seconds };
}

/** How long reads took, by where their bytes came from. */
function readSeconds(devices: readonly MeasuredDevice[]): Metric {
  return {
    name: "overlaybd_read_seconds",
    type: "histogram",
    help: "How long reads took; local ones are sampled, one in 16.",
    samples: devices.flatMap(({ name, device }) => {
      const { local, fetched } = deviceTimes(device);
      return [
        {
          labels: { device: name, source: "local" },
          value: histogramOf(local),
        },
        {
          labels: { device: name, source: "fetched" },
          value: histogramOf(fetched),
        },
      ];
    }),
  };
}

function counter(name: string, help: string, value: number): Metric {
  return { name, type: "counter", help, samples: [{ value }] };
}

/** What has to do with registries and the cache. */
function remoteMetrics(
  { meters, counters, devices }: Measured,
): Metric[] {
  const remote = [...devices()].filter((one) => one.remote)
    .map(({ name, device }) => {
      // In this order: no read is counted as a miss that is not a read yet.
      const misses = deviceTimes(device).fetched.buckets
        .reduce((sum, count) => sum + count, 0);
      const { reads } = deviceStats(device);
      return { labels: { device: name }, misses, hits: reads - misses };
    });
  return [
    {
      name: "overlaybd_cache_hits_total",
      type: "counter",
      help: "Reads of devices with remote layers that waited for nothing.",
      samples: remote.map(({ labels, hits }) => ({ labels, value: hits })),
    },
    {
      name: "overlaybd_cache_misses_total",
      type: "counter",
      help: "Reads of devices with remote layers that waited for a fetch.",
      samples: remote.map(({ labels, misses }) => ({ labels, value: misses })),
    },
    {
      name: "overlaybd_fetches_total",
      type: "counter",
      help: "Requests to registries by the status of their answers.",
      samples: [...counters.fetches]
        .map(([status, value]) => ({ labels: { status }, value })),
    },
    counter(
      "overlaybd_fetch_retries_total",
      "Requests to registries after a failure.",
      counters.retries,
    ),
    counter(
      "overlaybd_fetched_bytes_total",
      "Bytes that registries have sent.",
      meters.download.read().totalBytes,
    ),
    counter(
      "overlaybd_evictions_total",
      "Passes in which something was evicted from the cache.",
      counters.evictions,
    ),
    counter(
      "overlaybd_evicted_bytes_total",
      "Bytes that were evicted from the cache.",
      counters.evictedBytes,
    ),
  ];
}

/** The rings of TCMU devices. */
function ringMetrics(rings: readonly MeasuredRing[]): Metric[] {
  const of = (
    name: string,
    help: string,
    value: (ring: MeasuredRing) => number,
  ): Metric => ({
    name,
    type: "gauge",
    help,
    samples: rings.map((ring) => ({
      labels: { device: ring.name },
      value: value(ring),
    })),
  });
  return [
    of("overlaybd_ring_depth", "Commands that run.", (ring) => ring.depth),
    of(
      "overlaybd_ring_depth_max",
      "The most commands that ever ran at once.",
      (ring) => ring.depthMax,
    ),
  ];
}

/** Our metrics, in the order of the text. */
export function ownMetrics(options: Measured): Metric[] {
  const devices = [...options.devices()];
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
    readSeconds(devices),
    ...remoteMetrics(options),
    ...ringMetrics([...options.rings?.() ?? []]),
    counter(
      "overlaybd_broken_rings_total",
      "Rings of TCMU devices that made no sense, and were begun anew.",
      options.counters.brokenRings,
    ),
    {
      name: "overlaybd_snapshot_pause_seconds",
      type: "histogram",
      help: "How long writes waited for live snapshots.",
      samples: [{ value: options.counters.snapshotPauses }],
    },
  ];
}
