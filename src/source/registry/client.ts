// SPDX-License-Identifier: Apache-2.0
/**
 * The registry client: blobs by range, and whatever else is asked of a
 * registry, over shared connections, tokens and limits.
 *
 * @module
 */
import type { RequestParts } from "./request.ts";
import { ANONYMOUS, type Credentials } from "../credential/credential.ts";
import { type Blob, SourceError } from "../source.ts";
import { createAuth, type Realms } from "./auth.ts";
import { type BlobParts, openRegistryBlob } from "./blob.ts";
import { createHosts } from "./hosts.ts";
import type { Peer } from "./peer.ts";
import { type Certificates, renewingTransport } from "./renewing.ts";
import { createTransport, type TransportOptions } from "./transport.ts";

/** How long one attempt may take. */
const ATTEMPT_MS = 30_000;

/** How a client is made. */
export interface RegistryOptions extends Partial<TransportOptions> {
  credentials?: Credentials;
  /** in place of `cert`, `key` and `ca`: asked for before each request */
  certificates?: () => Certificates;
  /** what is known of registries already, and what is found out of them */
  realms?: Realms;
  log?: (line: string) => void;
  /** ms; for tests */
  attemptMs?: number;
  /** requests at once to one server */
  maxPerHost?: number;
  /** told of every answer, and of every request after a failure */
  onAnswer?: RequestParts["onAnswer"];
  onRetry?: RequestParts["onRetry"];
}

/** See the module's comment. */
export interface RegistryClient extends Disposable {
  /**
   * The blob behind a URL; contacts nobody yet.
   *
   * @param peer fetch it through this proxy while that works
   * @throws {SourceError} EINVAL: the URL is none
   */
  openBlob(url: string, peer?: Peer): Blob;
  /** for other requests over the same connections */
  readonly parts: BlobParts;
  close(): void;
}

/**
 * A registry's URL.
 *
 * @throws {SourceError} EINVAL: it is none
 */
export function parseHttpUrl(text: string): URL {
  // The original takes one slash before the scheme.
  const url = URL.parse(text.replace(/^\//, ""));
  if (url === null || !/^https?:$/.test(url.protocol)) {
    throw new SourceError(
      "EINVAL",
      `cannot open ${text.replace(/\?.*/s, "")}: no http or https URL`,
    );
  }
  if (url.username !== "" || url.password !== "") {
    throw new SourceError(
      "EINVAL",
      `cannot open a URL of ${url.host}: ` +
        "credentials belong into credentialConfig, not into a URL",
    );
  }
  return url;
}

/** Makes a client; nothing is connected yet. */
export function createRegistryClient(
  options: RegistryOptions = {},
): RegistryClient {
  const { credentials = ANONYMOUS, attemptMs = ATTEMPT_MS } = options;
  const { log = () => {} } = options;
  const how = { ...options, userAgent: options.userAgent || "overlaybd" };
  const transport = options.certificates === undefined
    ? createTransport(how)
    : renewingTransport(how, options.certificates);
  const parts = {
    transport,
    hosts: createHosts(options.maxPerHost),
    auth: createAuth(transport, credentials, attemptMs, options.realms),
    attemptMs,
    onAnswer: options.onAnswer,
    onRetry: options.onRetry,
    log,
    async explainRefusal(url: URL) {
      const found = await credentials.find(url.href);
      return found === undefined
        ? `no credentials for ${url.host} in ${credentials.where}`
        : `the credentials of ${found.username} in ${credentials.where} ` +
          "are refused";
    },
  };
  const close = () => transport.close();
  return {
    parts,
    openBlob: (url, peer) => openRegistryBlob(parts, parseHttpUrl(url), peer),
    close,
    [Symbol.dispose]: close,
  };
}
