// SPDX-License-Identifier: Apache-2.0
/**
 * Requests to a unix socket or a port, as a test wants them.
 *
 * @module
 */
import { type IncomingMessage, request } from "node:http";
import { request as secureRequest } from "node:https";
import type { RequestOptions } from "node:https";

/** An answer, whole. */
export interface Answer {
  status: number;
  headers: IncomingMessage["headers"];
  text: string;
  /** undefined where the text is no JSON */
  json: unknown;
}

/** What a request has beside method and path. */
export interface Ask {
  /** sent as JSON unless it is text */
  body?: unknown;
  headers?: Record<string, string>;
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * A unix socket that 512 wait at has no room: what blocks would wait.  And
 * what asks whether it may go on may be answered, and hung up on, before it
 * has ended: node:http then gives up without having read the answer.
 */
function mustTryAgain(error: unknown, expects: boolean): boolean {
  const code = error instanceof Error && "code" in error ? error.code : "";
  return code === "EAGAIN" || code === "EPIPE" && expects;
}

/**
 * Sends one request.
 *
 * @param to `unix:/path`, `http://127.0.0.1:1`, `https://...`
 * @param tls `ca`, `cert`, `key` and the like
 */
export async function ask(
  ...request: Parameters<typeof askOnce>
): Promise<Answer> {
  const expects = request[3]?.headers?.["expect"] !== undefined;
  for (;;) {
    try {
      return await askOnce(...request);
    } catch (error) {
      if (!mustTryAgain(error, expects)) throw error;
      await new Promise((done) => setTimeout(done, 10));
    }
  }
}

function askOnce(
  to: string,
  method: string,
  path: string,
  { body, headers = {} }: Ask = {},
  tls: RequestOptions = {},
): Promise<Answer> {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  const where = to.startsWith("unix:")
    ? { socketPath: to.slice("unix:".length) }
    : { host: new URL(to).hostname, port: new URL(to).port };
  const options = {
    ...tls,
    ...where,
    method,
    path,
    agent: false as const,
    headers: {
      ...(text === undefined ? {} : {
        "content-type": "application/json",
        "content-length": String(new TextEncoder().encode(text).length),
      }),
      ...headers,
    },
  };
  return new Promise((done, fail) => {
    const sent = (to.startsWith("https:") ? secureRequest : request)(
      options,
      (answer) => {
        const parts: Uint8Array[] = [];
        answer.on("data", (part: Uint8Array) => parts.push(part));
        answer.on("error", fail);
        answer.on("end", () => {
          const whole = new TextDecoder().decode(
            new Uint8Array(parts.flatMap((part) => [...part])),
          );
          done({
            status: answer.statusCode ?? 0,
            headers: answer.headers,
            text: whole,
            json: parsed(whole),
          });
        });
      },
    );
    sent.on("error", fail);
    if (text !== undefined) sent.write(text);
    sent.end();
  });
}

/** Sends bytes as they are and reads until the other side hangs up. */
export async function rawHttp(
  to: string,
  chunks: readonly string[],
  pauseMs = 0,
): Promise<string> {
  using connection = to.startsWith("unix:")
    ? await Deno.connect({ transport: "unix", path: to.slice("unix:".length) })
    : await Deno.connect({
      hostname: new URL(to).hostname,
      port: Number(new URL(to).port),
    });
  const encoder = new TextEncoder();
  for (const chunk of chunks) {
    try {
      await connection.write(encoder.encode(chunk));
    } catch {
      break; // It has hung up: what did it say?
    }
    if (pauseMs > 0) await new Promise((done) => setTimeout(done, pauseMs));
  }
  const decoder = new TextDecoder();
  const buffer = new Uint8Array(1 << 16);
  let text = "";
  for (;;) {
    const n = await connection.read(buffer).catch(() => null);
    if (n === null) return text;
    text += decoder.decode(buffer.subarray(0, n), { stream: true });
  }
}
