// SPDX-License-Identifier: Apache-2.0
/**
 * Failures in the words of the original's tools, which end with 255
 * (spec/tools.md, sections 2 to 5).
 *
 * @module
 */
import { errnoText } from "../../ffi/errors.ts";
import { errnoOf, EXIT, ExitError, reason } from "./exit.ts";
import type { Call } from "./program.ts";

/** strerror(3), but for the few texts that the library words otherwise. */
export function strerror(errno: number): string {
  const text = errnoText(errno);
  return text.charAt(0).toUpperCase() + text.slice(1);
}

const EBUSY = 16;
const EINVAL = 22;

/** By name: the class's module opens layers, which not every command does. */
function isBusy(error: unknown): boolean {
  return error instanceof Error && error.name === "BusyError";
}

/** Which of these files an error could not open or create. */
function unopened(
  error: unknown,
  paths: readonly string[],
): string | undefined {
  const text = reason(error);
  return paths.find((path) =>
    /^cannot \w+ /.test(text) &&
    text.replace(/^cannot \w+ /, "").startsWith(`${path}: `)
  );
}

/**
 * The error that ends a command.
 *
 * @param what the original's words for what failed, `"perform commit()"`
 * @param paths files whose opening the original reports by name
 */
export function failure(
  call: Call,
  error: unknown,
  what: string,
  paths: readonly string[] = [],
): ExitError {
  const options = { cause: error };
  if (!call.original) {
    return new ExitError(
      EXIT.failure,
      `${call.program}: ${reason(error)}`,
      options,
    );
  }
  const errno = errnoOf(error) ?? (isBusy(error) ? EBUSY : EINVAL);
  // Who holds a busy file is in the reason.
  const path = isBusy(error) ? undefined : unopened(error, paths);
  return new ExitError(
    EXIT.failure,
    path === undefined
      ? `failed to ${what}, ${errno}: ${strerror(errno)}: ${reason(error)}`
      : `failed to open file '${path}', ${errno}: ${strerror(errno)}`,
    options,
  );
}

/** An option that this version does not have yet. */
export function notBuilt(call: Call, what: string): ExitError {
  return new ExitError(
    EXIT.failure,
    `${call.program}: ${what} is not built yet`,
  );
}

/** One line on stderr about options without effect. */
export function warnWithout(
  ineffective: readonly string[],
  missing: string,
): void {
  if (ineffective.length === 0) return;
  const names = ineffective.map((name) => `'${name}'`).join(" and ");
  console.error(
    `WARNING option ${names} will be ignored ${missing}`,
  );
}
