// SPDX-License-Identifier: Apache-2.0
/**
 * A registry that is down for a minute of real time, under two daemons.
 *
 * @module
 */
import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { sha256File, tempDir } from "../lib/env.ts";
import { connectNbd, NbdError } from "../lib/nbd.ts";
import { makeLayer, serveBlob } from "../lib/remote.ts";
import { startServer } from "../lib/server.ts";

const DOWN_MS = 60_000;
/** An attempt and the pause after it, and a busy machine. */
const BACK_MS = 75_000;
const N = 65536;
const EIO = 5;

/**
 * Reads wait for a registry that refuses connections, and go on by
 * themselves; where `readDeadlineSeconds` is shorter they fail after it, and
 * the device is well again with the registry.
 */
export async function minuteOutage(): Promise<void> {
  using dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile: true, tar: false });
  const config = dir.file("config.v1.json");
  let registry = serveBlob(path);
  const { port } = new URL(registry.url);
  const lowers = [{ digest: `sha256:${sha256File(path)}` }];
  Deno.writeTextFileSync(
    config,
    JSON.stringify({ repoBlobUrl: registry.url, lowers }),
  );
  const serve = async (name: string, more: Record<string, unknown>) => {
    const service = dir.file(`${name}.json`);
    Deno.writeTextFileSync(
      service,
      JSON.stringify({
        cacheConfig: {
          cacheType: "file",
          cacheDir: dir.file(`${name}.cache`),
          refillSize: N,
        },
        logPath: "",
        enableAudit: false,
        ...more,
      }),
    );
    return await startServer(dir.file(name), [config], {
      args: ["--service_config_path", service],
    });
  };
  await using patient = await serve("patient", {});
  await using hasty = await serve("hasty", { readDeadlineSeconds: 20 });
  using patiently = await connectNbd(dir.file("patient"), "");
  using hastily = await connectNbd(dir.file("hasty"), "");

  await registry[Symbol.asyncDispose]();
  const began = performance.now();
  const since = () => performance.now() - began;
  const want = (i: number) => content.slice(i << 20, (i << 20) + N);
  let answered = 0;
  const waiting = [2, 3, 4].map(async (i) => {
    const bytes = await patiently.read(i << 20, N);
    answered++;
    return [i, bytes] as const;
  });
  await rejects(
    hastily.read(5 << 20, N),
    (error) => error instanceof NbdError && error.errno === EIO,
  );
  ok(since() >= 20_000, `failed after ${since()} ms`);
  ok(since() < DOWN_MS, `failed after ${since()} ms`);
  await new Promise((done) => setTimeout(done, DOWN_MS - since()));
  equal(answered, 0);
  registry = serveBlob(path, Number(port));
  await using _ = registry;
  deepEqual(await hastily.read(5 << 20, N), want(5));
  for (const read of waiting) {
    const [i, bytes] = await read;
    deepEqual(bytes, want(i));
  }
  ok(since() < DOWN_MS + BACK_MS, `back after ${since()} ms`);
  console.log(`waited ${Math.round(since() / 1000)} s`);
  equal((await hasty.stop()).code, 0);
  equal((await patient.stop()).code, 0);
}
