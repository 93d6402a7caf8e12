// SPDX-License-Identifier: Apache-2.0
/**
 * The registry client that a service configuration asks for
 * (spec/service-config.md, sections 3, 6 and 7).
 *
 * @module
 */
import { whyOf } from "../../ffi/errors.ts";
import { ConfigError } from "../image/config.ts";
import type { Credentials } from "../source/credential/credential.ts";
import { createCredentials } from "../source/credential/credentials.ts";
import {
  createRegistryClient,
  type RegistryClient,
  type RegistryOptions,
} from "../source/registry/client.ts";
import type { ServiceConfig } from "./config.ts";

/**
 * A PEM file; undefined where none is named.
 *
 * @param key the setting or option, for messages
 * @throws {ConfigError} it cannot be used
 */
export function readPem(key: string, path: string): string | undefined {
  if (path === "") return undefined;
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (cause) {
    throw new ConfigError(
      `cannot use ${key}: cannot open ${path}: ${whyOf(cause)}`,
      { cause },
    );
  }
  if (!/-----BEGIN [A-Z0-9 ]+-----/.test(text)) {
    throw new ConfigError(`cannot use ${key}: ${path} is not PEM`);
  }
  return text;
}

/**
 * A client certificate with its key; neither where neither is named.
 *
 * @throws {ConfigError} one is missing, or cannot be used
 */
export function readIdentity(
  certName: string,
  certFile: string,
  keyName: string,
  keyFile: string,
): { cert: string | undefined; key: string | undefined } {
  if ((certFile === "") !== (keyFile === "")) {
    const missing = certFile === "" ? certName : keyName;
    throw new ConfigError(
      `cannot use ${certName}: it and ${keyName} belong together, and ` +
        `${missing} is empty`,
    );
  }
  const cert = readPem(certName, certFile);
  return { cert, key: readPem(keyName, keyFile) };
}

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
 * @param current the settings as they are now: credentials follow them
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
  const { certFile, keyFile, caFile } = settings.certConfig;
  return createRegistryClient({
    userAgent: settings.userAgent,
    ...readIdentity(
      "certConfig.certFile",
      certFile,
      "certConfig.keyFile",
      keyFile,
    ),
    ca: readPem("certConfig.caFile", caFile),
    insecure: settings.insecureRegistries,
    credentials: currentCredentials(current, log),
    log,
    ...more,
  });
}
