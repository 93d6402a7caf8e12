// SPDX-License-Identifier: Apache-2.0
/**
 * `overlaybd serve` with the original's snapshot API, and its client.
 *
 * @module
 */
import type { TempDir } from "./env.ts";
import { newUpper } from "./product.ts";
import { type Server, startServer } from "./server.ts";
import type { UpperPaths } from "./spec_reader.ts";

/** What the image is called everywhere. */
export const DEV_ID = "dev 1";

/** A server of one image. */
export interface SnapshotServed extends AsyncDisposable {
  readonly server: Server;
  readonly socket: string;
  /** Asks for a snapshot; the answer's status and body. */
  snapshot(newConfig: string): Promise<{ status: number; text: string }>;
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

/** Starts it. */
export async function serveSnapshots(
  dir: TempDir,
  config: string,
  env: Record<string, string> = {},
): Promise<SnapshotServed> {
  const url = `http://127.0.0.1:${freePort()}`;
  const service = dir.file("overlaybd.json");
  Deno.writeTextFileSync(
    service,
    JSON.stringify({
      logConfig: { logPath: dir.file("log"), logLevel: 1 },
      enableAudit: false,
      cacheConfig: { cacheType: "file", cacheDir: dir.file("cache") },
      serviceConfig: { enable: true, address: url },
    }),
  );
  const socket = dir.file("s");
  const server = await startServer(socket, [`${config};${DEV_ID}`], {
    args: ["--service_config_path", service],
    env,
  });
  return {
    server,
    socket,
    async snapshot(newConfig) {
      const query = new URLSearchParams({ dev_id: DEV_ID, config: newConfig });
      const response = await fetch(`${url}/snapshot?${query}`);
      return { status: response.status, text: await response.text() };
    },
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}

interface Config {
  lowers: { file: string }[];
  upper: UpperPaths;
}

/** The layers of a configuration file as it is now. */
export function layersOf(path: string): {
  lowers: string[];
  upper: UpperPaths;
} {
  const { lowers, upper } = JSON.parse(
    Deno.readTextFileSync(path),
  ) as Config;
  return { lowers: lowers.map(({ file }) => file), upper };
}

/** Prepares the configuration that follows, with an upper `<base>.*`. */
export async function prepareNext(
  config: string,
  base: string,
  upper: { size: number; sparse: boolean },
): Promise<string> {
  const now = layersOf(config);
  const fresh = await newUpper(base, upper);
  const path = `${base}.json`;
  Deno.writeTextFileSync(
    path,
    JSON.stringify({
      repoBlobUrl: "",
      lowers: [...now.lowers, now.upper.data].map((file) => ({ file })),
      upper: fresh,
    }),
  );
  return path;
}
