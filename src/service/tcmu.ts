// SPDX-License-Identifier: Apache-2.0
/**
 * The daemon: shows images as SCSI disks of the kernel, which go on when the
 * daemon is started again (spec/tcmu.md, sections 1 to 3).
 *
 * @module
 */
import {
  closeFd,
  flock,
  LOCK,
  O,
  openFd,
  raiseNofile,
} from "../../ffi/engine.ts";
import { EngineError } from "../../ffi/errors.ts";
import {
  closeNetlink,
  drainCommands,
  drainEvents,
  netlinkStats,
  newRing,
  openNetlink,
  replyEvent,
  type ScsiCommand,
} from "../../ffi/tcmu.ts";
import { onWake } from "../../ffi/wake.ts";
import type { Around } from "../device/tcmu/around.ts";
import { createDevices, type TcmuDevices } from "../device/tcmu/devices.ts";
import { reason } from "../device/tcmu/error.ts";
import {
  KERNEL,
  type KernelPaths,
  mapSize,
  setModule,
} from "../device/tcmu/kernel.ts";
import { VERSION } from "../format/version.ts";
import { lockHolder } from "../layer/upper.ts";
import { serviceManager } from "./notify.ts";
import type { Service } from "./service.ts";
import { openTcmuImage } from "./tcmu_image.ts";

/** The daemon cannot start. */
export class TcmuError extends Error {
  override readonly name = "TcmuError";
}

/** How the daemon is run. */
export interface TcmuOptions {
  /** ends it; the devices stay */
  signal: AbortSignal;
  kernel?: KernelPaths;
}

const NOFILE = 1_048_576;

/** How long commands may take to end when the daemon does. */
const GRACE_MS = 10_000;

/** How often the kernel's devices are compared with ours. */
const COMPARE_MS = 5000;

/** True when a process has ended and only waits in the kernel. */
function isDying(pid: number): boolean {
  try {
    const status = Deno.readTextFileSync(`/proc/${pid}/status`);
    return /^State:\s*[ZX]/m.test(status);
  } catch {
    return false;
  }
}

/**
 * Keeps a second daemon from taking the devices of the first.  The lock is on
 * the module's directory, which all containers of a host share.
 *
 * @throws {TcmuError} there is one, or no module
 */
export function lockHost({ sys }: KernelPaths): Disposable {
  const path = `${sys}/module/target_core_user`;
  let fd: number;
  try {
    fd = openFd(path, O.RDONLY);
  } catch (cause) {
    throw new TcmuError(
      "tcmulib init failed.: the module target_core_user is not loaded: " +
        "`modprobe target_core_user`",
      { cause },
    );
  }
  if (flock(fd, LOCK.EX | LOCK.NB)) {
    return { [Symbol.dispose]: () => closeFd(fd) };
  }
  const pid = lockHolder(path);
  if (pid !== undefined && isDying(pid)) {
    // It may wait for what only the next daemon can end.
    return { [Symbol.dispose]: () => closeFd(fd) };
  }
  closeFd(fd);
  throw new TcmuError(
    `another overlaybd-tcmu serves this host's devices${
      pid === undefined ? "" : `: process ${pid}`
    }`,
  );
}

/** Hands the commands of all rings to those who answer them. */
function createRouter(): Disposable & Pick<Around, "route"> {
  const routes = new Map<number, (command: ScsiCommand) => void>();
  const wake = onWake("scsi", () => {
    for (const command of drainCommands()) routes.get(command.ring)?.(command);
  });
  return {
    route(id, answer) {
      routes.set(id, answer);
      return { [Symbol.dispose]: () => routes.delete(id) };
    },
    [Symbol.dispose]: () => wake[Symbol.dispose](),
  };
}

async function openRing(
  kernel: KernelPaths,
  ...[minor, device, options]: Parameters<Around["openRing"]>
) {
  const size = await mapSize(kernel, minor);
  const fd = openFd(`${kernel.dev}/uio${minor}`, O.RDWR | O.NONBLOCK);
  try {
    return newRing(fd, size, device, options);
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

/** Stops new events, and ends those that wait for a former daemon. */
async function blockNetlink(
  kernel: KernelPaths,
  log: Service["log"],
): Promise<boolean> {
  log.info("blocking netlink");
  if (!await setModule(kernel, "block_netlink", true)) return false;
  log.info("resetting netlink");
  await setModule(kernel, "reset_netlink", true);
  return true;
}

/** Compares every few seconds, until disposed. */
function watchKernel(
  devices: TcmuDevices,
  kernel: KernelPaths,
  log: Service["log"],
): Disposable {
  let dropped = 0;
  let running = false;
  const look = async () => {
    const { malformed, lost } = netlinkStats();
    if (malformed + lost > dropped) {
      log.warn(
        `${malformed + lost - dropped} events of the kernel were lost: ` +
          "whoever waits for their answers is told to try again",
      );
      dropped = malformed + lost;
      if (await blockNetlink(kernel, log)) {
        await setModule(kernel, "block_netlink", false);
      }
    }
    await devices.compare();
  };
  const timer = setInterval(() => {
    if (running) return;
    running = true;
    look()
      .catch((error) => log.error(`cannot compare: ${reason(error)}`))
      .finally(() => running = false);
  }, COMPARE_MS);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

/** Waits for the signal; what is registered keeps the process alive. */
function ended(signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    if (signal.aborted) done();
    else signal.addEventListener("abort", () => done(), { once: true });
  });
}

function joinNetlink(): Disposable {
  try {
    openNetlink();
  } catch (cause) {
    throw new TcmuError(`tcmulib init failed.: ${reason(cause)}`, { cause });
  }
  return { [Symbol.dispose]: closeNetlink };
}

function raiseLimits(log: Service["log"]): void {
  try {
    const files = raiseNofile(NOFILE);
    if (files < NOFILE) log.warn(`at most ${files} files may be open`);
  } catch (error) {
    if (!(error instanceof EngineError)) throw error;
    log.warn(reason(error));
  }
}

/** Serves devices until the signal; then they are left to the next daemon. */
async function serveDevices(
  service: Service,
  { signal, kernel = KERNEL }: TcmuOptions,
): Promise<void> {
  const { log } = service;
  const manager = serviceManager(log.warn);
  const blocked = await blockNetlink(kernel, log);
  log.info(`current version: overlaybd/${VERSION}`);
  using _netlink = joinNetlink();
  using router = createRouter();
  const devices = createDevices({
    kernel,
    log,
    openImage: (argument) => openTcmuImage(service, argument),
    openRing: (...args) => openRing(kernel, ...args),
    route: router.route,
  }, replyEvent);
  await devices.claim();
  if (blocked) await setModule(kernel, "block_netlink", false);
  using _events = onWake("event", () => drainEvents().forEach(devices.handle));
  devices.adopt();
  using _watch = watchKernel(devices, kernel, log);
  manager.ready();
  await ended(signal);
  log.info("sigint received");
  manager.stopping();
  await devices.close(GRACE_MS);
  log.info("main loop exited");
}

/**
 * Runs the daemon until the signal.  The service is closed at the end.
 *
 * @throws {TcmuError} it cannot start
 */
export async function serveTcmu(
  service: Service,
  options: TcmuOptions,
): Promise<void> {
  const { log } = service;
  using _lock = lockHost(options.kernel ?? KERNEL);
  raiseLimits(log);
  try {
    await serveDevices(service, options);
    log.info("tcmulib closed");
  } finally {
    await service.close().catch((error) =>
      log.error(`cannot close everything: ${reason(error)}`)
    );
  }
  log.info("image service is fully stopped");
}
