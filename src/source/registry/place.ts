// SPDX-License-Identifier: Apache-2.0
/**
 * What an answer says of where its bytes lie, checked to the byte
 * (spec/registry.md, sections 4, 5 and 11.3).
 *
 * @module
 */

/** Where the bytes of an answer lie. */
export interface Place {
  /** of the whole blob, in bytes */
  total: number;
  /** bytes asked for that are here: fewer only at the blob's end */
  length: number;
  /** more follow that nobody wants */
  more: boolean;
  /** it was announced how many bytes the answer has: no others can follow */
  sure: boolean;
}

function brief(text: string): string {
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/** A whole body in place of a range: of use where the range begins it. */
function wholeBody(
  bytes: number | undefined,
  at: number,
  length: number,
): Place | string {
  if (at > 0) return "the server ignores ranges";
  if (bytes === undefined || !Number.isSafeInteger(bytes)) {
    return "the server ignores ranges and does not tell the size";
  }
  const wanted = Math.min(length, bytes);
  return { total: bytes, length: wanted, more: wanted < bytes, sure: true };
}

/**
 * The place of an answer of 200, 206 or 416 to a request for
 * [at, at + length); text: what is wrong with it.
 */
export function placeOf(
  { status, headers }: Response,
  at: number,
  length: number,
): Place | string {
  const text = headers.get("content-range")?.trim() ?? "";
  if (status === 416) {
    const [, size] = /^bytes \*\/(\d+)$/i.exec(text) ?? [];
    // An empty blob has no byte that a range could begin with.
    if (at === 0 && size === "0") {
      return { total: 0, length: 0, more: false, sure: true };
    }
    return `it has no byte ${at}${size === undefined ? "" : ` of ${size}`}`;
  }
  const encoding = headers.get("content-encoding")?.trim() ?? "";
  if (!/^(identity)?$/i.test(encoding)) {
    return `the answer is ${encoding} encoded`;
  }
  const announced = headers.get("content-length");
  const bytes = announced === null ? undefined : Number(announced);
  if (status === 200) return wholeBody(bytes, at, length);
  const [, a, b, size] = /^bytes (\d+)-(\d+)\/(\d+)$/i.exec(text) ?? [];
  const total = Number(size);
  const there = Math.min(length, total - at);
  const right = size !== undefined && Number.isSafeInteger(total) &&
    there > 0 && Number(a) === at && Number(b) === at + there - 1;
  if (!right) {
    return `asked for bytes ${at}-${at + length - 1}, got "${brief(text)}"`;
  }
  if (bytes !== undefined && bytes !== there) {
    return `${bytes} bytes were announced in place of ${there}`;
  }
  return { total, length: there, more: false, sure: bytes !== undefined };
}
