// SPDX-License-Identifier: Apache-2.0
/**
 * What a check of this machine says.
 *
 * @module
 */

/** One line of the report. */
export interface Finding {
  /** what was looked at */
  name: string;
  /** `warning`: it works without; `missing`: it does not */
  state: "ok" | "warning" | "missing";
  /** what was found, or why that is not enough */
  found: string;
  /** a shell command that mends it */
  mend?: string;
}

/** Where the checks look. */
export interface Machine {
  /** before every path; empty but in tests */
  root: string;
  /** the service's configuration; undefined: the default one */
  config: string | undefined;
}

export function fine(name: string, found: string): Finding {
  return { name, state: "ok", found };
}

export function missing(name: string, found: string, mend: string): Finding {
  return { name, state: "missing", found, mend };
}

export function warning(name: string, found: string, mend: string): Finding {
  return { name, state: "warning", found, mend };
}

/** All of a file; "" where it cannot be read. */
export function textOf(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}

/** True when there is something of that name. */
export function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Names in a directory; none where it cannot be read. */
export function namesIn(path: string): string[] {
  try {
    return [...Deno.readDirSync(path)].map((entry) => entry.name);
  } catch {
    return [];
  }
}

/** A word of a shell command. */
export function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word)
    ? word
    : `'${word.replaceAll("'", `'\\''`)}'`;
}
