// SPDX-License-Identifier: Apache-2.0
/**
 * What the TCMU daemon looks at every few seconds.
 *
 * @module
 */
import { deviceStats } from "../../ffi/device.ts";
import { netlinkStats } from "../../ffi/tcmu.ts";
import type { TcmuDevices } from "../device/tcmu/devices.ts";
import type { Disk } from "../device/tcmu/disk.ts";
import { reason } from "../device/tcmu/error.ts";
import { watchExports } from "../device/tcmu/exports.ts";
import { watchGoing, watchWaiting } from "../device/tcmu/going.ts";
import { type KernelPaths, serialOf } from "../device/tcmu/kernel.ts";
import type { ScsiDevices } from "../device/tcmu/scsi_devices.ts";
import type { Logger } from "./log.ts";

const LOST_MS = 5000;
const DISKS_MS = 2000;

/** Does it now, and again and again, never twice at once, until disposed. */
function every(
  ms: number,
  log: Logger,
  work: () => void | Promise<void>,
): Disposable {
  let running = false;
  const once = async () => {
    if (running) return;
    running = true;
    try {
      await work();
    } catch (error) {
      log.error(`cannot look at devices: ${reason(error)}`);
    } finally {
      running = false;
    }
  };
  const timer = setInterval(once, ms);
  once();
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

/**
 * Finds devices whose events were lost.
 *
 * @param letGo makes whoever waits for an answer try again
 */
export function watchLost(
  devices: TcmuDevices,
  letGo: () => Promise<void>,
  log: Logger,
): Disposable {
  let before = 0;
  /** looks that are still to be thorough */
  let thorough = 0;
  return every(LOST_MS, log, async () => {
    const { malformed, lost } = netlinkStats();
    const dropped = malformed + lost - before;
    before += dropped;
    if (dropped > 0) {
      log.warn(
        `${dropped} events of the kernel were lost: whoever waits for their ` +
          "answers is told to try again",
      );
      await letGo();
      thorough = 4;
    }
    await devices.compare(thorough > 0);
    thorough = Math.max(0, thorough - 1);
  });
}

/**
 * Ends what waits on disks that are taken away, has broken rings begun anew,
 * and says what has failed.
 */
export function watchDisks(
  devices: TcmuDevices,
  scsi: ScsiDevices,
  kernel: KernelPaths,
  log: Logger,
): Disposable {
  const lookForGoing = watchGoing(scsi, watchExports(kernel));
  const lookForWaiting = watchWaiting(scsi, (name) => serialOf(kernel, name));
  const failed = new WeakMap<Disk, number>();
  return every(DISKS_MS, log, async () => {
    const disks = devices.list().flatMap(({ disk }) => disk ?? []);
    for (const disk of disks) {
      const { errors } = deviceStats(disk.image.device);
      const before = failed.get(disk) ?? 0;
      failed.set(disk, errors);
      if (errors === before) continue;
      log.error(
        `io request failed: ${errors - before} of ${disk.image.name} in ` +
          `${DISKS_MS / 1000} s, ${errors} since it was opened`,
      );
    }
    devices.mend();
    await lookForGoing(disks);
    await lookForWaiting(devices.list().filter(({ held }) => held));
  });
}
