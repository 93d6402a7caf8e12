// SPDX-License-Identifier: Apache-2.0
/**
 * The TCMU devices of overlaybd images that the kernel has: what each shows,
 * as which disk, and who uses it.
 *
 * @module
 */
import { closeFd, O } from "../../../ffi/files.ts";
import { openFdAsync } from "../../../ffi/files_async.ts";
import { EngineError } from "../../../ffi/errors.ts";
import { addressOf, disksAt, type Export, HBA, type Host } from "./configfs.ts";
import {
  coreDevice,
  type KernelPaths,
  listUio,
  parseDeviceConfig,
  within,
} from "./kernel.ts";

type Place = Pick<Host, "paths" | "tree">;

/** A device that the kernel has. */
export interface KernelDevice {
  /** what `attach` was told, or `user_N/name` for one made otherwise */
  id: string;
  /** N of `user_N`, and the directory in it */
  hba: string;
  name: string;
  /** of the image's configuration */
  config: string;
  devId: string;
  /** `/dev/sdX`; null: it is no disk of this machine */
  disk: string | null;
  /** bytes; null without a disk */
  size: number | null;
  readOnly: boolean | null;
  /**
   * `disabled`: configfs only; `blocked`: its daemon has stopped or its image
   * is not open yet; else what SCSI says, `running` when all is well;
   * `no disk`: exported otherwise, or not at all
   */
  state: string;
  /** where its disk, or a partition of it, is mounted */
  mounted: string[];
  /** `fabric wwn`, for each export that is no loopback disk */
  exported: string[];
}

/** With what is needed to take it away. */
export interface FoundDevice extends KernelDevice {
  exports: Export[];
}

/** An attribute, or "" where it is not there any more. */
async function attribute({ tree }: Place, path: string): Promise<string> {
  return (await tree.read(path).catch(() => "")).trim();
}

/** Every export in configfs, by the core device's directory. */
async function allExports(place: Place): Promise<Map<string, Export[]>> {
  const { paths, tree } = place;
  const root = `${paths.configfs}/target`;
  const found = new Map<string, Export[]>();
  const skipped = ["core", "version", "dbroot"];
  for (const fabric of await tree.list(root)) {
    if (skipped.includes(fabric)) continue;
    for (const wwn of await tree.list(`${root}/${fabric}`)) {
      for (const tpg of await tree.list(`${root}/${fabric}/${wwn}`)) {
        if (!tpg.startsWith("tpgt_")) continue;
        const luns = `${root}/${fabric}/${wwn}/${tpg}/lun`;
        for (const lun of await tree.list(luns)) {
          for (const link of await tree.list(`${luns}/${lun}`)) {
            const target = await tree.follow(`${luns}/${lun}/${link}`);
            if (target === undefined) continue;
            const at = { fabric, wwn, tpg, lun, link };
            found.set(target, [...found.get(target) ?? [], at]);
          }
        }
      }
    }
  }
  return found;
}

/** One line of mountinfo: its device, `8:0`, and where it is mounted. */
function parseMount(line: string): [device: string, at: string] {
  const [, , device = "", , at = ""] = line.split(" ");
  const octal = (_: string, digits: string) =>
    String.fromCharCode(parseInt(digits, 8));
  return [device, at.replace(/\\([0-7]{3})/g, octal)];
}

/** Where a disk and its partitions are mounted. */
async function mountsOf(place: Place, disk: string): Promise<string[]> {
  const { paths, tree } = place;
  const block = `${paths.sys}/block/${disk}`;
  const parts = (await tree.list(block)).filter((it) => it.startsWith(disk));
  const numbers = await Promise.all(
    [block, ...parts.map((part) => `${block}/${part}`)]
      .map((dir) => attribute(place, `${dir}/dev`)),
  );
  const mounts = await attribute(place, `${paths.proc}/self/mountinfo`);
  return mounts.split("\n").map(parseMount)
    .filter(([device]) => device !== "" && numbers.includes(device))
    .map(([, at]) => at);
}

interface DiskState {
  disk: string | null;
  size: number | null;
  readOnly: boolean | null;
  state: string;
  mounted: string[];
}

const NO_DISK: DiskState = {
  disk: null,
  size: null,
  readOnly: null,
  state: "no disk",
  mounted: [],
};

async function diskOf(place: Place, exports: Export[]): Promise<DiskState> {
  for (const at of exports) {
    if (at.fabric !== "loopback") continue;
    const address = await addressOf(place, at).catch(() => "");
    const [disk] = await disksAt(place, address);
    if (disk === undefined) continue;
    const block = `${place.paths.sys}/block/${disk}`;
    return {
      disk: `/dev/${disk}`,
      size: 512 * Number(await attribute(place, `${block}/size`)),
      readOnly: await attribute(place, `${block}/ro`) === "1",
      state: await attribute(place, `${block}/device/state`),
      mounted: await mountsOf(place, disk),
    };
  }
  return NO_DISK;
}

async function look(
  place: Place,
  hba: string,
  name: string,
  exportsOf: Map<string, Export[]>,
): Promise<FoundDevice | undefined> {
  const dir = coreDevice(place.paths, { hba, name });
  const argument = parseDeviceConfig(
    await attribute(place, `${dir}/attrib/dev_config`),
  );
  if (argument === undefined) return undefined;
  const exports = exportsOf.get(dir) ?? [];
  const shown = await diskOf(place, exports);
  const enabled = await attribute(place, `${dir}/enable`) === "1";
  const blocked = await attribute(place, `${dir}/action/block_dev`);
  return {
    id: hba === HBA && name.startsWith("dev_")
      ? name.slice("dev_".length)
      : `user_${hba}/${name}`,
    hba,
    name,
    config: argument.path.replace(/^\/+/, "/"),
    devId: argument.devId,
    ...shown,
    state: !enabled
      ? "disabled"
      : blocked === "blocked"
      ? "blocked"
      : shown.state,
    exported: exports.filter((at) => at.fabric !== "loopback")
      .map((at) => `${at.fabric} ${at.wwn}`),
    exports,
  };
}

/** `disk10` behind `disk9`.  What Intl has for it takes 8 ms to load. */
function sortKey(id: string): string {
  return id.replace(/\d+/g, (digits) => digits.padStart(20, "0"));
}

/** Every device that is an overlaybd image's, by id. */
export async function listDevices(place: Place): Promise<FoundDevice[]> {
  const { paths, tree } = place;
  const exportsOf = await allExports(place);
  const core = `${paths.configfs}/target/core`;
  const found: FoundDevice[] = [];
  for (const dir of await tree.list(core)) {
    const [, hba] = /^user_(\d+)$/.exec(dir) ?? [];
    if (hba === undefined) continue;
    for (const name of await tree.list(`${core}/${dir}`)) {
      const device = await look(place, hba, name, exportsOf);
      if (device !== undefined) found.push(device);
    }
  }
  return found.sort((a, b) => sortKey(a.id) < sortKey(b.id) ? -1 : 1);
}

/** Longer than opening takes when it waits for no read of the disk. */
const OPEN_MS = 2000;

/**
 * True when opening succeeds; what was opened is closed again.  Undefined: it
 * waits, and closes what it gets when that comes.
 */
async function opens(
  path: string,
  flags: number,
): Promise<boolean | undefined> {
  const opened = openFdAsync(path, flags | O.NONBLOCK).then((fd) => {
    closeFd(fd);
    return true;
  }, (error) => {
    if (error instanceof EngineError) return false;
    throw error;
  });
  return await within(OPEN_MS, opened, undefined);
}

/**
 * False when no daemon has the device: only one can open its uio file.
 *
 * @param device one that is enabled
 */
export async function isServed(
  paths: KernelPaths,
  { hba, name }: Pick<KernelDevice, "hba" | "name">,
): Promise<boolean> {
  const uio = (await listUio(paths))
    .find((it) => it.hba === hba && it.name === name);
  return uio !== undefined &&
    await opens(`${paths.dev}/uio${uio.minor}`, O.RDWR) !== true;
}

/**
 * True when somebody, in whatever container, has mounted or claimed a disk.
 * Nobody has one that the kernel still reads the partitions of, from a source
 * that may be silent: whoever opens it waits for that.
 */
export async function isClaimed(disk: string): Promise<boolean> {
  return await opens(disk, O.RDONLY) === true &&
    await opens(disk, O.RDONLY | O.EXCL) === false;
}
