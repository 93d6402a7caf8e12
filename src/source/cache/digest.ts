// SPDX-License-Identifier: Apache-2.0
/**
 * sha256 of a file, a piece at a time, so that nothing else waits for it.
 *
 * @module
 */
import { preadFdAsync } from "../../../ffi/files_async.ts";

const PIECE = 1 << 20;

/** What has been brought is not what the digest says. */
export class DigestError extends Error {
  override readonly name = "DigestError";
}

/**
 * The digest of bytes [0, size) of a file, as `sha256:<hex>`.
 *
 * @param read how it is read
 * @throws the reason of `signal`; {EngineError} it cannot be read
 */
export async function sha256Of(
  fd: number,
  size: number,
  signal?: AbortSignal,
  read = preadFdAsync,
): Promise<string> {
  const { createHash } = await import("node:crypto");
  const hash = createHash("sha256");
  const memory = new Uint8Array(PIECE);
  for (let at = 0; at < size; at += PIECE) {
    signal?.throwIfAborted();
    const piece = memory.subarray(0, Math.min(PIECE, size - at));
    hash.update(piece.subarray(0, await read(fd, piece, at)));
  }
  return `sha256:${hash.digest("hex")}`;
}
