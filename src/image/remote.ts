// SPDX-License-Identifier: Apache-2.0
/**
 * Which layers of an image come from a registry.
 *
 * @module
 */
import type { PullBlob } from "../source/cache/manage.ts";
import { dataLowers, type ImageConfig } from "./config.ts";
import { ImageError } from "./error.ts";
import { blobUrl, localFile } from "./lowers.ts";

/**
 * The layers that have no local file.
 *
 * @throws {ImageError} one cannot be had from anywhere
 */
export function remoteLayers(config: ImageConfig): PullBlob[] {
  const blobs: PullBlob[] = [];
  for (const [position, lower] of dataLowers(config).entries()) {
    if (localFile(lower) !== undefined) continue;
    if (lower.digest === "" || config.repoBlobUrl === "") {
      throw new ImageError(
        `cannot pull lowers[${position}]: it has no local file, and ` +
          `${config.repoBlobUrl === "" ? "repoBlobUrl" : "digest"} is empty`,
      );
    }
    blobs.push({
      url: blobUrl(config, lower),
      dir: lower.dir,
      size: lower.size,
    });
  }
  return blobs;
}
