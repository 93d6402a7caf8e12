// SPDX-License-Identifier: Apache-2.0
/**
 * The NBD server.
 *
 * @module
 */
import { check, EngineError } from "./errors.ts";
import { type Device, slot } from "./handle.ts";
import { cstring, lib } from "./library.ts";

/** An NBD server on one listening socket. */
export interface NbdServer {
  /** @throws {EngineError} EEXIST when the name is taken */
  add(name: string, description: string, device: Device): void;
  /**
   * Takes an export back; requests of its clients get `graceMs`.
   *
   * @throws {EngineError} ENOENT when there is none
   */
  remove(name: string, graceMs: number): Promise<void>;
  start(): void;
  connections(): number;
  /** Connections of one export; undefined: there is none, or it is going. */
  users(name: string): number | undefined;
  /** Ends every connection; running requests get `graceMs`. */
  close(graceMs: number): Promise<void>;
}

const ENOENT = 2;
const ESHUTDOWN = 108;

/** Takes the listening descriptor over. */
export function newNbdServer(listenFd: number): NbdServer {
  const out = slot();
  check(lib.obd_nbd_new(listenFd, out), "cannot make an NBD server");
  let pointer = Deno.UnsafePointer.create(out[0] ?? 0n);
  /** Requests may come late, when the server ends. */
  const open = (what: string): Deno.PointerObject => {
    if (pointer === null) throw new EngineError(ESHUTDOWN, what);
    return pointer;
  };
  return {
    add(name, description, device) {
      check(
        lib.obd_nbd_add(
          open(`cannot export ${name}`),
          cstring(name),
          cstring(description),
          device.pointer,
        ),
        `cannot export ${name}`,
      );
    },
    async remove(name, graceMs) {
      check(
        await lib.obd_nbd_remove_async(
          open(`cannot take back ${name}`),
          cstring(name),
          graceMs,
        ),
        `cannot take back ${name}`,
      );
    },
    start() {
      const what = "cannot start the NBD server";
      check(lib.obd_nbd_start(open(what)), what);
    },
    connections() {
      const what = "cannot count connections";
      return check(lib.obd_nbd_connections(open(what)), what);
    },
    users(name) {
      if (pointer === null) return undefined;
      const users = lib.obd_nbd_users(pointer, cstring(name));
      return users === -ENOENT
        ? undefined
        : check(users, `cannot count clients of ${name}`);
    },
    async close(graceMs) {
      const last = pointer;
      pointer = null;
      if (last === null) return;
      check(
        await lib.obd_nbd_close_async(last, graceMs),
        "cannot close the NBD server",
      );
    },
  };
}
