// SPDX-License-Identifier: Apache-2.0
/**
 * The calls of files.ts on Deno's blocking-call threads: for disks that may
 * hang, or that are our own, and wait for us.  A descriptor must stay open until the calls on it have ended.
 *
 * @module
 */
import { check } from "./errors.ts";
import { EAGAIN, PUNCH_HOLE_KEEP_SIZE, seekResult, WHENCE } from "./files.ts";
import { type Bytes, type U64, u64 } from "./handle.ts";
import { cstring, lib } from "./library.ts";

/** open(2). The descriptor is close-on-exec. */
export async function openFdAsync(
  path: string,
  flags: number,
  mode = 0,
): Promise<number> {
  return check(
    await lib.obd_io_open_async(cstring(path), flags, mode),
    `cannot open ${path}`,
  );
}

export async function closeFdAsync(fd: number): Promise<void> {
  check(await lib.obd_io_close_async(fd), "cannot close a file");
}

/** Reads at `at`; fewer bytes than asked only at the end of the file. */
export async function preadFdAsync(
  fd: number,
  into: Bytes,
  at: U64,
): Promise<number> {
  return check(
    await lib.obd_io_pread_async(fd, into, BigInt(into.byteLength), u64(at)),
    `cannot read ${into.byteLength} bytes at ${at}`,
  );
}

export async function pwriteFdAsync(
  fd: number,
  from: Bytes,
  at: U64,
): Promise<void> {
  check(
    await lib.obd_io_pwrite_async(fd, from, BigInt(from.byteLength), u64(at)),
    `cannot write ${from.byteLength} bytes at ${at}`,
  );
}

export async function truncateFdAsync(fd: number, size: U64): Promise<void> {
  check(
    await lib.obd_io_truncate_async(fd, u64(size)),
    `cannot truncate to ${size}`,
  );
}

/** Gives the space of a range back. */
export async function punchFdAsync(
  fd: number,
  at: number,
  length: number,
): Promise<void> {
  const range = [BigInt(at), BigInt(length)] as const;
  check(
    await lib.obd_io_allocate_async(fd, PUNCH_HOLE_KEEP_SIZE, ...range),
    `cannot punch a hole at ${at}`,
  );
}

/** Where data (`"data"`) or a hole starts at or after `at`; undefined: none. */
export async function seekFdAsync(
  fd: number,
  at: U64,
  what: "data" | "hole",
): Promise<number | undefined> {
  const rc = await lib.obd_io_seek_async(fd, u64(at), WHENCE[what]);
  return seekResult(rc, at);
}

/** Size in bytes of a regular file or block device. */
export async function sizeOfFdAsync(fd: number): Promise<number> {
  return check(await lib.obd_io_size_async(fd), "cannot get the size");
}

/** flock(2); false when another process holds it and NB was asked. */
export async function flockAsync(
  fd: number,
  operation: number,
): Promise<boolean> {
  const rc = await lib.obd_io_flock_async(fd, operation);
  return rc !== -EAGAIN && check(rc, "cannot lock") === 0;
}

export async function renamePathAsync(from: string, to: string): Promise<void> {
  check(
    await lib.obd_io_rename_async(cstring(from), cstring(to)),
    `cannot rename ${from} to ${to}`,
  );
}
