// SPDX-License-Identifier: Apache-2.0
/**
 * The C library as a whole: which code paths it chose, its end.
 *
 * @module
 */
import { check } from "./errors.ts";
import { lib } from "./library.ts";

/** Which code paths run: `"crc=isal lookup=avx512"`. */
export function describeEngine(): string {
  const text = lib.obd_engine_describe();
  return text === null ? "" : Deno.UnsafePointerView.getCString(text);
}

/**
 * Why workers cannot use io_uring: ENOSYS of a kernel without, EPERM where a
 * filter of system calls or `kernel.io_uring_disabled` forbids it; 0: they can.
 */
export function uringError(): number {
  return -lib.obd_uring_check();
}

/** Ends the library's threads; @throws {EngineError} EBUSY while one is used */
export function stopEngine(): void {
  check(lib.obd_engine_stop(), "cannot stop the engine");
}
