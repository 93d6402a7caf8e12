// SPDX-License-Identifier: Apache-2.0
/**
 * Records which bytes of its layers an image reads, until the lock file is
 * removed or the image is closed (spec/image.md, section 5.3).
 *
 * @module
 */
import { crc32c } from "../../ffi/crc32c.ts";
import {
  closeFd,
  O,
  openFd,
  pwriteFd,
  syncFd,
  truncateFd,
  unlinkPath,
} from "../../ffi/files.ts";
import type { Device } from "../../ffi/handle.ts";
import { EngineError } from "../../ffi/errors.ts";
import {
  startTrace,
  stopTrace,
  takeTrace,
  type TracedRead,
} from "../../ffi/trace.ts";
import {
  encodeTraceHeader,
  encodeTraceRecords,
  TRACE_BLOCK,
} from "../format/trace.ts";
import { fileInfo } from "../layer/files.ts";
import { type ImageLog, reasonOf } from "./log.ts";

/** Reads that are kept: 24 MiB, in memory and then on disk. */
export const MAX_TRACED_READS = 1 << 20;

const LOCK_POLL_MS = 1000;
/** Records that are encoded at a time. */
const BATCH = 1 << 16;

/** A recording that goes on. */
export interface Recording {
  /** Ends it: writes the trace unless that has happened. */
  close(): Promise<void>;
}

/** How a recording is made. */
export interface RecordOptions {
  device: Device;
  /** the trace: an existing, empty file */
  path: string;
  log: ImageLog;
  maxReads?: number;
}

function removeIfThere(path: string): void {
  try {
    unlinkPath(path);
  } catch (error) {
    if (!(error instanceof EngineError && error.code === "ENOENT")) throw error;
  }
}

/** Writes header and records; an error leaves the file empty. */
async function writeTrace(
  fd: number,
  reads: readonly TracedRead[],
): Promise<number> {
  try {
    let at = TRACE_BLOCK;
    let sum = 0;
    pwriteFd(fd, encodeTraceHeader(0, 0), 0);
    for (let first = 0; first < reads.length; first += BATCH) {
      const raw = encodeTraceRecords(
        reads.slice(first, first + BATCH)
          .map((read) => ({ op: "read", ...read })),
      );
      sum = crc32c(sum, raw);
      pwriteFd(fd, raw, at);
      at += raw.length;
    }
    pwriteFd(fd, encodeTraceHeader(at - TRACE_BLOCK, sum), 0);
    truncateFd(fd, at);
    await syncFd(fd);
    return (at - TRACE_BLOCK) / TRACE_BLOCK;
  } catch (error) {
    truncateFd(fd, 0);
    throw error;
  }
}

/**
 * Makes the lock file; one that is there already will do.  False: there is
 * none, so nobody can remove it.
 */
function makeLock(path: string, log: ImageLog): boolean {
  try {
    closeFd(openFd(path, O.RDWR | O.CREAT | O.EXCL, 0o666));
    return true;
  } catch (error) {
    if (error instanceof EngineError && error.code === "EEXIST") return true;
    log.error(
      `cannot make the lock of a trace, recording until the device closes: ${
        reasonOf(error)
      }`,
    );
    return false;
  }
}

/**
 * Starts to record.
 *
 * @throws {EngineError} the trace cannot be opened for writing
 */
export function startRecording(options: RecordOptions): Recording {
  const { device, path, log } = options;
  const lock = `${path}.lock`;
  const ok = `${path}.ok`;
  const fd = openFd(path, O.RDWR);
  let locked: boolean;
  try {
    removeIfThere(ok);
    startTrace(device, options.maxReads ?? MAX_TRACED_READS);
    locked = makeLock(lock, log);
  } catch (error) {
    closeFd(fd);
    throw error;
  }
  log.info(`Prefetch: recording to ${path}`);

  const dump = async () => {
    try {
      const { reads, lost } = takeTrace(device);
      stopTrace(device);
      if (lost > 0) {
        log.warn(
          `the trace is full: the last ${lost} reads are not in ${path}`,
        );
      }
      const records = await writeTrace(fd, reads);
      removeIfThere(lock);
      closeFd(openFd(ok, O.RDWR | O.CREAT | O.EXCL, 0o666));
      log.info(`Prefetch: recorded ${records} records to ${path}`);
    } catch (error) {
      log.error(`cannot write the trace ${path}: ${reasonOf(error)}`);
    } finally {
      closeFd(fd);
    }
  };
  let dumping: Promise<void> | undefined;
  const end = () => {
    clearInterval(timer);
    return dumping ??= dump();
  };
  const timer = setInterval(() => {
    try {
      if (locked && fileInfo(lock) === undefined) void end();
    } catch {
      // A lock that cannot be looked at has not been removed.
    }
  }, LOCK_POLL_MS);
  return { close: end };
}
