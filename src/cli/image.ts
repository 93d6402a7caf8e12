// SPDX-License-Identifier: Apache-2.0
/**
 * `image`: an image's name becomes its `config.v1.json`.
 *
 * @module
 */
import { pwriteFd } from "../../ffi/files.ts";
import { parsePlatform, resolveImage } from "../image/resolve.ts";
import { fullPath } from "../layer/files.ts";
import { createOutput } from "../layer/output.ts";
import { readServiceConfig } from "../service/config.ts";
import { openRegistry } from "../service/registry.ts";
import { EXIT } from "./exit.ts";
import { jsonText, printJson } from "./print.ts";
import { interruptible } from "./signals.ts";
import type { Args } from "./table.ts";

/** Writes a small file, whole or not at all; pipes and devices as they are. */
async function writeFile(path: string, text: string): Promise<void> {
  const bytes = new TextEncoder().encode(text);
  const output = createOutput(path, { replace: true });
  try {
    if (output.stream) await Deno.writeFile(path, bytes);
    else pwriteFd(output.fd, bytes, 0);
    await output.publish();
  } finally {
    output.abort();
  }
}

/** Runs `overlaybd image REF [--output FILE] [--dir D] [--json]`. */
export async function run(args: Args<"image">): Promise<number> {
  const settings = await readServiceConfig(args.serviceConfig);
  const platform = args.platform === undefined
    ? undefined
    : parsePlatform(args.platform);
  using client = openRegistry(() => settings, (line) => console.error(line));
  const resolved = await interruptible((signal) =>
    resolveImage(client, args.reference, {
      ...(args.dir === undefined ? {} : { dir: fullPath(args.dir) }),
      ...(platform === undefined ? {} : { platform }),
      signal,
    })
  );
  const { warnings, ...result } = resolved;
  for (const warning of warnings) console.error(`WARNING ${warning}`);
  if (args.output !== undefined) {
    await writeFile(args.output, `${jsonText(result.config, 2)}\n`);
  }
  if (args.json) printJson(result);
  else if (args.output === undefined) printJson(result.config);
  return EXIT.ok;
}
