// SPDX-License-Identifier: Apache-2.0
/**
 * Remote lowers through `serve`'s own pieces, against a server of ranges
 * (spec/cache.md, section 6; spec/image.md, section 9).
 *
 * @module
 */
import assert from "node:assert/strict";
import { faultIo, IO, readDevice } from "../../ffi/engine.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { ImageError, openImage } from "../../src/image/image.ts";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import { createSources } from "../../src/source/sources.ts";
import {
  mustRun,
  mustTool,
  sha256File,
  type TempDir,
  tempDir,
} from "../lib/env.ts";
import { newUpper, openDisk } from "../lib/product.ts";
import { startServer } from "../lib/server.ts";

const SIZE = 8 << 20;

/** Serves one file by range, as told. */
function serveBlob(path: string) {
  const bytes = Deno.readFileSync(path);
  const state = { requests: 0, status: 206, damage: 0 };
  const server = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen: () => {} },
    (request) => {
      state.requests++;
      if (state.status !== 206) {
        return new Response("no", { status: state.status });
      }
      const [, a, b] =
        /bytes=(\d+)-(\d+)/.exec(request.headers.get("range") ?? "") ?? [];
      const from = Number(a);
      const to = Math.min(Number(b), bytes.length - 1);
      const body = bytes.slice(from, to + 1);
      if (state.damage > 0 && body.length > 1) {
        state.damage--;
        body.fill(0xaa);
      }
      return new Response(body, {
        status: 206,
        headers: { "content-range": `bytes ${from}-${to}/${bytes.length}` },
      });
    },
  );
  return {
    state,
    url: `http://127.0.0.1:${server.addr.port}/v2/a/b/blobs`,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

/** A committed layer with pseudo-random data, and what its disk holds. */
async function makeLayer(
  dir: TempDir,
  options: { zfile: boolean; tar: boolean },
): Promise<{ path: string; content: Uint8Array }> {
  const upper = await newUpper(dir.file("up"), { size: SIZE });
  const content = new Uint8Array(SIZE);
  let x = 1;
  for (let i = 0; i < SIZE; i += 1) {
    x = (x * 1103515245 + 12345) & 0x7fffffff;
    content[i] = x >> 16;
  }
  {
    await using disk = await openDisk({ lowers: [], upper });
    for (let at = 0; at < SIZE; at += 1 << 20) {
      disk.write(at, content.slice(at, at + (1 << 20)));
    }
  }
  const path = dir.file("layer");
  await mustTool("overlaybd-commit", [
    ...(options.zfile ? ["-z"] : []),
    ...(options.tar ? ["-t"] : []),
    upper.data,
    upper.index,
    path,
  ]);
  return { path, content };
}

async function withImage(
  dir: TempDir,
  url: string,
  layer: string,
  work: (
    read: (at: number, n: number) => Promise<Uint8Array>,
  ) => Promise<void>,
  log: (line: string) => void = () => {},
): Promise<void> {
  using client = createRegistryClient();
  await using sources = createSources({
    openBlob: client.openBlob,
    cacheDir: dir.file("cache"),
    refillSize: 65536,
    log,
  });
  const config = parseImageConfig({
    repoBlobUrl: url,
    lowers: [{ digest: `sha256:${sha256File(layer)}` }],
  }, "test");
  await using image = await openImage(config, { sources, deadlineMs: 20_000 });
  await work(async (at, n) => {
    const into = new Uint8Array(n);
    await readDevice(image.device, into, at);
    return into;
  });
}

for (const zfile of [false, true]) {
  for (const tar of [false, true]) {
    Deno.test(`a remote layer reads right, then offline: zfile ${zfile}, tar ${tar}`, async () => {
      using dir = tempDir();
      const { path, content } = await makeLayer(dir, { zfile, tar });
      await using server = serveBlob(path);
      await withImage(dir, server.url, path, async (read) => {
        assert(server.state.requests <= 4, `${server.state.requests}`);
        const opened = server.state.requests;
        const reads = await Promise.all(
          Array.from({ length: 20 }, () => read(3 << 20, 4096)),
        );
        for (const got of reads) {
          assert.deepEqual(got, content.slice(3 << 20, (3 << 20) + 4096));
        }
        assert(server.state.requests <= opened + 2);
        for (let at = 0; at < SIZE; at += 1 << 20) {
          assert.deepEqual(
            await read(at, 1 << 20),
            content.slice(at, at + (1 << 20)),
          );
        }
      });
      const before = server.state.requests;
      await withImage(dir, server.url, path, async (read) => {
        assert.deepEqual(await read(0, SIZE / 2), content.slice(0, SIZE / 2));
      });
      // A length of whole pages proves no size: one request may ask it.
      assert(server.state.requests <= before + 1);
    });
  }
}

Deno.test("a damaged block of a ZFile is fetched again", async () => {
  using dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile: true, tar: true });
  await using server = serveBlob(path);
  await withImage(dir, server.url, path, async (read) => {
    server.state.damage = 1;
    assert.deepEqual(
      await read(4 << 20, 4096),
      content.slice(4 << 20, (4 << 20) + 4096),
    );
    assert.equal(server.state.damage, 0);
  });
});

Deno.test("reads wait through an outage", async () => {
  using dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile: true, tar: false });
  await using server = serveBlob(path);
  await withImage(dir, server.url, path, async (read) => {
    server.state.status = 503;
    setTimeout(() => server.state.status = 206, 300);
    assert.deepEqual(
      await read(5 << 20, 4096),
      content.slice(5 << 20, (5 << 20) + 4096),
    );
  });
});

for (
  const [status, text] of [
    [401, "Authentication failed"],
    [403, "Authentication failed"],
    [404, "No such file or directory"],
    [429, "Too many requests"],
    [500, "Unexpected response"],
  ] as const
) {
  Deno.test(`status ${status} of the first layer: ${text}`, async () => {
    using dir = tempDir();
    const { path } = await makeLayer(dir, { zfile: false, tar: false });
    await using server = serveBlob(path);
    server.state.status = status;
    const url = `${server.url}/sha256:${sha256File(path)}`;
    await assert.rejects(
      withImage(dir, server.url, path, () => Promise.resolve()),
      (error: unknown) =>
        error instanceof ImageError &&
        error.resultText ===
          `failed to open remote file as tar file /${url}: ${text}`,
    );
  });
}

Deno.test("a cache that another holds is read past, bytes are right", async () => {
  using dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile: false, tar: false });
  await using server = serveBlob(path);
  const lines: string[] = [];
  await withImage(dir, server.url, path, async () => {
    await withImage(dir, server.url, path, async (read) => {
      assert.deepEqual(await read(0, 1 << 20), content.slice(0, 1 << 20));
    }, (line) => lines.push(line));
  });
  assert.equal(lines.filter((line) => /reading past it/.test(line)).length, 1);
});

Deno.test("a full cache disk: reads go on from the source", async () => {
  using dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile: false, tar: true });
  await using server = serveBlob(path);
  const lines: string[] = [];
  await withImage(dir, server.url, path, async (read) => {
    const ENOSPC = 28;
    faultIo(IO.PWRITE, 1, ENOSPC, 4);
    for (let at = 0; at < SIZE; at += 1 << 20) {
      assert.deepEqual(
        await read(at, 1 << 20),
        content.slice(at, at + (1 << 20)),
      );
    }
  }, (line) => lines.push(line));
  assert.match(lines.join(), /cannot keep .*no space left on device/);
});

Deno.test("serve shows a remote layer over NBD", async () => {
  using dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile: true, tar: true });
  await using blobs = serveBlob(path);
  const config = dir.file("config.v1.json");
  Deno.writeTextFileSync(
    config,
    JSON.stringify({
      repoBlobUrl: blobs.url,
      lowers: [{ digest: `sha256:${sha256File(path)}` }],
      resultFile: dir.file("result"),
    }),
  );
  const service = dir.file("overlaybd.json");
  Deno.writeTextFileSync(
    service,
    JSON.stringify({
      cacheConfig: { cacheType: "file", cacheDir: dir.file("cache") },
    }),
  );
  await using server = await startServer(
    dir.file("nbd"),
    [config],
    { args: ["--service_config_path", service] },
  );
  await mustRun("nbdcopy", [server.uri, dir.file("copy")]);
  assert.deepEqual(Deno.readFileSync(dir.file("copy")), content);
  assert.equal(Deno.readTextFileSync(dir.file("result")), "success");
});
