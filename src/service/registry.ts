// SPDX-License-Identifier: Apache-2.0
/**
 * The registry client that a service configuration asks for
 * (spec/service-config.md, sections 3, 6 and 7).
 *
 * @module
 */
import { stateDirOf } from "../source/cache/directory.ts";
import type { Credentials } from "../source/credential/credential.ts";
import { createCredentials } from "../source/credential/credentials.ts";
import {
  createRegistryClient,
  type RegistryClient,
  type RegistryOptions,
} from "../source/registry/client.ts";
import { currentCertificates } from "./certificates.ts";
import type { ServiceConfig } from "./config.ts";
import { keptRealms } from "./realms.ts";

/** Credentials as the settings say them now. */
function currentCredentials(
  settings: () => ServiceConfig,
  log: (line: string) => void,
): Credentials {
  let of = settings().credentialConfig;
  let made = createCredentials({ ...of, log });
  const current = () => {
    const { credentialConfig } = settings();
    if (credentialConfig !== of) {
      of = credentialConfig;
      made = createCredentials({ ...of, log });
    }
    return made;
  };
  return {
    get where() {
      return current().where;
    },
    find: (url, options) => current().find(url, options),
  };
}

/**
 * Makes the client; nothing is connected yet.
 *
 * @param current the settings as they are now: credentials follow them, as
 *   certificates follow their files
 * @param log for warnings; they name no secrets
 * @param more in place of what the settings say
 * @throws {ConfigError} a certificate or key cannot be used
 */
export function openRegistry(
  current: () => ServiceConfig,
  log: (line: string) => void,
  more: RegistryOptions = {},
): RegistryClient {
  const settings = current();
  return createRegistryClient({
    userAgent: settings.userAgent,
    certificates: currentCertificates(settings, log),
    insecure: settings.insecureRegistries,
    credentials: currentCredentials(current, log),
    realms: keptRealms(
      `${stateDirOf(settings.cacheConfig.cacheDir)}/realms.json`,
    ),
    log,
    ...more,
  });
}
