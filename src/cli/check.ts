// SPDX-License-Identifier: Apache-2.0
/**
 * `check`: every rule of the formats, every checksum.
 *
 * @module
 */
import { checkImage } from "../image/check.ts";
import { readImageConfig } from "../image/config.ts";
import { isImageConfig } from "../image/disk.ts";
import { checkLayer, type Finding } from "../layer/check.ts";
import { ExitError, reason } from "./exit.ts";
import { printJson } from "./print.ts";
import type { Call } from "./program.ts";
import { showProgress } from "./progress.ts";
import { InterruptedError, interruptible } from "./signals.ts";
import { withSources } from "./sources.ts";
import type { Args } from "./table.ts";

/** What `check` exits with. */
const SOUND = 0;
const UNKNOWN = 1;
const DAMAGED = 2;

async function findings(
  path: string,
  serviceConfig: string | undefined,
): Promise<Finding[]> {
  const config = isImageConfig(path) ? await readImageConfig(path) : undefined;
  using bar = showProgress("check");
  return await interruptible((signal) => {
    const options = { signal, onProgress: bar.onProgress };
    if (config === undefined) return checkLayer(path, options);
    return withSources(serviceConfig, async (sourcesOf) => {
      const sources = await sourcesOf(config);
      return await checkImage(config, { ...options, sources });
    });
  });
}

function printFindings(path: string, found: readonly Finding[]): void {
  for (const { severity, where, text } of found) {
    console.log(`${severity}: ${where}: ${text}`);
  }
  const errors = found.filter((f) => f.severity === "error").length;
  console.log(
    errors === 0
      ? `${path} is sound`
      : `${path} is damaged: ${errors} error${errors === 1 ? "" : "s"}`,
  );
}

/** Runs `overlaybd check FILE|CONFIG [--json]`. */
export async function run(args: Args<"check">, call: Call): Promise<number> {
  let found: Finding[];
  try {
    found = await findings(args.file, args.serviceConfig);
  } catch (error) {
    if (error instanceof InterruptedError) throw error;
    throw new ExitError(
      UNKNOWN,
      `${call.program}: could not check ${args.file}: ${reason(error)}`,
    );
  }
  const sound = found.every((f) => f.severity !== "error");
  if (args.json) printJson({ path: args.file, sound, findings: found });
  else printFindings(args.file, found);
  return sound ? SOUND : DAMAGED;
}
