// SPDX-License-Identifier: Apache-2.0
/**
 * A server that dies again and again while it brings a layer.
 *
 * @module
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { until } from "../lib/blobs.ts";
import { mustRun, sha256File } from "../lib/env.ts";
import {
  BLOCK,
  CONTENT,
  refuseAgain,
  settings,
  setUp,
  writtenBlocks,
} from "../lib/layer_dir.ts";
import { startServer } from "../lib/server.ts";

/** Kills it so often; what was written is never asked for again. */
export async function killDuringDownload(rounds: number): Promise<void> {
  await using setup = await setUp();
  const config = setup.dir.file("config.v1.json");
  Deno.writeTextFileSync(
    config,
    JSON.stringify({ repoBlobUrl: setup.server.url, lowers: [setup.lower] }),
  );
  const service = setup.dir.file("overlaybd.json");
  Deno.writeTextFileSync(
    service,
    JSON.stringify({
      cacheConfig: {
        ...{ cacheType: "file", cacheDir: setup.dir.file("cache") },
        refillSize: BLOCK,
      },
      ...{ logPath: "", enableAudit: false },
      download: settings({ maxMBps: 4 }),
    }),
  );
  const start = () =>
    startServer(setup.dir.file("nbd"), [config], {
      args: ["--service_config_path", service],
    });
  let blocks: [number, number][] = [];
  const step = Math.max(BLOCK, Math.floor(setup.size / (rounds + 2)));
  for (let round = 0; round < rounds; round++) {
    setup.server.requests.length = 0;
    await using server = await start();
    await until(
      () =>
        existsSync(setup.temp) &&
        (Deno.statSync(setup.temp).blocks ?? 0) * 512 >=
          blocks.length * BLOCK + step,
      "more has come",
    );
    await server.stop("SIGKILL");
    refuseAgain(setup.server.requests, blocks, setup.size);
    const now = writtenBlocks(setup.temp, setup.size);
    assert(now.length >= blocks.length);
    blocks = now;
  }
  setup.server.requests.length = 0;
  await using server = await start();
  await until(() => existsSync(setup.commit), "the layer is there");
  assert.equal(`sha256:${sha256File(setup.commit)}`, setup.lower.digest);
  refuseAgain(setup.server.requests, blocks, setup.size);
  await mustRun("nbdcopy", [server.uri, setup.dir.file("copy")]);
  assert.deepEqual(Deno.readFileSync(setup.dir.file("copy")), CONTENT);
}
