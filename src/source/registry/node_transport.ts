// SPDX-License-Identifier: Apache-2.0
/**
 * Requests by `node:http` and `node:https`: an authority of one's own in
 * place of the usual ones, certificates that are not checked, bodies of known
 * length, all of it also through proxies.
 *
 * @module
 */
import * as http from "node:http";
import * as https from "node:https";
import { HttpProxyAgent } from "http-proxy-agent";
import { HttpsProxyAgent } from "https-proxy-agent";
import type { HttpRequest } from "./transport.ts";

/** How TLS servers are checked, and who asks. */
export interface TlsOptions {
  cert?: string;
  key?: string;
  ca?: string;
  rejectUnauthorized: boolean;
}

/** See the module's comment. */
export interface NodeTransport {
  /** @throws {Error} no answer */
  send(request: HttpRequest, proxy: string | undefined): Promise<Response>;
  close(): void;
}

const NO_BODY = new Set([204, 205, 304]);

function toResponse(message: http.IncomingMessage): Response {
  const headers = new Headers();
  for (let i = 0; i + 1 < message.rawHeaders.length; i += 2) {
    headers.append(
      message.rawHeaders[i] ?? "",
      message.rawHeaders[i + 1] ?? "",
    );
  }
  const status = message.statusCode ?? 0;
  if (NO_BODY.has(status)) {
    message.resume();
    return new Response(null, { status, headers });
  }
  return new Response(bodyOf(message), { status, headers });
}

/** `Readable.toWeb()` costs as much as TLS does. */
function bodyOf(message: http.IncomingMessage): ReadableStream<Uint8Array> {
  let over = false;
  let more = Promise.withResolvers<void>();
  return new ReadableStream<Uint8Array>({
    start(controller) {
      const fail = (error: Error) => {
        if (over) return;
        over = true;
        controller.error(error);
        more.resolve();
      };
      message.on("readable", () => more.resolve());
      message.on("error", fail);
      message.on("close", () => fail(new Error("connection closed early")));
      message.on("end", () => {
        if (over) return;
        over = true;
        controller.close();
        more.resolve();
      });
    },
    async pull(controller) {
      while (!over) {
        // All that has come, as one piece.
        const bytes: Uint8Array | null = message.read();
        if (bytes !== null) return controller.enqueue(bytes);
        await more.promise;
        more = Promise.withResolvers();
      }
    },
    cancel() {
      over = true;
      message.destroy();
    },
  }, { highWaterMark: 0 });
}

/** Writes a body as fast as the connection takes it. */
async function writeBody(
  request: http.ClientRequest,
  chunks: AsyncIterable<Uint8Array>,
): Promise<void> {
  for await (const chunk of chunks) {
    if (request.destroyed) return;
    if (request.write(chunk)) continue;
    await new Promise<void>((done) => {
      const go = () => {
        request.off("drain", go);
        request.off("close", go);
        done();
      };
      request.on("drain", go);
      request.on("close", go);
    });
  }
  request.end();
}

/** Makes a transport; nothing is connected yet. */
export function createNodeTransport(tls: TlsOptions): NodeTransport {
  const agents = new Map<string, http.Agent>();
  const newAgent = (
    secure: boolean,
    proxy: string | undefined,
    keepAlive: boolean,
  ): http.Agent => {
    const pool = { keepAlive, maxFreeSockets: 64 };
    if (proxy !== undefined) {
      return secure
        ? new HttpsProxyAgent(proxy, { ...pool, ...tls })
        : new HttpProxyAgent(proxy, pool);
    }
    return secure ? new https.Agent({ ...pool, ...tls }) : new http.Agent(pool);
  };
  const agentOf = (
    url: URL,
    keepAlive: boolean,
    proxy: string | undefined,
  ): http.Agent => {
    const secure = url.protocol === "https:";
    const key = `${secure} ${keepAlive} ${proxy ?? ""}`;
    let agent = agents.get(key);
    if (agent === undefined) {
      agents.set(key, agent = newAgent(secure, proxy, keepAlive));
    }
    return agent;
  };

  return {
    send({ url, method = "GET", headers, body, signal }, proxy) {
      return new Promise<Response>((resolve, reject) => {
        signal.throwIfAborted();
        const secure = url.protocol === "https:";
        const request = (secure ? https : http).request(url, {
          method,
          // A kept connection that ends while a body is sent is replaced
          // by one on which nothing is sent.
          agent: agentOf(url, body === undefined, proxy),
          headers: body === undefined
            ? headers
            : { ...headers, "content-length": String(body.length) },
          ...(secure ? tls : {}),
        });
        const abort = () => request.destroy(signal.reason);
        signal.addEventListener("abort", abort, { once: true });
        request.on("close", () => signal.removeEventListener("abort", abort));
        request.on("error", reject);
        request.on("response", (message) => resolve(toResponse(message)));
        if (body === undefined) request.end();
        else {
          writeBody(request, body.chunks()).catch((error) => {
            request.destroy(error);
            reject(error);
          });
        }
      });
    },
    close() {
      for (const agent of agents.values()) agent.destroy();
    },
  };
}
