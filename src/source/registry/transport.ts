// SPDX-License-Identifier: Apache-2.0
/**
 * Sends requests: by fetch where that can, by `node:https` where a server's
 * certificate is checked in another way than against the usual authorities,
 * or where a body of known length is sent (spec/registry.md, section 6).
 *
 * @module
 */
import type { NodeTransport } from "./node_transport.ts";
import { clientThrough, fetchProxy, proxyFor } from "./proxies.ts";

/** How servers are spoken to. */
export interface TransportOptions {
  /** sent with every request */
  userAgent: string;
  /** PEM, chain and all; undefined: no client certificate */
  cert?: string | undefined;
  /** PEM: PKCS#8, PKCS#1 or SEC1 */
  key?: string | undefined;
  /** PEM: the only authorities that count; undefined: the usual ones */
  ca?: string | undefined;
  /** `host:port` of servers whose certificates are not checked */
  insecure?: readonly string[] | undefined;
}

/** A body; its chunks may be asked for again. */
export interface HttpBody {
  /** bytes */
  length: number;
  chunks: () => AsyncIterable<Uint8Array>;
}

/** A request; redirects are not followed. */
export interface HttpRequest {
  url: URL;
  method?: "GET" | "POST" | "PATCH" | "PUT" | undefined;
  headers: Readonly<Record<string, string>>;
  /** with its length in bytes */
  body?: HttpBody | undefined;
  signal: AbortSignal;
}

/** See the module's comment. */
export interface Transport extends Disposable {
  /** @throws what the platform throws: no answer */
  send(request: HttpRequest): Promise<Response>;
  close(): void;
}

/** `host:port` in lower case. */
function hostPort(url: URL): string {
  return url.port === "" ? `${url.host}:443` : url.host;
}

function insecureHosts(list: readonly string[]): Set<string> {
  return new Set(list.map((entry) => {
    const host = entry.trim().toLowerCase();
    return /:\d+$/.test(host) ? host : `${host}:443`;
  }));
}

/** Makes a transport; nothing is connected yet. */
export function createTransport(options: TransportOptions): Transport {
  const { ca, cert, key } = options;
  const insecure = insecureHosts(options.insecure ?? []);
  const identity = cert === undefined || key === undefined ? {} : { cert, key };
  /** by proxy; `undefined`: without one */
  const clients = new Map<string | undefined, Deno.HttpClient>();
  const proxies = new Map<string, Promise<string | undefined>>();
  const nodes = new Map<string, Promise<NodeTransport>>();

  const nodeTransport = async (checked: boolean) => {
    const { createNodeTransport } = await import("./node_transport.ts");
    return createNodeTransport({
      ...identity,
      ...(ca === undefined ? {} : { ca }),
      rejectUnauthorized: checked,
    });
  };

  const proxyOf = (url: URL): Promise<string | undefined> => {
    let proxy = proxies.get(url.origin);
    if (proxy === undefined) proxies.set(url.origin, proxy = proxyFor(url));
    return proxy;
  };
  const clientOf = (proxy: string | undefined): Deno.HttpClient => {
    let client = clients.get(proxy);
    if (client === undefined) {
      client = clientThrough(proxy === undefined ? proxy : fetchProxy(proxy), {
        ...identity,
        // Over HTTP/2 Deno waits for more to send: 40 ms for many a request.
        http2: false,
        poolMaxIdlePerHost: 64,
      });
      clients.set(proxy, client);
    }
    return client;
  };

  const close = () => {
    for (const client of clients.values()) client.close();
    clients.clear();
    for (const node of nodes.values()) {
      node.then((transport) => transport.close(), () => {});
    }
    nodes.clear();
  };

  return {
    async send(request) {
      const { url, signal, body } = request;
      const headers = {
        ...request.headers,
        "accept-encoding": "identity",
        "user-agent": options.userAgent,
      };
      const tls = url.protocol === "https:";
      const unchecked = tls && insecure.has(hostPort(url));
      const proxy = await proxyOf(url);
      const byNode = async () => {
        const kind = unchecked ? "unchecked" : "checked";
        let node = nodes.get(kind);
        if (node === undefined) {
          nodes.set(kind, node = nodeTransport(!unchecked));
        }
        return await (await node).send({ ...request, headers }, proxy);
      };
      if (unchecked || (tls && ca !== undefined) || body !== undefined) {
        return await byNode();
      }
      try {
        return await fetch(url, {
          method: request.method ?? "GET",
          client: clientOf(proxy),
          redirect: "manual",
          headers,
          signal,
        });
      } catch (error) {
        // Ports that browsers keep pages from, 6000 for one.
        if (!/port \d+ are blocked/.test(String(error))) throw error;
        return await byNode();
      }
    },
    close,
    [Symbol.dispose]: close,
  };
}
