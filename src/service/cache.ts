// SPDX-License-Identifier: Apache-2.0
/**
 * The cache of remote layers, for requests.
 *
 * @module
 */
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
export async function cacheManager(
  { cacheConfig }: ServiceConfig,
  sources: SourceSet,
  { mustExist }: { mustExist: boolean },
): Promise<CacheManager> {
  const { cacheDir, cacheType } = cacheConfig;
  if (mustExist && !await sources.pool.exists()) {
    throw new RequestError(
      "not-found",
      `there is no directory ${cacheDir}: the first remote layer makes it`,
    );
  }
  if (cacheType !== "download" && !await sources.pool.hold()) {
    throw new RequestError("busy", `another process uses ${cacheDir}`);
  }
  return sources.manager;
}
