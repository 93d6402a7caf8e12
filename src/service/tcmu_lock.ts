// SPDX-License-Identifier: Apache-2.0
/**
 * One daemon for a host.
 *
 * @module
 */
import { closeFd, flock, LOCK, O, openFd } from "../../ffi/files.ts";
import { EngineError } from "../../ffi/errors.ts";
import {
  type KernelPaths,
  listUio,
  parseDeviceConfig,
} from "../device/tcmu/kernel.ts";
import { lockHolder } from "../layer/upper.ts";

/** The daemon cannot start. */
export class TcmuError extends Error {
  override readonly name = "TcmuError";
}

/** True when a process has ended and only waits in the kernel. */
function isDying(pid: number): boolean {
  try {
    const status = Deno.readTextFileSync(`/proc/${pid}/status`);
    return /^State:\s*[ZX]/m.test(status);
  } catch {
    return false;
  }
}

/** The right to serve a host's devices. */
export interface HostLock extends Disposable {
  /** the daemon before is dying, and may have devices open until we start */
  readonly inherited: boolean;
}

function lockPath(sys: string): string {
  return `${sys}/module/target_core_user`;
}

/** False also where the daemon is in a pid namespace that is not seen. */
export function isHostLocked({ sys }: Pick<KernelPaths, "sys">): boolean {
  try {
    return lockHolder(lockPath(sys)) !== undefined;
  } catch {
    return false;
  }
}

const INHERIT_MS = 200;

/** Takes the lock when its holder is dead. */
function inheritLock(fd: number): HostLock {
  const timer = setInterval(() => {
    if (flock(fd, LOCK.EX | LOCK.NB)) clearInterval(timer);
  }, INHERIT_MS);
  return {
    inherited: true,
    [Symbol.dispose]() {
      clearInterval(timer);
      closeFd(fd);
    },
  };
}

/**
 * Keeps a second daemon from taking the devices of the first.  The lock is on
 * the module's directory, which all containers of a host share.
 *
 * @throws {TcmuError} there is one, or no module
 */
export function lockHost({ sys }: Pick<KernelPaths, "sys">): HostLock {
  const path = lockPath(sys);
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
    return { inherited: false, [Symbol.dispose]: () => closeFd(fd) };
  }
  const pid = lockHolder(path);
  // One that dies may wait for what only the next daemon can end.
  if (pid !== undefined && isDying(pid)) return inheritLock(fd);
  closeFd(fd);
  throw new TcmuError(
    `another overlaybd-tcmu serves this host's devices${
      pid === undefined ? "" : `: process ${pid}`
    }`,
  );
}

/**
 * Opens `/dev/uioN`, which only one may have open: others look at it now and
 * then, and a daemon that was killed has it a little longer than it lives.
 *
 * @throws {EngineError} EBUSY: not within `patienceMs`
 */
export async function openUio(
  { dev }: Pick<KernelPaths, "dev">,
  minor: number,
  patienceMs = 500,
): Promise<number> {
  const PAUSE_MS = 20;
  const end = performance.now() + patienceMs;
  for (;;) {
    try {
      return openFd(`${dev}/uio${minor}`, O.RDWR | O.NONBLOCK);
    } catch (error) {
      const busy = error instanceof EngineError && error.code === "EBUSY";
      if (!busy || performance.now() > end) throw error;
    }
    await new Promise((done) => setTimeout(done, PAUSE_MS));
  }
}

/**
 * The original daemon knows no lock, and must lose none of its commands.
 *
 * @throws {TcmuError} somebody has one of our devices open, and keeps it
 */
export async function refuseOtherDaemon(
  kernel: KernelPaths,
  patienceMs = 5000,
): Promise<void> {
  for (const { minor, config } of await listUio(kernel)) {
    if (parseDeviceConfig(config) === undefined) continue;
    try {
      closeFd(await openUio(kernel, minor, patienceMs));
    } catch (cause) {
      // What else is wrong with it is found out when it is served.
      if (!(cause instanceof EngineError) || cause.code !== "EBUSY") continue;
      throw new TcmuError(
        `another daemon serves this host's devices: it has ` +
          `${kernel.dev}/uio${minor} open`,
        { cause },
      );
    }
  }
}
