// SPDX-License-Identifier: Apache-2.0
/**
 * What `commit`, `zfile` and `merge` have in common: how to compress, how
 * many threads, what came out.
 *
 * @module
 */
import { describeEngine } from "../../ffi/engine.ts";
import type { Written, ZfileOptions } from "../layer/write.ts";
import { EXIT, ExitError } from "./exit.ts";
import type { Call } from "./program.ts";
import { formatBytes, formatSeconds } from "./progress.ts";

const MAX_DEFAULT_THREADS = 8;

/** One thread by the original's names, as documented there; else all. */
export function threadCount(given: number | undefined, call: Call): number {
  if (given !== undefined) return given;
  return call.original
    ? 1
    : Math.min(navigator.hardwareConcurrency, MAX_DEFAULT_THREADS);
}

/**
 * Block size in bytes.
 *
 * @throws {ExitError} it is none of 4, 8, 16, 32, 64
 */
export function blockSizeBytes(kib: number | undefined, text: string): number {
  if (kib === undefined) return 4096;
  if ([4, 8, 16, 32, 64].includes(kib)) return kib * 1024;
  throw new ExitError(EXIT.failure, text);
}

/** `--algorithm`; undefined when it is neither. */
export function algorithmName(
  text: string | undefined,
): ZfileOptions["algorithm"] | undefined {
  if (text === undefined || text === "lz4") return "lz4";
  return text === "zstd" ? "zstd" : undefined;
}

/** Says on stderr what was written: for people, not by the original's names. */
export function reportWritten(
  path: string,
  written: Written,
  startedAt: number,
  call: Call,
  verbose: boolean,
): void {
  if (call.original && !verbose) return;
  const seconds = (performance.now() - startedAt) / 1000;
  const { size, originalSize, zfile, blockSize } = written;
  const ratio = zfile === undefined || size === 0
    ? ""
    : ` from ${formatBytes(originalSize)} (${
      (originalSize / size).toFixed(2)
    } : 1, blocks of ${formatBytes(blockSize ?? 0)})`;
  console.error(
    `${path}: ${formatBytes(size)}${ratio} in ${formatSeconds(seconds)}`,
  );
  if (verbose) console.error(`engine: ${describeEngine()}`);
}
