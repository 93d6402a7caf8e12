// SPDX-License-Identifier: Apache-2.0
/**
 * The certificates that the configuration names, as their files have them now
 * (spec/service-config.md, section 3: certConfig).
 *
 * @module
 */
import { ConfigError } from "../image/config.ts";
import { whyOf } from "../../ffi/errors.ts";
import type { Certificates } from "../source/registry/renewing.ts";
import type { ServiceConfig } from "./config.ts";

/** The files are looked at no more often than this. */
const LOOK_MS = 1000;

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

/** Changes when a file does. */
function stampOf(path: string): string {
  try {
    const { mtime, size, ino } = Deno.statSync(path);
    return `${mtime?.getTime()} ${size} ${ino}`;
  } catch {
    return "";
  }
}

/**
 * Gives the certificates of `certConfig`, the same object until a file has
 * changed.  What cannot be used then is told, and the ones of before stay.
 *
 * @param now ms of a clock
 * @throws {ConfigError} one cannot be used at the start
 */
export function currentCertificates(
  { certConfig: { certFile, keyFile, caFile } }: Pick<
    ServiceConfig,
    "certConfig"
  >,
  log: (line: string) => void,
  now: () => number = () => performance.now(),
): () => Certificates {
  const paths = [certFile, keyFile, caFile].filter((path) => path !== "");
  const stamp = () => paths.map(stampOf).join();
  const read = (): Certificates => ({
    ...readIdentity(
      "certConfig.certFile",
      certFile,
      "certConfig.keyFile",
      keyFile,
    ),
    ca: readPem("certConfig.caFile", caFile),
  });
  const renew = (before: Certificates): Certificates => {
    try {
      const { cert, key, ca } = read();
      if (cert !== undefined && key !== undefined) {
        // Certificate and key that do not belong together are told here.
        Deno.createHttpClient({ cert, key }).close();
      }
      log(`${paths.join(", ")}: read again`);
      return { cert, key, ca };
    } catch (error) {
      log(`WARNING the certificates of before are used on: ${whyOf(error)}`);
      return before;
    }
  };
  let used = stamp();
  let seen = used;
  let current = read();
  let next = now() + LOOK_MS;
  return () => {
    if (paths.length === 0 || now() < next) return current;
    next = now() + LOOK_MS;
    const before = seen;
    seen = stamp();
    // What is being replaced is not read halfway.
    if (seen === used || seen !== before) return current;
    used = seen;
    return current = renew(current);
  };
}
