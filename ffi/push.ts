// SPDX-License-Identifier: Apache-2.0
/**
 * A fresh upper over that of a disk in use, and the end of it (`c/push.c`).
 *
 * @module
 */
import { check } from "./errors.ts";
import { type Device, slot, type Upper, type View } from "./handle.ts";
import { lib } from "./library.ts";

/**
 * Changes go to `upper` from now on, over the upper of before.  FLUSH then
 * waits for {@linkcode settleDevice}.
 *
 * @param maxRecords E2BIG: the upper of before has more
 * @param limitMs ETIMEDOUT: running changes did not end in that time
 * @returns how long changes had to wait, in microseconds
 */
export async function pushUpper(
  device: Device,
  upper: Upper,
  maxRecords: number,
  limitMs: number,
): Promise<number> {
  const pause = slot();
  check(
    await lib.obd_device_push_async(
      device.pointer,
      upper.pointer,
      BigInt(maxRecords),
      limitMs,
      pause,
    ),
    "cannot switch the writable layer",
  );
  return Number(pause[0] ?? 0n) / 1000;
}

/** Copies what the new upper holds back; changes wait from then on. */
export async function popUpper(device: Device, limitMs: number): Promise<void> {
  check(
    await lib.obd_device_pop_async(device.pointer, limitMs),
    "cannot bring back the writable layer",
  );
}

const SETTLE = { sealed: 0, popped: 1, kept: 2 } as const;

/** How a push ends; `view`: the lowers with the upper of before on top. */
export type Settled =
  | { how: "sealed"; view: View }
  | { how: "popped" | "kept" };

/** Ends a push: what waits goes on. */
export function settleDevice(device: Device, end: Settled): void {
  check(
    lib.obd_device_settle(
      device.pointer,
      SETTLE[end.how],
      end.how === "sealed" ? end.view.pointer : null,
    ),
    "cannot end the switch of the writable layer",
  );
}
