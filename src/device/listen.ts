// SPDX-License-Identifier: Apache-2.0
/**
 * Addresses that servers listen on.
 *
 * @module
 */
import { listenFd, portOfFd, unlinkPath } from "../../ffi/files.ts";
import { fullPath, linkInfo } from "../layer/files.ts";

/** Where to listen. */
export type Address =
  | { kind: "unix"; path: string }
  | { kind: "tcp"; host: string; port: number };

/** The address cannot be used. */
export class AddressError extends Error {
  override readonly name = "AddressError";
}

/**
 * `HOST:PORT`, `[IPV6]:PORT`, or else the path of a unix socket.  What has a
 * slash in it is a path.
 *
 * @throws {AddressError} the port is none
 */
export function parseAddress(text: string): Address {
  const [, bracketed, plain, port] =
    /^(?:\[([^\]/]*)\]|([^:/]*)):(\d+)$/.exec(text) ?? [];
  if (port === undefined) {
    return { kind: "unix", path: fullPath(text) };
  }
  const number = Number(port);
  if (number > 65535) {
    throw new AddressError(`cannot listen on ${text}: no port ${port}`);
  }
  return { kind: "tcp", host: bracketed ?? plain ?? "", port: number };
}

/** True for addresses that only this machine can reach. */
export function isLoopback(ip: string): boolean {
  return ip === "::1" || /^127(\.\d+){3}$/.test(ip);
}

/**
 * An address in numbers; an empty host or `*` is every interface.
 *
 * @throws {AddressError} there is no such host
 */
export async function resolveHost(host: string): Promise<string> {
  if (host === "" || host === "*") return "0.0.0.0";
  try {
    // Only names need it, and it takes long to load.
    const { lookup } = await import("node:dns/promises");
    const { address } = await lookup(host);
    return address;
  } catch (cause) {
    throw new AddressError(`cannot listen on ${host}: no such host`, {
      cause,
    });
  }
}

/** An address as it stands in a URL. */
export function hostText(ip: string): string {
  return ip.includes(":") ? `[${ip}]` : ip;
}

/** True when somebody answers on a unix socket. */
async function isAlive(path: string): Promise<boolean> {
  try {
    const connection = await Deno.connect({ transport: "unix", path });
    connection.close();
    return true;
  } catch (error) {
    // Anything else (no permission, a full backlog) may well be alive.
    return !(error instanceof Deno.errors.ConnectionRefused) &&
      !(error instanceof Deno.errors.NotFound);
  }
}

/** Removes the socket of a server that is gone. */
async function clearStale(path: string): Promise<void> {
  const found = linkInfo(path);
  if (found === undefined) return;
  if (found.isSocket !== true) {
    throw new AddressError(
      `cannot listen on ${path}: it exists and is no socket`,
    );
  }
  if (await isAlive(path)) {
    throw new AddressError(
      `cannot listen on ${path}: another server listens there`,
    );
  }
  unlinkPath(path);
}

/** Clients that may wait to be accepted; a unix socket refuses all others. */
const BACKLOG = 1024;

/** A listening socket. */
export interface Listening {
  fd: number;
  /** the port of a TCP socket, which may have been 0 */
  address: Address;
  /** Takes a unix socket's name away; the descriptor stays open. */
  remove(): void;
}

/**
 * Listens on a unix socket; that of a dead server is replaced.
 *
 * @param mode permissions of the socket; those of the umask when not given
 * @throws {AddressError | EngineError} the name is taken or cannot be had
 */
export async function listenUnix(
  path: string,
  mode?: number,
): Promise<Listening> {
  await clearStale(path);
  // Nobody may connect before a chmod(2) would come.
  const umask = mode === undefined ? undefined : Deno.umask(0o777 & ~mode);
  let fd: number;
  try {
    fd = listenFd(`unix:${path}`, BACKLOG);
  } finally {
    if (umask !== undefined) Deno.umask(umask);
  }
  const { ino } = Deno.lstatSync(path);
  return {
    fd,
    address: { kind: "unix", path },
    remove: () => {
      // Ours only: another server may have taken the name since.
      const now = linkInfo(path);
      if (now?.ino === ino) unlinkPath(path);
    },
  };
}

/**
 * Listens on a TCP port.
 *
 * @param allow told the address in numbers, and throws when it is not to be
 * @throws {AddressError | EngineError} nobody listens
 */
export async function listenTcp(
  host: string,
  port: number,
  allow: (ip: string) => void,
): Promise<Listening> {
  const ip = await resolveHost(host);
  allow(ip);
  const fd = listenFd(`tcp:${hostText(ip)}:${port}`, BACKLOG);
  return {
    fd,
    address: { kind: "tcp", host: ip, port: portOfFd(fd) },
    remove: () => {},
  };
}
