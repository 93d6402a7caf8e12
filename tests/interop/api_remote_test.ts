// SPDX-License-Identifier: Apache-2.0
// What the API and the metrics say of layers that come from a registry.
import { deepStrictEqual as equal, match, ok } from "node:assert/strict";
import { connectNbd } from "../lib/nbd.ts";
import {
  have,
  mustRun,
  mustTool,
  run,
  sha256File,
  tempDir,
} from "../lib/env.ts";
import { ask } from "../lib/http.ts";
import { makeLayer, serveBlob, SIZE } from "../lib/remote.ts";
import { startServer } from "../lib/server.ts";

Deno.test("a remote layer: its cache, its download, its figures, a snapshot", async () => {
  using dir = tempDir();
  const layer = await makeLayer(dir, { zfile: true, tar: false });
  await using blob = serveBlob(layer.path);
  const digest = `sha256:${sha256File(layer.path)}`;
  for (const name of ["a", "b"]) {
    await mustTool("overlaybd", [
      "create",
      dir.file(`${name}.d`),
      dir.file(`${name}.i`),
      "0",
    ]);
  }
  const upper = (name: string) => ({
    data: dir.file(`${name}.d`),
    index: dir.file(`${name}.i`),
  });
  const image = (name: string, more: Record<string, unknown>) => {
    const path = dir.file(`${name}.json`);
    Deno.writeTextFileSync(path, JSON.stringify(more));
    return path;
  };
  Deno.mkdirSync(dir.file("layer0"));
  const lower = { digest, size: Deno.statSync(layer.path).size };
  const config = image("image", {
    repoBlobUrl: blob.url,
    lowers: [{ ...lower, dir: dir.file("layer0") }],
    upper: upper("a"),
    download: { enable: true, delay: 600 },
  });
  const service = image("overlaybd", {
    cacheConfig: { cacheType: "file", cacheDir: dir.file("cache") },
    exporterConfig: { enable: true, port: 0 },
  });
  await using server = await startServer(dir.file("nbd"), [`${config};r`], {
    args: [
      ...["--listen", dir.file("api"), "--service_config_path", service],
      "--verbose",
    ],
  });
  const get = async (path: string) => (await ask(server.api, "GET", path)).text;
  const post = (path: string, body: unknown) =>
    ask(server.api, "POST", path, { body });

  using client = await connectNbd(dir.file("nbd"), "r");
  // Opening has fetched both ends.
  blob.state.damage = 1;
  const half = SIZE / 2;
  for (const n of [65536, 4096]) {
    equal(await client.read(half, n), layer.content.slice(half, half + n));
  }

  match(
    await get("/v1/images"),
    new RegExp(`"origin":"remote","where":"${blob.url}/${digest}"`),
  );
  match(
    await get("/v1/downloads"),
    /^\{"downloads":\[\{"device":1,"layers":\[\{.*"done":0,"state":"waiting"/,
  );
  equal(await get("/v1/prefetches"), '{"prefetches":[]}');
  match(await get("/v1/cache"), /"blobs":1,"openBlobs":1,/);
  match(
    await get("/v1/cache/blobs"),
    new RegExp(`^\\{"blobs":\\[\\{"name":"${digest}",`),
  );
  const verified = await post("/v1/cache/verify", {});
  equal(
    verified.json,
    { blobs: [{ name: digest, state: "partial" }] },
    verified.text,
  );
  const pruned = await post("/v1/cache/prune", { target: 0 });
  match(pruned.text, /^\{"freed":\d+,"used":\d+\}$/);
  const none = await post("/v1/cache/prune", {
    names: [`sha256:${"0".repeat(64)}`],
  });
  equal([none.status, none.text.includes("the cache has no sha256:0")], [
    422,
    true,
  ]);

  const sockets = await mustRun("ss", ["-Hltnp"]);
  const port = new RegExp(`127\\.0\\.0\\.1:(\\d+) .*pid=${server.pid},`)
    .exec(sockets)?.[1];
  const metrics = await (await fetch(`http://127.0.0.1:${port}/metrics`))
    .text();
  const value = (name: string) => {
    const line = metrics.split("\n").find((one) => one.startsWith(name));
    ok(line !== undefined, `${name}\n${metrics}`);
    return Number(line.split(" ").at(-1));
  };
  ok(value('overlaybd_cache_misses_total{device="r"}') >= 1);
  ok(value('overlaybd_cache_hits_total{device="r"}') >= 1);
  ok(value('overlaybd_fetches_total{status="206"}') >= 1);
  ok(value("overlaybd_fetched_bytes_total") >= 65536 / 2);
  equal(value('overlaybd_device_healed_blocks_total{device="r"}') >= 1, true);
  ok(value('overlaybd_read_seconds_count{device="r",source="fetched"}') >= 1);
  if (have("promtool")) {
    const ours = metrics.slice(metrics.indexOf("# HELP overlaybd_"));
    const checked = await run("promtool", ["check", "metrics"], {
      stdin: new TextEncoder().encode(ours),
    });
    equal([checked.code, checked.stdout, checked.stderr], [0, "", ""]);
  } else console.log("skipping promtool: not installed");

  // Sealed under its name, the old upper is the topmost lower of the next.
  await client.write(0, new Uint8Array(512).fill(9));
  const next = image("next", {
    repoBlobUrl: blob.url,
    lowers: [{ ...lower, dir: dir.file("layer0") }, { file: dir.file("a.d") }],
    upper: upper("b"),
  });
  const taken = await post("/v1/devices/1/snapshot", { config: next });
  equal(taken.status, 200, taken.text);
  match(taken.text, /^\{"pauseUs":[\d.]+,"warnings":\[\]\}$/);
  equal((await client.read(0, 512))[0], 9);
  match(await get("/v1/devices/1"), /"lowers":2,"upper":"log"/);
  const again = await post("/v1/devices/1/snapshot", { config: next });
  equal(again.status, 422, again.text);
  equal(client.size, SIZE);
});

Deno.test("without a cache directory there is none to ask about", async () => {
  using dir = tempDir();
  const service = dir.file("overlaybd.json");
  Deno.writeTextFileSync(
    service,
    JSON.stringify({
      cacheConfig: { cacheType: "file", cacheDir: dir.file("c") },
    }),
  );
  await using server = await startServer(dir.file("nbd"), [], {
    args: ["--listen", dir.file("api"), "--service_config_path", service],
  });
  const answer = await ask(server.api, "GET", "/v1/cache");
  equal(answer.status, 404, answer.text);
  match(answer.text, /there is no directory .*the first remote layer makes it/);
  ok(![...Deno.readDirSync(dir.path)].some(({ name }) => name === "c"));
});
