// SPDX-License-Identifier: Apache-2.0
/**
 * Progress of long work: one line on a terminal, nothing elsewhere.
 *
 * @module
 */
import type { Progress } from "../../ffi/pipelines.ts";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Bytes for people: `"12.3 MiB"`. */
export function formatBytes(bytes: number | bigint): string {
  let value = Number(bytes);
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || Number.isInteger(value) ? 0 : value < 10 ? 2 : 1;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** Seconds for people: `"4.2 s"`, `"3:07"`, `"1:02:03"`. */
export function formatSeconds(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const whole = Math.round(seconds);
  const two = (n: number) => String(n).padStart(2, "0");
  const minutes = Math.floor(whole / 60) % 60;
  const hours = Math.floor(whole / 3600);
  return hours === 0
    ? `${minutes}:${two(whole % 60)}`
    : `${hours}:${two(minutes)}:${two(whole % 60)}`;
}

const BAR = 24;

/**
 * The progress line.
 *
 * @param seconds since the beginning
 * @param total 0 when it is not known
 */
export function progressLine(
  label: string,
  { total, done }: Progress,
  seconds: number,
): string {
  const rate = seconds > 0 ? done / seconds : 0;
  const speed = `${formatBytes(rate)}/s`;
  if (total <= 0) return `${label}  ${formatBytes(done)}  ${speed}`;
  const part = Math.min(1, done / total);
  const filled = Math.round(part * BAR);
  const bar = "#".repeat(filled) + "-".repeat(BAR - filled);
  const left = rate > 0
    ? `  ${formatSeconds(Math.max(0, total - done) / rate)} left`
    : "";
  return `${label} [${bar}] ${
    String(Math.floor(part * 100)).padStart(3)
  } %  ${speed}${left}`;
}

/** A progress line that goes away when the scope ends. */
export interface ProgressBar extends Disposable {
  /** undefined where nobody watches: the work then does not count */
  readonly onProgress: ((progress: Progress) => void) | undefined;
}

const CLEAR = "\r\x1b[K";
const INTERVAL_MS = 100;
const DEFAULT_WIDTH = 80;

/** Shows progress on stderr if that is a terminal. */
export function showProgress(label: string): ProgressBar {
  if (!Deno.stderr.isTerminal()) {
    return { onProgress: undefined, [Symbol.dispose]: () => {} };
  }
  const encoder = new TextEncoder();
  const write = (text: string) => Deno.stderr.writeSync(encoder.encode(text));
  const start = performance.now();
  let last = -Infinity;
  return {
    onProgress: (progress) => {
      const now = performance.now();
      if (now - last < INTERVAL_MS) return;
      last = now;
      const line = progressLine(label, progress, (now - start) / 1000);
      // A terminal of unknown width says 0.
      const width = Deno.consoleSize().columns || DEFAULT_WIDTH;
      write(CLEAR + line.slice(0, width - 1));
    },
    [Symbol.dispose]: () => {
      if (last > -Infinity) write(CLEAR);
    },
  };
}
