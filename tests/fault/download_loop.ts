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

/** Bytes that have to come before it is killed. */
const STEP = 500_000;

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
  const checkLayer = () =>
    assert.equal(`sha256:${sha256File(setup.commit)}`, setup.lower.digest);
  let blocks: [number, number][] = [];
  /** What has come, or that it is more than before. */
  const come = () => {
    if (existsSync(setup.commit)) return true;
    if (!existsSync(setup.temp)) return false;
    const written = (Deno.statSync(setup.temp).blocks ?? 0) * 512;
    return written > blocks.length * BLOCK + STEP;
  };
  for (let round = 0; round < rounds; round++) {
    setup.server.requests.length = 0;
    await using server = await start();
    await until(come, "more has come");
    await server.stop("SIGKILL");
    refuseAgain(setup.server.requests, blocks, setup.size);
    if (existsSync(setup.commit)) {
      // From the start again.
      checkLayer();
      Deno.removeSync(setup.commit);
      Deno.removeSync(setup.dir.file("cache"), { recursive: true });
      blocks = [];
      continue;
    }
    const now = await writtenBlocks(setup.temp, setup.size);
    assert(now.length >= blocks.length);
    blocks = now;
  }
  setup.server.requests.length = 0;
  await using server = await start();
  await until(() => existsSync(setup.commit), "the layer is there");
  checkLayer();
  refuseAgain(setup.server.requests, blocks, setup.size);
  await mustRun("nbdcopy", [server.uri, setup.dir.file("copy")]);
  assert.deepEqual(Deno.readFileSync(setup.dir.file("copy")), CONTENT);
}
