// SPDX-License-Identifier: Apache-2.0
// Remote layers that are brought by request, and those that must stay.
import { deepStrictEqual as equal, match, ok } from "node:assert/strict";
import { ask } from "../lib/http.ts";
import { sha256File, type TempDir, tempDir, tool } from "../lib/env.ts";
import { connectNbd } from "../lib/nbd.ts";
import { makeLayer, serveBlob, SIZE } from "../lib/remote.ts";
import { startServer } from "../lib/server.ts";

/** A service with an empty cache, and an image of one remote layer. */
async function setUp(dir: TempDir) {
  const layer = await makeLayer(dir, { zfile: false, tar: false });
  const blob = serveBlob(layer.path);
  const digest = `sha256:${sha256File(layer.path)}`;
  const write = (name: string, value: unknown) => {
    Deno.writeTextFileSync(dir.file(name), JSON.stringify(value));
    return dir.file(name);
  };
  const config = write("image.json", {
    repoBlobUrl: blob.url,
    lowers: [{ digest, dir: dir.file("none") }],
  });
  const service = write("overlaybd.json", {
    cacheConfig: { cacheType: "file", cacheDir: dir.file("cache") },
    apiConfig: { address: dir.file("api") },
  });
  const server = await startServer(dir.file("nbd"), [], {
    args: ["--listen", dir.file("api"), "--service_config_path", service],
  });
  const to = (method: string, path: string, body?: unknown) =>
    ask(server.api, method, path, { body });
  const ctl = (...args: string[]) =>
    tool("overlaybd", ["ctl", "--service_config_path", service, ...args], {
      cwd: dir.path,
    });
  return { layer, blob, digest, config, write, server, to, ctl };
}

type Parts = Awaited<ReturnType<typeof setUp>>;

function members(text: string): Record<string, unknown> {
  return JSON.parse(text);
}

async function pullTo(
  { to }: Parts,
  path: string,
  state: string,
): Promise<Record<string, unknown>> {
  for (;;) {
    const pull = members((await to("GET", path)).text);
    if (pull["state"] === state) return pull;
    equal(pull["state"], "running", JSON.stringify(pull));
    await new Promise((done) => setTimeout(done, 20));
  }
}

Deno.test("what was pulled is read without its registry", async () => {
  using dir = tempDir();
  const parts = await setUp(dir);
  const { blob, config, digest, layer, to } = parts;
  await using _blob = blob;
  await using _server = parts.server;
  const begun = await to("POST", "/v1/pulls", { config });
  equal(begun.status, 202, begun.text);
  equal(begun.headers["location"], "/v1/pulls/1");
  const size = Deno.statSync(layer.path).size;
  equal(await pullTo(parts, "/v1/pulls/1", "done"), {
    id: 1,
    config,
    layers: 1,
    bytes: size,
    done: size,
    fetched: size,
    state: "done",
    error: "",
  });
  // Once it is closed, a moment later.
  const here = new RegExp(`"${digest}".*"whole":true,"verified":true,`);
  while (!here.test((await to("GET", "/v1/cache/blobs")).text)) {
    await new Promise((done) => setTimeout(done, 20));
  }
  // Once more: nothing has to be fetched.
  const { requests } = blob.state;
  await to("POST", "/v1/pulls", { config });
  equal((await pullTo(parts, "/v1/pulls/2", "done"))["fetched"], 0);
  equal(blob.state.requests, requests);
  blob.state.status = 503;
  equal((await to("POST", "/v1/devices", { config })).status, 201);
  using client = await connectNbd(dir.file("nbd"), config);
  equal(await client.read(0, SIZE), layer.content);
  equal((await to("DELETE", "/v1/pulls/1")).status, 204);
  equal((await to("GET", "/v1/pulls/1")).status, 404);
  match((await to("GET", "/v1/pulls")).text, /^\{"pulls":\[\{"id":2,/);
});

Deno.test("a pull that cannot be says why; an image without remote layers has nothing to do", async () => {
  using dir = tempDir();
  const parts = await setUp(dir);
  const { blob, config, to, write } = parts;
  await using _blob = blob;
  await using _server = parts.server;
  blob.state.status = 404;
  await to("POST", "/v1/pulls", { config });
  const failed = await pullTo(parts, "/v1/pulls/1", "failed");
  match(String(failed["error"]), /404|not found/i);
  equal(failed["fetched"], null);
  const local = write("local.json", { lowers: [{ file: dir.file("layer") }] });
  await to("POST", "/v1/pulls", { config: local });
  equal((await pullTo(parts, "/v1/pulls/2", "done"))["layers"], 0);
  const nowhere = write("nowhere.json", { lowers: [{ digest: "sha256:0" }] });
  for (const bad of [nowhere, dir.file("none.json"), dir.path]) {
    const answer = await to("POST", "/v1/pulls", { config: bad });
    equal([answer.status, members(answer.text)["code"]], [422, "image"]);
  }
  equal((await to("DELETE", "/v1/pulls/77")).status, 404);
});

Deno.test("a running pull is seen, ended, and no reason to live on", async () => {
  using dir = tempDir();
  const parts = await setUp(dir);
  const { blob, config, to, server } = parts;
  await using _blob = blob;
  const held = Promise.withResolvers<void>();
  blob.state.hold = held.promise;
  try {
    for (let i = 0; i < 16; i++) {
      equal((await to("POST", "/v1/pulls", { config })).status, 202);
    }
    const more = await to("POST", "/v1/pulls", { config });
    equal([more.status, members(more.text)["code"]], [409, "busy"]);
    equal((await to("DELETE", "/v1/pulls/3")).status, 204);
    equal((await to("POST", "/v1/pulls", { config })).status, 202);
    const { text } = await to("GET", "/v1/pulls");
    equal(text.match(/"state":"running"/g)?.length, 16);
    ok(!text.includes('"id":3,'));
    const ended = await server.stop();
    equal(ended.code, 0, ended.stderr);
  } finally {
    held.resolve();
  }
});

Deno.test("what is pinned is not evicted", async () => {
  using dir = tempDir();
  const parts = await setUp(dir);
  const { blob, config, digest, to } = parts;
  await using _blob = blob;
  await using _server = parts.server;
  await to("POST", "/v1/pulls", { config });
  await pullTo(parts, "/v1/pulls/1", "done");
  equal((await to("GET", "/v1/cache/pins")).text, '{"names":[]}');
  const names = { names: [digest] };
  equal((await to("POST", "/v1/cache/pin", names)).json, names);
  equal((await to("GET", "/v1/cache/pins")).json, names);
  match((await to("GET", "/v1/cache")).text, /"pinned":1,/);
  equal(
    members((await to("POST", "/v1/cache/prune", { target: 0 })).text)["freed"],
    0,
  );
  for (const bad of [{}, { names: [] }, { names: ["../x"] }]) {
    equal((await to("POST", "/v1/cache/pin", bad)).status, 400);
  }
  equal((await to("POST", "/v1/cache/unpin", names)).text, '{"names":[]}');
  const pruned = await to("POST", "/v1/cache/prune", { target: 0 });
  ok(Number(members(pruned.text)["freed"]) >= SIZE);
});

Deno.test("the same by ctl", async () => {
  using dir = tempDir();
  const { blob, digest, server, ctl } = await setUp(dir);
  await using _blob = blob;
  await using _server = server;
  const says = async (code: number, out: RegExp, ...args: string[]) => {
    const ended = await ctl(...args);
    equal(ended.code, code, ended.stderr);
    match(code === 0 ? ended.stdout : ended.stderr, out);
  };
  await says(0, /^image\.json: 8\.\d+ MiB fetched$/m, "pull", "image.json");
  await says(0, /^2$/m, "pull", "--no-wait", "image.json");
  await says(0, /^1 +done +8\.\d+ MiB +8\.\d+ MiB +\/.*image\.json/m, "pulls");
  await says(0, /^pull 1 is ended$/m, "cancel", "1");
  await says(255, /^overlaybd ctl: there is no pull 1$/m, "cancel", "1");
  await says(0, new RegExp(`^${digest} .* whole`, "m"), "cache", "ls");
  await says(0, new RegExp(`^${digest}$`, "m"), "cache", "pin", digest);
  await says(0, new RegExp(`^${digest}$`, "m"), "cache", "pins");
  await says(0, new RegExp(`^right +${digest}$`, "m"), "cache", "verify");
  await says(0, /^0 B freed/m, "cache", "prune", "0");
  await says(0, /^$/m, "cache", "unpin", digest);
  await says(0, /^8\.\d+ MiB freed, 0 B used$/m, "cache", "prune", digest);
  await says(106, /^BLOB is required$/m, "cache", "pin");
  await says(105, /^cache: x is none of ls, pins, /m, "cache", "x");
  blob.state.status = 404;
  await says(255, /^overlaybd ctl: .*404|not found/im, "pull", "image.json");
});

Deno.test("an image that waits for its registry does not keep the service from ending", async () => {
  using dir = tempDir();
  const { blob, config, server, to } = await setUp(dir);
  await using _blob = blob;
  const held = Promise.withResolvers<void>();
  blob.state.hold = held.promise;
  try {
    const attached = to("POST", "/v1/devices", { config });
    while (blob.state.requests === 0) {
      await new Promise((done) => setTimeout(done, 10));
    }
    const ended = await server.stop();
    equal(ended.code, 0, ended.stderr);
    match((await attached).text, /"code":"ending"/);
  } finally {
    held.resolve();
  }
});
