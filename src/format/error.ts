// SPDX-License-Identifier: Apache-2.0

/**
 * Bytes are not what a format demands.  The message says what could not be
 * read, which rule does not hold, and the values.
 */
export class FormatError extends Error {
  override readonly name = "FormatError";
}
