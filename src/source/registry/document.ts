// SPDX-License-Identifier: Apache-2.0
/**
 * Small documents of a registry: manifests, indexes.
 *
 * @module
 */
import { SourceError } from "../source.ts";
import { newAttempt, tryAgain } from "./attempt.ts";
import { discard, smallBody } from "./body.ts";
import type { RegistryClient } from "./client.ts";
import { publicUrl, statusError, transportError } from "./errors.ts";
import { getFollowing } from "./request.ts";

/** What registries and clients agree that a manifest may have. */
const DOCUMENT_MAX = 4 << 20;

/** A document as it came. */
export interface RegistryDocument {
  /** in lower case, without parameters */
  mediaType: string;
  /** `sha256:<hex>` of its bytes */
  digest: string;
  json: unknown;
}

/**
 * Gets a document.
 *
 * @param accept media types
 * @param digest what it must have; undefined: any
 * @throws {SourceError} it cannot be had, is another one, or no JSON
 */
export async function getDocument(
  { parts }: RegistryClient,
  url: URL,
  accept: readonly string[],
  digest: string | undefined,
  signal?: AbortSignal,
): Promise<RegistryDocument> {
  const what = `get ${publicUrl(url)}`;
  const get = async (ms: number) => {
    using attempt = newAttempt(ms, signal);
    using answer = await getFollowing(parts, url, {
      what,
      attempt,
      headers: { accept: accept.join(", ") },
    });
    const { response } = answer;
    const { status } = response;
    if (status !== 200) {
      await discard(response);
      const why = status === 401 || status === 403
        ? `: ${await parts.explainRefusal(url)}`
        : "";
      throw statusError(what, response, `HTTP status ${status}${why}`);
    }
    try {
      const bytes = await smallBody(response, DOCUMENT_MAX);
      return { bytes, type: response.headers.get("content-type") ?? "" };
    } catch (cause) {
      throw attempt.ended(what) ?? transportError(what, answer.url, cause);
    }
  };
  const { bytes, type } = await tryAgain(
    parts.attemptMs,
    signal,
    get,
    parts.onRetry,
  );
  const hash = await crypto.subtle.digest("SHA-256", bytes);
  const got = `sha256:${new Uint8Array(hash).toHex()}`;
  if (digest !== undefined && got !== digest) {
    throw new SourceError("EIO", `cannot ${what}: its digest is ${got}`, {
      retryable: false,
    });
  }
  try {
    return {
      mediaType: type.replace(/;.*/s, "").trim().toLowerCase(),
      digest: got,
      json: JSON.parse(new TextDecoder().decode(bytes)),
    };
  } catch {
    throw new SourceError("EIO", `cannot ${what}: it is no JSON`, {
      retryable: false,
    });
  }
}
