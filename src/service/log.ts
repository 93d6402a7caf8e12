// SPDX-License-Identifier: Apache-2.0
/**
 * The service's log: the original's lines and rotation, or JSON lines
 * (spec/service-config.md, section 4).
 *
 * @module
 */
import { whyOf } from "../../ffi/errors.ts";
import type { ServiceConfig } from "./config_schema.ts";
import { type LineFile, openLineFile } from "./line_file.ts";
import { makeDefaultDir } from "./paths.ts";

/** By the numbers of `logLevel`. */
export const LEVELS = ["debug", "info", "warn", "error"] as const;

/** How grave a line is. */
export type Level = (typeof LEVELS)[number];

/** What a line is about. */
export interface LogContext {
  /** dev_id, or the config's path */
  device?: string;
  /** part of the service, "service" when not given */
  area?: string;
}

/** Writes lines; never throws. */
export interface Logger {
  debug(text: string): void;
  info(text: string): void;
  warn(text: string): void;
  error(text: string): void;
  /** The same log for lines about something. */
  with(context: LogContext): Logger;
}

/** The log and what may be done to it while it is used. */
export interface ServiceLog extends Logger, Disposable {
  /** 0 debug, 1 info, 2 warn, 3 error; more: nothing */
  level: number;
}

/** One line before it has a form. */
interface Entry extends LogContext {
  level: Level;
  text: string;
  /** ms since 1970, with fractions */
  at: number;
}

const FIVE = { debug: "DEBUG", info: "INFO ", warn: "WARN ", error: "ERROR" };

/** syslog's numbers, which journald takes from a line's start. */
const PRIORITY = { debug: 7, info: 6, warn: 4, error: 3 };

const CONTROL = /[\p{Cc}\u2028\u2029]/gu;

/** One line: what would end it or steer a terminal is escaped. */
function oneLine(text: string): string {
  return text.replace(CONTROL, (char) => JSON.stringify(char).slice(1, -1));
}

/**
 * Leaves out what may be secret: user and query of URLs, values of
 * authorization headers, and members that are called like secrets.
 */
export function withoutSecrets(text: string): string {
  return text
    .replace(/(\b[a-z][a-z0-9+.-]*:\/\/)[^\s\/@"']+@/gi, "$1***@")
    .replace(/(\bhttps?:\/\/[^\s?"'#\]]*)\?[^\s"'\]]*/gi, "$1?***")
    .replace(/\b(bearer|basic)\s+[\w.~+\/=-]{4,}/gi, "$1 ***")
    .replace(
      /("?\b(?:password|passwd|secret|(?:\w+_)?token|auth)"?\s*[:=]\s*)("[^"]*"|[^\s,;&}"]+)/gi,
      "$1***",
    );
}

/** Milliseconds that local time is ahead, as at the service's start. */
const ZONE_MS = -new Date().getTimezoneOffset() * 60_000;

/** `YYYY/MM/DD hh:mm:ss.uuuuuu`, local time, zone fixed at start. */
export function timeText(at: number): string {
  const us = Math.round(at * 1000) + ZONE_MS * 1000;
  const seconds = new Date(Math.floor(us / 1000)).toISOString().slice(0, 19);
  const rest = String(((us % 1e6) + 1e6) % 1e6).padStart(6, "0");
  return `${seconds.replaceAll("-", "/").replace("T", " ")}.${rest}`;
}

/** Now, in ms since 1970, to the microsecond. */
export function nowMs(): number {
  return performance.timeOrigin + performance.now();
}

/** `th=` of every line: one thread runs TypeScript, the process names it. */
export const THREAD = `th=${
  Deno.pid.toString(16).toUpperCase().padStart(16, "0")
}`;

function textLine({ level, text, at, device, area = "service" }: Entry) {
  const about = device === undefined ? "" : `[device=${oneLine(device)}] `;
  return `${timeText(at)}|${FIVE[level]}|${THREAD}|${area}:0|${area}:${about}${
    oneLine(text)
  }`;
}

function jsonLine({ at, ...rest }: Entry): string {
  return JSON.stringify({ time: new Date(at).toISOString(), ...rest });
}

/** What lines are written to, and how they look there. */
export interface Sink extends Disposable {
  write(entry: Entry): void;
}

/** stderr; under systemd with journald's prefix and without the time. */
export function stderrSink(
  write: (line: string) => void = (line) => console.error(line),
  journal: boolean = Deno.env.has("JOURNAL_STREAM"),
): Sink {
  return {
    write(entry) {
      const { level, text, device } = entry;
      const about = device === undefined ? "" : `[device=${device}] `;
      write(
        journal
          ? `<${PRIORITY[level]}>${oneLine(about + text)}`
          : textLine(entry),
      );
    },
    [Symbol.dispose]() {},
  };
}

/** stderr for a person: `WARNING text`, without time or place. */
export function plainSink(
  write: (line: string) => void = (line) => console.error(line),
): Sink {
  const mark = { debug: "", info: "", warn: "WARNING ", error: "ERROR " };
  return {
    write: ({ level, text, device }) => {
      const about = device === undefined ? "" : `${device}: `;
      write(oneLine(mark[level] + about + text));
    },
    [Symbol.dispose]() {},
  };
}

function fileSink(file: LineFile, format: "text" | "json"): Sink {
  const form = format === "json" ? jsonLine : textLine;
  return {
    write: (entry) => file.write(form(entry)),
    [Symbol.dispose]: () => file[Symbol.dispose](),
  };
}

/** Makes a log over a sink. */
export function createLog(sink: Sink, level: number): ServiceLog {
  let least = level;
  const logger = (context: LogContext): Logger => {
    const at = (level: Level) => (text: string) => {
      if (LEVELS.indexOf(level) < least) return;
      sink.write({
        ...context,
        level,
        text: withoutSecrets(text),
        at: nowMs(),
      });
    };
    return {
      debug: at("debug"),
      info: at("info"),
      warn: at("warn"),
      error: at("error"),
      with: (more) => logger({ ...context, ...more }),
    };
  };
  return {
    ...logger({}),
    get level() {
      return least;
    },
    set level(value: number) {
      least = value;
    },
    [Symbol.dispose]: () => sink[Symbol.dispose](),
  };
}

/**
 * The log that the configuration asks for: a file, or stderr where
 * `logPath` is empty.
 *
 * @throws {Error} `log_output_file failed: cannot open PATH: why`
 */
export function openLog(config: ServiceConfig["logConfig"]): ServiceLog {
  const { logPath, logLevel, logSizeMB, logRotateNum, format } = config;
  if (logPath === "") return createLog(stderrSink(), logLevel);
  const fallback = createLog(stderrSink(), 0);
  try {
    makeDefaultDir(logPath);
    const file = openLineFile(logPath, {
      limitBytes: logSizeMB * 2 ** 20,
      files: logRotateNum,
      onTrouble: (text) => fallback.warn(text),
    });
    return createLog(fileSink(file, format), logLevel);
  } catch (cause) {
    throw new Error(
      `log_output_file failed: cannot open ${logPath}: ${whyOf(cause)}`,
      { cause },
    );
  }
}
