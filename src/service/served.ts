// SPDX-License-Identifier: Apache-2.0
/**
 * How an image to serve is named.
 *
 * @module
 */

/** One image to serve. */
export interface ServedConfig {
  /** path of its configuration */
  path: string;
  /** names it for a live snapshot; may be empty */
  devId: string;
}

/** `CONFIG[;dev_id]`. */
export function parseServed(text: string): ServedConfig {
  const cut = text.lastIndexOf(";");
  return cut < 0
    ? { path: text, devId: "" }
    : { path: text.slice(0, cut), devId: text.slice(cut + 1) };
}
