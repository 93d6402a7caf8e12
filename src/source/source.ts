// SPDX-License-Identifier: Apache-2.0
/**
 * A blob somewhere else, and how reading it can fail.
 *
 * @module
 */
import type { Bytes } from "../../ffi/engine.ts";

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
  /** another attempt may succeed */
  readonly retryable: boolean;
  /** of the HTTP answer, where there was one */
  readonly status: number | undefined;

  constructor(
    code: SourceCode,
    message: string,
    options: ErrorOptions & { retryable?: boolean; status?: number } = {},
  ) {
    super(message, options);
    this.code = code;
    this.retryable = options.retryable ?? code !== "EINVAL";
    this.status = options.status;
  }
}

/** A blob somewhere else, readable by range. */
export interface Blob {
  /** for logs and errors: no secrets, no query */
  readonly name: string;
  /** bytes; asks once, then remembered */
  size(signal?: AbortSignal): Promise<number>;
  /**
   * Exactly `into.byteLength` bytes from `at`.
   *
   * @throws {SourceError} not all of them could be had
   */
  read(at: number, into: Bytes, signal?: AbortSignal): Promise<void>;
}
