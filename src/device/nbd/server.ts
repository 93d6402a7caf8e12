// SPDX-License-Identifier: Apache-2.0
/**
 * An NBD server: where it listens, and what it exports.  The protocol is
 * spoken by the C library.
 *
 * @module
 */
import {
  closeFd,
  type Device,
  listenFd,
  newNbdServer,
  portOfFd,
  unlinkPath,
} from "../../../ffi/engine.ts";
import { fullPath, linkInfo } from "../../layer/files.ts";

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

/** A listening descriptor, the URI of its default export, its clean-up. */
interface Listening {
  fd: number;
  uri: string;
  remove(): void;
}

async function listenUnix(path: string): Promise<Listening> {
  await clearStale(path);
  const fd = listenFd(`unix:${path}`);
  const { ino } = Deno.lstatSync(path);
  return {
    fd,
    uri: `nbd+unix:///?socket=${
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
  return {
    fd,
    uri: `nbd://${literal}:${portOfFd(fd)}/`,
    remove: () => {},
  };
}

/**
 * Listens and serves.
 *
 * @param exports the first is the default one; names must differ
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
  const { add, start, close } = server;
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
  return {
    uri: listening.uri,
    close: async (graceMs) => {
      listening.remove();
      await close(graceMs);
    },
  };
}
