// SPDX-License-Identifier: Apache-2.0
/**
 * An NBD server: where it listens, and what it exports.  The protocol is
 * spoken by the C library.
 *
 * @module
 */
import pLimit from "p-limit";
import {
  closeFd,
  type Device,
  listenFd,
  newNbdServer,
  portOfFd,
  unlinkPath,
} from "../../../ffi/engine.ts";
import { fullPath, linkInfo } from "../../layer/files.ts";

/** Exports that are taken back at once; others wait. */
const REMOVALS = 2;

/** Where to listen. */
export type NbdAddress =
  | { kind: "unix"; path: string }
  | { kind: "tcp"; host: string; port: number };

/** The address cannot be used. */
export class AddressError extends Error {
  override readonly name = "AddressError";
}

/** One disk to export. */
export interface NbdExport {
  /** not empty */
  name: string;
  /** shown in the list of exports */
  description: string;
  device: Device;
}

/** A running server. */
export interface RunningServer {
  /** of the default export */
  uri: string;
  /** Where one export is. */
  uriOf(name: string): string;
  /** @throws {EngineError} EEXIST: the name is taken */
  add(exported: NbdExport): void;
  /** Hangs up on an export's clients, their requests get `graceMs`. */
  remove(name: string, graceMs: number): Promise<void>;
  /** Clients of an export. */
  users(name: string): number;
  /** Stops accepting, lets requests end for `graceMs`, hangs up. */
  close(graceMs: number): Promise<void>;
}

/**
 * `HOST:PORT`, `[IPV6]:PORT`, or else the path of a unix socket.  What has a
 * slash in it is a path.
 *
 * @throws {AddressError} the port is none
 */
export function parseAddress(text: string): NbdAddress {
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

function isLoopback(ip: string): boolean {
  return ip === "::1" || /^127(\.\d+){3}$/.test(ip);
}

/** An address in numbers; an empty host or `*` is every interface. */
async function resolveHost(host: string): Promise<string> {
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

/** A listening descriptor, the URIs of exports, its clean-up. */
interface Listening {
  fd: number;
  /** empty: the default export */
  uriOf(name: string): string;
  remove(): void;
}

async function listenUnix(path: string): Promise<Listening> {
  await clearStale(path);
  const fd = listenFd(`unix:${path}`);
  const { ino } = Deno.lstatSync(path);
  return {
    fd,
    uriOf: (name) =>
      `nbd+unix:///${encodeURIComponent(name)}?socket=${
        encodeURIComponent(path).replaceAll("%2F", "/")
      }`,
    remove: () => {
      // Ours only: another server may have taken the name since.
      const now = linkInfo(path);
      if (now?.ino === ino) unlinkPath(path);
    },
  };
}

async function listenTcp(
  host: string,
  port: number,
  insecure: boolean,
): Promise<Listening> {
  const ip = await resolveHost(host);
  if (!isLoopback(ip) && !insecure) {
    throw new AddressError(
      `cannot listen on ${host}:${port}: other machines can reach it, and ` +
        "NBD here has neither encryption nor authentication: --insecure " +
        "allows it",
    );
  }
  const literal = ip.includes(":") ? `[${ip}]` : ip;
  const fd = listenFd(`tcp:${literal}:${port}`);
  const base = `nbd://${literal}:${portOfFd(fd)}/`;
  return {
    fd,
    uriOf: (name) => base + encodeURIComponent(name),
    remove: () => {},
  };
}

/**
 * Listens and serves.
 *
 * @param exports may be none; the oldest is the default one; names differ
 * @param options `insecure`: other machines may reach the address
 * @throws {AddressError | EngineError} nobody listens
 */
export async function startNbdServer(
  address: NbdAddress,
  exports: readonly NbdExport[],
  options: { insecure?: boolean } = {},
): Promise<RunningServer> {
  const listening = address.kind === "unix"
    ? await listenUnix(address.path)
    : await listenTcp(address.host, address.port, options.insecure ?? false);
  let server;
  try {
    server = newNbdServer(listening.fd);
  } catch (error) {
    closeFd(listening.fd);
    listening.remove();
    throw error;
  }
  const { add, start, close, users } = server;
  try {
    for (const { name, description, device } of exports) {
      add(name, description, device);
    }
    start();
  } catch (error) {
    await close(0);
    listening.remove();
    throw error;
  }
  // Each blocks a thread of a pool that file I/O shares.
  const limit = pLimit(REMOVALS);
  const removals = new Set<Promise<void>>();
  return {
    uri: listening.uriOf(""),
    uriOf: listening.uriOf,
    add: ({ name, description, device }) => add(name, description, device),
    remove: async (name, graceMs) => {
      const removal = limit(() => server.remove(name, graceMs));
      removals.add(removal);
      try {
        await removal;
      } finally {
        removals.delete(removal);
      }
    },
    users,
    close: async (graceMs) => {
      listening.remove();
      await Promise.allSettled(removals);
      await close(graceMs);
    },
  };
}
