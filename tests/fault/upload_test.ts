// SPDX-License-Identifier: Apache-2.0
/**
 * Uploads to a registry that breaks off, forgets and refuses
 * (spec/registry.md, section 10).
 *
 * @module
 */
import assert from "node:assert/strict";
import { closeFd, O, openFd } from "../../ffi/files.ts";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import { uploadBlob } from "../../src/source/registry/upload.ts";
import { type SourceCode, SourceError } from "../../src/source/source.ts";
import { sha256, tempDir } from "../lib/env.ts";
import {
  answerStatus,
  type Asked,
  blobBytes,
  type FakeRegistry,
  startFake,
} from "../lib/fake_registry.ts";

const BLOB = blobBytes(250_000);
const CHUNK = 100_000;
const HOME = "/v2/a/b/blobs/uploads/";

/** An uploading registry; `spoil` answers in its place. */
async function startUploads(spoil: (asked: Asked, n: number) => boolean) {
  let bytes = new Uint8Array(0);
  let id = 0;
  let count = 0;
  const state = { done: undefined as Uint8Array | undefined };
  const keep = (chunk: Uint8Array) => {
    const both = new Uint8Array(bytes.length + chunk.length);
    both.set(bytes);
    both.set(chunk, bytes.length);
    bytes = both;
  };
  const place = () => ({
    location: `${HOME}${id}?state=a%20b`,
    ...bytes.length === 0 ? {} : { range: `0-${bytes.length - 1}` },
    "content-length": 0,
  });
  const server: FakeRegistry = await startFake((asked) => {
    const { method, url, headers, response } = asked;
    if (method === "PATCH") {
      const [, from] = /^(\d+)-/.exec(headers["content-range"] ?? "") ?? [];
      if (Number(from) === bytes.length) asked.request.on("data", keep);
    }
    if (spoil(asked, count++)) return;
    if (method === "POST") {
      id++;
      bytes = new Uint8Array(0);
      return response.writeHead(202, place()).end();
    }
    if (!url.startsWith(`${HOME}${id}?state=a%20b`)) {
      return answerStatus(asked, 404);
    }
    if (method === "GET") return response.writeHead(204, place()).end();
    if (method === "PATCH") {
      asked.request.on("end", () => response.writeHead(202, place()).end());
      return undefined;
    }
    const digest = new URL(url, "http://x").searchParams.get("digest");
    if (digest !== `sha256:${sha256(bytes)}`) return answerStatus(asked, 400);
    state.done = bytes;
    return response.writeHead(201, { "content-length": 0 }).end();
  });
  return { server, state, forget: () => id++ };
}

/**
 * Uploads BLOB; returns what the registry was asked.
 *
 * @param attemptMs which retries have to fit into on a busy machine
 */
async function upload(
  server: FakeRegistry,
  attemptMs = 10_000,
): Promise<string[]> {
  using dir = tempDir();
  Deno.writeFileSync(dir.file("x"), BLOB);
  const fd = openFd(dir.file("x"), O.RDONLY);
  using client = createRegistryClient({ attemptMs });
  try {
    const digest = await uploadBlob(client, {
      url: server.origin + HOME,
      fd,
      size: BLOB.length,
      chunk: CHUNK,
    });
    assert.equal(digest, `sha256:${sha256(BLOB)}`);
  } finally {
    closeFd(fd);
  }
  return server.asked.map(({ method, headers }) =>
    [method, headers["content-range"] ?? ""].join(" ").trim()
  );
}

/** Takes nothing of a chunk. */
function answerAndDrop(asked: Asked, status: number) {
  asked.request.removeAllListeners("data");
  answerStatus(asked, status);
}

/** Does it `times` times, at requests of this method. */
function spoiling(
  method: string,
  times: number,
  how: (asked: Asked) => void,
) {
  let left = times;
  return (asked: Asked) => {
    if (asked.method !== method || left === 0) return false;
    left--;
    how(asked);
    return true;
  };
}

Deno.test("upload: chunks of known length, then the digest", async () => {
  const { server, state } = await startUploads(() => false);
  await using _ = server;
  assert.deepEqual(await upload(server), [
    "POST",
    "PATCH 0-99999",
    "PATCH 100000-199999",
    "PATCH 200000-249999",
    "PUT",
  ]);
  assert.deepEqual(state.done, BLOB);
  for (const { method, headers } of server.asked) {
    if (method !== "PATCH") continue;
    assert.equal(headers["content-type"], "application/octet-stream");
    assert.equal(headers["transfer-encoding"], undefined);
    assert.notEqual(headers["content-length"], undefined);
  }
});

Deno.test("upload: a chunk that is cut goes on from what the registry has", async () => {
  let had = 0;
  const { server, state } = await startUploads(
    spoiling("PATCH", 1, ({ request, response }) => {
      request.on("data", (chunk: Uint8Array) => {
        had += chunk.length;
        if (had >= 60_000) response.destroy();
      });
    }),
  );
  await using _ = server;
  const asked = await upload(server);
  assert.deepEqual(state.done, BLOB);
  assert.deepEqual(asked.slice(0, 3), ["POST", "PATCH 0-99999", "GET"]);
  const [, from] = /^PATCH (\d+)-/.exec(asked[3] ?? "") ?? [];
  assert(Number(from) >= 60_000, asked.join());
});

for (
  const [what, method, how] of [
    ["POST answers 503", "POST", (asked: Asked) => answerStatus(asked, 503)],
    ["PATCH answers 500", "PATCH", (asked: Asked) => answerStatus(asked, 500)],
    ["PATCH answers 429", "PATCH", (asked: Asked) => answerStatus(asked, 429)],
    ["PUT answers 502", "PUT", (asked: Asked) => answerStatus(asked, 502)],
    ["PUT is cut", "PUT", ({ response }: Asked) => response.destroy()],
  ] as const
) {
  Deno.test(`upload: ${what} twice: it goes on`, async () => {
    const { server, state } = await startUploads(spoiling(method, 2, how));
    await using _ = server;
    await upload(server);
    assert.deepEqual(state.done, BLOB);
  });
}

Deno.test("upload: one that the registry lost begins anew, three times at most", async () => {
  for (const times of [3, 4]) {
    const { server, state, forget } = await startUploads(
      spoiling("PATCH", times, (asked) => {
        forget();
        answerStatus(asked, 404);
      }),
    );
    await using _ = server;
    if (times === 3) {
      await upload(server);
      assert.deepEqual(state.done, BLOB);
    } else {
      await assert.rejects(
        upload(server),
        /^SourceError: cannot upload to http:.*: it lost the upload 4 times$/,
      );
    }
  }
});

for (
  const [what, method, how, code, text] of [
    [
      "POST says 401",
      "POST",
      (asked: Asked) => answerStatus(asked, 401),
      "EACCES",
      /HTTP status 401: no credentials/,
    ],
    [
      "POST says 404",
      "POST",
      (asked: Asked) => answerStatus(asked, 404),
      "ENOENT",
      /HTTP status 404/,
    ],
    [
      "POST names no place",
      "POST",
      (asked: Asked) => answerStatus(asked, 202),
      "EIO",
      /it names no place/,
    ],
    [
      "PATCH says 400",
      "PATCH",
      (asked: Asked) => answerStatus(asked, 400),
      "EIO",
      /HTTP status 400/,
    ],
    [
      "PUT says 400, another digest",
      "PUT",
      (asked: Asked) => answerStatus(asked, 400),
      "EIO",
      /HTTP status 400/,
    ],
    [
      "PATCH says 500 for ever",
      "PATCH",
      (asked: Asked) => answerAndDrop(asked, 500),
      "EIO",
      /HTTP status 500/,
    ],
    [
      "PATCH never moves",
      "PATCH",
      (asked: Asked) => answerStatus(asked, 416),
      "EIO",
      /it lost the upload/,
    ],
    [
      "PATCH never ends",
      "PATCH",
      (asked: Asked) => void asked.request.removeAllListeners("data"),
      "ETIMEDOUT",
      /no answer within 0.5 s/,
    ],
  ] as const
) {
  Deno.test(`upload: ${what}: ${code}`, async () => {
    const { server } = await startUploads(
      spoiling(method, Infinity, how),
    );
    await using _ = server;
    const error: unknown = await upload(server, 500).then(
      () => assert.fail("it did not fail"),
      (error) => error,
    );
    assert(error instanceof SourceError, String(error));
    assert.equal(error.code, code satisfies SourceCode);
    assert.match(error.message, text);
  });
}
