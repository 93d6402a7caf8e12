// SPDX-License-Identifier: Apache-2.0
/**
 * Files, sockets and locks through the C library, whose calls can be traced
 * and made to fail.
 *
 * @module
 */
import { check } from "./errors.ts";
import { type Bytes, type U64, u64 } from "./handle.ts";
import { cstring, lib } from "./library.ts";

/** Flags of {@linkcode openFd}: the kernel's O_* for x86-64 and aarch64. */
export const O = {
  RDONLY: 0,
  WRONLY: 1,
  RDWR: 2,
  CREAT: 0o100,
  EXCL: 0o200,
  TRUNC: 0o1000,
  NONBLOCK: 0o4000,
  DIRECT: Deno.build.arch === "aarch64" ? 0o200000 : 0o40000,
  /** `__O_TMPFILE | O_DIRECTORY`; the second differs on aarch64. */
  TMPFILE: Deno.build.arch === "aarch64" ? 0o20040000 : 0o20200000,
} as const;

/** Operations of {@linkcode flock}. */
export const LOCK = { SH: 1, EX: 2, NB: 4, UN: 8 } as const;

/** open(2). The descriptor is close-on-exec. */
export function openFd(path: string, flags: number, mode = 0): number {
  return check(
    lib.obd_io_open(cstring(path), flags, mode),
    `cannot open ${path}`,
  );
}

export function closeFd(fd: number): void {
  check(lib.obd_io_close(fd), "cannot close a file");
}

/** Reads at `at`; fewer bytes than asked only at the end of the file. */
export function preadFd(fd: number, into: Bytes, at: U64): number {
  return check(
    lib.obd_io_pread(fd, into, BigInt(into.byteLength), u64(at)),
    `cannot read ${into.byteLength} bytes at ${at}`,
  );
}

export function pwriteFd(fd: number, from: Bytes, at: U64): void {
  check(
    lib.obd_io_pwrite(fd, from, BigInt(from.byteLength), u64(at)),
    `cannot write ${from.byteLength} bytes at ${at}`,
  );
}

/** Writes all of it to a pipe or device, wherever that stands. */
export async function writeFd(fd: number, from: Bytes): Promise<void> {
  check(
    await lib.obd_io_write_async(fd, from, BigInt(from.byteLength)),
    `cannot write ${from.byteLength} bytes`,
  );
}

/** fsync(2), or fdatasync(2) when `dataOnly`. */
export async function syncFd(fd: number, dataOnly = false): Promise<void> {
  check(await lib.obd_io_sync_async(fd, dataOnly ? 1 : 0), "cannot sync");
}

export function truncateFd(fd: number, size: U64): void {
  check(lib.obd_io_truncate(fd, u64(size)), `cannot truncate to ${size}`);
}

export const PUNCH_HOLE_KEEP_SIZE = 3;

/** Gives the space of a range back. */
export function punchFd(fd: number, at: number, length: number): void {
  check(
    lib.obd_io_allocate(fd, PUNCH_HOLE_KEEP_SIZE, BigInt(at), BigInt(length)),
    `cannot punch a hole at ${at}`,
  );
}

/** SEEK_DATA and SEEK_HOLE. */
export const WHENCE = { data: 3, hole: 4 } as const;

/** What a seek found; undefined: nothing. */
export function seekResult(rc: number | bigint, at: U64): number | undefined {
  const ENXIO = 6;
  return Number(rc) === -ENXIO ? undefined : check(rc, `cannot seek to ${at}`);
}

/** Where data (`"data"`) or a hole starts at or after `at`; undefined: none. */
export function seekFd(
  fd: number,
  at: U64,
  what: "data" | "hole",
): number | undefined {
  return seekResult(lib.obd_io_seek(fd, u64(at), WHENCE[what]), at);
}

/** Size in bytes of a regular file or block device. */
export function sizeOfFd(fd: number): number {
  return check(lib.obd_io_size(fd), "cannot get the size");
}

/** errno of a lock that another process holds. */
export const EAGAIN = 11;

/** flock(2); false when another process holds it and NB was asked. */
export function flock(fd: number, operation: number): boolean {
  const rc = lib.obd_io_flock(fd, operation);
  if (rc === -EAGAIN) return false;
  check(rc, "cannot lock");
  return true;
}

/** Names an O_TMPFILE descriptor; @throws {EngineError} EEXIST if taken */
export function linkFd(fd: number, path: string): void {
  check(lib.obd_io_link(fd, cstring(path)), `cannot create ${path}`);
}

export function renamePath(from: string, to: string): void {
  check(
    lib.obd_io_rename(cstring(from), cstring(to)),
    `cannot rename ${from} to ${to}`,
  );
}

export function unlinkPath(path: string): void {
  check(lib.obd_io_unlink(cstring(path)), `cannot remove ${path}`);
}

/** A listening socket: `"unix:/path"`, `"tcp:127.0.0.1:0"`. */
export function listenFd(address: string, backlog = 128): number {
  return check(
    lib.obd_io_listen(cstring(address), backlog),
    `cannot listen on ${address}`,
  );
}

/**
 * Lets this process open as many files as it may, `hard` at least where that
 * can be had; @returns how many
 */
export function raiseNofile(hard: number): number {
  return check(lib.obd_io_nofile(u64(hard)), "cannot raise RLIMIT_NOFILE");
}

export function portOfFd(fd: number): number {
  return check(lib.obd_io_port(fd), "cannot get the port");
}

/** Records every file operation of the library from now on; null stops. */
export function traceIo(path: string | null): void {
  check(
    lib.obd_io_trace(path === null ? null : cstring(path)),
    `cannot trace to ${path}`,
  );
}

/** Operations of {@linkcode faultIo}: `OBD_IO_*`. */
export const IO = {
  OPEN: 0,
  PREAD: 1,
  PWRITE: 2,
  SYNC: 3,
  TRUNCATE: 4,
  ALLOCATE: 5,
  LINK: 6,
  RENAME: 7,
  UNLINK: 8,
} as const;

/** As an errno for {@linkcode faultIo}: hangs until that is called again. */
export const HANG = 100_000;

/** Makes the nth next operation, and count-1 after it, fail with errno. */
export function faultIo(
  op: number,
  nth: number,
  errno: number,
  count = 1,
): void {
  check(lib.obd_io_fault(op, nth, errno, count), "cannot inject a failure");
}
