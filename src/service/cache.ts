// SPDX-License-Identifier: Apache-2.0
/**
 * The cache of remote layers, for requests.
 *
 * @module
 */
import { fileInfo } from "../layer/files.ts";
import type { CacheManager } from "../source/cache/manage.ts";
import type { SourceSet } from "../source/sources.ts";
import type { ServiceConfig } from "./config.ts";
import { RequestError } from "./refusal.ts";

/**
 * What may be asked of the cache.
 *
 * @param mustExist its directory is not made
 * @throws {RequestError} there is no cache, or it is another process's
 */
export function cacheManager(
  { cacheConfig }: ServiceConfig,
  sources: SourceSet,
  { mustExist }: { mustExist: boolean },
): CacheManager {
  const { cacheDir, cacheType } = cacheConfig;
  if (mustExist && fileInfo(cacheDir) === undefined) {
    throw new RequestError(
      "not-found",
      `there is no directory ${cacheDir}: the first remote layer makes it`,
    );
  }
  if (cacheType !== "download" && !sources.pool.hold()) {
    throw new RequestError("busy", `another process uses ${cacheDir}`);
  }
  return sources.manager;
}
