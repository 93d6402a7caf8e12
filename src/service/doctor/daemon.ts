// SPDX-License-Identifier: Apache-2.0
/**
 * The daemon: none, one, or one too many.
 *
 * @module
 */
import { lockHolder } from "../../layer/upper.ts";
import { nameOf } from "../../layer/files.ts";
import {
  exists,
  type Finding,
  fine,
  type Machine,
  missing,
  namesIn,
  textOf,
} from "./finding.ts";

const MODULE = "/sys/module/target_core_user";

function isDaemon(cmdline: string): boolean {
  const [program = "", ...args] = cmdline.split("\0");
  const name = nameOf(program);
  return name === "overlaybd-tcmu" ||
    (name === "overlaybd" && args.includes("tcmu"));
}

/** Processes that are called like a daemon. */
function daemons({ root }: Machine): number[] {
  return namesIn(`${root}/proc`).filter((name) => /^\d+$/.test(name))
    .filter((pid) => isDaemon(textOf(`${root}/proc/${pid}/cmdline`)))
    .map(Number).sort((a, b) => a - b);
}

/** The daemon of this product: it holds a lock. */
function holder({ root }: Machine): number | undefined {
  const dir = `${root}${MODULE}`;
  return exists(dir) ? lockHolder(dir) : undefined;
}

/** Two daemons would take each other's devices. */
export function checkDaemon(machine: Machine): Finding {
  const name = "daemon";
  const ours = holder(machine);
  const others = daemons(machine).filter((pid) => pid !== ours);
  if (others.length > 0) {
    const pids = others.join(" ");
    return missing(
      name,
      ours === undefined
        ? `another overlaybd-tcmu serves devices: process ${pids}`
        : `process ${ours} serves devices, so another cannot: ${pids}`,
      `kill ${pids}`,
    );
  }
  return fine(name, ours === undefined ? "none runs" : `process ${ours}`);
}

/** Devices outlive their daemon, and wait for the next. */
export function checkServed(machine: Machine): Finding {
  const name = "devices";
  const { root } = machine;
  const dir = `${root}/sys/class/uio`;
  const count = namesIn(dir)
    .map((uio) => textOf(`${dir}/${uio}/name`))
    .filter((text) => /^tcm-user\/[^/]*\/[^/]*\/overlaybd\//.test(text)).length;
  const served = holder(machine) !== undefined || daemons(machine).length > 0;
  if (count === 0 || served) return fine(name, `${count}`);
  const start = exists(`${root}/run/systemd/system`)
    ? "systemctl start overlaybd-tcmu"
    : "overlaybd-tcmu &";
  return missing(name, `${count} wait for a daemon`, start);
}

/** A daemon that was ended while it started leaves the kernel closed. */
export function checkNetlink(machine: Machine): Finding {
  const name = "netlink";
  const file = `${MODULE}/parameters/block_netlink`;
  const blocked = /^blocked/.test(textOf(`${machine.root}${file}`));
  const daemon = holder(machine) !== undefined || daemons(machine).length > 0;
  return blocked && !daemon
    ? missing(name, "left blocked by a daemon", `echo 0 > ${file}`)
    : fine(name, blocked ? "the daemon is starting" : "not blocked");
}
