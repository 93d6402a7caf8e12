// SPDX-License-Identifier: Apache-2.0
/**
 * `config`: what the service's configuration means.
 *
 * @module
 */
import { loadServiceConfig } from "../service/config.ts";
import { EXIT, UsageError } from "./exit.ts";
import { printJson, stdoutPrinter } from "./print.ts";
import type { Args } from "./table.ts";

/** Runs `overlaybd config check|show [FILE] [--json]`. */
export async function run(args: Args<"config">): Promise<number> {
  if (args.action !== "check" && args.action !== "show") {
    throw new UsageError(
      EXIT.validation,
      `action: ${args.action} is neither check nor show`,
    );
  }
  const loaded = await loadServiceConfig(args.file);
  if (args.action === "check") {
    const { checkUse } = await import("../service/config_use.ts");
    await checkUse(loaded);
  }
  const { path, settings, warnings } = loaded;
  const shown = args.action === "show" ? { settings } : { path };
  if (args.json) {
    printJson({ ...shown, warnings });
    return EXIT.ok;
  }
  for (const warning of warnings) console.error(`WARNING ${warning}`);
  const out = stdoutPrinter();
  if (args.action === "check") out.line(`${path} can be used`);
  else {
    for (const { key, value, from } of settings) {
      out.line(`${key} = ${JSON.stringify(value)}  (${from})`);
    }
  }
  out.flush();
  return EXIT.ok;
}
