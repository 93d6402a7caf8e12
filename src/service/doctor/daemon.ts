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

/** True when a process runs on this product's runtime. */
function isOurs({ root }: Machine, pid: number): boolean {
  try {
    return nameOf(Deno.readLinkSync(`${root}/proc/${pid}/exe`)) === "deno";
  } catch {
    return false;
  }
}

/** The daemon of this product: it holds a lock once it has started. */
function ourDaemon(machine: Machine): number | undefined {
  const dir = `${machine.root}${MODULE}`;
  const holder = exists(dir) ? lockHolder(dir) : undefined;
  return holder ?? daemons(machine).find((pid) => isOurs(machine, pid));
}

function isServing(machine: Machine): boolean {
  return ourDaemon(machine) !== undefined || daemons(machine).length > 0;
}

/** Two daemons would take each other's devices. */
export function checkDaemon(machine: Machine): Finding {
  const name = "daemon";
  const ours = ourDaemon(machine);
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
  if (count === 0 || isServing(machine)) return fine(name, `${count}`);
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
  return blocked && !isServing(machine)
    ? missing(name, "left blocked by a daemon", `echo 0 > ${file}`)
    : fine(name, blocked ? "the daemon is starting" : "not blocked");
}
