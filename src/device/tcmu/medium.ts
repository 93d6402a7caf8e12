// SPDX-License-Identifier: Apache-2.0
/**
 * A device's bytes, for the commands that TypeScript answers.
 *
 * @module
 */
import pLimit from "p-limit";
import { EngineError } from "../../../ffi/errors.ts";
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
  /** calls that have begun and not ended */
  readonly running: number;
  /** Begins no more of them, and waits for the rest. */
  close(): Promise<void>;
}

const ESHUTDOWN = 108;

/** Shows a device. */
export function createMedium(device: Device): DeviceMedium {
  const running = new Set<Promise<void>>();
  let closed = false;
  // One that other devices keep from beginning holds up no end.
  const begin = (work: () => Promise<void>): Promise<void> => {
    if (closed) throw new EngineError(ESHUTDOWN, "cannot use the disk");
    const made = work();
    const ended = made.catch(() => {}).finally(() => running.delete(ended));
    running.add(ended);
    return made;
  };
  const call = (work: () => Promise<void>) => limit(() => begin(work));
  const alone = pLimit(1);
  return {
    read: (into, at) => call(() => readDevice(device, into, at)),
    write: (from, at) => call(() => writeDeviceAsync(device, from, at)),
    flush: () => call(() => flushDevice(device)),
    exclusive: (work) => alone(work),
    get running() {
      return running.size;
    },
    async close() {
      closed = true;
      await Promise.all(running);
    },
  };
}
