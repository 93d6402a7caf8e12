// SPDX-License-Identifier: Apache-2.0
/**
 * Where an open image says what it does on its own: the service's log and
 * audit, as far as they are needed here.
 *
 * @module
 */

/** Takes lines; never throws. */
export interface ImageLog {
  info(text: string): void;
  warn(text: string): void;
  error(text: string): void;
}

/** Takes note of what was fetched (spec/service-config.md, section 5). */
export interface ImageAudit {
  record(done: {
    op: "bk_download";
    pathname: string;
    /** bytes */
    offset: number;
    /** bytes; -1 after a failure */
    size: number;
    latencyUs: number;
  }): void;
}

/** For who does not want to know. */
export const NO_LOG: ImageLog = { info() {}, warn() {}, error() {} };

/** The message of whatever was thrown. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
