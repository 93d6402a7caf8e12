// SPDX-License-Identifier: Apache-2.0
/**
 * `serve`: images over NBD.
 *
 * @module
 */
import { parseAddress } from "../device/listen.ts";
import { openAudit } from "../service/audit.ts";
import { loadServiceConfig, type ServiceConfig } from "../service/config.ts";
import { createLog, plainSink, stderrSink } from "../service/log.ts";
import { makeDefaultDir, PATHS } from "../service/paths.ts";
import { watchReload } from "../service/reload.ts";
import { serve } from "../service/serve.ts";
import { parseServed } from "../service/served.ts";
import { createService } from "../service/service.ts";
import { EXIT, UsageError } from "./exit.ts";
import { watchSignals } from "./signals.ts";
import type { Args } from "./table.ts";

/** The NBD server's socket when none is named. */
function defaultNbd(args: Args<"serve">, byRequest: boolean): string {
  if (args.nbd !== undefined) return args.nbd;
  if (!byRequest) throw new UsageError(EXIT.required, "--nbd is required");
  const path = `${PATHS.run}/nbd.sock`;
  makeDefaultDir(path);
  return path;
}

/** What the default file enables, the host's daemon answers. */
function withoutServers(config: ServiceConfig): ServiceConfig {
  const enable = false;
  return {
    ...config,
    apiConfig: { ...config.apiConfig, enable },
    exporterConfig: { ...config.exporterConfig, enable },
    serviceConfig: { ...config.serviceConfig, enable },
  };
}

/** Runs `overlaybd serve [--listen ADDR] [--nbd ADDR] [CONFIG[;dev_id]...]`. */
export async function run(args: Args<"serve">): Promise<number> {
  using interrupt = watchSignals();
  const found = await loadServiceConfig(args.serviceConfig);
  // Nothing said at all: a service for `overlaybd ctl`.
  const bare = args.config.length === 0 && args.nbd === undefined;
  const loaded = args.serviceConfig !== undefined || bare
    ? found
    : { ...found, config: withoutServers(found.config) };
  const WARN = 2;
  const sink = Deno.env.has("JOURNAL_STREAM") ? stderrSink() : plainSink();
  using log = createLog(sink, args.verbose ? 1 : WARN);
  for (const warning of loaded.warnings) log.warn(warning);
  // The default file is for the host's daemon.
  const asked = loaded.settings.some(({ key, from }) =>
    key === "auditPath" && from === "file"
  );
  const openOwnAudit = ({ enableAudit, auditPath }: ServiceConfig) =>
    openAudit({ enableAudit: enableAudit && asked, auditPath }, log);
  using audit = openOwnAudit(loaded.config);
  const service = createService({
    loaded,
    log,
    audit,
    openAudit: openOwnAudit,
  });
  const listen = args.listen ??
    (bare ? loaded.config.apiConfig.address : undefined);
  const byRequest = listen !== undefined || loaded.config.apiConfig.enable;
  if (!byRequest && args.config.length === 0) {
    throw new UsageError(EXIT.required, "config is required");
  }
  using _reload = watchReload(service);
  await serve(service, {
    address: parseAddress(defaultNbd(args, byRequest)),
    listen,
    images: args.config.map(parseServed),
    insecure: args.insecure,
    signal: interrupt.signal,
    onReady: (uri, images, api) => {
      for (const { name, path } of images) log.info(`export ${name}: ${path}`);
      if (api !== undefined) console.log(`api ${api}`);
      console.log(`ready ${uri}`);
    },
  });
  return EXIT.ok;
}
