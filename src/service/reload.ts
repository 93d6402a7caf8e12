// SPDX-License-Identifier: Apache-2.0
/**
 * Reading the configuration again, at SIGHUP or by the API.
 *
 * @module
 */
import {
  type LoadedConfig,
  loadServiceConfig,
  type ServiceConfig,
  type Setting,
} from "./config.ts";
import type { Service } from "./service.ts";

/** What became of the file as it is now. */
export interface Reloaded {
  /** keys that have changed and count from now on */
  applied: string[];
  /** keys that have changed and count after a restart */
  needsRestart: string[];
  warnings: string[];
}

/** `next` where a value is looked at anew whenever it is needed. */
function withLive(started: ServiceConfig, next: ServiceConfig): ServiceConfig {
  const { logLevel } = next.logConfig;
  return {
    ...started,
    logConfig: { ...started.logConfig, logLevel },
    enableAudit: next.enableAudit,
    auditPath: next.auditPath,
    download: next.download,
    credentialConfig: next.credentialConfig,
    p2pConfig: next.p2pConfig,
    prefetchConfig: next.prefetchConfig,
    readDeadlineSeconds: next.readDeadlineSeconds,
  };
}

/** The keys of `withLive()`; `.` ends a group. */
const LIVE = [
  "logConfig.logLevel",
  "enableAudit",
  "auditPath",
  "download.",
  "credentialConfig.",
  "p2pConfig.",
  "prefetchConfig.",
  "readDeadlineSeconds",
];

/** Older keys: what they decide is listed as the key that they decide. */
const OLDER = new Set([
  "registryCacheDir",
  "registryCacheSizeGB",
  "cacheType",
  "credentialFilePath",
  "logLevel",
  "logPath",
]);

function isLive(key: string): boolean {
  return LIVE.some((live) =>
    live.endsWith(".") ? key.startsWith(live) : key === live
  );
}

/** Keys whose values differ. */
export function changedKeys(
  before: readonly Setting[],
  after: readonly Setting[],
): string[] {
  const old = new Map(before.map(({ key, value }) => [key, value]));
  return after
    .filter(({ key, value }) =>
      !OLDER.has(key) &&
      JSON.stringify(old.get(key)) !== JSON.stringify(value)
    )
    .map(({ key }) => key);
}

/**
 * Reads the service's file again and does what it says now.
 *
 * @throws {ConfigError} it cannot be used: everything stays as it is
 */
export async function reloadService(service: Service): Promise<Reloaded> {
  const { started } = service;
  const { path } = started;
  const read = await loadServiceConfig(path);
  const old = new Map(started.settings.map((one) => [one.key, one]));
  const now: LoadedConfig = {
    path,
    config: withLive(started.config, read.config),
    settings: read.settings.map((one) =>
      isLive(one.key) ? one : old.get(one.key) ?? one
    ),
    warnings: read.warnings,
  };
  const reloaded = {
    applied: changedKeys(service.loaded.settings, now.settings),
    needsRestart: changedKeys(started.settings, read.settings)
      .filter((key) => !isLive(key)),
    warnings: read.warnings,
  };
  const text = (keys: readonly string[]) => keys.join(", ") || "nothing";
  service.log.info(
    `config ${path} read again: ${text(reloaded.applied)} applied, ` +
      `${text(reloaded.needsRestart)} needs a restart`,
  );
  service.apply(now);
  return reloaded;
}

/** Reads the configuration again at every SIGHUP, until the scope ends. */
export function watchReload(service: Service): Disposable {
  const reload = () => {
    reloadService(service).catch((error) =>
      service.log.error(
        `config not read again: ${
          error instanceof Error ? error.message : String(error)
        }`,
      )
    );
  };
  Deno.addSignalListener("SIGHUP", reload);
  return {
    [Symbol.dispose]: () => Deno.removeSignalListener("SIGHUP", reload),
  };
}
