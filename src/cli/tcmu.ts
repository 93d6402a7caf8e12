// SPDX-License-Identifier: Apache-2.0
/**
 * `tcmu`: the daemon that shows images as SCSI disks.
 *
 * @module
 */
import { openAudit } from "../service/audit.ts";
import { configLines, loadServiceConfig } from "../service/config.ts";
import { openLog } from "../service/log.ts";
import { watchReload } from "../service/reload.ts";
import { createService } from "../service/service.ts";
import { serveTcmu } from "../service/tcmu.ts";
import { EXIT, ExitError, reason } from "./exit.ts";
import type { Call } from "./program.ts";
import { watchSignals } from "./signals.ts";
import type { Args } from "./table.ts";

function tried<T>(work: () => T, refuse: (error: unknown) => never): T {
  try {
    return work();
  } catch (error) {
    return refuse(error);
  }
}

/** `overlaybd-tcmu [service_config]` */
export async function run(
  args: Args<"tcmu">,
  { program }: Call,
): Promise<number> {
  using interrupt = watchSignals();
  const refuse = (error: unknown): never => {
    throw new ExitError(
      EXIT.failure,
      `${program}: failed to create image service: ${reason(error)}`,
      { cause: error },
    );
  };
  const loaded = await loadServiceConfig(args.service_config).catch(refuse);
  using log = tried(() => openLog(loaded.config.logConfig), refuse);
  for (const line of configLines(loaded)) log.info(line);
  for (const warning of loaded.warnings) log.warn(warning);
  using audit = openAudit(loaded.config, log);
  const service = tried(
    () =>
      createService({
        loaded,
        log,
        audit,
        openAudit: (config) => openAudit(config, log),
      }),
    refuse,
  );
  using _reload = watchReload(service);
  try {
    await serveTcmu(service, { signal: interrupt.signal });
  } catch (error) {
    // Who looks into the log has to find it, too; stderr gets it anyway.
    if (loaded.config.logConfig.logPath !== "") log.error(reason(error));
    throw error;
  }
  return EXIT.ok;
}
