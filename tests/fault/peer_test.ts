// SPDX-License-Identifier: Apache-2.0
/**
 * A p2p proxy in front of a registry, and what comes of it when it fails
 * (spec/registry.md, sections 7 and 11.8; spec/service-config.md, section 6).
 *
 * @module
 */
import assert from "node:assert/strict";
import { readDevice } from "../../ffi/device.ts";
import { openAudit } from "../../src/service/audit.ts";
import { parseServiceConfig } from "../../src/service/config.ts";
import { createLog } from "../../src/service/log.ts";
import { createService, type ServedImage } from "../../src/service/service.ts";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import {
  connectPeer,
  parsePeerAddress,
} from "../../src/source/registry/peer.ts";
import {
  answerRange,
  answerStatus,
  type Asked,
  type FakeRegistry,
  startFake,
} from "../lib/fake_registry.ts";
import { mustTool, sha256, tempDir } from "../lib/env.ts";
import { newUpper } from "../lib/product.ts";
import { makeLayer } from "../lib/remote.ts";
import { asyncDir, BASIC, BLOB, PATH, read } from "../lib/registry_client.ts";

/** A proxy that fetches what its path names. */
function startPeer(
  spoil: (asked: Asked) => boolean = () => false,
  hostname?: string,
): Promise<FakeRegistry> {
  return startFake(async (asked) => {
    if (spoil(asked)) return;
    const { url, headers, response } = asked;
    const answer = await fetch(url.replace("/accelerator/", ""), {
      headers: {
        range: headers.range ?? "",
        ...(headers.authorization === undefined
          ? {}
          : { authorization: headers.authorization }),
      },
    });
    response.writeHead(answer.status, Object.fromEntries(answer.headers));
    response.end(new Uint8Array(await answer.arrayBuffer()));
  }, hostname);
}

/** A blob of a registry through a proxy. */
async function openThrough(registry: FakeRegistry, peer: FakeRegistry) {
  const lines: string[] = [];
  const dir = asyncDir();
  const client = createRegistryClient({
    log: (line) => lines.push(line),
    credentials: dir.credentials,
  });
  const by = await connectPeer(`${peer.origin}/accelerator/`);
  return {
    blob: client.openBlob(registry.origin + PATH, by),
    lines,
    async [Symbol.asyncDispose]() {
      client.close();
      await dir[Symbol.asyncDispose]();
    },
  };
}

Deno.test("p2p: data comes through the proxy, the registry is asked once", async () => {
  await using registry = await startFake((asked) =>
    asked.headers.authorization === BASIC
      ? answerRange(asked, BLOB)
      : answerStatus(asked, 401, { "www-authenticate": "Basic realm=x" })
  );
  await using peer = await startPeer();
  await using through = await openThrough(registry, peer);
  for (const at of [0, 1000, 200_000]) {
    assert.deepEqual(
      await read(through.blob, at, 500),
      BLOB.slice(at, at + 500),
    );
  }
  assert.equal(peer.asked.length, 3);
  for (const { url, headers } of peer.asked) {
    assert.equal(url, `/accelerator/${registry.origin}${PATH}`);
    // It is the user's own, and asks in the user's name.
    assert.equal(headers.authorization, BASIC);
  }
  // Each of the three comes from there, too; by itself it was asked for one.
  const resolving = registry.asked.filter(({ range }) => range?.[1] === 0);
  assert.equal(resolving.length, 2);
  assert.deepEqual(through.lines, []);
});

Deno.test("p2p: where the registry redirects to, without Authorization", async () => {
  await using store = await startFake((asked) => answerRange(asked, BLOB));
  await using registry = await startFake((asked) =>
    asked.headers.authorization === BASIC
      ? answerStatus(asked, 307, { location: `${store.origin}/data?sig=1&x=2` })
      : answerStatus(asked, 401, { "www-authenticate": "Basic realm=x" })
  );
  await using peer = await startPeer();
  await using through = await openThrough(registry, peer);
  assert.deepEqual(await read(through.blob, 7, 10), BLOB.slice(7, 17));
  assert.deepEqual(await read(through.blob, 70, 10), BLOB.slice(70, 80));
  assert.deepEqual(
    peer.asked.map(({ url, headers }) => [url, headers.authorization]),
    Array(2).fill([
      `/accelerator/${store.origin}/data?sig=1&x=2`,
      undefined,
    ]),
  );
});

for (
  const [what, spoil] of [
    ["404", (asked: Asked) => (answerStatus(asked, 404), true)],
    ["500", (asked: Asked) => (answerStatus(asked, 500), true)],
    ["no answer", ({ response }: Asked) => (response.destroy(), true)],
    ["a whole body", ({ response }: Asked) => {
      response.writeHead(200, { "content-length": BLOB.length });
      response.end(BLOB);
      return true;
    }],
    ["other bytes", ({ response }: Asked) => {
      response.writeHead(206, { "content-range": `bytes 0-9/${BLOB.length}` });
      response.end(BLOB.subarray(0, 10));
      return true;
    }],
  ] as const
) {
  Deno.test(`p2p: ${what} from the proxy: the registry gives the bytes, told once`, async () => {
    await using registry = await startFake((asked) => answerRange(asked, BLOB));
    await using peer = await startPeer(spoil);
    await using through = await openThrough(registry, peer);
    for (const at of [10, 1000, 2000]) {
      assert.deepEqual(
        await read(through.blob, at, 10),
        BLOB.slice(at, at + 10),
      );
    }
    assert.equal(peer.asked.length, 1);
    assert.equal(through.lines.length, 1);
    assert.match(
      through.lines[0] ?? "",
      /^WARNING the p2p proxy http:.*\/accelerator fails, asking the registry/,
    );
  });
}

Deno.test("p2p: a proxy that dies in the middle: the rest comes from the registry", async () => {
  await using registry = await startFake((asked) => answerRange(asked, BLOB));
  await using peer = await startPeer(({ response, range }) => {
    const [a, b] = range ?? [0, 0];
    response.writeHead(206, {
      "content-range": `bytes ${a}-${b}/${BLOB.length}`,
      "content-length": b - a + 1,
    });
    response.write(BLOB.subarray(a, a + 100_000));
    setTimeout(() => response.destroy(), 30);
    return true;
  });
  await using through = await openThrough(registry, peer);
  assert.deepEqual(
    await read(through.blob, 1, 250_000),
    BLOB.slice(1, 250_001),
  );
  assert.equal(peer.asked.length, 1);
  const last = registry.asked.at(-1)?.range ?? [0, 0];
  assert(last[0] > 1 && last[1] === 250_000, String(last));
  assert.equal(through.lines.length, 1);
});

for (
  const [text, url] of [
    ["http://localhost:9731/accelerator", "http://localhost:9731/accelerator"],
    ["localhost:19145/dadip2p", "http://localhost:19145/dadip2p"],
    ["https://peer/", "https://peer/"],
    ["[::1]:80/x/", "http://[::1]/x/"],
    ["peer", "http://peer/"],
  ] as const
) {
  Deno.test(`p2p: the address ${text}`, () => {
    assert.equal(parsePeerAddress(text).href, url);
  });
}

for (const text of ["", "ftp://x", "http://", "a b"]) {
  Deno.test(`p2p: "${text}" is no address`, () => {
    assert.throws(() => parsePeerAddress(text), TypeError);
  });
}

Deno.test("p2p: the probe: hosts by name, IPv6, nobody there", async () => {
  await using v6 = await startPeer(undefined, "::1");
  assert.equal(
    (await connectPeer(`${v6.origin.slice("http://".length)}/x/`)).address,
    `${v6.origin}/x`,
  );
  await using v4 = await startPeer();
  const port = new URL(v4.origin).port;
  await connectPeer(`localhost:${port}/x`);
  await assert.rejects(connectPeer("http://127.0.0.1:1/x"), /refused/);
});

/** A service whose images are one layer in a registry, by p2p at first. */
async function serveByPeer(peer: FakeRegistry) {
  const dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile: true, tar: false });
  const bytes = Deno.readFileSync(path);
  const registry = await startFake((asked) => answerRange(asked, bytes));
  const config = dir.file("config.v1.json");
  Deno.writeTextFileSync(
    config,
    JSON.stringify({
      repoBlobUrl: `${registry.origin}/v2/a/b/blobs`,
      lowers: [{ digest: `sha256:${sha256(bytes)}` }],
    }),
  );
  const loaded = (enable: boolean) =>
    parseServiceConfig({
      cacheConfig: { cacheType: "file", cacheDir: dir.file("cache") },
      p2pConfig: { enable, address: `${peer.origin}/accelerator` },
      enableAudit: false,
    }, "test");
  const log = createLog({ write() {}, [Symbol.dispose]() {} }, 0);
  const audit = openAudit(loaded(true).config, log);
  const service = createService({ loaded: loaded(true), log, audit });
  return {
    service,
    registry,
    use: (enable: boolean) => service.apply(loaded(enable)),
    open: (devId: string) =>
      service.open({ path: config, transport: "nbd", devId }),
    async check({ image }: ServedImage, at: number) {
      const into = new Uint8Array(4096);
      await readDevice(image.device, into, at);
      assert.deepEqual(into, content.slice(at, at + 4096));
    },
    async [Symbol.asyncDispose]() {
      await service.close();
      await registry[Symbol.asyncDispose]();
      dir[Symbol.dispose]();
    },
  };
}

Deno.test("p2p: switched off and on: running images stay as they were opened", async () => {
  await using peer = await startPeer();
  await using to = await serveByPeer(peer);
  /** Who was asked meanwhile. */
  const asked = async (work: () => Promise<unknown>) => {
    const before = [peer.asked.length, to.registry.asked.length];
    await work();
    const byPeer = peer.asked.length - (before[0] ?? 0);
    const all = to.registry.asked.length - (before[1] ?? 0);
    return { byPeer: byPeer > 0, directly: all > byPeer };
  };
  const byPeer = { byPeer: true, directly: false };
  const directly = { byPeer: false, directly: true };
  const first = await to.open("1");
  to.use(false);
  let second: ServedImage | undefined;
  assert.deepEqual(
    await asked(async () => second = await to.open("2")),
    directly,
  );
  assert(second !== undefined);
  const other = second;
  assert.deepEqual(await asked(() => to.check(first, 2 << 20)), byPeer);
  assert.deepEqual(await asked(() => to.check(other, 2 << 20)), directly);
  to.use(true);
  await to.open("3");
  assert.deepEqual(await asked(() => to.check(first, 5 << 20)), byPeer);
  assert.deepEqual(await asked(() => to.check(other, 5 << 20)), directly);
});

Deno.test("p2p: decided for each image: past the cache through the proxy, else the cache", async () => {
  using dir = tempDir();
  const upper = await newUpper(dir.file("up"), { size: 1 << 20 });
  const layer = dir.file("layer");
  await mustTool("overlaybd-commit", ["-z", upper.data, upper.index, layer]);
  const bytes = Deno.readFileSync(layer);
  await using registry = await startFake((asked) => answerRange(asked, bytes));
  const peer = await startPeer();
  const config = dir.file("config.v1.json");
  Deno.writeTextFileSync(
    config,
    JSON.stringify({
      repoBlobUrl: `${registry.origin}/v2/a/b/blobs`,
      lowers: [{ digest: `sha256:${sha256(bytes)}` }],
    }),
  );
  const lines: string[] = [];
  const loaded = parseServiceConfig({
    cacheConfig: { cacheType: "file", cacheDir: dir.file("cache") },
    p2pConfig: { enable: true, address: `${peer.origin}/accelerator` },
    enableAudit: false,
  }, "test");
  const write = ({ text }: { text: string }) => lines.push(text);
  const log = createLog({ write, [Symbol.dispose]() {} }, 0);
  const audit = openAudit(loaded.config, log);
  const service = createService({ loaded, log, audit });
  const request = { path: config, transport: "nbd" } as const;
  const first = await service.open({ ...request, devId: "1" });
  assert(peer.asked.length > 0);
  assert.throws(() => Deno.statSync(dir.file("cache")), Deno.errors.NotFound);
  const before = peer.asked.length;
  await peer[Symbol.asyncDispose]();
  const second = await service.open({ ...request, devId: "2" });
  assert.equal(peer.asked.length, before);
  assert.equal([...Deno.readDirSync(dir.file("cache"))].length > 0, true);
  assert.match(lines.join(), /use p2p proxy for acceleration, proxy: http/);
  assert.match(lines.join(), /connect to accelerator failed: http.*use cache/);
  await first.close();
  await second.close();
  await service.close();
});
