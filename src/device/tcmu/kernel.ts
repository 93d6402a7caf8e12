// SPDX-License-Identifier: Apache-2.0
/**
 * What the kernel shows of TCMU: names of devices, parameters of the module,
 * actions on a device (spec/tcmu.md, sections 1 and 3).
 *
 * @module
 */
import pLimit from "p-limit";
import { EngineError } from "../../../ffi/errors.ts";
import { withErrno } from "../../layer/files.ts";

/** Where the kernel's file systems are mounted. */
export interface KernelPaths {
  sys: string;
  dev: string;
  configfs: string;
}

/** Where they are on any host. */
export const KERNEL: KernelPaths = {
  sys: "/sys",
  dev: "/dev",
  configfs: "/sys/kernel/config",
};

/** Bytes that the kernel keeps of a `dev_config`. */
export const CONFIG_MAX = 255;

/** A device as its uio file names it. */
export interface TcmuName {
  /** N of `user_N` */
  hba: string;
  /** the directory below that */
  name: string;
  /** what was written as `dev_config`: `overlaybd//path;dev_id`; may be "" */
  config: string;
}

/** `tcm-user/<hba>/<name>/<config>`; undefined: it is no TCMU device. */
export function parseUioName(text: string): TcmuName | undefined {
  const [, hba, name, config = ""] =
    /^tcm-user\/([^/]*)\/([^/\n]*)(?:\/([^]*?))?\n?$/.exec(text) ?? [];
  return hba === undefined || name === undefined
    ? undefined
    : { hba, name, config };
}

/** The same as the kernel writes it. */
export function uioName({ hba, name, config }: TcmuName): string {
  return `tcm-user/${hba}/${name}${config === "" ? "" : `/${config}`}`;
}

/** What a `dev_config` of ours asks for. */
export interface DeviceArgument {
  /** of the image's configuration; empty: none was given */
  path: string;
  /** behind the first `;`, empty without one */
  devId: string;
}

/**
 * The part of a `dev_config` behind `overlaybd/`; undefined: another
 * program's device, to be left alone.
 */
export function parseDeviceConfig(config: string): DeviceArgument | undefined {
  const prefix = "overlaybd/";
  if (!config.startsWith(prefix)) return undefined;
  const text = config.slice(prefix.length);
  const cut = text.indexOf(";");
  return cut < 0
    ? { path: text, devId: "" }
    : { path: text.slice(0, cut), devId: text.slice(cut + 1) };
}

/** The directory of a device below configfs. */
export function coreDevice(
  { configfs }: Pick<KernelPaths, "configfs">,
  { hba, name }: Pick<TcmuName, "hba" | "name">,
): string {
  return `${configfs}/target/core/user_${hba}/${name}`;
}

/**
 * configfs makes us wait while another program's `rmdir` does, which may wait
 * for us: never on the JavaScript thread, and not on all blocking threads.
 */
const limit = pLimit(8);

/**
 * Writes an attribute that old kernels lack.
 *
 * @returns false: it is not there
 * @throws {EngineError}
 */
async function writeIfThere(path: string, value: string): Promise<boolean> {
  try {
    await Deno.writeTextFile(path, value, { create: false });
    return true;
  } catch (cause) {
    const error = withErrno(cause, `cannot write ${value} to ${path}`);
    if (error instanceof EngineError && error.code === "ENOENT") return false;
    throw error;
  }
}

/** What `work` gives, or `otherwise` when that takes longer than `ms`. */
export async function within<T>(
  ms: number,
  work: Promise<T>,
  otherwise: T,
): Promise<T> {
  const { promise, resolve } = Promise.withResolvers<T>();
  const timer = setTimeout(() => resolve(otherwise), ms);
  try {
    return await Promise.race([work, promise]);
  } finally {
    clearTimeout(timer);
  }
}

const READ_PATIENCE_MS = 1000;

/** Reads an attribute; undefined: there is none, or it takes too long. */
function readAttribute(path: string): Promise<string | undefined> {
  const text = limit(() => Deno.readTextFile(path).catch(() => undefined));
  return within(READ_PATIENCE_MS, text, undefined);
}

/**
 * Writes a parameter of the module, which waits for nobody: it may be what
 * all those wait for that write to configfs.
 *
 * @returns false: it has none of that name
 */
export function setModule(
  { sys }: KernelPaths,
  name: "block_netlink" | "reset_netlink",
  on: boolean,
): Promise<boolean> {
  return writeIfThere(
    `${sys}/module/target_core_user/parameters/${name}`,
    on ? "1" : "0",
  );
}

/** What can be done to a device; false: the kernel cannot do it. */
export function act(
  kernel: KernelPaths,
  device: TcmuName,
  action: "block_dev" | "reset_ring",
  value: 0 | 1 | 2,
): Promise<boolean> {
  const path = `${coreDevice(kernel, device)}/action/${action}`;
  return limit(() => writeIfThere(path, String(value)));
}

/** A TCMU device that the kernel has, whoever serves it. */
export interface UioDevice extends TcmuName {
  /** N of `/dev/uioN` */
  minor: number;
}

/** Minors of every uio device, TCMU's or not, from the least on. */
export async function uioMinors({ sys }: KernelPaths): Promise<number[]> {
  const minors: number[] = [];
  try {
    for await (const { name } of Deno.readDir(`${sys}/class/uio`)) {
      const [, minor] = /^uio(\d+)$/.exec(name) ?? [];
      if (minor !== undefined) minors.push(Number(minor));
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return minors.sort((a, b) => a - b);
}

/** A uio device; undefined: it is none of TCMU, or goes while we look. */
export async function readUio(
  { sys }: KernelPaths,
  minor: number,
): Promise<UioDevice | undefined> {
  const path = `${sys}/class/uio/uio${minor}/name`;
  const parsed = parseUioName(await Deno.readTextFile(path).catch(() => ""));
  return parsed === undefined ? undefined : { ...parsed, minor };
}

/** Every TCMU device, by minor. */
export async function listUio(kernel: KernelPaths): Promise<UioDevice[]> {
  const found: UioDevice[] = [];
  for (const minor of await uioMinors(kernel)) {
    const uio = await readUio(kernel, minor);
    if (uio !== undefined) found.push(uio);
  }
  return found;
}

/** Bytes to map of `/dev/uioN`. */
export async function mapSize(
  { sys }: KernelPaths,
  minor: number,
): Promise<bigint> {
  const path = `${sys}/class/uio/uio${minor}/maps/map0/size`;
  try {
    return BigInt((await Deno.readTextFile(path)).trim());
  } catch (error) {
    throw withErrno(error, `cannot read ${path}`);
  }
}

/** The kernel's number of a device, which answers to its events carry. */
export async function deviceIndex(
  kernel: KernelPaths,
  device: TcmuName,
): Promise<number | undefined> {
  const text = await readAttribute(
    `${coreDevice(kernel, device)}/statistics/scsi_dev/indx`,
  );
  return /^\d+\s*$/.test(text ?? "") ? Number(text) : undefined;
}

/**
 * The serial that was written for a device, empty where none was; undefined:
 * it cannot be told now.
 */
export async function configuredSerial(
  kernel: KernelPaths,
  device: TcmuName,
): Promise<string | undefined> {
  const text = await readAttribute(
    `${coreDevice(kernel, device)}/wwn/vpd_unit_serial`,
  );
  if (text === undefined) return undefined;
  const [, serial = ""] = /^T10 VPD Unit Serial Number: ?([^\n]*)/.exec(text) ??
    [];
  return serial.trim();
}

/**
 * A serial of 32 hex digits for a device that was given none: the same for
 * the same device and configuration, and for no other.
 */
export async function derivedSerial(device: TcmuName): Promise<string> {
  const { hba, name, config } = device;
  const text = new TextEncoder().encode(`${hba}/${name}/${config}`);
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", text));
  return hash.subarray(0, 16).toHex();
}

/** The serial that a device has, or had, or will have as a disk. */
export async function serialOf(
  kernel: KernelPaths,
  device: TcmuName,
): Promise<string> {
  return await configuredSerial(kernel, device) || await derivedSerial(device);
}
