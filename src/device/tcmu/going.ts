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
import type { Disk } from "./disk.ts";
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
