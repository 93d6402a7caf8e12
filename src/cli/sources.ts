// SPDX-License-Identifier: Apache-2.0
/**
 * Where a command's remote layers come from: the peers, or the cache, that
 * the service configuration names.  A cache that another process holds is
 * asked for; one that cannot be written is read past.
 *
 * @module
 */
import type { SourcesOf } from "../image/disk.ts";
import type { ServiceConfig } from "../service/config.ts";
import type { SourceSet } from "../source/sources.ts";

/**
 * The sources that a service configuration asks for.
 *
 * @param log for warnings
 * @throws {ConfigError} a certificate or key cannot be used
 */
export async function openSources(
  settings: ServiceConfig,
  log: (line: string) => void,
): Promise<{ sources: SourceSet; close(): Promise<void> }> {
  // Loaded only where something is remote.
  const { openRegistry } = await import("../service/registry.ts");
  const { createSources } = await import("../source/sources.ts");
  const { cacheDir, cacheType, cacheSizeGB, refillSize } = settings.cacheConfig;
  const client = openRegistry(() => settings, log);
  const sources = createSources({
    openBlob: client.openBlob,
    cacheType,
    cacheDir,
    cacheSize: cacheSizeGB * 2 ** 30,
    refillSize,
    borrow: true,
    log,
  });
  return {
    sources,
    async close() {
      await sources.close();
      client.close();
    },
  };
}

/**
 * Runs `work` with the sources of a command, which are made for the first
 * image that names a registry.
 *
 * @param config the service configuration, or its path; undefined: the
 *   default file, or defaults where that is missing
 */
export async function withSources<T>(
  config: ServiceConfig | string | undefined,
  work: (sourcesOf: SourcesOf) => Promise<T>,
): Promise<T> {
  let made: ReturnType<typeof openSources> | undefined;
  const log = (line: string) => console.error(line);
  const make = async () => {
    const { readServiceConfig } = await import("../service/config.ts");
    const { throughPeers } = await import("../service/peers.ts");
    const settings = typeof config === "object"
      ? config
      : await readServiceConfig(config);
    const { sources, close } = await openSources(settings, log);
    const warn = (text: string) => log(`WARNING ${text}`);
    return {
      sources: await throughPeers(settings, sources, { info() {}, warn }),
      close,
    };
  };
  try {
    return await work(async ({ repoBlobUrl }) => {
      if (repoBlobUrl === "") return undefined;
      return (await (made ??= make())).sources;
    });
  } finally {
    await (await made?.catch(() => undefined))?.close();
  }
}
