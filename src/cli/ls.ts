// SPDX-License-Identifier: Apache-2.0
/**
 * `ls`: the images that the kernel has as devices.
 *
 * @module
 */
import { HOST } from "../device/tcmu/configfs.ts";
import { type FoundDevice, listDevices } from "../device/tcmu/inventory.ts";
import { EXIT } from "./exit.ts";
import { printJson, printTable } from "./print.ts";
import { formatBytes } from "./progress.ts";
import type { Args } from "./table.ts";

const TITLES = ["ID", "DISK", "SIZE", "STATE", "USED", "CONFIG"];

function row(device: FoundDevice): string[] {
  const { id, disk, size, state, mounted, exported, config } = device;
  return [
    id,
    disk ?? "-",
    size === null ? "-" : formatBytes(size),
    state,
    [...mounted, ...exported].join(", ") || "-",
    config,
  ];
}

/** Runs `overlaybd ls [--json]`. */
export async function run(args: Args<"ls">): Promise<number> {
  const devices = await listDevices(HOST);
  if (args.json) {
    printJson(devices.map(({ exports: _, ...device }) => device));
    return EXIT.ok;
  }
  printTable(TITLES, devices.map(row));
  return EXIT.ok;
}
