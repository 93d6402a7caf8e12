// SPDX-License-Identifier: Apache-2.0
/**
 * Commands that take an image configuration, with lowers in a registry: they
 * say what they say of local ones, whoever has the cache.
 *
 * @module
 */
import assert from "node:assert/strict";
import { borrowedBlob } from "../../src/source/cache/lend.ts";
import { SourceError } from "../../src/source/source.ts";
import { noise, startBlobServer } from "../lib/blobs.ts";
import {
  mustTool,
  sha256File,
  tempDir,
  tool,
  toolCommand,
} from "../lib/env.ts";
import { makeOrigin } from "../lib/origin.ts";
import { newUpper, writeConfig } from "../lib/product.ts";
import { makeLayer, SIZE } from "../lib/remote.ts";
import { startServer } from "../lib/server.ts";
import { scatteredUpper } from "../unit/layer_files.ts";

/** A layer in a registry, and the same as a file. */
async function setUp() {
  const dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile: true, tar: true });
  const server = startBlobServer();
  const digest = server.add(path);
  const write = (name: string, value: unknown) => {
    Deno.writeTextFileSync(dir.file(name), JSON.stringify(value));
    return dir.file(name);
  };
  const service = (cacheDir: string, name = "overlaybd.json") =>
    write(name, {
      cacheConfig: { cacheType: "file", cacheDir, refillSize: 65536 },
    });
  const cache = dir.file("cache");
  return {
    dir,
    server,
    digest,
    content,
    path,
    cache,
    write,
    local: writeConfig(dir, { lowers: [path] }, "local.json"),
    remote: write("remote.json", {
      repoBlobUrl: server.url,
      lowers: [{ digest }],
    }),
    using: ["--service_config_path", service(cache)],
    /** the cache cannot be written, whoever asks */
    past: ["--service_config_path", service("/dev/null/cache", "past.json")],
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      dir[Symbol.dispose]();
    },
  };
}

type SetUp = Awaited<ReturnType<typeof setUp>>;

/** Bytes that the registry has been asked for. */
function asked({ server }: SetUp): number {
  return server.requests.reduce((sum, { from, to }) => sum + to - from, 0);
}

function filesOf(dir: string): string[] {
  return [...Deno.readDirSync(dir)].map(({ name }) => name).sort();
}

Deno.test("map of a remote image is that of the local one, and fetches no data", async () => {
  await using to = await setUp();
  const local = await mustTool("overlaybd", ["map", to.local, "--json"]);
  for (const options of [to.using, to.past]) {
    to.server.requests.length = 0;
    const got = await mustTool("overlaybd", [
      "map",
      to.remote,
      "--json",
      ...options,
    ]);
    assert.equal(got, local);
    assert(asked(to) < SIZE / 4, `${asked(to)} bytes`);
  }
});

Deno.test("diff and merge of a remote image, with the cache, past it and while a service has it", async () => {
  await using to = await setUp();
  const raw = to.dir.file("raw");
  const changed = to.content.slice();
  changed[5 << 20] = (changed[5 << 20] ?? 0) ^ 1;
  Deno.writeFileSync(raw, changed);
  const wanted = [{ offset: 5 << 20, length: 512 }];
  const check = async (options: string[], warning: RegExp | undefined) => {
    const same = await tool("overlaybd", [
      "diff",
      to.remote,
      to.local,
      ...options,
    ]);
    assert.equal(same.code, 0, same.stderr);
    const other = await tool("overlaybd", [
      "diff",
      raw,
      to.remote,
      "--json",
      ...options,
    ]);
    assert.equal(other.code, 1, other.stderr);
    assert.deepEqual(JSON.parse(other.stdout).ranges, wanted);
    const flat = to.dir.file("flat");
    const merged = await tool("overlaybd", [
      "merge",
      to.remote,
      flat,
      ...options,
    ]);
    assert.equal(merged.code, 0, merged.stderr);
    const whole = await tool("overlaybd", ["diff", flat, to.local]);
    assert.equal(whole.code, 0, whole.stdout);
    const written = /^.*: .* from .*\n$/m;
    merged.stderr = merged.stderr.replace(written, "");
    for (const { stderr } of [same, other, merged]) {
      if (warning === undefined) assert.equal(stderr, "");
      else assert.match(stderr, warning);
    }
  };
  await check(to.past, /^WARNING cannot use the cache .*reading past it/);
  {
    await using _service = await startServer(to.dir.file("nbd"), [to.remote], {
      args: to.using,
    });
    // It is asked for what it has, and has what was asked for from then on.
    await check(to.using, undefined);
    const before = to.server.requests.length;
    await check(to.using, undefined);
    assert.equal(to.server.requests.length, before);
    // A holder that cannot be asked is read past.
    Deno.removeSync(`${to.cache}.state/socket`);
    await check(to.using, /^WARNING another process uses the cache .*past it/);
  }
  // All of it is here now.
  to.server.intercept = () =>
    Promise.resolve(new Response("no", { status: 500 }));
  await check(to.using, undefined);
});

Deno.test("commands read through the peers that are configured, while these are there", async () => {
  await using to = await setUp();
  const peer = startBlobServer();
  peer.add(to.path);
  const { origin } = new URL(peer.url);
  const options = [
    "--service_config_path",
    to.write("p2p.json", {
      cacheConfig: { cacheType: "file", cacheDir: to.cache },
      p2pConfig: { enable: true, address: `${origin}/accelerator` },
    }),
  ];
  const same = () =>
    tool("overlaybd", ["diff", to.remote, to.local, ...options]);
  const first = await same();
  assert.equal(first.code, 0, first.stderr);
  assert.equal(first.stderr, "");
  assert(peer.requests.length > 0);
  assert(asked(to) < SIZE / 4, "the registry gave the data");
  await peer[Symbol.asyncDispose]();
  const second = await same();
  assert.equal(second.code, 0, second.stderr);
  assert.match(
    second.stderr,
    /^WARNING connect to accelerator failed: .*cache/,
  );
});

Deno.test("a cache's holder that ends amid an answer, or says no, is read past", async () => {
  using dir = tempDir();
  const content = noise(5, 3 << 20);
  let refuses = false;
  const path = dir.file("socket");
  using listener = Deno.listen({ transport: "unix", path });
  (async () => {
    for await (const connection of listener) {
      await connection.read(new Uint8Array(4096));
      const head = refuses
        ? { error: "I will not" }
        : { result: { total: content.length, length: 1 << 20 } };
      await connection.write(
        new TextEncoder().encode(`${JSON.stringify(head)}\n`),
      );
      if (!refuses) await connection.write(content.subarray(0, 1000));
      connection.close();
    }
  })().catch(() => {});
  const origin = makeOrigin(content);
  const lines: string[] = [];
  const url = "https://r.example/v2/a/blobs/sha256:ab";
  const borrowed = () =>
    borrowedBlob(path, url, origin.openBlob(url), (line) => lines.push(line));
  const cut = await borrowed().range(0, 1 << 20);
  await assert.rejects(
    (async () => {
      for (let done = 0; done < cut.length;) {
        done += (await cut.read(new Uint8Array(65536))).length;
      }
    })(),
    (error) => error instanceof SourceError && error.retryable,
  );
  refuses = true;
  const refused = borrowed();
  for (let i = 0; i < 2; i++) {
    const body = await refused.range(5, 10);
    assert.deepEqual(
      await body.read(new Uint8Array(10)),
      content.slice(5, 15),
    );
  }
  assert.equal(lines.length, 1);
  assert.match(lines[0] ?? "", /gives no https.*I will not/);
});

Deno.test("diff of an image with an upper over remote lowers fetches what it shows", async () => {
  await using to = await setUp();
  const upper = await newUpper(to.dir.file("top"), { size: 0 });
  const both = to.write("both.json", {
    repoBlobUrl: to.server.url,
    lowers: [{ digest: to.digest }],
    upper,
  });
  const ended = await tool("overlaybd", ["diff", both, to.local, ...to.past]);
  assert.equal(ended.code, 0, ended.stdout + ended.stderr);
});

Deno.test("check of a remote image: sound, not what its digest says, and not there", async () => {
  await using to = await setUp();
  for (const options of [to.past, to.using]) {
    const sound = await tool("overlaybd", [
      "check",
      to.remote,
      "--json",
      ...options,
    ]);
    assert.equal(sound.code, 0, sound.stdout + sound.stderr);
    assert.equal(JSON.parse(sound.stdout).sound, true);
    // A layer that opens, and is another one.
    const digest = `sha256:${"5".repeat(64)}`;
    to.server.add(to.path, digest);
    const wrong = to.write("wrong.json", {
      repoBlobUrl: to.server.url,
      lowers: [{ digest }],
    });
    const found = await tool("overlaybd", [
      "check",
      wrong,
      "--json",
      ...options,
    ]);
    assert.equal(found.code, 2, found.stdout + found.stderr);
    const [finding] = JSON.parse(found.stdout).findings;
    assert.equal(finding.code, "digest");
    assert.match(finding.text, new RegExp(`what came is ${to.digest}`));
    const missing = to.write("missing.json", {
      repoBlobUrl: to.server.url,
      lowers: [{ digest: `sha256:${"6".repeat(64)}` }],
    });
    const none = await tool("overlaybd", ["check", missing, ...options]);
    assert.equal(none.code, 2);
    assert.match(none.stdout, /^error: lowers\[0\]: .*404/m);
  }
});

Deno.test("check names damage inside a remote layer by its digest", async () => {
  await using to = await setUp();
  const bytes = Deno.readFileSync(to.path);
  bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1;
  Deno.writeFileSync(to.dir.file("bad"), bytes);
  const digest = to.server.add(to.dir.file("bad"));
  const bad = to.write("bad.json", {
    repoBlobUrl: to.server.url,
    lowers: [{ digest }],
  });
  for (const options of [to.past, to.using]) {
    const found = await tool("overlaybd", ["check", bad, ...options]);
    assert.equal(found.code, 2, found.stderr);
    assert.match(
      found.stdout,
      new RegExp(`^error: lowers\\[0\\]: ${digest}, byte \\d+: block`, "m"),
    );
    assert.doesNotMatch(found.stdout, /\/proc\//);
  }
});

Deno.test("resize asks the registry only where the size is the lowers'", async () => {
  await using to = await setUp();
  for (const size of [0, SIZE]) {
    const upper = await newUpper(to.dir.file(`up${size}`), { size });
    const image = to.write("image.json", {
      repoBlobUrl: to.server.url,
      lowers: [{ digest: to.digest }],
      upper,
    });
    to.server.requests.length = 0;
    const said = await mustTool("overlaybd", [
      "resize",
      "--config",
      image,
      "--size",
      "1",
      ...to.using,
    ]);
    assert.equal(said, `the disk grew from ${SIZE} bytes to 1 GiB\n`);
    assert.equal(to.server.requests.length > 0, size === 0);
  }
});

Deno.test("commit --fill from a remote image is that from the local one, and fetches only what it needs", async () => {
  await using to = await setUp();
  const many = scatteredUpper(to.dir, 1_000_200, 3);
  const commit = async (name: string, config: string, options: string[]) => {
    const output = to.dir.file(name);
    await mustTool("overlaybd", [
      "commit",
      many.data,
      many.index,
      output,
      "--fill",
      config,
      ...options,
    ]);
    const digest = sha256File(output);
    Deno.removeSync(output);
    return digest;
  };
  const wanted = await commit("a", to.local, []);
  assert.equal(await commit("b", to.remote, to.past), wanted);
  // A layer without too many records needs no data of others.
  to.server.requests.length = 0;
  const few = await newUpper(to.dir.file("few"), { size: SIZE });
  await mustTool("overlaybd", [
    "commit",
    few.data,
    few.index,
    to.dir.file("d"),
    "--fill",
    to.remote,
    ...to.past,
  ]);
  assert(asked(to) < SIZE / 4, `${asked(to)} bytes`);
});

for (
  const [name, args] of [
    ["diff", ["REMOTE", "LOCAL"]],
    ["check", ["REMOTE"]],
    ["merge", ["REMOTE", "OUTPUT"]],
  ] as const
) {
  Deno.test(`${name}: SIGINT ends a fetch that the registry does not answer`, async () => {
    await using to = await setUp();
    const asked = Promise.withResolvers<void>();
    const end = new AbortController();
    to.server.intercept = ({ from }) => {
      // Head and tail open the layer.
      if (from === 0 || from > SIZE - (1 << 20)) {
        return Promise.resolve(undefined);
      }
      asked.resolve();
      return new Promise((done) => {
        end.signal.addEventListener(
          "abort",
          () => done(new Response("no", { status: 500 })),
        );
      });
    };
    const output = to.dir.file("output");
    const call = toolCommand("overlaybd", [
      name,
      ...args.map((arg) =>
        arg === "REMOTE" ? to.remote : arg === "LOCAL" ? to.local : output
      ),
      ...to.using,
    ]);
    const before = filesOf(to.dir.path);
    const child = new Deno.Command(call.command, {
      args: call.args,
      env: call.env,
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    await asked.promise;
    child.kill("SIGINT");
    const { code, stderr } = await child.output();
    end.abort();
    assert.equal(code, 130);
    assert.match(new TextDecoder().decode(stderr), /interrupted by SIGINT/);
    const left = filesOf(to.dir.path).filter((name) =>
      !name.startsWith("cache")
    );
    assert.deepEqual(left, before);
  });
}
