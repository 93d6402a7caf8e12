// SPDX-License-Identifier: Apache-2.0
/**
 * The NBD server.
 *
 * @module
 */
import { check } from "./errors.ts";
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
  /** Connections of one export. */
  users(name: string): number;
  /** Ends every connection; running requests get `graceMs`. */
  close(graceMs: number): Promise<void>;
}

/** Takes the listening descriptor over. */
export function newNbdServer(listenFd: number): NbdServer {
  const out = slot();
  check(lib.obd_nbd_new(listenFd, out), "cannot make an NBD server");
  let pointer = Deno.UnsafePointer.create(out[0] ?? 0n);
  return {
    add(name, description, device) {
      check(
        lib.obd_nbd_add(
          pointer,
          cstring(name),
          cstring(description),
          device.pointer,
        ),
        `cannot export ${name}`,
      );
    },
    async remove(name, graceMs) {
      check(
        await lib.obd_nbd_remove_async(pointer, cstring(name), graceMs),
        `cannot take back ${name}`,
      );
    },
    start() {
      check(lib.obd_nbd_start(pointer), "cannot start the NBD server");
    },
    connections() {
      return check(lib.obd_nbd_connections(pointer), "cannot count");
    },
    users(name) {
      return check(
        lib.obd_nbd_users(pointer, cstring(name)),
        `cannot count clients of ${name}`,
      );
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
