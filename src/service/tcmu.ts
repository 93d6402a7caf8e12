// SPDX-License-Identifier: Apache-2.0
/**
 * The daemon: shows images as SCSI disks of the kernel, which go on when the
 * daemon is started again (spec/tcmu.md, sections 1 to 3).
 *
 * @module
 */
import { closeFd, raiseNofile } from "../../ffi/files.ts";
import type { Device } from "../../ffi/handle.ts";
import { EngineError } from "../../ffi/errors.ts";
import {
  closeNetlink,
  drainCommands,
  drainEvents,
  newRing,
  openNetlink,
  replyEvent,
  type Ring,
  type ScsiCommand,
  type TcmuEvent,
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
  within,
} from "../device/tcmu/kernel.ts";
import { type ScsiDevices, scsiDevices } from "../device/tcmu/scsi_devices.ts";
import { VERSION } from "../format/version.ts";
import { createDevices as devicesByRequest } from "./devices.ts";
import { startHttp } from "./http.ts";
import type { Logger } from "./log.ts";
import { type Manager, serviceManager } from "./notify.ts";
import type { MeasuredRing } from "./own_metrics.ts";
import type { Service } from "./service.ts";
import { surviveErrors } from "./survive.ts";
import { openTcmuImage } from "./tcmu_image.ts";
import { type TcmuKind, tcmuKind } from "./tcmu_kind.ts";
import {
  lockHost,
  openUio,
  refuseOtherDaemon,
  TcmuError,
} from "./tcmu_lock.ts";
import { watchDisks, watchLost } from "./tcmu_watch.ts";

/** How the daemon is run. */
export interface TcmuOptions {
  /** ends it; the devices stay */
  signal: AbortSignal;
  kernel?: KernelPaths;
}

const NOFILE = 1_048_576;

/** How long commands may take to end when the daemon does. */
const GRACE_MS = 10_000;

/** The snapshotter tries for 5 s while netlink is blocked. */
const LET_GO_MS = 3000;

/**
 * How long requests to the API have to end before those who serve them do.  A
 * thread of ours that writes to configfs then would wait for the next daemon,
 * which would wait for this process to go.
 */
const REQUESTS_MS = 5000;

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
  const fd = await openUio(kernel, minor);
  try {
    return newRing(fd, size, device, options);
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

/** The rings that are served, by their devices. */
type Rings = Map<Device, Ring>;

/** Keeps a ring in mind until it is closed. */
function keep(rings: Rings, device: Device, ring: Ring): Ring {
  rings.set(device, ring);
  return {
    ...ring,
    close(graceMs) {
      rings.delete(device);
      return ring.close(graceMs);
    },
  };
}

function measureRings(service: Service, rings: Rings): MeasuredRing[] {
  return service.images().flatMap(({ name, image: { device } }) => {
    const ring = rings.get(device);
    if (ring === undefined) return [];
    const { depth, depthMax } = ring.stats();
    return [{ name, depth: Number(depth), depthMax: Number(depthMax) }];
  });
}

/**
 * Ends those who wait for an answer that nobody gives any more; no new ones
 * come while `work` runs.
 */
async function whileBlocked<T>(
  kernel: KernelPaths,
  log: Logger,
  work: () => T | Promise<T>,
): Promise<T> {
  log.info("blocking netlink");
  const blocked = await setModule(kernel, "block_netlink", true);
  try {
    if (blocked) {
      log.info("resetting netlink");
      await setModule(kernel, "reset_netlink", true);
    }
    return await work();
  } finally {
    if (blocked) await setModule(kernel, "block_netlink", false);
  }
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

function raiseLimits(log: Logger): void {
  try {
    const files = raiseNofile(NOFILE);
    if (files < NOFILE) log.warn(`at most ${files} files may be open`);
  } catch (error) {
    if (!(error instanceof EngineError)) throw error;
    log.warn(reason(error));
  }
}

/**
 * Takes over what a former daemon left.  Netlink is open to new devices as
 * soon as those are known and held back, or this fails.
 */
function claimDevices(
  devices: TcmuDevices,
  kernel: KernelPaths,
  log: Logger,
): Promise<Disposable> {
  return whileBlocked(kernel, log, async () => {
    log.info(`current version: overlaybd/${VERSION}`);
    const netlink = joinNetlink();
    await devices.claim();
    return netlink;
  });
}

/** Serves devices until the signal; then they are left to the next daemon. */
async function serveDevices(
  devices: TcmuDevices,
  kind: TcmuKind,
  scsi: ScsiDevices,
  manager: Manager,
  { signal, kernel, log }: Required<TcmuOptions> & { log: Logger },
): Promise<void> {
  using _netlink = await claimDevices(devices, kernel, log);
  // One that cannot be handled takes none with it: they would not come again.
  const handle = (event: TcmuEvent) => {
    try {
      devices.handle(event);
    } catch (error) {
      log.error(`cannot handle ${event.name}: ${reason(error)}`);
    }
  };
  const handleAll = () => drainEvents().forEach(handle);
  using _events = onWake("event", handleAll);
  // Whoever tries again meanwhile is told to wait.
  const letGo = () =>
    whileBlocked(kernel, log, () => {
      handleAll();
      return within(LET_GO_MS, devices.letGo(), undefined);
    });
  using _lost = watchLost(devices, letGo, log);
  using _disks = watchDisks(devices, scsi, kernel, log);
  devices.adopt();
  manager.ready();
  await ended(signal);
  log.info("sigint received");
  manager.stopping();
  await within(REQUESTS_MS, kind.detached(), undefined);
  await devices.close(GRACE_MS);
  await within(REQUESTS_MS, kind.idle(), undefined);
  handleAll();
  // Whoever takes a device away now would wait for the next daemon.
  await devices.idle();
  log.info("main loop exited");
}

/** Answers by HTTP as well, from before there are devices to after. */
async function runDaemon(
  service: Service,
  { signal, kernel = KERNEL }: TcmuOptions,
): Promise<void> {
  const { log } = service;
  using manager = serviceManager(log.warn);
  using router = createRouter();
  const rings: Rings = new Map();
  const devices = createDevices({
    kernel,
    log,
    openImage: (argument, ended) => openTcmuImage(service, argument, ended),
    openRing: async (...args) => {
      const ring = await openRing(kernel, ...args);
      return keep(rings, args[1], ring);
    },
    route: router.route,
    ringBroken: service.counters.ringBroken,
  }, replyEvent);
  const scsi = scsiDevices(kernel);
  const kind = tcmuKind(service, devices, scsi, { signal });
  const http = await startHttp(service, {
    rings: () => measureRings(service, rings),
    devices: devicesByRequest(service, [kind]),
    ready: () => !signal.aborted,
  });
  try {
    await serveDevices(devices, kind, scsi, manager, { signal, kernel, log });
  } finally {
    await http.close();
  }
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
  const { kernel = KERNEL } = options;
  using lock = lockHost(kernel);
  if (!lock.inherited) await refuseOtherDaemon(kernel);
  using _survive = surviveErrors(log);
  raiseLimits(log);
  try {
    await runDaemon(service, options);
    log.info("tcmulib closed");
  } finally {
    await service.close().catch((error) =>
      log.error(`cannot close everything: ${reason(error)}`)
    );
  }
  log.info("image service is fully stopped");
}
