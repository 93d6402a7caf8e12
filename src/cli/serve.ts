// SPDX-License-Identifier: Apache-2.0
/**
 * `serve`: images over NBD.
 *
 * @module
 */
import { parseAddress } from "../device/nbd/server.ts";
import { readServiceConfig } from "../service/config.ts";
import { parseServed, serve } from "../service/serve.ts";
import { EXIT } from "./exit.ts";
import { watchSignals } from "./signals.ts";
import type { Args } from "./table.ts";

/** Runs `overlaybd serve --nbd ADDRESS CONFIG[;dev_id]...`. */
export async function run(args: Args<"serve">): Promise<number> {
  using interrupt = watchSignals();
  const images = args.config.map(parseServed);
  await serve({
    address: parseAddress(args.nbd),
    images,
    service: await readServiceConfig(args.serviceConfig),
    insecure: args.insecure,
    signal: interrupt.signal,
    log: (line) => console.error(line),
    onReady: (uri) => {
      if (args.verbose) {
        for (const { name, path } of images) {
          console.error(`export ${name}: ${path}`);
        }
      }
      console.log(`ready ${uri}`);
    },
  });
  return EXIT.ok;
}
