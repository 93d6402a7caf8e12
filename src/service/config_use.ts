// SPDX-License-Identifier: Apache-2.0
/**
 * Whether a service could start with its configuration, as far as that can
 * be known without starting it: addresses, and files that it names.
 *
 * @module
 */
import { whyOf } from "../../ffi/errors.ts";
import { resolveHost } from "../device/listen.ts";
import { ConfigError } from "../image/config.ts";
import { parsePeerAddress } from "../source/registry/peer.ts";
import { currentCertificates } from "./certificates.ts";
import type { LoadedConfig, ServiceConfig } from "./config.ts";

type Check = (config: ServiceConfig) => unknown;

/** Each throws what a start would throw. */
const CHECKS: readonly Check[] = [
  (config) => currentCertificates(config, () => {})(),
  async ({ exporterConfig: { enable, address } }) => {
    if (!enable) return;
    await resolveHost(address).catch((cause) => {
      const why = `exporterConfig.address: ${whyOf(cause)}`;
      throw new ConfigError(why, { cause });
    });
  },
  async ({ serviceConfig: { enable, address } }) => {
    if (!enable) return;
    const { parseUrl } = await import("./api/snapshot.ts");
    parseUrl(address);
  },
  async ({ apiConfig }) => {
    if (!apiConfig.enable) return;
    const { checkApiConfig } = await import("./api/server.ts");
    await checkApiConfig(apiConfig);
  },
  ({ p2pConfig: { enable, address } }) => {
    if (!enable) return;
    try {
      parsePeerAddress(address);
    } catch (cause) {
      throw new ConfigError(
        `p2pConfig.address: "${address}" is no http or https address`,
        { cause },
      );
    }
  },
];

/**
 * Looks at what a configuration names.
 *
 * @throws {ConfigError} the first thing that cannot be used
 */
export async function checkUse({ path, config }: LoadedConfig): Promise<void> {
  for (const check of CHECKS) {
    try {
      await check(config);
    } catch (cause) {
      throw new ConfigError(`cannot use ${path}: ${whyOf(cause)}`, { cause });
    }
  }
}
