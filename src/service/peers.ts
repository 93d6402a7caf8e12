// SPDX-License-Identifier: Apache-2.0
/**
 * Whether an image is read through the peers that the configuration names
 * (spec/service-config.md, section 6).
 *
 * @module
 */
import { whyOf } from "../../ffi/errors.ts";
import type { SourceSet } from "../source/sources.ts";
import type { ServiceConfig } from "./config.ts";

/**
 * The same sources, through peers where they are there now: decided for each
 * image.
 */
export async function throughPeers(
  { p2pConfig: { enable, address } }: Pick<ServiceConfig, "p2pConfig">,
  sources: SourceSet,
  log: { info(text: string): void; warn(text: string): void },
): Promise<SourceSet> {
  if (!enable) return sources;
  try {
    const { connectPeer } = await import("../source/registry/peer.ts");
    const peer = await connectPeer(address);
    log.info(`use p2p proxy for acceleration, proxy: ${address}`);
    return {
      ...sources,
      open: (url, about) => sources.open(url, { ...about, peer }),
    };
  } catch (error) {
    log.warn(
      `connect to accelerator failed: ${address}: ${whyOf(error)}, use cache`,
    );
    return sources;
  }
}
