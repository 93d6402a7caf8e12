// SPDX-License-Identifier: Apache-2.0
/**
 * UUID text as LSMT headers keep it (spec/lsmt.md, section 2).
 *
 * @module
 */

/** What stands for "none". */
export const NIL_UUID = "00000000-0000-0000-0000-000000000000";

/** The original also takes hex digits where the dashes belong. */
const UUID = /^[0-9a-f]{8}[-0-9a-f]([0-9a-f]{4}[-0-9a-f]){3}[0-9a-f]{12}$/i;

/** True for 36 characters that the original accepts as a uuid. */
export function isUuid(text: string): boolean {
  return UUID.test(text);
}

/** Upper case with dashes in their places; the input must be valid. */
export function normalizeUuid(text: string): string {
  const upper = text.toUpperCase();
  return [
    upper.slice(0, 8),
    upper.slice(9, 13),
    upper.slice(14, 18),
    upper.slice(19, 23),
    upper.slice(24),
  ].join("-");
}

/** A new random (version 4) uuid in upper case. */
export function randomUuid(): string {
  return crypto.randomUUID().toUpperCase();
}
