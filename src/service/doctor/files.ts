// SPDX-License-Identifier: Apache-2.0
/**
 * Files and directories that the configuration names, and limits.
 *
 * @module
 */
import { EngineError, errnoText } from "../../../ffi/errors.ts";
import {
  closeFd,
  O,
  openFd,
  punchFd,
  pwriteFd,
  seekFd,
  truncateFd,
  unlinkPath,
} from "../../../ffi/files.ts";
import { directoryOf } from "../../layer/files.ts";
import {
  loadServiceConfig,
  parseServiceConfig,
  type ServiceConfig,
} from "../config.ts";
import { PATHS } from "../paths.ts";
import {
  exists,
  type Finding,
  fine,
  type Machine,
  missing,
  quoted,
  textOf,
  warning,
} from "./finding.ts";
import { isCapable } from "./kernel.ts";

const BUNDLES = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/ssl/certs/ca-bundle.crt",
];

/** Without one only certificates that Mozilla trusts are. */
export function checkCertificates({ root }: Machine): Finding {
  const name = "CA bundle";
  const found = BUNDLES.find((path) => textOf(`${root}${path}`) !== "");
  if (found !== undefined) return fine(name, found);
  const update = "update-ca-certificates";
  const install = exists(`${root}/usr/bin/dnf`)
    ? "dnf install -y ca-certificates"
    : "apt-get install -y ca-certificates";
  return warning(
    name,
    "none: registries whose CA this host alone knows are not trusted",
    exists(`${root}/usr/sbin/${update}`) ? update : install,
  );
}

/** What the configuration says, and whether it can be used. */
export interface ConfigFinding {
  finding: Finding;
  /** defaults where it cannot */
  config: ServiceConfig;
}

export async function checkConfig(
  { root, config }: Machine,
): Promise<ConfigFinding> {
  const name = "configuration";
  const file = config ?? PATHS.config;
  const path = `${root}${file}`;
  const defaults = parseServiceConfig({}, file);
  if (config === undefined && !exists(path)) {
    const finding = fine(name, `no ${file}: defaults`);
    return { finding, config: defaults.config };
  }
  try {
    const { config, warnings } = await loadServiceConfig(path);
    const finding: Finding = warnings.length > 0
      ? { name, state: "warning", found: warnings.join("; ") }
      : fine(name, file);
    return { finding, config };
  } catch (error) {
    const aside = `mv ${quoted(file)} ${quoted(`${file}.broken`)}`;
    const finding = missing(name, (error as Error).message, aside);
    return { finding, config: defaults.config };
  }
}

/** The directory itself, or the one that it would be made in. */
function existing(path: string): string {
  let at = path;
  while (at !== "/" && !exists(at)) at = directoryOf(at);
  return at;
}

const PIECE = 4096;

/** What a file system cannot do that a cache needs; undefined: nothing. */
function trial(dir: string): string | undefined {
  const path = `${dir}/.overlaybd-doctor-${Deno.pid}`;
  const fd = openFd(path, O.RDWR | O.CREAT | O.EXCL, 0o600);
  try {
    unlinkPath(path);
    truncateFd(fd, 256 * PIECE);
    pwriteFd(fd, new Uint8Array(PIECE).fill(1), 128 * PIECE);
    if (seekFd(fd, 0, "data") !== 128 * PIECE) return "cannot tell holes";
    try {
      punchFd(fd, 128 * PIECE, PIECE);
    } catch {
      return "cannot punch holes";
    }
    const left = seekFd(fd, 0, "data");
    return left === undefined ? undefined : "keeps the space of holes";
  } finally {
    closeFd(fd);
  }
}

/** Where the mount is that a path lies in. */
function mountPoint(path: string): string {
  const { dev } = Deno.statSync(path);
  let at = path;
  while (at !== "/" && Deno.statSync(directoryOf(at)).dev === dev) {
    at = directoryOf(at);
  }
  return at;
}

/**
 * A cache keeps what it fetched in sparse files, whose holes say what is not
 * there yet, and punches holes to evict.
 */
export function checkCacheDir(
  { root }: Machine,
  name: string,
  dir: string,
  sizeGB: number,
): Finding {
  const at = existing(`${root}${dir}`);
  const shown = quoted(dir);
  if (!Deno.statSync(at).isDirectory) {
    const file = quoted(at.slice(root.length));
    return missing(
      name,
      `${file} is no directory`,
      `mv ${file} ${file}.old && mkdir -p ${shown}`,
    );
  }
  try {
    const why = trial(at);
    if (why === undefined) return fine(name, dir);
    const image = "/var/lib/overlaybd-cache.ext4";
    return missing(
      name,
      `the file system of ${dir} ${why}`,
      `mkdir -p ${shown} && truncate -s ${sizeGB + 1}G ${image} && ` +
        `mkfs.ext4 -q -F ${image} && mount -o loop ${image} ${shown}`,
    );
  } catch (error) {
    if (!(error instanceof EngineError)) throw error;
    const mend = error.code === "EROFS"
      ? `mount -o remount,rw ${quoted(mountPoint(at))}`
      : error.code === "ENOSPC" || error.code === "EDQUOT"
      ? `df -h ${quoted(at)}`
      : `mkdir -p ${shown} && chown "$(id -u)" ${shown}`;
    return missing(name, `${dir}: ${errnoText(error.errno)}`, mend);
  }
}

/** A log that cannot be opened keeps the daemon from starting. */
export function checkLogDir(
  { root }: Machine,
  name: string,
  path: string,
): Finding {
  if (path === "") return fine(name, "none");
  const dir = directoryOf(path);
  // The daemon makes the directories of its defaults.
  const made = path === PATHS.log || path === PATHS.audit;
  return made || exists(`${root}${dir}`)
    ? fine(name, path)
    : missing(name, `no directory ${dir}`, `mkdir -p ${quoted(dir)}`);
}

const GROUP_OR_OTHERS = 0o077;

export function checkCredentials(
  { root }: Machine,
  { mode, path }: ServiceConfig["credentialConfig"],
): Finding {
  const name = "credentials";
  if (mode !== "file") return fine(name, `${mode} ${path}`);
  if (path === "" || !exists(`${root}${path}`)) {
    return fine(name, "none: registries are asked anonymously");
  }
  const { mode: bits } = Deno.statSync(`${root}${path}`);
  return ((bits ?? 0) & GROUP_OR_OTHERS) === 0 ? fine(name, path) : warning(
    name,
    `others can read ${path}`,
    `chmod go= ${quoted(path)}`,
  );
}

const NOFILE = 1_048_576;
const CAP_SYS_RESOURCE = 24;

/** Every device and every layer of it holds files open. */
export function checkOpenFiles(machine: Machine): Finding {
  const { root } = machine;
  const name = "open files";
  const most = Number(textOf(`${root}/proc/sys/fs/nr_open`));
  if (most < NOFILE) {
    return missing(
      name,
      `fs.nr_open is ${most}, fewer than ${NOFILE}`,
      `sysctl -w fs.nr_open=${NOFILE}`,
    );
  }
  const [, hard = "0"] = /^Max open files\s+\S+\s+(\S+)/m
    .exec(textOf(`${root}/proc/self/limits`)) ?? [];
  if (hard === "unlimited" || Number(hard) >= NOFILE) return fine(name, hard);
  return isCapable(machine, CAP_SYS_RESOURCE)
    ? fine(name, `${hard}, the daemon raises it`)
    : missing(
      name,
      `the hard limit is ${hard}, fewer than ${NOFILE}, and cannot be raised`,
      `prlimit --pid ${Deno.ppid} --nofile=${NOFILE}:${NOFILE}`,
    );
}
