// SPDX-License-Identifier: Apache-2.0
/**
 * What TCMU needs of the kernel and of who runs the daemon.
 *
 * @module
 */
import {
  exists,
  type Finding,
  fine,
  type Machine,
  missing,
  namesIn,
  textOf,
  warning,
} from "./finding.ts";

/** Of capabilities(7): what each is needed for, by its number. */
const CAPABILITIES: readonly (readonly [bit: number, name: string])[] = [
  [1, "CAP_DAC_OVERRIDE"],
  [12, "CAP_NET_ADMIN"],
  [21, "CAP_SYS_ADMIN"],
];

/** True when this process has a capability. */
export function isCapable({ root }: Machine, bit: number): boolean {
  const [, hex = "0"] = /^CapEff:\s*([0-9a-f]+)/m
    .exec(textOf(`${root}/proc/self/status`)) ?? [];
  return (BigInt(`0x${hex}`) >> BigInt(bit) & 1n) === 1n;
}

export function checkRights(machine: Machine): Finding {
  const name = "permissions";
  const lacking = CAPABILITIES.filter(([bit]) => !isCapable(machine, bit))
    .map(([, capability]) => capability);
  return lacking.length === 0
    ? fine(name, "all that netlink and configfs ask for")
    : missing(name, `no ${lacking.join(", ")}`, "sudo overlaybd doctor");
}

/** How a kernel with the module is installed here. */
function kernelInstall({ root }: Machine): string {
  const [, id] = /^ID="?(\w+)/m.exec(textOf(`${root}/etc/os-release`)) ?? [];
  if (id === "ubuntu") return "apt-get install linux-modules-extra-$(uname -r)";
  return "apt-get install linux-image-$(dpkg --print-architecture) && reboot";
}

export function checkModule(machine: Machine, module: string): Finding {
  const { root } = machine;
  const name = `module ${module}`;
  if (exists(`${root}/sys/module/${module}`)) return fine(name, "loaded");
  const release = textOf(`${root}/proc/sys/kernel/osrelease`).trim();
  const dir = `${root}/lib/modules/${release}`;
  const file = new RegExp(`/${module.replaceAll("_", "[_-]")}\\.ko`);
  if (file.test(textOf(`${dir}/modules.builtin`))) {
    return fine(name, "built in");
  }
  return file.test(textOf(`${dir}/modules.dep`))
    ? missing(name, "not loaded", `modprobe ${module}`)
    : missing(name, `not in kernel ${release}`, kernelInstall(machine));
}

/** Options of the mount of a type at a place; undefined: there is none. */
function mountOptions(
  { root }: Machine,
  type: string,
  at: string,
): string[] | undefined {
  // The last one is the one on top.
  const line = textOf(`${root}/proc/self/mounts`).split("\n")
    .map((text) => text.split(" "))
    .findLast(([, where, kind]) => where === at && kind === type);
  return line?.[3]?.split(",");
}

export function checkConfigfs(machine: Machine): Finding {
  const name = "configfs";
  const at = "/sys/kernel/config";
  const options = mountOptions(machine, "configfs", at);
  if (options === undefined) {
    const mount = `mount -t configfs configfs ${at}`;
    return missing(
      name,
      `not mounted at ${at}`,
      exists(`${machine.root}${at}`) ? mount : `modprobe configfs && ${mount}`,
    );
  }
  return options.includes("ro")
    ? missing(name, `${at} is read-only`, `mount -o remount,rw ${at}`)
    : fine(name, `mounted at ${at}`);
}

export function checkSysfs(machine: Machine): Finding {
  const name = "sysfs";
  const options = mountOptions(machine, "sysfs", "/sys");
  if (options === undefined) {
    return missing(name, "not mounted", "mount -t sysfs sysfs /sys");
  }
  return options.includes("ro")
    ? missing(name, "/sys is read-only", "mount -o remount,rw /sys")
    : fine(name, "mounted at /sys");
}

/** Containers that have a /dev of their own get no node of a new device. */
export function checkNodes({ root }: Machine): Finding {
  const name = "/dev/uio*";
  const dir = `${root}/sys/class/uio`;
  const absent = namesIn(dir)
    .filter((uio) => textOf(`${dir}/${uio}/name`).startsWith("tcm-user/"))
    .filter((uio) => !exists(`${root}/dev/${uio}`));
  if (absent.length === 0) return fine(name, "there for every TCMU device");
  const commands = absent.map((uio) => {
    const numbers = textOf(`${dir}/${uio}/dev`).trim().replace(":", " ");
    return `mknod /dev/${uio} c ${numbers}`;
  });
  return missing(name, `no ${absent.join(", ")}`, commands.join(" && "));
}

const CAP_SYS_ADMIN = 21;

/** What `ioEngine` 1 and 2 read by; a filter of system calls is not seen. */
export function checkIoUring(machine: Machine): Finding {
  const name = "io_uring";
  const off = textOf(`${machine.root}/proc/sys/kernel/io_uring_disabled`)
    .trim();
  const privileged = isCapable(machine, CAP_SYS_ADMIN);
  return off === "2" || (off === "1" && !privileged)
    ? warning(
      name,
      `kernel.io_uring_disabled is ${off}: threads read local layers`,
      "sysctl -w kernel.io_uring_disabled=0",
    )
    : fine(name, "not switched off");
}
