// SPDX-License-Identifier: Apache-2.0
/**
 * Puts blobs and manifests into a real registry.
 *
 * @module
 */
import { sha256 } from "./env.ts";

/** What to put them with. */
export interface PushOptions {
  /** `http://127.0.0.1:5000/v2/a/b` */
  repository: string;
  authorization?: string;
  client?: Deno.HttpClient;
}

async function send(
  { authorization, client }: PushOptions,
  url: string,
  init: RequestInit,
): Promise<Response> {
  const headers = new Headers(init.headers);
  if (authorization !== undefined) headers.set("authorization", authorization);
  const response = await fetch(url, {
    ...init,
    headers,
    ...(client === undefined ? {} : { client }),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${url}: ${response.status} ${text}`);
  return response;
}

/** Puts a blob; returns its digest. */
export async function pushBlob(
  options: PushOptions,
  bytes: Uint8Array<ArrayBuffer>,
): Promise<string> {
  const digest = `sha256:${sha256(bytes)}`;
  const base = `${options.repository}/blobs/uploads/`;
  const begun = await send(options, base, { method: "POST" });
  const at = new URL(begun.headers.get("location") ?? "", base);
  at.searchParams.set("digest", digest);
  await send(options, at.href, {
    method: "PUT",
    body: bytes,
    headers: { "content-type": "application/octet-stream" },
  });
  return digest;
}

/** Puts a manifest or an index; returns its digest. */
export async function pushManifest(
  options: PushOptions,
  name: string,
  manifest: { mediaType: string },
): Promise<string> {
  const text = JSON.stringify(manifest);
  await send(options, `${options.repository}/manifests/${name}`, {
    method: "PUT",
    body: text,
    headers: { "content-type": manifest.mediaType },
  });
  return `sha256:${sha256(new TextEncoder().encode(text))}`;
}
