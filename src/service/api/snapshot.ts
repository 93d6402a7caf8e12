// SPDX-License-Identifier: Apache-2.0
/**
 * The original's live snapshot API (spec/api.md, section 1).
 *
 * @module
 */
import { whyOf } from "../../../ffi/errors.ts";
import { AddressError, hostText, isLoopback } from "../../device/listen.ts";
import type { Service } from "../service.ts";

/** What of the service it needs. */
type Needs = Pick<Service, "find" | "snapshot" | "log">;

/** What every path of the API begins with. */
const PREFIX = "/snapshot";

/** The original's body, with its odd backtick where it failed. */
function body(success: boolean, message: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(
    `{\n        "success": ${success},\n        "message": "${message}"\n}`,
  );
}

function answer(status: number, message: string): Response {
  // Bytes have no Content-Type, as ever.
  return new Response(body(status === 200, message), { status });
}

/** A query's last value of a key; empty: none. */
function parameter(query: URLSearchParams, key: string): string {
  return query.getAll(key).at(-1) ?? "";
}

/** A page in somebody's browser must not make this host change files. */
function isOfPage(headers: Headers): boolean {
  return headers.has("origin") ||
    (headers.get("sec-fetch-site") ?? "none") !== "none";
}

/**
 * Answers one request, whatever its method: GET and POST mean the same, and
 * a body means nothing.
 */
export async function handleSnapshot(
  request: Request,
  service: Needs,
): Promise<Response> {
  if (isOfPage(request.headers)) return new Response(null, { status: 403 });
  const url = new URL(request.url);
  if (!url.pathname.startsWith(PREFIX)) {
    return new Response(null, { status: 404 });
  }
  service.log.info(`Snapshot query: ${url.search.slice(1)}`);
  const devId = parameter(url.searchParams, "dev_id");
  const config = parameter(url.searchParams, "config");
  if (devId === "" || config === "") {
    return answer(400, "Missing dev_id or config in snapshot request");
  }
  const served = service.find(devId);
  if (served === undefined) return answer(404, "Image file not found");
  try {
    await service.snapshot(served, config);
    return answer(200, "Snapshot created successfully");
  } catch (error) {
    served.log.error(error instanceof Error ? error.message : String(error));
    return answer(500, "Failed to create snapshot`");
  }
}

/** A running API. */
export interface SnapshotServer {
  /** `http://127.0.0.1:9862` */
  url: string;
  close(): Promise<void>;
}

/**
 * Where `serviceConfig.address` is; port 80 where it names none.
 *
 * @throws {AddressError} it is no URL of this kind
 */
export function parseUrl(address: string): { hostname: string; port: number } {
  const url = URL.parse(address);
  if (url?.protocol !== "http:" || url.pathname !== "/") {
    throw new AddressError(
      `Failed to start http server for live snapshot: serviceConfig.address ` +
        `${address}: expected http://HOST:PORT`,
    );
  }
  const hostname = url.hostname.replace(/^\[|\]$/g, "");
  return { hostname, port: url.port === "" ? 80 : Number(url.port) };
}

/**
 * Serves the API.  A host is what it says: a name is looked up, and only
 * `0.0.0.0` and `[::]` are every interface.
 *
 * @param address of `serviceConfig`
 * @throws {AddressError} it is no address, no one's, or taken
 */
export function startSnapshotServer(
  address: string,
  service: Needs,
): SnapshotServer {
  const { hostname, port } = parseUrl(address);
  let server: Deno.HttpServer<Deno.NetAddr>;
  try {
    server = Deno.serve(
      { hostname, port, onListen() {} },
      (request) => handleSnapshot(request, service),
    );
  } catch (cause) {
    throw new AddressError(
      "Failed to start http server for live snapshot: " +
        `serviceConfig.address ${address}: ${whyOf(cause)}`,
      { cause },
    );
  }
  const { hostname: ip, port: bound } = server.addr;
  if (!isLoopback(ip)) {
    service.log.warn(
      `other machines can reach ${address}, and whoever does may take ` +
        "snapshots: it asks for no password",
    );
  }
  return {
    url: `http://${hostText(ip)}:${bound}`,
    close: () => server.shutdown(),
  };
}
