// SPDX-License-Identifier: Apache-2.0
/**
 * `WWW-Authenticate`: which ways of showing who asks a server accepts
 * (RFC 9110, sections 5.6 and 11; spec/registry.md, section 2).
 *
 * @module
 */

/** One way that a server accepts. */
export interface Challenge {
  /** in lower case: `"bearer"`, `"basic"` */
  scheme: string;
  /** in place of parameters: a token68 */
  token: string | undefined;
  /** by their names in lower case; the first of a name counts */
  params: ReadonlyMap<string, string>;
}

const TOKEN = /[!#$%&'*+\-.^_`|~0-9A-Za-z]+/y;
const TOKEN68 = /[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|$))/y;
const SPACE = /[ \t]*/y;
const EQUALS = /[ \t]*=[ \t]*/y;
const QUOTED = /"((?:[^"\\]|\\.)*)"/ys;
/** What servers write that forget to quote: up to a comma or a space. */
const BARE = /[^ \t,"]+/y;

/** A place in a header's text. */
interface Cursor {
  readonly text: string;
  at: number;
}

/** Takes what a sticky pattern matches here. */
function take(cursor: Cursor, pattern: RegExp): RegExpExecArray | undefined {
  pattern.lastIndex = cursor.at;
  const match = pattern.exec(cursor.text);
  if (match === null) return undefined;
  cursor.at = pattern.lastIndex;
  return match;
}

/** `= value`, when one is here; else the cursor stays. */
function takeValue(cursor: Cursor): string | undefined {
  const start = cursor.at;
  if (take(cursor, EQUALS) !== undefined) {
    const quoted = take(cursor, QUOTED)?.[1];
    if (quoted !== undefined) return quoted.replace(/\\(.)/gs, "$1");
    const bare = take(cursor, BARE)?.[0];
    if (bare !== undefined) return bare;
  }
  cursor.at = start;
  return undefined;
}

/** `name = value`, when one is here; else the cursor stays. */
function takeParam(cursor: Cursor): [string, string] | undefined {
  const start = cursor.at;
  const name = take(cursor, TOKEN)?.[0];
  const value = name === undefined ? undefined : takeValue(cursor);
  if (name !== undefined && value !== undefined) return [name, value];
  cursor.at = start;
  return undefined;
}

/** Commas, spaces and empty list elements. */
function skipCommas(cursor: Cursor): void {
  do take(cursor, SPACE); while (take(cursor, /,/y) !== undefined);
}

/**
 * Reads every challenge of a header; several headers come joined by commas.
 * What breaks the grammar ends it: the challenges before are what is known.
 */
export function parseChallenges(text: string): Challenge[] {
  const cursor = { text, at: 0 };
  const challenges: Challenge[] = [];
  for (;;) {
    skipCommas(cursor);
    const scheme = take(cursor, TOKEN)?.[0];
    if (scheme === undefined) return challenges;
    const params = new Map<string, string>();
    const challenge: Challenge = {
      scheme: scheme.toLowerCase(),
      token: undefined,
      params,
    };
    challenges.push(challenge);
    const spaces = take(cursor, SPACE)?.[0] ?? "";
    if (spaces !== "") challenge.token = take(cursor, TOKEN68)?.[0];
    if (challenge.token !== undefined) continue;
    for (;;) {
      skipCommas(cursor);
      const param = takeParam(cursor);
      if (param === undefined) break;
      const name = param[0].toLowerCase();
      if (!params.has(name)) params.set(name, param[1]);
    }
  }
}
