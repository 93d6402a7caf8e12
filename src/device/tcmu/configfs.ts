// SPDX-License-Identifier: Apache-2.0
/**
 * A TCMU device and its loopback disk, made and removed in configfs step by
 * step as the containerd snapshotter does (spec/client.md, sections 1, 2, 4).
 *
 * @module
 */
import { EngineError } from "../../../ffi/errors.ts";
import { withErrno } from "../../layer/files.ts";
import { CONFIG_MAX, coreDevice, KERNEL, type KernelPaths } from "./kernel.ts";

/** The kernel's file systems; tests have their own. */
export interface KernelTree {
  /** every directory of the path; true: the last one is new */
  makeDir(path: string): Promise<boolean>;
  /** one `write` of an attribute that exists */
  write(path: string, value: string): Promise<void>;
  read(path: string): Promise<string>;
  link(target: string, path: string): Promise<void>;
  /** a symbolic link, or a directory */
  remove(path: string): Promise<void>;
  /** names in a directory; none where there is none, or a file */
  list(path: string): Promise<string[]>;
  /** the full path that a symbolic link leads to; undefined: it is none */
  follow(path: string): Promise<string | undefined>;
}

async function named<T>(what: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw withErrno(error, what);
  }
}

/** The real ones.  Everything throws {@link EngineError}. */
export const TREE: KernelTree = {
  async makeDir(path) {
    const what = `cannot create ${path}`;
    const parent = path.slice(0, path.lastIndexOf("/"));
    await named(what, Deno.mkdir(parent, { recursive: true }));
    try {
      await named(what, Deno.mkdir(path));
      return true;
    } catch (error) {
      if (error instanceof EngineError && error.code === "EEXIST") return false;
      throw error;
    }
  },
  write: (path, value) =>
    named(
      `cannot write ${value} to ${path}`,
      Deno.writeTextFile(path, value, { create: false }),
    ),
  read: (path) => named(`cannot read ${path}`, Deno.readTextFile(path)),
  link: (target, path) =>
    named(`cannot link ${path} to ${target}`, Deno.symlink(target, path)),
  remove: (path) => named(`cannot remove ${path}`, Deno.remove(path)),
  list: async (path) => {
    try {
      return (await Array.fromAsync(Deno.readDir(path))).map((it) => it.name);
    } catch (error) {
      const nothing = error instanceof Deno.errors.NotFound ||
        error instanceof Deno.errors.NotADirectory;
      if (nothing) return [];
      throw withErrno(error, `cannot list ${path}`);
    }
  },
  follow: async (path) => {
    const info = await Deno.lstat(path).catch(() => undefined);
    if (info?.isSymlink !== true) return undefined;
    return await Deno.realPath(path).catch(() => undefined);
  },
};

/** The kernel's mounts, with that of processes. */
export interface HostPaths extends KernelPaths {
  proc: string;
}

/** Where to work and how to wait; tests have their own. */
export interface Host {
  paths: HostPaths;
  tree: KernelTree;
  sleep(ms: number): Promise<void>;
}

/** This machine. */
export const HOST: Host = {
  paths: { ...KERNEL, proc: "/proc" },
  tree: TREE,
  // setTimeout() takes 6 ms to load.
  sleep: (ms) =>
    new Promise((resolve) =>
      AbortSignal.timeout(ms).addEventListener("abort", () => resolve())
    ),
};

/** The kernel cannot be told this; nothing was done. */
export class AttachError extends Error {
  override readonly name = "AttachError";
}

/** The daemon refused the device, and told the kernel why. */
export class RefusedError extends Error {
  override readonly name = "RefusedError";
  override readonly cause: EngineError;

  constructor(cause: EngineError) {
    super(cause.message);
    this.cause = cause;
  }
}

/** `user_N` of devices that no tenant has, as the snapshotter numbers them. */
export const HBA = "999999999";

/** Characters that stand for the id in a WWN. */
const WWN_ID = 13;

/** The kernel never gives a command up: seconds, the snapshotter's value. */
const NEVER = "2147483";

/** MiB of data on their way, the snapshotter's value. */
const DATA_AREA_MB = 4;

/**
 * A daemon that starts makes the kernel say EAGAIN, and EINTR to who waited
 * for the one before; the snapshotter's patience.
 */
const NOT_YET = ["EAGAIN", "EINTR"];
const ENABLE = { tries: 100, ms: 50 };
const DISK = { tries: 500, ms: 10 };

/** What is to become a disk. */
export interface Wanted {
  /** 1 to 13 letters, digits, `-`, `_` */
  id: string;
  /** full path of the image's configuration */
  path: string;
  /** empty: none */
  devId: string;
}

/** A device in configfs by the names that its id gives. */
export interface Names {
  /** the core device's directory */
  device: string;
  /** the loopback target's */
  target: string;
  port: string;
  lun: string;
  /** from `lun` to `device` */
  link: string;
  wwn: string;
}

export function namesOf(paths: KernelPaths, id: string): Names {
  const name = `dev_${id}`;
  const wwn = `naa.199${id.padStart(WWN_ID, "0")}`;
  const target = `${paths.configfs}/target/loopback/${wwn}`;
  const lun = `${target}/tpgt_1/lun/lun_0`;
  return {
    device: coreDevice(paths, { hba: HBA, name }),
    target,
    port: `${target}/tpgt_1`,
    lun,
    link: `${lun}/${name}`,
    wwn,
  };
}

/**
 * What is written as `dev_config`.
 *
 * @throws {AttachError} the kernel would cut it, or take it apart elsewhere
 */
export function deviceConfig({ id, path, devId }: Wanted): string {
  if (!/^[A-Za-z0-9_-]{1,13}$/.test(id)) {
    throw new AttachError(
      `the id ${id} is not 1 to ${WWN_ID} letters, digits, "-" or "_"`,
    );
  }
  const bad = /[,\n;]/.exec(path) ?? /[,\n]/.exec(devId);
  if (bad !== null) {
    throw new AttachError(
      `the kernel allows no ${JSON.stringify(bad[0])} in the path or dev_id`,
    );
  }
  const config = `overlaybd/${path}${devId === "" ? "" : `;${devId}`}`;
  const { length } = new TextEncoder().encode(config);
  if (length > CONFIG_MAX) {
    throw new AttachError(
      `path and dev_id are ${length - CONFIG_MAX} bytes too long: ` +
        `the kernel keeps ${CONFIG_MAX} of overlaybd/PATH;DEV_ID`,
    );
  }
  return config;
}

/** Repeats `attempt` until it gives something; undefined: it never did. */
async function poll<T>(
  { sleep }: Host,
  { tries, ms }: typeof ENABLE,
  attempt: () => Promise<T | undefined>,
): Promise<T | undefined> {
  for (let i = 0; i < tries; i++) {
    const found = await attempt();
    if (found !== undefined) return found;
    await sleep(ms);
  }
  return undefined;
}

/**
 * @param checkpoint before each try, which may wait for a daemon for ever
 * @throws {RefusedError} after the daemon's answer, or without any
 */
async function enable(
  host: Host,
  device: string,
  checkpoint: () => void,
): Promise<void> {
  let last: RefusedError | undefined;
  const done = await poll(host, ENABLE, async () => {
    checkpoint();
    try {
      await host.tree.write(`${device}/enable`, "1");
      return true;
    } catch (error) {
      if (!(error instanceof EngineError)) throw error;
      last = new RefusedError(error);
      if (!NOT_YET.includes(error.code)) throw last;
      return undefined;
    }
  });
  if (done === undefined) throw last;
}

/** Names of the block devices at a SCSI address, `h:c:t`, LUN 0. */
export function disksAt(
  { paths, tree }: Pick<Host, "paths" | "tree">,
  address: string,
): Promise<string[]> {
  return tree.list(
    `${paths.sys}/class/scsi_device/${address}:0/device/block`,
  );
}

/** What undoes the steps that were made, the last one first. */
interface Undo {
  push(step: () => Promise<void>): void;
  run(): Promise<void>;
}

function newUndo(log: (line: string) => void): Undo {
  const steps: (() => Promise<void>)[] = [];
  return {
    push: (step) => steps.push(step),
    run: async () => {
      for (const step of steps.toReversed()) {
        await step().catch((error) => log((error as Error).message));
      }
    },
  };
}

/** What is called between the steps. */
export interface Hooks {
  /** refuses to go on by throwing: what was made is removed again */
  checkpoint?: () => void;
  /** the device is enabled; throws when no daemon has it */
  answered?: () => Promise<void>;
  /** a step cannot be undone */
  log: (line: string) => void;
}

/**
 * Makes the device and its disk; undoes every step when one fails.
 *
 * @returns the disk, `sda`
 * @throws {AttachError} the names cannot be given to the kernel, or no disk
 *   came
 * @throws {RefusedError} the daemon does not serve it
 * @throws {EngineError} another step failed
 */
export async function attachDisk(
  host: Host,
  wanted: Wanted,
  hooks: Hooks,
): Promise<string> {
  const undo = newUndo(hooks.log);
  try {
    return await attachSteps(host, wanted, hooks, undo);
  } catch (error) {
    await undo.run();
    throw error;
  }
}

async function attachSteps(
  host: Host,
  wanted: Wanted,
  { checkpoint = () => {}, answered }: Hooks,
  undo: Undo,
): Promise<string> {
  const { paths, tree } = host;
  const { device, target, port, lun, link, wwn } = namesOf(paths, wanted.id);
  const config = deviceConfig(wanted);
  const makeDir = async (path: string) => {
    checkpoint();
    const made = await tree.makeDir(path);
    if (made) undo.push(() => tree.remove(path));
    return made;
  };
  if (!await makeDir(device)) {
    throw new AttachError(`the id ${wanted.id} is taken`);
  }
  await tree.write(`${device}/control`, `dev_config=${config}`);
  await tree.write(`${device}/control`, `max_data_area_mb=${DATA_AREA_MB}`);
  await enable(host, device, checkpoint);
  await answered?.();
  await tree.write(`${device}/attrib/cmd_time_out`, NEVER);
  if (!await makeDir(target)) {
    throw new AttachError(`the loopback target ${wwn} is taken`);
  }
  await makeDir(port);
  await makeDir(lun);
  await tree.write(`${port}/nexus`, wwn);
  checkpoint();
  await tree.link(device, link);
  undo.push(() => tree.remove(link));
  const address = (await tree.read(`${port}/address`)).trim();
  const disk = await poll(
    host,
    DISK,
    async () => (await disksAt(host, address))[0],
  );
  if (disk === undefined) {
    throw new AttachError(
      `no disk came at SCSI address ${address}: the kernel's log says why`,
    );
  }
  await tree.write(`${paths.sys}/block/${disk}/device/timeout`, NEVER);
  checkpoint();
  return disk;
}

/** One directory entry that exports a core device. */
export interface Export {
  /** `loopback`, `iscsi`, `vhost` */
  fabric: string;
  wwn: string;
  /** `tpgt_1` */
  tpg: string;
  /** `lun_0` */
  lun: string;
  /** the symbolic link in it */
  link: string;
}

/** Where an export is below `target`. */
function exportDir({ configfs }: KernelPaths, at: Export): string {
  return `${configfs}/target/${at.fabric}/${at.wwn}/${at.tpg}`;
}

/** SCSI address `h:c:t` of a loopback port. */
export async function addressOf(
  { paths, tree }: Pick<Host, "paths" | "tree">,
  at: Export,
): Promise<string> {
  return (await tree.read(`${exportDir(paths, at)}/address`)).trim();
}

/**
 * Takes a device away: its loopback disks, then itself, which waits for the
 * daemon's answer.
 *
 * @param device the core device's directory
 * @param exports all of its loopback exports
 */
export async function detachDisk(
  { paths, tree }: Pick<Host, "paths" | "tree">,
  device: string,
  exports: readonly Export[],
): Promise<void> {
  for (const at of exports) {
    const port = exportDir(paths, at);
    const lun = `${port}/lun/${at.lun}`;
    await tree.remove(`${lun}/${at.link}`);
    await tree.remove(lun);
    const others = await tree.list(`${port}/lun`);
    if (others.length > 0) continue;
    await tree.remove(port);
    await tree.remove(`${paths.configfs}/target/${at.fabric}/${at.wwn}`);
  }
  await tree.remove(device);
}
