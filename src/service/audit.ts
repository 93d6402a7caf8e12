// SPDX-License-Identifier: Apache-2.0
/**
 * The audit file: what was read from where, and how long it took
 * (spec/service-config.md, section 5).
 *
 * @module
 */
import { whyOf } from "../../ffi/errors.ts";
import { watchSlowReads } from "../../ffi/slow.ts";
import type { ServiceConfig } from "./config_schema.ts";
import { openLineFile } from "./line_file.ts";
import { makeDefaultDir } from "./paths.ts";
import { type Logger, nowMs, THREAD, timeText, withoutSecrets } from "./log.ts";

/** Operations, and the latency in us below which they are left out. */
const THRESHOLD_US = {
  download: 0,
  bk_download: 0,
  "file:pread": 10_000,
  "file:read": 1_000,
  "file:write": 10_000,
} as const;

/** One operation. */
export interface Audited {
  op: keyof typeof THRESHOLD_US;
  /** as opened; empty for reads of the cache's medium */
  pathname: string;
  /** bytes */
  offset: number;
  /** bytes returned, asked for by file:pread; -1 after a failure */
  size: number;
  latencyUs: number;
}

/** What an eviction pass did, in bytes. */
export interface Eviction {
  actualEvict: number;
  evictByCache: number;
  evictByDisk: number;
  totalUsed: number;
}

/** Takes note; never throws. */
export interface Audit extends Disposable {
  record(done: Audited): void;
  eviction(done: Eviction): void;
}

const LIMIT_BYTES = 10 * 2 ** 20;
const FILES = 3;

const NO_AUDIT: Audit = {
  record() {},
  eviction() {},
  [Symbol.dispose]() {},
};

/** One audit after another, for those who keep it. */
export interface ChangingAudit extends Audit {
  /** Ends the one until now. */
  change(next: Audit): void;
}

/** An audit that can be changed for another one. */
export function changingAudit(first: Audit): ChangingAudit {
  let current = first;
  return {
    record: (done) => current.record(done),
    eviction: (done) => current.eviction(done),
    change(next) {
      current[Symbol.dispose]();
      current = next;
    },
    [Symbol.dispose]: () => current[Symbol.dispose](),
  };
}

/** What stands behind `th=...|`. */
function line(op: string, members: Readonly<Record<string, unknown>>): string {
  const text = Object.entries(members)
    .map(([name, value]) => `[${name}=${value}]`).join("");
  return `${timeText(nowMs())}|AUDIT|${THREAD}|${op}${text}`;
}

/** Hits, which never come to TypeScript unless they were slow. */
function auditHits(record: Audit["record"], log: Logger): Disposable {
  return watchSlowReads({
    cacheUs: THRESHOLD_US["file:read"],
    localUs: THRESHOLD_US["file:pread"],
  }, {
    read: ({ kind, path, at, length, latencyUs }) =>
      record({
        op: kind === "cache" ? "file:read" : "file:pread",
        pathname: path,
        offset: at,
        size: length,
        latencyUs,
      }),
    dropped: (reads) =>
      log.warn(`${reads} slow reads are missing in the audit file`),
  });
}

/** A name on one line, its query left out: it may be a signature. */
function safeName(name: string): string {
  return withoutSecrets(name).replace(/[\p{Cc}\u2028\u2029]/gu, "?");
}

/**
 * Opens the audit file that the configuration asks for.  Where that cannot
 * be had the service goes on without, and the log says so.
 */
export function openAudit(
  config: Pick<ServiceConfig, "enableAudit" | "auditPath">,
  log: Logger,
): Audit {
  const { enableAudit, auditPath } = config;
  if (!enableAudit) return NO_AUDIT;
  if (auditPath === "") {
    log.warn("no audit file: auditPath is empty");
    return NO_AUDIT;
  }
  try {
    makeDefaultDir(auditPath);
    const file = openLineFile(auditPath, {
      limitBytes: LIMIT_BYTES,
      files: FILES,
      onTrouble: (text) => log.warn(text),
    });
    const record: Audit["record"] = (done) => {
      const { op, pathname, offset, size, latencyUs } = done;
      if (latencyUs < THRESHOLD_US[op]) return;
      file.write(line(op, {
        pathname: safeName(pathname),
        offset,
        size,
        latency: Math.trunc(latencyUs),
      }));
    };
    const hits = auditHits(record, log);
    return {
      record,
      eviction: (done) => {
        const { actualEvict, evictByCache, evictByDisk, totalUsed } = done;
        file.write(
          line("eviction", {
            actualEvict,
            evictByCache,
            evictByDisk,
            totalUsed,
          }),
        );
      },
      [Symbol.dispose]() {
        hits[Symbol.dispose]();
        file[Symbol.dispose]();
      },
    };
  } catch (cause) {
    log.warn(`no audit file: cannot open ${auditPath}: ${whyOf(cause)}`);
    return NO_AUDIT;
  }
}
