// SPDX-License-Identifier: Apache-2.0
/**
 * Where the service keeps its files when nothing else is said: the
 * original's places for root, those of the XDG Base Directory Specification
 * for everybody else.
 *
 * @module
 */

/** Defaults of the configuration, and the configuration itself. */
export interface DefaultPaths {
  /** `overlaybd.json` */
  config: string;
  registryCache: string;
  gzipCache: string;
  credentials: string;
  log: string;
  audit: string;
  /** directory of sockets */
  run: string;
}

const ROOT: DefaultPaths = {
  config: "/etc/overlaybd/overlaybd.json",
  registryCache: "/opt/overlaybd/registry_cache",
  gzipCache: "/opt/overlaybd/gzip_cache",
  credentials: "/opt/overlaybd/cred.json",
  log: "/var/log/overlaybd.log",
  audit: "/var/log/overlaybd-audit.log",
  run: "/run/overlaybd",
};

/**
 * The default paths of a user.
 *
 * @param get an environment variable; relative directories in it do not
 *   count, as the specification says
 */
export function defaultPaths(
  uid: number,
  get: (name: string) => string | undefined,
): DefaultPaths {
  if (uid === 0) return ROOT;
  const directory = (name: string, otherwise: string) => {
    const value = get(name);
    return value?.startsWith("/") ? value : otherwise;
  };
  const home = directory("HOME", `/tmp/overlaybd-${uid}`);
  const config = directory("XDG_CONFIG_HOME", `${home}/.config`);
  const cache = directory("XDG_CACHE_HOME", `${home}/.cache`);
  const state = directory("XDG_STATE_HOME", `${home}/.local/state`);
  const run = directory("XDG_RUNTIME_DIR", `/tmp/overlaybd-${uid}`);
  return {
    config: `${config}/overlaybd/overlaybd.json`,
    registryCache: `${cache}/overlaybd/registry_cache`,
    gzipCache: `${cache}/overlaybd/gzip_cache`,
    credentials: `${config}/overlaybd/cred.json`,
    log: `${state}/overlaybd/overlaybd.log`,
    audit: `${state}/overlaybd/overlaybd-audit.log`,
    run: `${run}/overlaybd`,
  };
}

/** Those of the user that runs the program. */
export const PATHS: DefaultPaths = defaultPaths(
  Deno.uid() ?? 0,
  (name) => Deno.env.get(name),
);

/**
 * Makes the directory of a default file or socket, for this user alone; one
 * that somebody has chosen must exist.
 *
 * @throws {Error} it cannot be made, or belongs to somebody else
 */
export function makeDefaultDir(path: string): void {
  const isDefault = path === PATHS.log || path === PATHS.audit ||
    path.startsWith(`${PATHS.run}/`);
  if (!isDefault) return;
  const dir = path.slice(0, path.lastIndexOf("/"));
  Deno.mkdirSync(dir, { recursive: true, mode: 0o755 });
  const uid = Deno.uid();
  // Below /tmp anybody can have made it before.
  if (uid !== 0 && Deno.lstatSync(dir).uid !== uid) {
    throw new Error(`cannot use ${dir}: it belongs to another user`);
  }
}
