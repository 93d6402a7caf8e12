// SPDX-License-Identifier: Apache-2.0
/**
 * The SCSI devices that the kernel made of our disks on this host.
 *
 * @module
 */
import type { KernelPaths } from "./kernel.ts";

/** SCSI devices by the serial of their disk. */
export interface ScsiDevices {
  /** How many there are now. */
  count(serial: string): number;
  /** `/dev/sdX` of one; undefined: it is no disk of this host. */
  disk(serial: string): string | undefined;
  /** One came: what was seen before does not count any more. */
  changed(): void;
}

/** What is in a directory of sysfs; nothing where there is none. */
function namesIn(dir: string): string[] {
  try {
    return [...Deno.readDirSync(dir)].map(({ name }) => name);
  } catch {
    return [];
  }
}

/** The serial that the kernel read from vital product data, or "". */
function readSerial(device: string): string {
  try {
    const page = Deno.readFileSync(`${device}/vpd_pg80`);
    return new TextDecoder().decode(page.subarray(4)).replace(/[\0 ]+$/, "");
  } catch {
    return "";
  }
}

/**
 * Looks into sysfs, anew after `maxAgeMs`: every serial is read again, as the
 * kernel gives the address of a device that has gone to another.
 */
export function scsiDevices(
  { sys }: Pick<KernelPaths, "sys">,
  maxAgeMs = 1000,
): ScsiDevices {
  const dir = `${sys}/class/scsi_device`;
  let serials = new Map<string, string>();
  let readAt = -Infinity;
  const current = () => {
    if (performance.now() - readAt < maxAgeMs) return serials;
    serials = new Map(
      namesIn(dir).map((name) => [name, readSerial(`${dir}/${name}/device`)]),
    );
    readAt = performance.now();
    return serials;
  };
  const find = (serial: string) =>
    [...current()].filter(([, one]) => one === serial).map(([name]) => name);
  return {
    count: (serial) => find(serial).length,
    disk(serial) {
      for (const name of find(serial)) {
        if (readSerial(`${dir}/${name}/device`) !== serial) continue;
        const [disk] = namesIn(`${dir}/${name}/device/block`);
        if (disk !== undefined) return `/dev/${disk}`;
      }
      return undefined;
    },
    changed: () => void (readAt = -Infinity),
  };
}
