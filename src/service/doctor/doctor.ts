// SPDX-License-Identifier: Apache-2.0
/**
 * What this machine lacks to serve images as disks, and what mends it.
 *
 * @module
 */
import { checkDaemon, checkNetlink, checkServed } from "./daemon.ts";
import {
  checkCacheDir,
  checkCertificates,
  checkConfig,
  checkCredentials,
  checkLogDir,
  checkOpenFiles,
} from "./files.ts";
import type { Finding, Machine } from "./finding.ts";
import {
  checkConfigfs,
  checkIoUring,
  checkModule,
  checkNodes,
  checkRights,
  checkSysfs,
} from "./kernel.ts";

export type { Finding, Machine };

/** Every check, in an order in which their commands can be run. */
export async function examine(machine: Machine): Promise<Finding[]> {
  const { finding, config } = await checkConfig(machine);
  const { cacheConfig, gzipCacheConfig, logConfig, enableAudit } = config;
  return [
    finding,
    checkRights(machine),
    checkModule(machine, "target_core_user"),
    checkModule(machine, "tcm_loop"),
    checkSysfs(machine),
    checkConfigfs(machine),
    checkDaemon(machine),
    checkNetlink(machine),
    checkNodes(machine),
    checkCertificates(machine),
    checkCacheDir(
      machine,
      "cache",
      cacheConfig.cacheDir,
      cacheConfig.cacheSizeGB,
    ),
    ...gzipCacheConfig.enable
      ? [checkCacheDir(
        machine,
        "gzip cache",
        gzipCacheConfig.cacheDir,
        gzipCacheConfig.cacheSizeGB,
      )]
      : [],
    checkLogDir(machine, "log", logConfig.logPath),
    checkLogDir(machine, "audit log", enableAudit ? config.auditPath : ""),
    checkCredentials(machine, config.credentialConfig),
    checkOpenFiles(machine),
    ...config.ioEngine === 0 ? [] : [checkIoUring(machine)],
    checkServed(machine),
  ];
}
