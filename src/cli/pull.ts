// SPDX-License-Identifier: Apache-2.0
/**
 * `pull`: all of an image's layers into the cache.
 *
 * @module
 */
import { readImageConfig } from "../image/config.ts";
import { remoteLayers } from "../image/remote.ts";
import { readServiceConfig } from "../service/config.ts";
import type { Pulled } from "../source/cache/manage.ts";
import { withCache } from "./cache_holder.ts";
import { EXIT } from "./exit.ts";
import { printJson, stdoutPrinter } from "./print.ts";
import { formatBytes, showProgress } from "./progress.ts";
import type { Args } from "./table.ts";

/** Runs `overlaybd pull CONFIG [--json]`. */
export async function run(args: Args<"pull">): Promise<number> {
  const blobs = remoteLayers(await readImageConfig(args.config));
  const settings = await readServiceConfig(args.serviceConfig);
  let pulled: Pulled[];
  {
    using bar = showProgress("pull");
    pulled = blobs.length === 0 ? [] : await withCache(
      settings,
      { mustExist: false },
      (manager) => manager.pull(blobs, bar.onProgress),
    );
  }
  if (args.json) {
    printJson(pulled);
    return EXIT.ok;
  }
  if (blobs.length === 0) console.error("every layer is here already");
  const out = stdoutPrinter();
  for (const { url, size, fetched } of pulled) {
    const name = url.slice(url.lastIndexOf("/") + 1);
    out.line(`${name}  ${formatBytes(size)}  ${formatBytes(fetched)} fetched`);
  }
  out.flush();
  return EXIT.ok;
}
