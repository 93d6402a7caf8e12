// SPDX-License-Identifier: Apache-2.0
/**
 * What opening an image costs a registry: two requests a layer, one challenge
 * and one token for all of them, one more a layer where it redirects.
 *
 * @module
 */
import assert from "node:assert/strict";
import { parseImageConfig } from "../../src/image/config.ts";
import { openImage } from "../../src/image/image.ts";
import { commitLayer } from "../../src/layer/commit.ts";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import { createSources } from "../../src/source/sources.ts";
import { sha256, tempDir } from "../lib/env.ts";
import {
  haveRegistry,
  makeAuthority,
  startNginx,
  startRegistry,
} from "../lib/daemons.ts";
import { answerRange, startFake } from "../lib/fake_registry.ts";
import { newUpper, openDisk } from "../lib/product.ts";
import { pushBlob } from "../lib/push.ts";
import { startTokenServer } from "../lib/token_server.ts";

const LAYERS = 30;

Deno.test({
  name:
    `open: an image of ${LAYERS} layers costs two requests a layer and one token${
      haveRegistry ? "" : " (no docker-registry)"
    }`,
  ignore: !haveRegistry,
  async fn() {
    using dir = tempDir();
    const signer = await makeAuthority(dir, "signer");
    const about = { issuer: "tests", service: "s" };
    await using tokens = await startTokenServer({
      ...about,
      signer,
      seconds: 300,
    });
    await using registry = await startRegistry(dir, {
      token: { ...about, realm: `${tokens.origin}/token`, certs: signer.cert },
    });
    const log = dir.file("access.log");
    await using nginx = await startNginx(
      dir,
      `log_format short '$request_method $status';
      server {
        listen 127.0.0.1:$PORT; access_log ${log} short;
        location / {
          proxy_pass http://127.0.0.1:${registry.port};
          proxy_set_header Host $http_host;
        }
        location ~ ^/v2/far/(.*)$ {
          return 307 http://127.0.0.2:$PORT/store/$1;
        }
      }
      server {
        listen 127.0.0.2:$PORT; access_log ${log} short;
        location /store/ {
          if ($http_authorization) { return 400; }
          alias ${dir.file("store")}/;
        }
      }`,
    );
    const origin = `http://127.0.0.1:${nginx.port}`;

    // More than head and tail together have.
    const upper = await newUpper(dir.file("up"), { size: 4 << 20 });
    {
      await using disk = await openDisk({ lowers: [], upper });
      for (let at = 0; at < 2 << 20; at += 65536) {
        disk.write(at, crypto.getRandomValues(new Uint8Array(65536)));
      }
    }
    const { token } = await (await fetch(
      `${tokens.origin}/?service=s&scope=repository:near/a:pull,push`,
    )).json();
    Deno.mkdirSync(dir.file("store/a/blobs"), { recursive: true });
    const lowers: { digest: string }[] = [];
    for (let i = 0; i < LAYERS; i++) {
      const uuid = `00000000-0000-0000-0000-${String(i).padStart(12, "0")}`;
      const layer = dir.file("layer");
      await commitLayer({
        ...upper,
        output: layer,
        replace: true,
        uuid,
        zfile: { algorithm: "lz4", blockSize: 4096 },
      });
      const bytes = Deno.readFileSync(layer);
      lowers.push({
        digest: await pushBlob({
          repository: `http://127.0.0.1:${registry.port}/v2/near/a`,
          authorization: `Bearer ${token}`,
        }, bytes),
      });
      Deno.writeFileSync(
        dir.file(`store/a/blobs/sha256:${sha256(bytes)}`),
        bytes,
      );
    }
    assert.equal(new Set(lowers.map(({ digest }) => digest)).size, LAYERS);

    const cost = async (repository: string) => {
      Deno.writeTextFileSync(log, "");
      const before = tokens.asked.length;
      using client = createRegistryClient();
      await using sources = createSources({
        openBlob: client.openBlob,
        cacheDir: dir.file(`cache-${repository}`),
        refillSize: 262144,
        log: () => {},
      });
      const repoBlobUrl = `${origin}/v2/${repository}/a/blobs`;
      const config = parseImageConfig({ repoBlobUrl, lowers }, "test");
      await using _ = await openImage(config, { sources });
      const lines = Deno.readTextFileSync(log).trim().split("\n").toSorted();
      return { lines, tokens: tokens.asked.length - before };
    };

    const near = await cost("near");
    assert.equal(near.tokens, 1);
    assert.deepEqual(near.lines, [
      ...Array(2 * LAYERS).fill("GET 206"),
      "GET 401",
    ]);
    const far = await cost("far");
    assert.equal(far.tokens, 0);
    assert.deepEqual(far.lines, [
      ...Array(2 * LAYERS).fill("GET 206"),
      ...Array(LAYERS).fill("GET 307"),
    ]);
  },
});

Deno.test("open: a layer whose indexes are large costs two requests, too", async () => {
  using dir = tempDir();
  const MAPPED = 320 << 20;
  const upper = await newUpper(dir.file("up"), { size: MAPPED });
  {
    await using disk = await openDisk({ lowers: [], upper });
    // A third of each block is random: so much is left of it.
    const piece = new Uint8Array(1 << 20);
    for (let at = 0; at < MAPPED; at += piece.length) {
      for (let block = 0; block < piece.length; block += 4096) {
        crypto.getRandomValues(piece.subarray(block, block + 1365));
      }
      disk.write(at, piece);
    }
  }
  const layer = dir.file("layer");
  await commitLayer({
    ...upper,
    output: layer,
    zfile: { algorithm: "lz4", blockSize: 4096 },
    threads: 2,
  });
  const bytes = Deno.readFileSync(layer);
  assert(bytes.length > 64 << 20 && bytes.length < 256 << 20);
  await using server = await startFake((asked) => answerRange(asked, bytes));
  using client = createRegistryClient();
  await using sources = createSources({
    openBlob: client.openBlob,
    cacheDir: dir.file("cache"),
    refillSize: 262144,
    log: () => {},
  });
  const config = parseImageConfig({
    repoBlobUrl: `${server.origin}/v2/a/blobs`,
    lowers: [{ digest: "sha256:0" }],
  }, "test");
  await using _ = await openImage(config, { sources });
  assert.equal(server.asked.length, 2);
});
