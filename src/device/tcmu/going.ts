// SPDX-License-Identifier: Apache-2.0
/**
 * Disks that the kernel is taking away while they wait for absent data: it
 * waits for them in turn, before it says that the device goes.
 *
 * The first sign of it is that the SCSI device has left sysfs, or that an
 * export is locked.
 *
 * @module
 */
import type { TcmuDevice } from "./device.ts";
import type { Disk } from "./disk.ts";
import type { TcmuName } from "./kernel.ts";
import type { ScsiDevices } from "./scsi_devices.ts";

/** Looks that a new disk has to become a SCSI device of this host. */
const LOOKS = 30;

interface Seen {
  /** it was a SCSI device of this host */
  here: boolean;
  commands: bigint;
  looks: number;
}

/**
 * @param isExportLocked tells whether somebody takes an export away, if not
 *   whose
 * @returns looks at disks: what waits on those that go is ended, and the
 *   initiator told BUSY
 */
export function watchGoing(
  scsi: Pick<ScsiDevices, "count">,
  isExportLocked: () => Promise<boolean>,
): (disks: readonly Disk[]) => Promise<void> {
  const seen = new WeakMap<Disk, Seen>();
  /** True: it does not move, and may be going otherwise. */
  const look = (disk: Disk): boolean => {
    const last = seen.get(disk) ?? { here: false, commands: 0n, looks: 0 };
    const { commands, depth } = disk.stats();
    const stuck = depth > 0n && commands === last.commands;
    const now = { ...last, commands, looks: last.looks + 1 };
    seen.set(disk, now);
    if (!stuck && (last.here || last.looks >= LOOKS)) return false;
    if (scsi.count(disk.serial) > 0) now.here = true;
    else if (last.here) {
      disk.endWaiting();
      return false;
    }
    return stuck;
  };
  return async (disks) => {
    const stuck = disks.filter(look);
    if (stuck.length === 0 || !await isExportLocked()) return;
    // Whoever is not meant is asked again, and waits on.
    for (const disk of stuck) disk.endWaiting();
  };
}

/** Looks at a disk that has gone: by then nobody flushes it any more. */
const GONE_LOOKS = 15;

type Waiting = Pick<TcmuDevice, "uio" | "giveUp">;

/**
 * Disks that go while their images cannot be opened: the kernel flushes each
 * before it goes, and tries that again for as long as it is held back.
 *
 * @returns looks at devices that are held back: what waits for one that was a
 *   disk of this host, and is none any more, fails
 */
export function watchWaiting(
  scsi: Pick<ScsiDevices, "count">,
  serialOf: (name: TcmuName) => Promise<string>,
): (devices: readonly Waiting[]) => Promise<void> {
  const seen = new WeakMap<Waiting, { serial: string; looks: number }>();
  const look = async (device: Waiting): Promise<void> => {
    const last = seen.get(device) ??
      { serial: await serialOf(device.uio), looks: 0 };
    seen.set(device, last);
    if (scsi.count(last.serial) > 0) last.looks = GONE_LOOKS;
    else if (last.looks-- > 0) await device.giveUp();
  };
  return async (devices) => {
    await Promise.all(devices.map(look));
  };
}
