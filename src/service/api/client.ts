// SPDX-License-Identifier: Apache-2.0
/**
 * Requests to the API of a running service.
 *
 * @module
 */

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

function connectText(error: Error, address: string): string {
  const code = "code" in error ? error.code : undefined;
  const why = code === "ENOENT" || code === "ECONNREFUSED"
    ? "no service listens there: `overlaybd serve`, or apiConfig.enable"
    : code === "EACCES"
    ? "permission denied: it is its owner's alone"
    : error.message;
  return `cannot reach the API at ${address}: ${why}`;
}

/** The host and port, or the socket, of an address. */
function placeOf(address: string): Record<string, string> {
  const [, host, port] = /^(.*):(\d+)$/.exec(address) ?? [];
  return host === undefined || port === undefined || address.includes("/")
    ? { socketPath: address }
    : { host: host.replace(/^\[|\]$/g, "") || "127.0.0.1", port };
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
  const { address, secure, token, ca, cert, key } = target;
  const { request } = secure
    ? await import("node:https")
    : await import("node:http");
  const encoded = new TextEncoder().encode(body ?? "");
  const options = {
    ...placeOf(address),
    method,
    path,
    headers: {
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      ...(body === undefined ? {} : {
        "content-type": "application/json",
        "content-length": String(encoded.length),
      }),
    },
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
  };
  return await new Promise((done, fail) => {
    const refuse = (error: Error) =>
      fail(new ApiError(connectText(error, address), { cause: error }));
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
    sent.end(body === undefined ? undefined : encoded);
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
    throw new ApiError(
      `cannot use what ${target.address} answers (${answer.status}): ` +
        "it is no API of overlaybd",
      { cause },
    );
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
