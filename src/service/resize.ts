// SPDX-License-Identifier: Apache-2.0
/**
 * Growing a disk while it is served.
 *
 * @module
 */
import { growImage } from "../image/grow.ts";
import { RequestError } from "./refusal.ts";
import type { ServedImage } from "./service.ts";

/**
 * Grows an open image: its layer's headers first, on disk, then the device.
 *
 * @throws {RequestError} invalid: smaller, or no multiple of 512;
 *   unsupported: read-only
 * @throws {EngineError} a header cannot be written; nothing was changed
 */
export async function resizeServed(
  served: ServedImage,
  bytes: number,
): Promise<void> {
  const { image, config } = served;
  const { upper, virtualSize } = image.stack;
  const cannot = `cannot resize ${served.name} to ${bytes} bytes`;
  if (image.readonly || upper === undefined || config.upper === undefined) {
    throw new RequestError("unsupported", `${cannot}: it is read-only`);
  }
  const size = BigInt(bytes);
  if (size % 512n !== 0n) {
    throw new RequestError("invalid", `${cannot}: not a multiple of 512`);
  }
  if (size < virtualSize) {
    throw new RequestError(
      "invalid",
      `${cannot}: it has ${virtualSize}, and a disk only grows while served`,
    );
  }
  await growImage(image, size);
  served.log.info(`resized from ${virtualSize} to ${size} bytes`);
}
