// SPDX-License-Identifier: Apache-2.0
/**
 * Exit codes, the errors that carry them, and errors as one line of text
 * (spec/tools.md, section 1).
 *
 * @module
 */

/** What the commands exit with. */
export const EXIT = {
  ok: 0,
  /** a value cannot be converted */
  conversion: 104,
  /** a value is not allowed: missing file, out of range */
  validation: 105,
  /** something required is missing */
  required: 106,
  /** an argument that nobody expects */
  unexpected: 109,
  /** wrong number of values */
  mismatch: 114,
  /** the command could not do it */
  failure: 255,
} as const;

/** Ends the command with one line on stderr, as it is, and a code. */
export class ExitError extends Error {
  override readonly name = "ExitError";
  readonly exitCode: number;

  constructor(exitCode: number, line: string, options?: ErrorOptions) {
    super(line, options);
    this.exitCode = exitCode;
  }
}

/** The arguments are wrong; `--help` would help. */
export class UsageError extends ExitError {}

/** `"EACCES: permission denied, open '/x'"` as words in our order. */
function nodeReason(error: Error): string {
  const [, code, text, call] = /^(E[A-Z0-9]+): (.*), (\w+)/.exec(
    error.message,
  ) ?? [];
  if (code === undefined || !("path" in error)) return error.message;
  return `cannot ${call} ${error.path}: ${text}`;
}

/** The message of anything thrown, on one line. */
export function reason(error: unknown): string {
  const text = error instanceof Error ? nodeReason(error) : String(error);
  return text.replace(/\s*\n\s*/g, "; ");
}

/** errno of an error of the C library or of `node:fs`, or of its causes. */
export function errnoOf(error: unknown): number | undefined {
  for (let at = error; at instanceof Error; at = at.cause) {
    if ("errno" in at && typeof at.errno === "number") {
      return Math.abs(at.errno);
    }
  }
  return undefined;
}
