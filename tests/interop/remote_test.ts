// SPDX-License-Identifier: Apache-2.0
/**
 * Remote lowers through `serve`'s own pieces, against a server of ranges
 * (spec/cache.md, section 6; spec/image.md, section 9).
 *
 * @module
 */
import assert from "node:assert/strict";
import { readDevice } from "../../ffi/device.ts";
import { closeFd, faultIo, IO, O, openFd, pwriteFd } from "../../ffi/files.ts";
import type { Bytes } from "../../ffi/handle.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { ImageError } from "../../src/image/error.ts";
import { openImage } from "../../src/image/image.ts";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import { createSources } from "../../src/source/sources.ts";
import {
  mustRun,
  mustTool,
  sha256File,
  type TempDir,
  tempDir,
  tool,
} from "../lib/env.ts";
import { newUpper, openDisk, writeConfig } from "../lib/product.ts";
import { noise } from "../lib/random.ts";
import { makeLayer, serveBlob, SIZE } from "../lib/remote.ts";
import { startServer } from "../lib/server.ts";

async function withImage(
  dir: TempDir,
  url: string,
  layer: string,
  work: (
    read: (at: number, n: number) => Promise<Bytes>,
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
        assert(server.state.requests <= 2, `${server.state.requests}`);
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

for (const tool of ["overlaybd-commit", "overlaybd-merge"] as const) {
  Deno.test(`opening costs two requests: 16,000 scattered records, ${tool}`, async () => {
    using dir = tempDir();
    const upper = await newUpper(dir.file("up"), { size: 192 << 20 });
    {
      await using disk = await openDisk({ lowers: [], upper });
      const text = noise(5, 4096).map((byte) => byte & 3);
      for (let i = 0; i < 16_000; i++) disk.write(i * 12288, text);
    }
    const path = dir.file("layer");
    const committed = tool === "overlaybd-commit" ? path : dir.file("part");
    await mustTool("overlaybd-commit", [
      "-z",
      upper.data,
      upper.index,
      committed,
    ]);
    if (tool === "overlaybd-merge") {
      const config = writeConfig(dir, { lowers: [committed] });
      await mustTool(tool, [config, path]);
    }
    await using server = serveBlob(path);
    await withImage(dir, server.url, path, () => {
      assert(server.state.requests <= 2, `${server.state.requests} requests`);
      assert(server.state.bytes < 1 << 20, `${server.state.bytes} bytes`);
      return Promise.resolve();
    });
  });
}

Deno.test("an image of 30 layers opens with two requests for each", async () => {
  using dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile: true, tar: true });
  await using server = serveBlob(path);
  using client = createRegistryClient();
  await using sources = createSources({
    openBlob: client.openBlob,
    cacheDir: dir.file("cache"),
    refillSize: 262144,
    log: () => {},
  });
  const layers = (first: number, count: number) =>
    parseImageConfig({
      repoBlobUrl: server.url,
      lowers: Array.from({ length: count }, (_, i) => ({
        digest: `sha256:${(first + i).toString(16).padStart(64, "0")}`,
      })),
    }, "test");
  await using image = await openImage(layers(0, 30), { sources });
  assert(server.state.requests <= 60, `${server.state.requests}`);
  const into = new Uint8Array(4096);
  await readDevice(image.device, into, 1 << 20);
  assert.deepEqual(into, content.slice(1 << 20, (1 << 20) + 4096));
  // After the first that cannot be had no other is asked for.
  server.state.requests = 0;
  server.state.status = 404;
  await assert.rejects(
    openImage(layers(1000, 255), { sources }),
    /cannot open lowers\[0\]: .*404/,
  );
  assert(server.state.requests <= 2 * 32, `${server.state.requests}`);
});

for (
  const [what, remote, errno] of [
    ["broken", "good", 0],
    ["broken", "bad", 0],
    ["unreadable", "good", 13],
    ["unreadable", "bad", 13],
  ] as const
) {
  Deno.test(`a local file that is ${what}, its registry ${remote}`, async () => {
    using dir = tempDir();
    const { path, content } = await makeLayer(dir, { zfile: true, tar: true });
    await using server = serveBlob(path);
    if (remote === "bad") server.state.status = 404;
    const layer = dir.file("snapshot");
    Deno.mkdirSync(layer);
    const local = `${layer}/overlaybd.commit`;
    Deno.writeFileSync(local, new Uint8Array(10_000));
    using client = createRegistryClient();
    await using sources = createSources({
      openBlob: client.openBlob,
      cacheDir: dir.file("cache"),
      refillSize: 65536,
      log: () => {},
    });
    const config = parseImageConfig({
      repoBlobUrl: server.url,
      lowers: [{ digest: `sha256:${sha256File(path)}`, dir: layer }],
    }, "test");
    if (errno !== 0) faultIo(IO.OPEN, 1, errno);
    const opening = openImage(config, { sources });
    if (remote === "bad") {
      await assert.rejects(
        opening,
        (error: unknown) =>
          error instanceof ImageError &&
          error.resultText === `failed to open local file ${local}`,
      );
      return;
    }
    await using image = await opening;
    const into = new Uint8Array(4096);
    await readDevice(image.device, into, 1 << 20);
    assert.deepEqual(into, content.slice(1 << 20, (1 << 20) + 4096));
  });
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

for (const where of ["header", "block"] as const) {
  Deno.test(`a damaged ${where} of a ZFile in the cache is fetched again`, async () => {
    using dir = tempDir();
    const { path, content } = await makeLayer(dir, { zfile: true, tar: true });
    await using server = serveBlob(path);
    const readAll = async (read: (at: number, n: number) => Promise<Bytes>) =>
      assert.deepEqual(await read(0, SIZE / 2), content.slice(0, SIZE / 2));
    await withImage(dir, server.url, path, readAll);
    const kept = `${dir.file("cache")}/sha256:${sha256File(path)}`;
    const fd = openFd(kept, O.RDWR);
    pwriteFd(
      fd,
      new Uint8Array(16).fill(0x5a),
      where === "header" ? 1536 : 1 << 20,
    );
    closeFd(fd);
    const before = server.state.requests;
    await withImage(dir, server.url, path, readAll);
    assert(server.state.requests > before);
  });
}

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
    // So often that the second file has none either, for a while.
    faultIo(IO.PWRITE, 1, ENOSPC, 20);
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

Deno.test("merge: remote lowers are fetched to their end, and make one layer", async () => {
  using dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile: true, tar: true });
  await using blobs = serveBlob(path);
  const config = dir.file("config.v1.json");
  Deno.writeTextFileSync(
    config,
    JSON.stringify({
      repoBlobUrl: blobs.url,
      lowers: [{ digest: `sha256:${sha256File(path)}` }],
    }),
  );
  const service = dir.file("overlaybd.json");
  const cacheDir = dir.file("cache");
  Deno.writeTextFileSync(
    service,
    JSON.stringify({ cacheConfig: { cacheType: "file", cacheDir } }),
  );
  const flat = dir.file("flat");
  const args = ["merge", config, flat, "--service_config_path", service];
  const merged = await tool("overlaybd", args);
  assert.equal(merged.code, 0, merged.stderr);
  await using disk = await openDisk({ lowers: [flat] });
  assert.deepEqual(disk.read(0, SIZE), content);

  // What another process holds is read past.
  Deno.removeSync(flat);
  await withImage(dir, blobs.url, path, async () => {
    await mustTool("overlaybd", args);
    await using disk = await openDisk({ lowers: [flat] });
    assert.deepEqual(disk.read(0, SIZE), content);
  });
  blobs.state.status = 404;
  Deno.removeSync(cacheDir, { recursive: true });
  const missing = await tool("overlaybd", args);
  assert.equal(missing.code, 255);
  assert.match(
    missing.stderr,
    /^overlaybd merge: cannot open lowers\[0\]: .*404/m,
  );
});
