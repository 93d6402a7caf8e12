// SPDX-License-Identifier: Apache-2.0
/**
 * The metrics' endpoint, and what it shows of devices (spec/api.md,
 * section 2).
 *
 * @module
 */
import { whyOf } from "../../ffi/errors.ts";
import type { ServiceConfig } from "./config_schema.ts";
import { metricsText, originalText } from "./metrics.ts";
import { type Measured, ownMetrics } from "./own_metrics.ts";

/** The endpoint cannot listen. */
export class ExporterError extends Error {
  override readonly name = "ExporterError";
}

/** A running endpoint. */
export interface Exporter {
  /** `http://127.0.0.1:9863/metrics` */
  url: string;
  close(): Promise<void>;
}

/** Everything at once. */
export function exporterText(options: Measured): string {
  return originalText(Deno.hostname(), options.meters, Date.now()) +
    metricsText(ownMetrics(options));
}

/**
 * Starts the endpoint.  Every method is answered, and every path that begins
 * with the prefix, as ever.
 *
 * @throws {ExporterError} the address is no one's or taken
 */
export function startExporter(
  config: ServiceConfig["exporterConfig"],
  options: Measured,
): Exporter {
  const { address, port, uriPrefix } = config;
  const answer = (request: Request) =>
    new URL(request.url).pathname.startsWith(uriPrefix)
      ? new Response(exporterText(options), {
        headers: { "content-type": "text/plain; version=0.0.4" },
      })
      : new Response(null, { status: 404 });
  try {
    const server = Deno.serve(
      { hostname: address, port, onListen() {} },
      answer,
    );
    const host = address.includes(":") ? `[${address}]` : address;
    return {
      url: `http://${host}:${server.addr.port}${uriPrefix}`,
      close: () => server.shutdown(),
    };
  } catch (cause) {
    throw new ExporterError(
      "Failed to start http server for metrics exporter: " +
        `exporterConfig ${address}:${port}: ${whyOf(cause)}`,
      { cause },
    );
  }
}
