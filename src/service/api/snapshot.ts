// SPDX-License-Identifier: Apache-2.0
/**
 * The original's live snapshot API (spec/api.md, section 1).
 *
 * @module
 */
import type { Service } from "../service.ts";

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

/**
 * Answers one request, whatever its method: GET and POST mean the same, and
 * a body means nothing.
 */
export async function handleSnapshot(
  request: Request,
  service: Pick<Service, "find" | "snapshot" | "log">,
): Promise<Response> {
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
