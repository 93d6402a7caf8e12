// SPDX-License-Identifier: Apache-2.0
/**
 * A disk that grows (spec/lsmt.md, section 10, "Resize").
 *
 * @module
 */
import { extendDevice, resizeDevice } from "../../ffi/device.ts";
import { EngineError } from "../../ffi/errors.ts";
import { setUpperSize } from "../layer/resize.ts";
import type { ImageConfig } from "./config.ts";
import { type OpenImage, openImage } from "./image.ts";
import type { LowerOptions } from "./lowers.ts";

/** The one block that may have to be fetched is waited for so long. */
const DEADLINE_MS = 60_000;
const EINVAL = 22;
const EROFS = 30;

async function grow(image: OpenImage, size: bigint): Promise<void> {
  const { stack, device } = image;
  const { upper } = stack;
  const what = `cannot grow the disk to ${size} bytes`;
  if (image.readonly || upper === undefined) throw new EngineError(EROFS, what);
  // A snapshot may have grown it meanwhile.
  if (size < stack.virtualSize) throw new EngineError(EINVAL, what);
  await extendDevice(device, size);
  try {
    // Not what the configuration says: after a snapshot that could not be
    // ended that is the upper of before.
    const { data, index } = upper.paths;
    await setUpperSize(data, upper.kind === "sparse" ? undefined : index, size);
  } catch (error) {
    await extendDevice(device, stack.virtualSize).catch(() => {});
    throw error;
  }
  resizeDevice(device, size);
  stack.virtualSize = size;
  for (const tell of image.grown) tell(size);
}

/**
 * Makes an image's disk larger, in the files first: what is written behind
 * the old end is there when the image is opened again.
 *
 * @param size bytes, a multiple of 512 and not less than now
 * @throws {EngineError} EROFS: without an upper; else nothing was changed
 */
export async function growImage(
  image: OpenImage,
  size: bigint,
): Promise<void> {
  await image.alone(() => grow(image, size));
}

/**
 * The same for an image that nobody has open.
 *
 * @param size bytes, a multiple of 512 and not less than the disk has
 * @throws {ImageError | EngineError} the disk is as it was
 */
export async function growClosedImage(
  config: ImageConfig,
  size: bigint,
  options: LowerOptions = {},
): Promise<void> {
  const image = await openImage(config, {
    ...options,
    deadlineMs: DEADLINE_MS,
  });
  try {
    await growImage(image, size);
  } finally {
    // Whatever was changed is on disk by now.
    await image.close().catch(() => {});
  }
}
