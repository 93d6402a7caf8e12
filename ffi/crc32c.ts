// SPDX-License-Identifier: Apache-2.0
/**
 * CRC-32C on the fastest path that the machine has.
 *
 * @module
 */
import type { Bytes } from "./handle.ts";
import { lib } from "./library.ts";

/** CRC-32C register without inversions (spec/zfile.md, section 5). */
export function crc32c(start: number, bytes: Bytes): number {
  return lib.obd_crc32c(start, bytes, BigInt(bytes.byteLength));
}
