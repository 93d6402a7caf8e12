// SPDX-License-Identifier: Apache-2.0
/**
 * JSON of files that the original reads, too: of a key that an object has
 * twice the first counts there (spec/image.md, section 1), the last with
 * `JSON.parse`.
 *
 * @module
 */

/** What a text says. */
export interface ParsedJson {
  value: unknown;
  /** keys that an object has more than once, in the order of the text */
  repeated: string[];
}

/** A string, a bracket, a separator, or a number or word. */
const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\]:,]|[^\s{}[\]:,"]+/g;

/** A list or object that is not at its end yet. */
interface Open {
  value: unknown[] | Record<string, unknown>;
  /** of the member that comes next; undefined: a key comes next */
  key: string | undefined;
}

/**
 * Parses a text; the first of repeated keys counts.
 *
 * @throws {SyntaxError} it is no JSON
 */
export function parseJson(text: string): ParsedJson {
  // From here on every token stands where it may.
  JSON.parse(text);
  const repeated: string[] = [];
  let root: unknown;
  const open: Open[] = [];
  const put = (value: unknown) => {
    const at = open.at(-1);
    if (at === undefined) root = value;
    else if (Array.isArray(at.value)) at.value.push(value);
    else {
      const { key = "" } = at;
      at.key = undefined;
      if (Object.hasOwn(at.value, key)) repeated.push(key);
      else {
        // Not by assignment: that is something else for `__proto__`.
        const own = { value, writable: true, enumerable: true };
        Object.defineProperty(at.value, key, { ...own, configurable: true });
      }
    }
  };
  for (const [token] of text.matchAll(TOKEN)) {
    const at = open.at(-1);
    if (token === "{" || token === "[") {
      const value = token === "[" ? [] : {};
      put(value);
      open.push({ value, key: undefined });
    } else if (token === "}" || token === "]") open.pop();
    else if (token !== ":" && token !== ",") {
      const value: unknown = JSON.parse(token);
      const isKey = at !== undefined && !Array.isArray(at.value) &&
        at.key === undefined;
      if (isKey) at.key = String(value);
      else put(value);
    }
  }
  return { value: root, repeated };
}
