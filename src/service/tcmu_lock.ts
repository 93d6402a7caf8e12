// SPDX-License-Identifier: Apache-2.0
/**
 * One daemon for a host.
 *
 * @module
 */
import { closeFd, flock, LOCK, O, openFd } from "../../ffi/engine.ts";
import type { KernelPaths } from "../device/tcmu/kernel.ts";
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

/**
 * Keeps a second daemon from taking the devices of the first.  The lock is on
 * the module's directory, which all containers of a host share.
 *
 * @throws {TcmuError} there is one, or no module
 */
export function lockHost({ sys }: Pick<KernelPaths, "sys">): Disposable {
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
  const lock = { [Symbol.dispose]: () => closeFd(fd) };
  if (flock(fd, LOCK.EX | LOCK.NB)) return lock;
  const pid = lockHolder(path);
  // One that dies may wait for what only the next daemon can end.
  if (pid !== undefined && isDying(pid)) return lock;
  closeFd(fd);
  throw new TcmuError(
    `another overlaybd-tcmu serves this host's devices${
      pid === undefined ? "" : `: process ${pid}`
    }`,
  );
}
