// SPDX-License-Identifier: Apache-2.0
/**
 * What the actions of `ctl` are made of: what they are asked with, and how
 * answers are shown.
 *
 * @module
 */
import { EXIT, UsageError } from "./exit.ts";
import { stdoutPrinter } from "./print.ts";
import type { Args } from "./table.ts";

/** A value's members. */
export type Json = Readonly<Record<string, unknown>>;

/** Sends a request; members of what comes back may be anything. */
export type Ask = (
  method: string,
  path: string,
  body?: unknown,
) => Promise<Json>;

/** What an action has to work with. */
export interface Work {
  ask: Ask;
  args: Args<"ctl">;
  /** the words behind the action, as many as it wants */
  words: readonly string[];
}

/** What an action gives: a value for --json, and how people see it. */
export interface Result {
  value: unknown;
  show(): void;
}

/** A value's members; none where it has none. */
export function object(value: unknown): Json {
  return typeof value === "object" && value !== null ? { ...value } : {};
}

/** A list's values; none where it is none. */
export function list(value: unknown): Json[] {
  return Array.isArray(value) ? value.map(object) : [];
}

/** A value in a table. */
export function text(value: unknown): string {
  return value === null || value === undefined || value === ""
    ? "-"
    : String(value);
}

/** Prints words. */
export function line(words: string): () => void {
  return () => {
    const out = stdoutPrinter();
    out.line(words);
    out.flush();
  };
}

/** Members as `a.b = value`, a line each. */
function showMembers(value: Json): void {
  const out = stdoutPrinter();
  const visit = (members: Json, prefix: string) => {
    for (const [name, member] of Object.entries(members)) {
      const isGroup = typeof member === "object" && member !== null &&
        !Array.isArray(member);
      if (isGroup) visit(object(member), `${prefix}${name}.`);
      else out.line(`${prefix}${name} = ${JSON.stringify(member)}`);
    }
  };
  visit(value, "");
  out.flush();
}

/** A value whose members are listed. */
export function shown(value: Json): Result {
  return { value, show: () => showMembers(value) };
}

/** Bytes, or with K, M, G, T as in KiB... */
export function parseBytes(word: string): number {
  const [, digits, unit = ""] = /^(\d+)([KMGT]?)i?B?$/i.exec(word) ?? [];
  const power = " KMGT".indexOf(unit.toUpperCase() || " ");
  const bytes = Number(digits) * 1024 ** power;
  if (digits !== undefined && Number.isSafeInteger(bytes)) return bytes;
  throw new UsageError(
    EXIT.conversion,
    `${word} is no size: bytes, or with K, M, G or T`,
  );
}
