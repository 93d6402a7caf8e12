// SPDX-License-Identifier: Apache-2.0
/**
 * A blob somewhere else, and how reading it can fail.
 *
 * @module
 */
import type { Bytes } from "../../ffi/handle.ts";

/** Why a blob cannot be read, as the symbol of an errno. */
export type SourceCode =
  | "EACCES"
  | "ENOENT"
  | "EBUSY"
  | "ETIMEDOUT"
  | "ENOTCONN"
  | "EIO"
  | "EINVAL";

/** A blob cannot be read (spec/registry.md, section 5). */
export class SourceError extends Error {
  override readonly name = "SourceError";
  readonly code: SourceCode;
  /** the same again may succeed in a moment */
  readonly retryable: boolean;
  /** of the HTTP answer, where there was one */
  readonly status: number | undefined;
  /** ms that the server asked to wait */
  readonly retryAfterMs: number | undefined;

  constructor(
    code: SourceCode,
    message: string,
    options: ErrorOptions & {
      retryable?: boolean;
      status?: number;
      retryAfterMs?: number | undefined;
    } = {},
  ) {
    super(message, options);
    this.code = code;
    this.retryable = options.retryable ??
      !["EACCES", "ENOENT", "EINVAL"].includes(code);
    this.status = options.status;
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** A range of a blob on its way here. */
export interface RangeBody {
  /** bytes of the whole blob */
  readonly total: number;
  /** bytes of this range: fewer than asked for only at the blob's end */
  readonly length: number;
  /**
   * The next bytes as they come, at most `max`, none only at the end.  They
   * are lent: what is returned is good until the next call.
   *
   * @throws {SourceError} they do not come
   */
  next(max: number): Promise<Uint8Array>;
  /**
   * The next bytes, as many as `into` has room for; fewer only at the end.
   *
   * @returns the part of `into` that they are in
   * @throws {SourceError} they do not come
   */
  read(into: Bytes): Promise<Bytes>;
  /** Wants no more of it, nor what was lent last. */
  cancel(): void;
}

/** `read` by `next`. */
export async function readInto(body: RangeBody, into: Bytes): Promise<Bytes> {
  let n = 0;
  while (n < into.length) {
    const bytes = await body.next(into.length - n);
    if (bytes.length === 0) break;
    into.set(bytes, n);
    n += bytes.length;
  }
  return into.subarray(0, n);
}

/** A blob somewhere else, readable by range. */
export interface Blob {
  /** for logs and errors: no secrets, no query */
  readonly name: string;
  /** bytes; asks once, then remembered, as is what any range tells */
  size(signal?: AbortSignal): Promise<number>;
  /**
   * Bytes [at, at + length), `at` inside the blob or 0.  Ends an attempt that
   * takes too long, and tries again by itself a few times, from where the
   * one before ended.
   *
   * @param signal ends this and all reads of the body
   * @throws {SourceError} they cannot be had
   */
  range(at: number, length: number, signal?: AbortSignal): Promise<RangeBody>;
}

/**
 * Waits for something, but not longer than `signal` allows.
 *
 * @throws {SourceError} EIO: it was ended
 */
export async function endable<T>(
  work: Promise<T>,
  signal: AbortSignal | undefined,
  name: string,
): Promise<T> {
  if (signal === undefined) return await work;
  const ended = Promise.withResolvers<never>();
  const end = () =>
    ended.reject(
      new SourceError("EIO", `cannot read ${name}: it was ended`, {
        cause: signal.reason,
        retryable: false,
      }),
    );
  if (signal.aborted) end();
  signal.addEventListener("abort", end, { once: true });
  try {
    return await Promise.race([work, ended.promise]);
  } finally {
    signal.removeEventListener("abort", end);
  }
}

/**
 * The blob that a URL names, by its last component.
 *
 * @throws {SourceError} EINVAL: that is no name
 */
export function blobName(url: string): string {
  const name = url.slice(url.lastIndexOf("/") + 1).replace(/[?#].*$/, "");
  if (/^[A-Za-z0-9][A-Za-z0-9:._-]*$/.test(name)) return name;
  throw new SourceError("EINVAL", `cannot open ${url}: bad blob name`);
}
