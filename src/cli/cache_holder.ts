// SPDX-License-Identifier: Apache-2.0
/**
 * The cache for a command: its own while nobody holds it, else through the
 * process that does.
 *
 * @module
 */
import type { ServiceConfig } from "../service/config.ts";
import { fileInfo } from "../layer/files.ts";
import type { CacheManager } from "../source/cache/manage.ts";
import { stateDirOf } from "../source/cache/directory.ts";
import { openSources } from "./sources.ts";

/**
 * Runs `work` with the configured cache.
 *
 * @param options `mustExist`: a directory that is not there is not made
 * @throws {Error} nobody can use it
 */
export async function withCache<T>(
  settings: ServiceConfig,
  options: { mustExist: boolean },
  work: (manager: CacheManager) => Promise<T>,
): Promise<T> {
  const { cacheDir, cacheType } = settings.cacheConfig;
  const missing = fileInfo(cacheDir) === undefined;
  if (options.mustExist && missing) {
    throw new Error(
      `cannot use the cache: there is no directory ${cacheDir}: ` +
        "the first remote layer makes it",
    );
  }
  const { sources, close } = await openSources(
    settings,
    (line) => console.error(line),
  );
  try {
    if (cacheType === "download" || await sources.pool.hold()) {
      return await work(sources.manager);
    }
  } finally {
    await close();
  }
  const { controlPath, remoteManager } = await import(
    "../source/cache/control.ts"
  );
  return await work(remoteManager(controlPath(stateDirOf(cacheDir))));
}
