// SPDX-License-Identifier: Apache-2.0
/**
 * What the result file says when a layer cannot be opened, for every way in
 * which a registry fails (spec/image.md, section 4; spec/registry.md,
 * sections 5 and 11); and layers read right through a registry that fails at
 * random.
 *
 * @module
 */
import assert from "node:assert/strict";
import { parseImageConfig } from "../../src/image/config.ts";
import { ImageError } from "../../src/image/error.ts";
import { openImage } from "../../src/image/image.ts";
import {
  createRegistryClient,
  type RegistryOptions,
} from "../../src/source/registry/client.ts";
import { createSources } from "../../src/source/sources.ts";
import { SourceError } from "../../src/source/source.ts";
import { have, tempDir } from "../lib/env.ts";
import { haveRegistry, makeAuthority, startNginx } from "../lib/daemons.ts";
import {
  answerRange,
  answerStatus,
  type Asked,
  blobBytes,
  startFake,
} from "../lib/fake_registry.ts";
import { PATH, read } from "../lib/registry_client.ts";
import { generator } from "../lib/random.ts";

const BLOB = blobBytes(300_000);

/** The result file's text of an image whose only layer is at this URL. */
async function resultOf(
  repoBlobUrl: string,
  options: RegistryOptions = {},
): Promise<string> {
  using dir = tempDir();
  using client = createRegistryClient({ attemptMs: 1500, ...options });
  await using sources = createSources({
    openBlob: client.openBlob,
    cacheDir: dir.file("cache"),
    refillSize: 65536,
    log: () => {},
  });
  const config = parseImageConfig({
    repoBlobUrl,
    lowers: [{ digest: "sha256:00" }],
  }, "test");
  const error: unknown = await openImage(config, { sources }).then(
    () => assert.fail("it opened"),
    (error) => error,
  );
  assert(error instanceof ImageError, String(error));
  const [before, text] = error.resultText.split(`/${repoBlobUrl}/sha256:00: `);
  assert.equal(before, "failed to open remote file as tar file ");
  return text ?? "";
}

const challenge = (asked: Asked, value: string) =>
  answerStatus(asked, 401, {
    "www-authenticate": value.replace("HERE", `http://${asked.headers.host}`),
  });

/** Answers the first request only. */
const failsOnce = () => {
  let asked = 0;
  return (it: Asked) => asked++ === 0 ? answerStatus(it, 500) : undefined;
};

const range = (response: Asked["response"], text: string, n: number) => {
  response.writeHead(206, { "content-range": text });
  response.end(BLOB.subarray(0, n));
};

for (
  const [what, answer, text] of [
    [
      "401",
      (asked: Asked) => answerStatus(asked, 401),
      "Authentication failed",
    ],
    [
      "403",
      (asked: Asked) => answerStatus(asked, 403),
      "Authentication failed",
    ],
    [
      "Basic and no credentials",
      (asked: Asked) => challenge(asked, "Basic realm=x"),
      "Authentication failed",
    ],
    [
      "a challenge of no known scheme",
      (asked: Asked) => challenge(asked, "Negotiate"),
      "Authentication failed",
    ],
    [
      "a challenge that is none",
      (asked: Asked) => challenge(asked, '="'),
      "Authentication failed",
    ],
    [
      "a token server's 401",
      (asked: Asked) =>
        asked.url === "/t"
          ? answerStatus(asked, 401)
          : challenge(asked, 'Bearer realm="HERE/t"'),
      "Authentication failed",
    ],
    [
      "a token server's 500",
      (asked: Asked) =>
        asked.url === "/t"
          ? answerStatus(asked, 500)
          : challenge(asked, 'Bearer realm="HERE/t"'),
      "Unexpected response",
    ],
    [
      "a token server that hangs",
      (asked: Asked) =>
        asked.url === "/t"
          ? undefined
          : challenge(asked, 'Bearer realm="HERE/t"'),
      "Get meta timedout",
    ],
    [
      "404",
      (asked: Asked) => answerStatus(asked, 404),
      "No such file or directory",
    ],
    ["429", (asked: Asked) => answerStatus(asked, 429), "Too many requests"],
    ["500", (asked: Asked) => answerStatus(asked, 500), "Unexpected response"],
    ["503", (asked: Asked) => answerStatus(asked, 503), "Unexpected response"],
    ["418", (asked: Asked) => answerStatus(asked, 418), "Unexpected response"],
    ["no answer", () => {}, "Get meta timedout"],
    [
      "an answer that never ends",
      ({ response, range: [a, b] = [0, 0] }: Asked) => {
        response.writeHead(206, { "content-range": `bytes ${a}-${b}/300000` });
        response.write("x");
      },
      "Get meta timedout",
    ],
    [
      "a connection that is cut",
      ({ response }: Asked) => response.destroy(),
      "Connection failed",
    ],
    ["a body that is cut", ({ response }: Asked) => {
      response.writeHead(206, {
        "content-range": "bytes 0-65535/300000",
        "content-length": 65536,
      });
      response.write("x");
      setTimeout(() => response.destroy(), 5);
    }, "Unexpected response"],
    [
      "a wrong range",
      ({ response }: Asked) => range(response, "bytes 5-9/300000", 5),
      "Unexpected response",
    ],
    [
      "no range",
      ({ response }: Asked) => range(response, "", 5),
      "Unexpected response",
    ],
    ["gzip", ({ response }: Asked) => {
      response.writeHead(206, {
        "content-range": "bytes 0-4/300000",
        "content-encoding": "gzip",
      });
      response.end(BLOB.subarray(0, 5));
    }, "Unexpected response"],
    ["a body that is shorter than it says", ({ response }: Asked) => {
      response.writeHead(206, {
        "content-range": "bytes 0-65535/300000",
        "content-length": 5,
      });
      response.end(BLOB.subarray(0, 5));
    }, "Unexpected response"],
    ["400", (asked: Asked) => answerStatus(asked, 400), "Unexpected response"],
    [
      "a token server's 429",
      (asked: Asked) =>
        asked.url === "/t"
          ? answerStatus(asked, 429)
          : challenge(asked, 'Bearer realm="HERE/t"'),
      "Too many requests",
    ],
    [
      "a token server that answers with no token",
      (asked: Asked) =>
        asked.url === "/t"
          ? asked.response.end("{}")
          : challenge(asked, 'Bearer realm="HERE/t"'),
      "Unexpected response",
    ],
    [
      "a redirect loop",
      (asked: Asked) => answerStatus(asked, 307, { location: asked.url }),
      "Unexpected response",
    ],
    [
      "500, then no answer",
      failsOnce(),
      "Unexpected response",
    ],
    [
      "a redirect to nowhere",
      (asked: Asked) =>
        answerStatus(asked, 307, { location: "http://127.0.0.1:1/" }),
      "Connection failed",
    ],
  ] as const
) {
  Deno.test(`result file: ${what}: ${text}`, async () => {
    await using server = await startFake(answer);
    assert.equal(await resultOf(`${server.origin}/v2/a/b/blobs`), text);
  });
}

Deno.test("result file: nobody listens, or there is no such host: Connection failed", async () => {
  assert.equal(
    await resultOf("http://127.0.0.1:1/v2/a/blobs"),
    "Connection failed",
  );
  assert.equal(
    await resultOf("http://no.invalid/v2/a/blobs"),
    "Connection failed",
  );
});

Deno.test({
  name: "result file: a certificate that is not trusted: Connection failed",
  ignore: !haveRegistry || !have("openssl"),
  async fn() {
    using dir = tempDir();
    const { cert, key } = await makeAuthority(dir, "self");
    await using nginx = await startNginx(
      dir,
      `server {
        listen 127.0.0.1:$PORT ssl;
        ssl_certificate ${cert}; ssl_certificate_key ${key};
      }`,
    );
    const url = `https://127.0.0.1:${nginx.port}/v2/a/blobs`;
    assert.equal(await resultOf(url), "Connection failed");
    const insecure = [`127.0.0.1:${nginx.port}`];
    assert.equal(
      await resultOf(url, { insecure }),
      "No such file or directory",
    );
  },
});

Deno.test("registry: whatever it does at random, a read has the right bytes or fails", async () => {
  const random = generator(7);
  const below = (n: number) => Math.floor(random() * n);
  await using server = await startFake((asked) => {
    const { response, range: [a, b] = [0, 0] } = asked;
    const length = b - a + 1;
    const head = {
      "content-range": `bytes ${a}-${b}/${BLOB.length}`,
      "content-length": length,
    };
    const body = BLOB.subarray(a, b + 1);
    const tricks = [
      () => answerStatus(asked, 500),
      () => answerStatus(asked, 503),
      () => response.destroy(),
      () => {
        response.writeHead(206, head);
        response.write(body.subarray(0, below(length)));
        setTimeout(() => response.destroy(), 2);
      },
      () => {
        response.writeHead(206, { ...head, "content-length": length - 1 });
        response.end(body.subarray(0, length - 1));
      },
      () => {
        response.writeHead(200, { "content-length": BLOB.length });
        response.end(BLOB);
      },
      () => {
        response.writeHead(206, {
          ...head,
          "content-range": `bytes ${a + 1}-${b + 1}/${BLOB.length}`,
        });
        response.end(BLOB.subarray(a + 1, b + 2));
      },
    ];
    if (below(2) === 0) return answerRange(asked, BLOB);
    return tricks[below(tricks.length)]?.();
  });
  using client = createRegistryClient({ attemptMs: 3000, maxPerHost: 16 });
  const blob = client.openBlob(server.origin + PATH);
  let good = 0;
  let bad = 0;
  await Promise.all(Array.from({ length: 150 }, async () => {
    const at = below(BLOB.length - 20_000);
    const n = 1 + below(10_000);
    try {
      assert.deepEqual(await read(blob, at, n), BLOB.slice(at, at + n));
      good++;
    } catch (error) {
      assert(error instanceof SourceError, String(error));
      bad++;
    }
  }));
  assert(good > 30 && bad > 5, `${good} good, ${bad} failed`);
});
