// SPDX-License-Identifier: Apache-2.0
/**
 * Where API v1 is served, to whom, and how much of it at once.
 *
 * @module
 */
import { getRequestListener } from "@hono/node-server";
import {
  type Address,
  AddressError,
  hostText,
  isLoopback,
  type Listening,
  listenTcp,
  listenUnix,
  parseAddress,
  resolveHost,
} from "../../device/listen.ts";
import { whyOf } from "../../../ffi/errors.ts";
import { closeFd } from "../../../ffi/files.ts";
import type { ServiceConfig } from "../config_schema.ts";
import type { Logger } from "../log.ts";
import { makeDefaultDir } from "../paths.ts";
import { problem, problemBody } from "./problem.ts";

type HttpServer = import("node:http").Server;
type ApiConfig = ServiceConfig["apiConfig"];

/** A running API. */
export interface RunningApi {
  /** `unix:/run/overlaybd/api.sock`, `https://127.0.0.1:9864` */
  url: string;
  /** Lets requests end for a while, then hangs up. */
  close(): Promise<void>;
}

/** What clients may take of it. */
export interface ApiLimits {
  /** bytes of a request's line and header together */
  headerMax: number;
  /** ms for the header, and for all of a request */
  headerMs: number;
  requestMs: number;
  /** ms that an idle connection is kept */
  idleMs: number;
  connections: number;
  /** ms that requests have to end when the service does */
  closeMs: number;
}

/** Of a service that runs. */
export const API_LIMITS: ApiLimits = {
  headerMax: 16 << 10,
  headerMs: 10_000,
  requestMs: 30_000,
  idleMs: 60_000,
  connections: 2048,
  closeMs: 5_000,
};

function read(path: string, key: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch (cause) {
    throw new AddressError(
      `cannot use apiConfig.${key} ${path}: ${whyOf(cause)}`,
      { cause },
    );
  }
}

/** The token in a file; @throws {AddressError} there is none */
function readToken(path: string): string {
  const [token = ""] = read(path, "tokenFile").split("\n");
  if (/^[\x21-\x7e]+$/.test(token.trim())) return token.trim();
  throw new AddressError(
    `cannot use apiConfig.tokenFile ${path}: its first line is no token`,
  );
}

/** @throws {AddressError} others can reach it and need to show nothing */
function refuseOpen(config: ApiConfig, ip: string): void {
  const { address, tokenFile, clientCaFile } = config;
  if (isLoopback(ip) || tokenFile !== "" || clientCaFile !== "") return;
  throw new AddressError(
    `cannot listen on ${address}: other machines can reach it: ` +
      "apiConfig.tokenFile, or certFile, keyFile and clientCaFile are needed",
  );
}

function listen(config: ApiConfig, address: Address): Promise<Listening> {
  if (address.kind === "unix") {
    makeDefaultDir(address.path);
    return listenUnix(address.path, 0o600);
  }
  return listenTcp(
    address.host,
    address.port,
    (ip) => refuseOpen(config, ip),
  );
}

/** A guard lets a request pass, or answers it. */
type Guard = (request: Request) => Response | undefined;

/** The same time for every wrong token of a length. */
function sameText(a: string, b: string): boolean {
  let differ = a.length ^ b.length;
  for (let i = 0; i < a.length; i++) {
    differ |= a.charCodeAt(i) ^ b.charCodeAt(i % (b.length || 1));
  }
  return differ === 0;
}

/** The file is read each time: a new token counts at once. */
function tokenGuard(path: string, log: Logger): Guard {
  return (request) => {
    const { pathname } = new URL(request.url);
    if (pathname === "/healthz" || pathname === "/readyz") return undefined;
    let token: string;
    try {
      token = readToken(path);
    } catch (error) {
      log.error(String(error));
      return problem(500, "internal", "failed; the log says why");
    }
    const given = request.headers.get("authorization") ?? "";
    if (sameText(given, `Bearer ${token}`)) return undefined;
    return problem(401, "unauthorized", "a token is needed", {
      "www-authenticate": "Bearer",
    });
  };
}

/**
 * A page in a browser of this machine may send requests to loopback, under
 * any name that its DNS gives us: it is told by what it says of itself.
 */
function browserGuard(): Guard {
  return (request) => {
    const { hostname } = new URL(request.url);
    const own = hostname === "localhost" ||
      isLoopback(hostname.replace(/^\[|\]$/g, ""));
    if (own && !request.headers.has("origin")) return undefined;
    return problem(403, "forbidden", "no web page may use this");
  };
}

function guardsOf(
  config: ApiConfig,
  address: Address,
  log: Logger,
): Guard[] {
  const { tokenFile, clientCaFile } = config;
  if (tokenFile !== "") return [tokenGuard(tokenFile, log)];
  if (address.kind === "unix" || clientCaFile !== "") return [];
  return [browserGuard()];
}

async function createServer(
  config: ApiConfig,
  answer: (request: Request) => Response | Promise<Response>,
  limits: ApiLimits,
): Promise<HttpServer> {
  const { certFile, keyFile, clientCaFile } = config;
  const options = {
    maxHeaderSize: limits.headerMax,
    headersTimeout: limits.headerMs,
    requestTimeout: limits.requestMs,
    keepAliveTimeout: limits.idleMs,
    connectionsCheckingInterval: limits.headerMs / 10,
  };
  const listener = getRequestListener(answer, {
    overrideGlobalObjects: false,
    errorHandler: () => problem(400, "invalid", "the request ended early"),
  });
  if ((certFile === "") !== (keyFile === "")) {
    throw new AddressError("apiConfig: certFile and keyFile need each other");
  }
  if (certFile === "") {
    if (clientCaFile !== "") {
      throw new AddressError(
        "apiConfig: clientCaFile needs certFile and keyFile",
      );
    }
    const { createServer } = await import("node:http");
    return createServer(options, listener);
  }
  const { createServer } = await import("node:https");
  return createServer({
    ...options,
    cert: read(certFile, "certFile"),
    key: read(keyFile, "keyFile"),
    ...(clientCaFile === "" ? {} : {
      ca: read(clientCaFile, "clientCaFile"),
      requestCert: true,
      rejectUnauthorized: true,
    }),
  }, listener);
}

/** What a request that is none is answered with. */
function clientErrorText(error: unknown): string {
  const code = error instanceof Error && "code" in error
    ? String(error.code)
    : "";
  const status = code === "HPE_HEADER_OVERFLOW"
    ? 431
    : code === "ERR_HTTP_REQUEST_TIMEOUT"
    ? 408
    : 400;
  const problem = problemBody(status, "invalid", "this is no request");
  const body = JSON.stringify(problem);
  return `HTTP/1.1 ${status} ${problem.title}\r\n` +
    "Content-Type: application/problem+json\r\n" +
    `Content-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`;
}

/**
 * Looks at what can be known before anything listens.
 *
 * @throws {AddressError} what the start would refuse
 */
export async function checkApiConfig(config: ApiConfig): Promise<void> {
  const address = parseAddress(config.address);
  if (config.tokenFile !== "") readToken(config.tokenFile);
  await createServer(config, () => new Response(), API_LIMITS);
  if (address.kind === "tcp") {
    refuseOpen(config, await resolveHost(address.host));
  }
}

function urlOf(address: Address, secure: boolean): string {
  return address.kind === "unix"
    ? `unix:${address.path}`
    : `http${secure ? "s" : ""}://${hostText(address.host)}:${address.port}`;
}

/**
 * Serves an application where the configuration says.
 *
 * @param answer the application
 * @throws {AddressError | EngineError} it cannot be served there
 */
export async function startApiServer(
  config: ApiConfig,
  answer: (request: Request) => Response | Promise<Response>,
  log: Logger,
  limits: ApiLimits = API_LIMITS,
): Promise<RunningApi> {
  const address = parseAddress(config.address);
  if (config.tokenFile !== "") readToken(config.tokenFile);
  const guards = guardsOf(config, address, log);
  const server = await createServer(config, (request) => {
    for (const guard of guards) {
      const refused = guard(request);
      if (refused !== undefined) return refused;
    }
    return answer(request);
  }, limits);
  const listening = await listen(config, address);
  server.maxConnections = limits.connections;
  server.on("clientError", (error, socket) => {
    if (socket.writable) socket.end(clientErrorText(error));
    else socket.destroy();
  });
  await new Promise<void>((done, fail) => {
    server.once("error", fail);
    server.listen({ fd: listening.fd }, done);
  }).catch((error) => {
    closeFd(listening.fd);
    listening.remove();
    throw error;
  });
  server.on("error", (error) => log.error(`api: ${error.message}`));
  const secure = config.certFile !== "";
  if (
    !secure && listening.address.kind === "tcp" &&
    !isLoopback(listening.address.host)
  ) {
    log.warn(
      `the API at ${config.address} is not encrypted: whoever sees its ` +
        "packets has its token: apiConfig.certFile and keyFile help",
    );
  }
  const close = async () => {
    listening.remove();
    const closed = new Promise<void>((done) => server.close(() => done()));
    server.closeIdleConnections();
    const timer = setTimeout(
      () => server.closeAllConnections(),
      limits.closeMs,
    );
    await closed;
    clearTimeout(timer);
  };
  return { url: urlOf(listening.address, secure), close };
}
