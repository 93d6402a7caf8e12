// SPDX-License-Identifier: Apache-2.0
/**
 * A disk that grows while it is used.
 *
 * @module
 */
import { resizeDevice } from "../../ffi/engine.ts";
import { EngineError } from "../../ffi/errors.ts";
import { setUpperSize } from "../layer/resize.ts";
import type { ImageConfig } from "./config.ts";
import type { OpenImage } from "./image.ts";

const EROFS = 30;
const EOPNOTSUPP = 95;

/**
 * Makes an image's disk larger, in the files first: what is written behind
 * the old end is there when the image is opened again.
 *
 * @param config names the upper's files as they are now
 * @param size bytes, a multiple of 512 and not less than now
 * @throws {EngineError} EROFS: without an upper; EOPNOTSUPP: with a sparse
 *   one, which `overlaybd resize` grows while it is not open
 */
export async function growImage(
  image: OpenImage,
  config: ImageConfig,
  size: bigint,
): Promise<void> {
  const { stack, device } = image;
  const { upper } = config;
  const what = `cannot grow the disk to ${size} bytes`;
  if (image.readonly || upper === undefined) throw new EngineError(EROFS, what);
  if (stack.upper?.kind !== "log") {
    throw new EngineError(EOPNOTSUPP, `${what}: its upper is sparse`);
  }
  await setUpperSize(upper.data, upper.index, size);
  resizeDevice(device, size);
  stack.virtualSize = size;
}
