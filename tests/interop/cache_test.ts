// SPDX-License-Identifier: Apache-2.0
/**
 * `cache` and `pull`: alone with the cache, and through the process that
 * holds it.
 *
 * @module
 */
import assert from "node:assert/strict";
import { closeFd, O, openFd, pwriteFd } from "../../ffi/files.ts";
import { mustTool, sha256File, tempDir, tool } from "../lib/env.ts";
import { makeLayer, serveBlob } from "../lib/remote.ts";
import { startServer } from "../lib/server.ts";

/** A layer in a registry, and what a user has of it. */
async function setUp() {
  const dir = tempDir();
  const { path } = await makeLayer(dir, { zfile: true, tar: true });
  const server = serveBlob(path);
  const name = `sha256:${sha256File(path)}`;
  const config = dir.file("config.v1.json");
  Deno.writeTextFileSync(
    config,
    JSON.stringify({
      repoBlobUrl: server.url,
      lowers: [{ digest: name }],
    }),
  );
  const service = dir.file("overlaybd.json");
  Deno.writeTextFileSync(
    service,
    JSON.stringify({
      cacheConfig: {
        cacheType: "file",
        cacheDir: dir.file("cache"),
        refillSize: 65536,
      },
      logPath: "",
      auditPath: "",
    }),
  );
  const options = ["--service_config_path", service, "--json"];
  const ask = async (...args: string[]) =>
    JSON.parse(await mustTool("overlaybd", [...args, ...options]));
  return {
    dir,
    server,
    name,
    config,
    service,
    options,
    ask,
    size: Deno.statSync(path).size,
    path,
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      dir[Symbol.dispose]();
    },
  };
}

for (const held of [false, true]) {
  const how = held ? "through a service" : "alone with the cache";
  Deno.test(`pull and cache, ${how}`, async () => {
    await using to = await setUp();
    const { ask, name, size, config } = to;
    await using _service = held
      ? await startServer(to.dir.file("nbd"), [config], {
        args: ["--service_config_path", to.service],
      })
      : undefined;
    const before = to.server.state.requests;
    const [pulled] = await ask("pull", config);
    assert.equal(pulled.size, size);
    assert(pulled.fetched > size / 2 && pulled.fetched <= size);
    const after = to.server.state.requests;
    assert(after > before);
    // What is here is not fetched again.
    const [again] = await ask("pull", config);
    assert.equal(again.fetched, 0);
    assert.equal(to.server.state.requests, after);

    const [entry, ...others] = await ask("cache", "ls");
    assert.equal(others.length, 0);
    assert.equal(entry.name, name);
    assert.equal(entry.size, size);
    assert.equal(entry.whole, true);
    assert.equal(entry.open, held);
    const stat = await ask("cache", "stat");
    assert.equal(stat.blobs, 1);
    assert(stat.used >= size);
    assert.equal(stat.capacity, 4 * 2 ** 30);
    assert.deepEqual(await ask("cache", "verify"), [{ name, state: "right" }]);

    assert.deepEqual(await ask("cache", "pin", name), [name]);
    assert.equal((await ask("cache", "prune", "--to", "0")).freed, 0);
    assert.deepEqual(await ask("cache", "unpin", name), []);
    // Headers and indexes of an open image stay.
    const { used } = await ask("cache", "prune", "--to", "0");
    if (!held) assert.equal(used, 0);
    else assert(used > 0 && used < size);
  });
}

Deno.test("cache verify finds a damaged blob, drops it and exits with 2", async () => {
  await using to = await setUp();
  await to.ask("pull", to.config);
  const fd = openFd(`${to.dir.file("cache")}/${to.name}`, O.RDWR);
  pwriteFd(fd, new Uint8Array([1, 2, 3, 4]), 3 << 20);
  closeFd(fd);
  const { code, stdout } = await tool("overlaybd", [
    "cache",
    "verify",
    ...to.options,
  ]);
  assert.equal(code, 2);
  assert.deepEqual(JSON.parse(stdout), [{ name: to.name, state: "wrong" }]);
  assert.deepEqual(await to.ask("cache", "ls"), []);
});

Deno.test("pull of something else than its digest says is refused, and kept nowhere", async () => {
  await using to = await setUp();
  // Damaged once it is fetched again.
  to.server.state.damage = 1;
  const [pulled] = await to.ask("pull", to.config);
  assert(pulled.fetched > to.size);
  await to.ask("cache", "prune", "--to", "0");
  to.server.state.damage = Infinity;
  const ended = await tool("overlaybd", ["pull", to.config, ...to.options]);
  assert.equal(ended.code, 255);
  assert.match(ended.stderr, /cannot pull .*: what came is sha256:/);
  assert.deepEqual(
    (await to.ask("cache", "ls")).filter(({ whole }: { whole: boolean }) =>
      whole
    ),
    [],
  );
});

for (
  const [args, code, says] of [
    [["cache", "eat"], 105, /eat is none of/],
    [["cache", "pin"], 106, /needs one at least/],
    [["cache", "prune", "--to", "x"], 104, /no size in GiB/],
    [["cache", "pin", "x"], 255, /x is no digest/],
  ] as const
) {
  Deno.test(`overlaybd ${args.join(" ")} is refused`, async () => {
    await using to = await setUp();
    Deno.mkdirSync(to.dir.file("cache"));
    const ended = await tool("overlaybd", [...args, ...to.options]);
    assert.equal(ended.code, code);
    assert.match(ended.stderr, says);
  });
}

Deno.test("cache of a directory that is not there makes none", async () => {
  await using to = await setUp();
  const ended = await tool("overlaybd", ["cache", "ls", ...to.options]);
  assert.equal(ended.code, 255);
  assert.match(
    ended.stderr,
    /there is no directory .*: the first remote layer makes it\n$/,
  );
  assert.throws(() => Deno.statSync(to.dir.file("cache")));
});
