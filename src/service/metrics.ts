// SPDX-License-Identifier: Apache-2.0
/**
 * Metrics as text: the original's, byte for byte (spec/api.md, section 2),
 * and behind them ours, in Prometheus' own conventions.
 *
 * @module
 */

import type { Histogram } from "./counters.ts";

/** What the original measures of one kind of read. */
export interface Meter {
  /** Notes a read that has ended, or several. */
  record(bytes: number, latencyUs: number, reads?: number): void;
  /** Figures of the last second, and of the last five for latency. */
  read(): MeterFigures;
}

/** What a meter shows. */
export interface MeterFigures {
  bytesPerSecond: number;
  readsPerSecond: number;
  maxLatencyUs: number;
  totalBytes: number;
}

/** Parts of a second that are counted together, and those kept. */
const SLOT_MS = 250;
const RATE_SLOTS = 4;
const LATENCY_SLOTS = 20;

/**
 * A meter of fixed size, whatever happens.
 *
 * @param now ms, growing
 */
export function createMeter(
  now: () => number = () => performance.now(),
): Meter {
  const slots = Array.from(
    { length: LATENCY_SLOTS },
    () => ({ nr: -1, bytes: 0, reads: 0, maxUs: 0 }),
  );
  let totalBytes = 0;
  return {
    record(bytes, latencyUs, reads = 1) {
      const nr = Math.floor(now() / SLOT_MS);
      const slot = slots[nr % LATENCY_SLOTS];
      if (slot === undefined) return;
      if (slot.nr !== nr) {
        Object.assign(slot, { nr, bytes: 0, reads: 0, maxUs: 0 });
      }
      slot.bytes += bytes;
      slot.reads += reads;
      slot.maxUs = Math.max(slot.maxUs, latencyUs);
      totalBytes += bytes;
    },
    read() {
      const nr = Math.floor(now() / SLOT_MS);
      const recent = slots.filter((slot) => slot.nr > nr - LATENCY_SLOTS);
      const last = recent.filter((slot) => slot.nr > nr - RATE_SLOTS);
      return {
        bytesPerSecond: last.reduce((sum, slot) => sum + slot.bytes, 0),
        readsPerSecond: last.reduce((sum, slot) => sum + slot.reads, 0),
        maxLatencyUs: Math.max(0, ...recent.map((slot) => slot.maxUs)),
        totalBytes,
      };
    },
  };
}

/** The two kinds of reads that the original knows. */
export interface Meters {
  /** reads of layers through the cache */
  pread: Meter;
  /** reads from the registry */
  download: Meter;
}

type Labels = Readonly<Record<string, string>>;

/** One of our own metrics. */
export type Metric =
  | {
    name: string;
    type: "counter" | "gauge";
    help: string;
    samples: readonly { labels?: Labels; value: number }[];
  }
  | {
    name: string;
    type: "histogram";
    help: string;
    samples: readonly { labels?: Labels; value: Histogram }[];
  };

/** A label's value between its quotes. */
function labelText(value: string): string {
  return value.replaceAll("\\", "\\\\").replaceAll('"', '\\"')
    .replaceAll("\n", "\\n");
}

/**
 * The original's lines.  It writes what is measured into `node`, and leaves
 * `type` and `mode` empty: dashboards rely on that.
 *
 * @param at ms since 1970
 */
export function originalText(
  host: string,
  meters: Meters,
  at: number,
): string {
  const stamp = Math.floor(at);
  const figures = [
    ["pread", meters.pread.read()],
    ["download", meters.download.read()],
  ] as const;
  const group = (
    name: string,
    help: string,
    rest: string,
    value: (figures: MeterFigures) => number,
  ) =>
    `# HELP ${name} ${help}\n# TYPE ${name} gauge\n` +
    figures.map(([node, figure]) =>
      `${name}{node="${node}"${rest}}  ${value(figure).toFixed(6)} ${stamp}\n`
    ).join("") + "\n";
  const full = ',type="",mode=""';
  return "# HELP OverlayBD_Alive \n# TYPE OverlayBD_Alive gauge\n" +
    `OverlayBD_Alive{node="${labelText(host)}"}  1.000000 ${stamp}\n\n` +
    group(
      "OverlayBD_Read_Throughtput",
      "Bytes / sec",
      full,
      (f) => f.bytesPerSecond,
    ) +
    group("OverlayBD_QPS", "", full, (f) => f.readsPerSecond) +
    group("OverlayBD_MaxLatency", "us", full, (f) => f.maxLatencyUs) +
    group("OverlayBD_Count", "Bytes", ',type=""', (f) => f.totalBytes);
}

function line(name: string, labels: Labels = {}, value: number): string {
  const inside = Object.entries(labels)
    .map(([key, text]) => `${key}="${labelText(text)}"`).join(",");
  return `${name}${inside === "" ? "" : `{${inside}}`} ${value}\n`;
}

function histogramLines(
  name: string,
  labels: Labels | undefined,
  { bounds, counts, sum }: Histogram,
): string[] {
  let below = 0;
  const buckets = counts.map((count, i) => {
    below += count;
    const le = String(bounds[i] ?? "+Inf");
    return line(`${name}_bucket`, { ...labels, le }, below);
  });
  return [
    ...buckets,
    line(`${name}_sum`, labels, sum),
    line(`${name}_count`, labels, below),
  ];
}

/** Our own metrics as text; those without a sample are left out. */
export function metricsText(metrics: readonly Metric[]): string {
  return metrics.filter(({ samples }) => samples.length > 0).map((metric) => {
    const { name, type, help } = metric;
    const lines = metric.type === "histogram"
      ? metric.samples.flatMap(({ labels, value }) =>
        histogramLines(name, labels, value)
      )
      : metric.samples.map(({ labels, value }) => line(name, labels, value));
    return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines.join("")}`;
  }).join("");
}
