// SPDX-License-Identifier: Apache-2.0
/**
 * Disks for people: an image attached as `/dev/sdX`, found again, and
 * detached (spec/client.md, sections 2 and 4).
 *
 * @module
 */
import { errnoText } from "../../ffi/errors.ts";
import {
  attachDisk,
  AttachError,
  detachDisk,
  HBA,
  type Host,
  RefusedError,
} from "../device/tcmu/configfs.ts";
import { isHandled } from "../device/tcmu/handler.ts";
import {
  type FoundDevice,
  isClaimed,
  isServed,
  listDevices,
} from "../device/tcmu/inventory.ts";
import { coreDevice } from "../device/tcmu/kernel.ts";
import { directoryOf, fileInfo, fullPath } from "../layer/files.ts";
import { isHostLocked } from "./tcmu_lock.ts";

/** Something may be said about this after so long. */
const SLOW_MS = 5000;

/** What to attach. */
export interface AttachOptions {
  /** `CONFIG[;dev_id]` */
  config: string;
  /** undefined: one that the path gives */
  id: string | undefined;
  /** ends it between two steps */
  signal: AbortSignal;
  log: (line: string) => void;
}

/** An image that is a disk now. */
export interface Attached {
  id: string;
  /** `/dev/sdX` */
  disk: string;
  /** full path */
  config: string;
}

/** The same for the same path, other paths have another: 13 hex digits. */
async function idOf(path: string): Promise<string> {
  const hash = await crypto.subtle.digest(
    "SHA-256",
    new TextEncoder().encode(path),
  );
  return new Uint8Array(hash).toHex().slice(0, 13);
}

/** What a result file says, and when it was written. */
interface Result {
  text: string;
  mtime: number;
}

async function readResult(path: string): Promise<Result> {
  const text = path === "" ? "" : await Deno.readTextFile(path).catch(() => "");
  const mtime = text === "" ? undefined : fileInfo(path)?.mtime?.getTime();
  return { text, mtime: mtime ?? 0 };
}

/**
 * Why the daemon refused: what it wrote to the result file since, else what
 * it told the kernel.
 */
async function refusalText(
  { cause }: RefusedError,
  path: string,
  before: Result,
): Promise<string> {
  const { text, mtime } = await readResult(path);
  const [, said = ""] = /^failed:([^]*)$/.exec(text) ?? [];
  const fresh = mtime !== before.mtime || text !== before.text;
  if (said.trim() !== "" && fresh) {
    return said.trim().replace(/\s*\n\s*/g, "; ");
  }
  return cause.code === "EAGAIN"
    ? "overlaybd-tcmu is starting, or was ended while it started"
    : `overlaybd-tcmu refused it: ${errnoText(cause.errno)}; its log says more`;
}

/** Says what is waited for when `work` takes long; nothing can end it. */
async function whileWaiting<T>(
  work: Promise<T>,
  log: (line: string) => void,
): Promise<T> {
  // setTimeout() takes 6 ms to load.
  const slow = AbortSignal.timeout(SLOW_MS);
  const say = () => log("waiting for overlaybd-tcmu: is it running?");
  slow.addEventListener("abort", say);
  try {
    return await work;
  } finally {
    slow.removeEventListener("abort", say);
  }
}

function parseImage(text: string): { path: string; devId: string } {
  const cut = text.indexOf(";");
  return cut < 0
    ? { path: fullPath(text), devId: "" }
    : { path: fullPath(text.slice(0, cut)), devId: text.slice(cut + 1) };
}

/** A daemon that starts has its lock before it hears of devices. */
const START_MS = 1000;

/** @throws {AttachError} nobody would serve a device: the kernel might wait */
async function needHandler(
  { paths, sleep }: Pick<Host, "paths" | "sleep">,
): Promise<void> {
  if (await isHandled(paths) !== false) return;
  if (isHostLocked(paths)) await sleep(START_MS);
  if (await isHandled(paths) !== false) return;
  throw new AttachError("overlaybd-tcmu does not run");
}

/** @throws {AttachError} this machine lacks what attaching needs */
async function needTarget(host: Host): Promise<void> {
  const core = `${host.paths.configfs}/target/core`;
  if ((await host.tree.list(core)).length > 0) return await needHandler(host);
  throw new AttachError(
    "the kernel's target is not there: `overlaybd doctor` says what to do",
  );
}

/**
 * Makes a disk of an image; when that fails nothing is left.
 *
 * @throws {AttachError} what could not be attached, and why
 * @throws the signal's reason
 */
export async function attach(
  host: Host,
  { config, id: wanted, signal, log }: AttachOptions,
): Promise<Attached> {
  const { path, devId } = parseImage(config);
  const { readImageConfig } = await import("../image/config.ts");
  const { resultFile } = await readImageConfig(path);
  const result = resultFile === ""
    ? ""
    : fullPath(resultFile, directoryOf(path));
  const before = await readResult(result);
  const id = wanted ?? await idOf(path);
  const answered = async () => {
    const served = await isServed(host.paths, { hba: HBA, name: `dev_${id}` });
    if (!served) throw new AttachError("overlaybd-tcmu does not run");
  };
  const checkpoint = () => signal.throwIfAborted();
  const hooks = { checkpoint, answered, log };
  try {
    await needTarget(host);
    const work = attachDisk(host, { id, path, devId }, hooks);
    const disk = await whileWaiting(work, log);
    return { id, disk: `/dev/${disk}`, config: path };
  } catch (cause) {
    if (signal.aborted) throw signal.reason;
    const why = cause instanceof RefusedError
      ? await refusalText(cause, result, before)
      : (cause as Error).message;
    throw new AttachError(`cannot attach ${path}: ${why}`, { cause });
  }
}

/** Finds a device by its id, its disk, or its image's configuration. */
function find(devices: readonly FoundDevice[], text: string): FoundDevice {
  const path = fullPath(text);
  const byId = devices.filter((it) => it.id === text);
  const found = byId.length > 0
    ? byId
    : devices.filter((it) => it.disk === path || it.config === path);
  const [device, ...others] = found;
  if (device === undefined) {
    throw new AttachError(
      `cannot detach ${text}: no such id, disk or configuration is attached`,
    );
  }
  if (others.length > 0) {
    throw new AttachError(
      `cannot detach ${text}: it is attached more than once, as ${
        found.map((it) => it.id).join(", ")
      }: give one of these ids`,
    );
  }
  return device;
}

/** What speaks against taking a device away. */
async function reasonAgainst(
  { paths }: Host,
  device: FoundDevice,
): Promise<string | undefined> {
  const { disk, mounted, exported, state } = device;
  if (mounted.length > 0) {
    return `${disk} is mounted at ${mounted.join(", ")}`;
  }
  if (disk !== null && await isClaimed(disk)) {
    return `${disk} is in use: mounted in a container, or part of a volume`;
  }
  if (exported.length > 0) {
    return `it is exported: ${exported.join(", ")}: remove that first`;
  }
  if (state === "disabled" || await isServed(paths, device)) return undefined;
  // One that waits for its image has nobody at its ring, but its daemon runs.
  if (isHostLocked(paths) && await isHandled(paths) !== false) return undefined;
  return "overlaybd-tcmu does not run, and the kernel would wait for it";
}

/**
 * Takes a disk away.
 *
 * @param text its id, `/dev/sdX`, or its image's configuration
 * @throws {AttachError} it is not attached, in use, or a step failed
 */
export async function detach(
  host: Host,
  text: string,
  log: (line: string) => void,
): Promise<FoundDevice> {
  const device = find(await listDevices(host), await realDisk(text));
  const against = await reasonAgainst(host, device);
  try {
    if (against !== undefined) throw new AttachError(against);
    const dir = coreDevice(host.paths, device);
    await whileWaiting(detachDisk(host, dir, device.exports), log);
  } catch (cause) {
    throw new AttachError(
      `cannot detach ${device.id}: ${(cause as Error).message}`,
      { cause },
    );
  }
  return device;
}

/** `/dev/disk/by-id/...` as `/dev/sdX`; anything else as it is. */
async function realDisk(text: string): Promise<string> {
  if (!text.startsWith("/dev/")) return text;
  return await Deno.realPath(text).catch(() => text);
}
