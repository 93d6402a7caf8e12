// SPDX-License-Identifier: Apache-2.0
/**
 * What the service's configuration means for one image, at its opening.
 *
 * @module
 */
import { whyOf } from "../../ffi/errors.ts";
import type { DownloadConfig, ImageConfig } from "../image/config.ts";
import { directoryOf, fullPath } from "../layer/files.ts";
import {
  type LoadedConfig,
  loadServiceConfig,
  parseServiceConfig,
} from "./config.ts";
import type { Logger } from "./log.ts";

/** `resultFile` may be relative to the configuration that names it. */
export function resultPath(
  { resultFile }: Pick<ImageConfig, "resultFile">,
  path: string,
): string {
  return resultFile === ""
    ? ""
    : fullPath(resultFile, directoryOf(fullPath(path)));
}

/**
 * `download` for images without their own, as the file has it by now
 * (spec/image.md, section 1); defaults where it cannot be read.
 */
export async function downloadNow(
  { path }: LoadedConfig,
  about: Logger,
): Promise<DownloadConfig> {
  try {
    return (await loadServiceConfig(path)).config.download;
  } catch (error) {
    about.warn(`no background download: ${whyOf(error)}`);
    return parseServiceConfig({}, path).config.download;
  }
}
