// SPDX-License-Identifier: Apache-2.0
/**
 * An NBD server: where it listens, and what it exports.  The protocol is
 * spoken by the C library.
 *
 * @module
 */
import pLimit from "p-limit";
import { closeFd } from "../../../ffi/files.ts";
import type { Device } from "../../../ffi/handle.ts";
import { newNbdServer } from "../../../ffi/nbd.ts";
import {
  type Address,
  AddressError,
  hostText,
  isLoopback,
  type Listening,
  listenTcp,
  listenUnix,
} from "../listen.ts";

/** Exports that are taken back at once; others wait. */
const REMOVALS = 2;

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
  /** Clients of an export; undefined: there is none, or it is going. */
  users(name: string): number | undefined;
  /** Stops accepting, lets requests end for `graceMs`, hangs up. */
  close(graceMs: number): Promise<void>;
}

/** The URI of an export; of the default one for "". */
function uriOf(address: Address, name: string): string {
  const path = encodeURIComponent(name);
  return address.kind === "tcp"
    ? `nbd://${hostText(address.host)}:${address.port}/${path}`
    : `nbd+unix:///${path}?socket=${
      encodeURIComponent(address.path).replaceAll("%2F", "/")
    }`;
}

function listen(address: Address, insecure: boolean): Promise<Listening> {
  if (address.kind === "unix") return listenUnix(address.path);
  const { host, port } = address;
  return listenTcp(host, port, (ip) => {
    if (isLoopback(ip) || insecure) return;
    throw new AddressError(
      `cannot listen on ${host}:${port}: other machines can reach it, and ` +
        "NBD here has neither encryption nor authentication: --insecure " +
        "allows it",
    );
  });
}

/**
 * Listens and serves.
 *
 * @param exports may be none; the oldest is the default one; names differ
 * @param options `insecure`: other machines may reach the address
 * @throws {AddressError | EngineError} nobody listens
 */
export async function startNbdServer(
  address: Address,
  exports: readonly NbdExport[],
  options: { insecure?: boolean } = {},
): Promise<RunningServer> {
  const listening = await listen(address, options.insecure ?? false);
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
    uri: uriOf(listening.address, ""),
    uriOf: (name) => uriOf(listening.address, name),
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
