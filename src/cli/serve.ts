// SPDX-License-Identifier: Apache-2.0
/**
 * `serve`: images over NBD.
 *
 * @module
 */
import { parseAddress } from "../device/listen.ts";
import { openAudit } from "../service/audit.ts";
import { loadServiceConfig } from "../service/config.ts";
import { createLog, plainSink } from "../service/log.ts";
import { parseServed, serve } from "../service/serve.ts";
import { createService } from "../service/service.ts";
import { EXIT } from "./exit.ts";
import { watchSignals } from "./signals.ts";
import type { Args } from "./table.ts";

/** Runs `overlaybd serve --nbd ADDRESS CONFIG[;dev_id]...`. */
export async function run(args: Args<"serve">): Promise<number> {
  using interrupt = watchSignals();
  const loaded = await loadServiceConfig(args.serviceConfig);
  const WARN = 2;
  using log = createLog(plainSink(), args.verbose ? 1 : WARN);
  for (const warning of loaded.warnings) log.warn(warning);
  // The default file is for the host's daemon.
  const asked = loaded.settings.some(({ key, from }) =>
    key === "auditPath" && from === "file"
  );
  const { enableAudit, auditPath } = loaded.config;
  using audit = openAudit(
    { enableAudit: enableAudit && asked, auditPath },
    log,
  );
  const service = createService({ loaded, log, audit });
  await serve(service, {
    address: parseAddress(args.nbd),
    images: args.config.map(parseServed),
    insecure: args.insecure,
    signal: interrupt.signal,
    onReady: (uri, images) => {
      for (const { name, path } of images) log.info(`export ${name}: ${path}`);
      console.log(`ready ${uri}`);
    },
  });
  return EXIT.ok;
}
