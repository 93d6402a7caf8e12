// SPDX-License-Identifier: Apache-2.0
/**
 * Why a device cannot be served, as the errno that the kernel hands on to
 * whoever enabled it (spec/client.md, section 10).
 *
 * @module
 */
import { EngineError } from "../../../ffi/errors.ts";

/** errno values of answers to the kernel. */
export const ERRNO = {
  ENOENT: 2,
  EIO: 5,
  EAGAIN: 11,
  EACCES: 13,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  EINVAL: 22,
  EOPNOTSUPP: 95,
  ENOTCONN: 107,
  ETIMEDOUT: 110,
  EUCLEAN: 117,
} as const;

/** A device cannot be served or changed; `errno` is what the kernel is told. */
export class DeviceError extends Error {
  override readonly name = "DeviceError";
  readonly errno: number;

  constructor(errno: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.errno = errno;
  }
}

/**
 * What the kernel is told of an error: never EAGAIN, which clients take for
 * "try again at once", nor a number that is the kernel's own.
 */
export function errnoForKernel(error: unknown): number {
  const errno = error instanceof DeviceError || error instanceof EngineError
    ? error.errno
    : ERRNO.EIO;
  const LAST = 133;
  return errno === ERRNO.EAGAIN || errno < 1 || errno > LAST
    ? ERRNO.EIO
    : errno;
}

/** The message of anything thrown. */
export function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
