// SPDX-License-Identifier: Apache-2.0
/**
 * `pull`: all of an image's layers into the cache.
 *
 * @module
 */
import { blobUrl, localFile } from "../image/lowers.ts";
import { type ImageConfig, readImageConfig } from "../image/config.ts";
import { readServiceConfig } from "../service/config.ts";
import type { PullBlob, Pulled } from "../source/cache/manage.ts";
import { withCache } from "./cache_holder.ts";
import { EXIT } from "./exit.ts";
import { printJson, stdoutPrinter } from "./print.ts";
import { formatBytes, showProgress } from "./progress.ts";
import type { Args } from "./table.ts";

/** The layers that have no local file. */
function remoteLayers(config: ImageConfig): PullBlob[] {
  // The last one may be a carrier of a trace, which is never opened.
  const lowers = config.accelerationLayer
    ? config.lowers.slice(0, -1)
    : config.lowers;
  const blobs: PullBlob[] = [];
  for (const [position, lower] of lowers.entries()) {
    if (localFile(lower) !== undefined) continue;
    if (lower.digest === "" || config.repoBlobUrl === "") {
      throw new Error(
        `cannot pull lowers[${position}]: it has no local file, and ` +
          `${config.repoBlobUrl === "" ? "repoBlobUrl" : "digest"} is empty`,
      );
    }
    blobs.push({
      url: blobUrl(config, lower),
      dir: lower.dir,
      size: lower.size,
    });
  }
  return blobs;
}

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
  const out = stdoutPrinter();
  for (const { url, size, fetched } of pulled) {
    const name = url.slice(url.lastIndexOf("/") + 1);
    out.line(`${name}  ${formatBytes(size)}  ${formatBytes(fetched)} fetched`);
  }
  out.flush();
  return EXIT.ok;
}
