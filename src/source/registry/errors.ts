// SPDX-License-Identifier: Apache-2.0
/**
 * What went wrong between here and a server, in words that name the cause
 * and the setting that helps, and nothing secret (spec/registry.md,
 * section 5).
 *
 * @module
 */
import { whyOf } from "../../../ffi/errors.ts";
import { type SourceCode, SourceError } from "../source.ts";

/** A URL without what may be secret: user, password, query. */
export function publicUrl(url: URL): string {
  return `${url.origin}${url.pathname}`;
}

/** What an HTTP status means to who asked. */
export function statusCode(status: number): SourceCode {
  if (status === 401 || status === 403) return "EACCES";
  if (status === 404) return "ENOENT";
  return status === 429 ? "EBUSY" : "EIO";
}

/** Statuses that are about the moment, not about the request. */
function passes(status: number): boolean {
  return status >= 500 || status === 429 || status === 408;
}

const HOUR_MS = 3_600_000;

/** `Retry-After` in ms: seconds or a date. */
export function retryAfter(headers: Headers): number | undefined {
  const text = headers.get("retry-after")?.trim() ?? "";
  if (text === "") return undefined;
  const ms = /^\d+$/.test(text)
    ? Number(text) * 1000
    : Date.parse(text) - Date.now();
  return Number.isNaN(ms) ? undefined : Math.min(Math.max(ms, 0), HOUR_MS);
}

/**
 * A status that is no success.
 *
 * @param what `"read https://…"`
 */
export function statusError(
  what: string,
  response: Response,
  why = `HTTP status ${response.status}`,
): SourceError {
  const { status } = response;
  return new SourceError(statusCode(status), `cannot ${what}: ${why}`, {
    status,
    retryable: passes(status),
    retryAfterMs: retryAfter(response.headers),
  });
}

/** Every message of an error and its causes. */
function messages(error: unknown): string {
  const parts: string[] = [];
  for (let at = error; at instanceof Error; at = at.cause) {
    const code = "code" in at && typeof at.code === "string" ? at.code : "";
    parts.push(at.message, code);
  }
  return parts.filter((part) => part !== "").join(": ") || String(error);
}

/** The last cause's own words, without URLs, which may be signed. */
export function lastWords(error: unknown): string {
  let last = error;
  while (last instanceof Error && last.cause instanceof Error) {
    last = last.cause;
  }
  return whyOf(last)
    .replace(/^error sending request[^(]*\([^)]*\): /, "")
    .replace(/^client error \(\w+\): /, "")
    .replace(/^connect ECONNREFUSED .*/, "connection refused")
    .replace(/https?:\/\/[^\s)]+/g, "the URL");
}

/** What a failed handshake means; undefined: it was none. */
function tlsReason(text: string, url: URL): string | undefined {
  const host = url.host + (url.port === "" ? ":443" : "");
  const unchecked = `"${host}" in insecureRegistries turns the check off`;
  if (/CertificateRequired|CERTIFICATE_REQUIRED/.test(text)) {
    return `${host} wants a client certificate: set certConfig.certFile ` +
      "and certConfig.keyFile";
  }
  const untrusted =
    /UnknownIssuer|SELF_SIGNED|UNABLE_TO|self-signed|CaUsedAsEndEntity|UnhandledCriticalExtension/;
  if (untrusted.test(text)) {
    return `the certificate of ${host} is not trusted: name its CA in ` +
      `certConfig.caFile; ${unchecked}`;
  }
  if (/NotValidForName|ALTNAME|not valid for/.test(text)) {
    return `the certificate of ${host} is for another name: ${unchecked}`;
  }
  if (/Expired|HAS_EXPIRED|certificate/i.test(text)) {
    const words = /Expired|HAS_EXPIRED/.test(text) ? "has expired" : "is bad";
    return `the certificate of ${host} ${words}: ${unchecked}`;
  }
  if (/InvalidContentType|WRONG_VERSION|packet length/.test(text)) {
    return `${host} does not answer in TLS: it may be a plain http server`;
  }
  return /handshake|alert|peer is incompatible/i.test(text)
    ? `no TLS with ${host}: ${text}`
    : undefined;
}

/**
 * What the transport threw.
 *
 * @param what `"read https://…"`
 * @param url who was asked
 */
export function transportError(
  what: string,
  url: URL,
  cause: unknown,
): SourceError {
  if (cause instanceof SourceError) return cause;
  // The raw error may name a signed URL: it is not kept as the cause.
  const tls = url.protocol === "https:"
    ? tlsReason(messages(cause), url)
    : undefined;
  if (tls !== undefined) {
    return new SourceError("ENOTCONN", `cannot ${what}: ${tls}`, {
      retryable: false,
    });
  }
  return new SourceError(
    "ENOTCONN",
    `cannot ${what}: ${url.host}: ${lastWords(cause)}`,
  );
}
