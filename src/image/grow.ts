// SPDX-License-Identifier: Apache-2.0
/**
 * A disk that grows while it is used.
 *
 * @module
 */
import { resizeDevice } from "../../ffi/device.ts";
import { EngineError } from "../../ffi/errors.ts";
import { setUpperSize } from "../layer/resize.ts";
import type { OpenImage } from "./image.ts";

const EINVAL = 22;
const EROFS = 30;
const EOPNOTSUPP = 95;

async function grow(image: OpenImage, size: bigint): Promise<void> {
  const { stack, device } = image;
  const { upper } = stack;
  const what = `cannot grow the disk to ${size} bytes`;
  if (image.readonly || upper === undefined) throw new EngineError(EROFS, what);
  if (upper.kind !== "log") {
    throw new EngineError(EOPNOTSUPP, `${what}: its upper is sparse`);
  }
  // A snapshot may have grown it meanwhile.
  if (size < stack.virtualSize) throw new EngineError(EINVAL, what);
  // Not what the configuration says: after a snapshot that could not be ended
  // that is the upper of before.
  await setUpperSize(upper.paths.data, upper.paths.index, size);
  resizeDevice(device, size);
  stack.virtualSize = size;
  for (const tell of image.grown) tell(size);
}

/**
 * Makes an image's disk larger, in the files first: what is written behind
 * the old end is there when the image is opened again.
 *
 * @param size bytes, a multiple of 512 and not less than now
 * @throws {EngineError} EROFS: without an upper; EOPNOTSUPP: with a sparse
 *   one, which `overlaybd resize` grows while it is not open
 */
export async function growImage(
  image: OpenImage,
  size: bigint,
): Promise<void> {
  await image.alone(() => grow(image, size));
}
