// SPDX-License-Identifier: Apache-2.0
/**
 * Disks that the kernel is taking away while they wait for absent data: it
 * waits for them in turn, before it says that the device goes.
 *
 * The first sign of it is that the SCSI device has left sysfs.
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
 * @returns looks at disks: what waits on those that go is ended, and the
 *   initiator told BUSY
 */
export function watchGoing(
  scsi: Pick<ScsiDevices, "count">,
): (disks: readonly Disk[]) => void {
  const seen = new WeakMap<Disk, Seen>();
  const look = (disk: Disk) => {
    const last = seen.get(disk) ?? { here: false, commands: 0n, looks: 0 };
    const { commands, depth } = disk.stats();
    const stuck = depth > 0n && commands === last.commands;
    const now = { ...last, commands, looks: last.looks + 1 };
    seen.set(disk, now);
    if (!stuck && (last.here || last.looks >= LOOKS)) return;
    if (scsi.count(disk.serial) > 0) now.here = true;
    else if (last.here) disk.endWaiting();
  };
  return (disks) => disks.forEach(look);
}
