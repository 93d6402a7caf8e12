// SPDX-License-Identifier: Apache-2.0
/**
 * Requests to the API of a running service.
 *
 * @module
 */

import type { Bytes } from "../../../ffi/handle.ts";
import { withErrno } from "../../layer/files.ts";

/** Where the service is, and what it wants to see. */
export interface ApiTarget {
  /** path of a unix socket, or HOST:PORT */
  address: string;
  /** HTTPS, on a port */
  secure: boolean;
  token?: string | undefined;
  /** PEM: its CA, and our certificate with its key */
  ca?: string | undefined;
  cert?: string | undefined;
  key?: string | undefined;
}

/** Nobody answers there, or not as the API does. */
export class ApiError extends Error {
  override readonly name = "ApiError";
}

/** The service refused: its words. */
export class RefusedError extends ApiError {
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string, detail: string) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

interface RawAnswer {
  status: number;
  text: string;
}

function refusal(error: unknown, address: string): ApiError {
  const cause = error instanceof Error ? error : new Error(String(error));
  const code = "code" in cause ? cause.code : undefined;
  const why = code === "ENOENT" || code === "ECONNREFUSED"
    ? "no service listens there: `overlaybd serve`, or apiConfig.enable"
    : code === "EACCES"
    ? "permission denied: it is its owner's alone"
    : cause.message;
  return new ApiError(`cannot reach the API at ${address}: ${why}`, { cause });
}

/** Whatever answered is no service of ours. */
function foreign(address: string, what: string, cause?: unknown): ApiError {
  return new ApiError(
    `cannot use what ${address} answers${what}: it is no API of overlaybd`,
    { cause },
  );
}

/** The host and port of an address; undefined: it is a socket's path. */
function hostOf(address: string): { host: string; port: string } | undefined {
  const [, host, port] = /^(.*):(\d+)$/.exec(address) ?? [];
  if (host === undefined || port === undefined) return undefined;
  if (address.includes("/")) return undefined;
  return { host: host.replace(/^\[|\]$/g, "") || "127.0.0.1", port };
}

/** A unix socket that too many wait at: not for long. */
const CROWDED_TRIES = 50;
const CROWDED_MS = 20;

async function send(
  ...request: Parameters<typeof sendOnce>
): Promise<RawAnswer> {
  for (let left = CROWDED_TRIES;; left--) {
    try {
      return await sendOnce(...request);
    } catch (error) {
      const cause = error instanceof Error ? error.cause : undefined;
      const crowded = cause instanceof Error && "code" in cause &&
        cause.code === "EAGAIN";
      if (!crowded || left === 0) throw error;
      await new Promise((done) => setTimeout(done, CROWDED_MS));
    }
  }
}

async function sendOnce(
  target: ApiTarget,
  method: string,
  path: string,
  body: string | undefined,
): Promise<RawAnswer> {
  const { token } = target;
  const encoded = new TextEncoder().encode(body ?? "");
  const headers = {
    ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    ...(body === undefined ? {} : {
      "content-type": "application/json",
      "content-length": String(encoded.length),
    }),
  };
  const request = { method, path, headers, body: encoded };
  return target.secure
    ? await exchangeSecurely(target, request)
    : await exchange(target.address, request);
}

interface RawRequest {
  method: string;
  path: string;
  headers: Record<string, string>;
  body: Bytes;
}

async function connect(address: string): Promise<Deno.Conn> {
  const at = hostOf(address);
  return at === undefined
    ? await Deno.connect({ transport: "unix", path: address })
    : await Deno.connect({ hostname: at.host, port: Number(at.port) });
}

async function writeAll(to: Deno.Conn, bytes: Bytes): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    at += await to.write(bytes.subarray(at));
  }
}

/** All that a connection brings until it ends. */
async function readAll(from: Deno.Conn): Promise<string> {
  const decoder = new TextDecoder();
  const part = new Uint8Array(1 << 16);
  let text = "";
  for (;;) {
    const n = await from.read(part);
    if (n === null) return text + decoder.decode();
    text += decoder.decode(part.subarray(0, n), { stream: true });
  }
}

/**
 * One request by HTTP/1.0: the answer is in one piece, and ends with the
 * connection.  To load node:http takes twice as long as all else of a command.
 */
async function exchange(
  address: string,
  { method, path, headers, body }: RawRequest,
): Promise<RawAnswer> {
  const host = hostOf(address) === undefined
    ? "localhost"
    : address.replace(/^:/, "127.0.0.1:");
  const lines = Object.entries({ host, ...headers })
    .map(([name, value]) => `${name}: ${value}\r\n`);
  const head = `${method} ${path} HTTP/1.0\r\n${lines.join("")}\r\n`;
  let answer: string;
  try {
    using connection = await connect(address);
    await writeAll(connection, new TextEncoder().encode(head));
    await writeAll(connection, body);
    answer = await readAll(connection);
  } catch (error) {
    throw refusal(withErrno(error, "the connection failed"), address);
  }
  const [, status, fields = "", text = ""] =
    /^HTTP\/1\.[01] (\d{3})([^]*?)\r\n\r\n([^]*)$/.exec(answer) ?? [];
  if (status === undefined) throw foreign(address, "");
  const [, length] = /\r\ncontent-length: *(\d+)/i.exec(fields) ?? [];
  const bytes = new TextEncoder().encode(text).length;
  if (length !== undefined && Number(length) !== bytes) {
    throw refusal("its answer is cut off", address);
  }
  return { status: Number(status), text };
}

async function exchangeSecurely(
  { address, ca, cert, key }: ApiTarget,
  { method, path, headers, body }: RawRequest,
): Promise<RawAnswer> {
  const { request } = await import("node:https");
  const options = {
    ...hostOf(address) ?? { socketPath: address },
    method,
    path,
    headers,
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
  };
  return await new Promise((done, fail) => {
    const refuse = (error: Error) => fail(refusal(error, address));
    const sent = request(options, (answer) => {
      const decoder = new TextDecoder();
      let text = "";
      answer.on("data", (part: Uint8Array) => {
        text += decoder.decode(part, { stream: true });
      });
      answer.on("error", refuse);
      answer.on("end", () => done({ status: answer.statusCode ?? 0, text }));
    });
    sent.on("error", refuse);
    sent.end(body);
  });
}

/**
 * Asks the API.
 *
 * @param body sent as JSON
 * @returns what it answered; undefined where that is nothing
 * @throws {RefusedError} it refused
 * @throws {ApiError} it cannot be reached, or is no API
 */
export async function askApi(
  target: ApiTarget,
  method: string,
  path: string,
  body?: unknown,
): Promise<unknown> {
  const text = body === undefined ? undefined : JSON.stringify(body);
  const answer = await send(target, method, path, text);
  if (answer.status === 204) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(answer.text);
  } catch (cause) {
    throw foreign(target.address, ` (${answer.status})`, cause);
  }
  if (answer.status < 400) return value;
  const member = (name: string) =>
    typeof value === "object" && value !== null
      ? String(Reflect.get(value, name) ?? "")
      : "";
  throw new RefusedError(
    answer.status,
    member("code"),
    member("detail") || `the API answers ${answer.status}`,
  );
}
