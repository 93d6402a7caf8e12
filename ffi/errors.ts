// SPDX-License-Identifier: Apache-2.0
/**
 * The C library's `-errno` results as errors.
 *
 * @module
 */

/** The errno values that the library and the kernel calls under it return. */
const NAMES: Readonly<Record<number, readonly [code: string, text: string]>> = {
  1: ["EPERM", "operation not permitted"],
  2: ["ENOENT", "no such file or directory"],
  4: ["EINTR", "interrupted system call"],
  5: ["EIO", "input/output error"],
  6: ["ENXIO", "no such device or address"],
  7: ["E2BIG", "too large"],
  9: ["EBADF", "bad file descriptor"],
  11: ["EAGAIN", "resource temporarily unavailable"],
  12: ["ENOMEM", "out of memory"],
  13: ["EACCES", "permission denied"],
  14: ["EFAULT", "bad address"],
  16: ["EBUSY", "device or resource busy"],
  17: ["EEXIST", "file exists"],
  18: ["EXDEV", "invalid cross-device link"],
  19: ["ENODEV", "no such device"],
  20: ["ENOTDIR", "not a directory"],
  21: ["EISDIR", "is a directory"],
  22: ["EINVAL", "invalid argument"],
  23: ["ENFILE", "too many open files in system"],
  24: ["EMFILE", "too many open files"],
  26: ["ETXTBSY", "text file busy"],
  27: ["EFBIG", "file too large"],
  28: ["ENOSPC", "no space left on device"],
  29: ["ESPIPE", "illegal seek"],
  30: ["EROFS", "read-only file system"],
  32: ["EPIPE", "broken pipe"],
  34: ["ERANGE", "out of range"],
  36: ["ENAMETOOLONG", "file name too long"],
  38: ["ENOSYS", "function not implemented"],
  40: ["ELOOP", "too many levels of symbolic links"],
  61: ["ENODATA", "no data available"],
  71: ["EPROTO", "protocol error"],
  74: ["EBADMSG", "bad message"],
  75: ["EOVERFLOW", "value too large"],
  95: ["EOPNOTSUPP", "operation not supported"],
  97: ["EAFNOSUPPORT", "address family not supported"],
  98: ["EADDRINUSE", "address already in use"],
  99: ["EADDRNOTAVAIL", "cannot assign requested address"],
  101: ["ENETUNREACH", "network is unreachable"],
  103: ["ECONNABORTED", "connection aborted"],
  104: ["ECONNRESET", "connection reset by peer"],
  107: ["ENOTCONN", "not connected"],
  108: ["ESHUTDOWN", "shut down"],
  110: ["ETIMEDOUT", "timed out"],
  111: ["ECONNREFUSED", "connection refused"],
  113: ["EHOSTUNREACH", "no route to host"],
  116: ["ESTALE", "stale file handle"],
  117: ["EUCLEAN", "structure needs cleaning"],
  122: ["EDQUOT", "disk quota exceeded"],
  125: ["ECANCELED", "operation canceled"],
};

/** errno as its symbol, `"ENOSPC"`; `"E<n>"` for one not listed. */
export function errnoCode(errno: number): string {
  return NAMES[errno]?.[0] ?? `E${errno}`;
}

/** errno as words, `"no space left on device"`. */
export function errnoText(errno: number): string {
  return NAMES[errno]?.[1] ?? `error ${errno}`;
}

/** errno of what a call of Deno threw; undefined: it has none. */
export function osErrno(error: Error): number | undefined {
  const [, errno] = /\(os error (\d+)\)/.exec(error.message) ?? [];
  return errno === undefined ? undefined : Number(errno);
}

/**
 * Why something failed.  Of what a call of Deno threw, only that, in the
 * words of {@link errnoText}: its own message ends with the call's name.
 */
export function whyOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const errno = osErrno(error);
  return errno === undefined ? error.message : errnoText(errno);
}

/**
 * A call of the C library failed.  `message` is `what: text of errno`;
 * `code` is the errno's symbol, as in `node:fs` errors.
 */
export class EngineError extends Error {
  override readonly name = "EngineError";
  readonly errno: number;
  readonly code: string;

  constructor(errno: number, what: string) {
    super(`${what}: ${errnoText(errno)}`);
    this.errno = errno;
    this.code = errnoCode(errno);
  }
}

/**
 * Passes a result of 0 or more on, throws a negative one.
 *
 * @param rc the C result, `-errno` on failure
 * @param what what could not be done, for the message:
 *   `"cannot open /x/layer"`
 * @throws {EngineError} when `rc` is negative
 */
export function check(rc: number | bigint, what: string): number {
  const value = Number(rc);
  if (value < 0) throw new EngineError(-value, what);
  return value;
}
