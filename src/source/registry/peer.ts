// SPDX-License-Identifier: Apache-2.0
/**
 * A proxy of peers that blobs are fetched through: its address stands before
 * the URL (spec/service-config.md, section 6; spec/registry.md, section 7).
 *
 * @module
 */

/** A peer that failed is left alone for this long. */
const REST_MS = 10_000;
const PROBE_MS = 1000;

/** The proxy as one image uses it. */
export interface Peer {
  /** without a slash at its end */
  readonly address: string;
  /** false: it failed a moment ago, the registry is asked */
  usable(): boolean;
  /** It failed; true when that is news. */
  failed(): boolean;
}

/**
 * `p2pConfig.address` as a URL.
 *
 * @throws {TypeError} it is none
 */
export function parsePeerAddress(address: string): URL {
  const url = new URL(
    /^[a-z][a-z0-9+.-]*:\/\//i.test(address) ? address : `http://${address}`,
  );
  if (!/^https?:$/.test(url.protocol)) {
    throw new TypeError(`${address} is neither http nor https`);
  }
  return url;
}

async function connects(url: URL): Promise<void> {
  const hostname = url.hostname.replace(/^\[|\]$/g, "");
  const fallback = url.protocol === "https:" ? 443 : 80;
  const port = url.port === "" ? fallback : Number(url.port);
  const stop = new AbortController();
  const timer = setTimeout(
    () => stop.abort(new Error("no answer within 1 s")),
    PROBE_MS,
  );
  try {
    (await Deno.connect({ hostname, port, signal: stop.signal })).close();
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Looks whether the proxy is there, for one image.
 *
 * @param address `p2pConfig.address`; the scheme may be missing
 * @throws why it cannot be used
 */
export async function connectPeer(address: string): Promise<Peer> {
  const url = parsePeerAddress(address);
  await connects(url);
  let restUntil = -Infinity;
  return {
    address: url.href.replace(/\/+$/, ""),
    usable: () => performance.now() >= restUntil,
    failed() {
      const news = performance.now() >= restUntil;
      restUntil = performance.now() + REST_MS;
      return news;
    },
  };
}
