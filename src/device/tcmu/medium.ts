// SPDX-License-Identifier: Apache-2.0
/**
 * A device's bytes, for the commands that TypeScript answers.
 *
 * @module
 */
import pLimit from "p-limit";
import {
  flushDevice,
  readDevice,
  writeDeviceAsync,
} from "../../../ffi/device.ts";
import type { Device } from "../../../ffi/handle.ts";
import type { Medium } from "./compare.ts";

/** Each call waits on a blocking thread, of which all devices share a few. */
const limit = pLimit(8);

/** A medium whose device may be let go once nothing runs any more. */
export interface DeviceMedium extends Medium {
  /** calls that have not ended */
  readonly running: number;
  /** Waits for them. */
  idle(): Promise<void>;
}

/** Shows a device. */
export function createMedium(device: Device): DeviceMedium {
  const running = new Set<Promise<void>>();
  const call = (work: () => Promise<void>): Promise<void> => {
    const made = limit(work);
    const ended = made.catch(() => {}).finally(() => running.delete(ended));
    running.add(ended);
    return made;
  };
  const alone = pLimit(1);
  return {
    read: (into, at) => call(() => readDevice(device, into, at)),
    write: (from, at) => call(() => writeDeviceAsync(device, from, at)),
    flush: () => call(() => flushDevice(device)),
    exclusive: (work) => alone(work),
    get running() {
      return running.size;
    },
    async idle() {
      while (running.size > 0) await Promise.all(running);
    },
  };
}
