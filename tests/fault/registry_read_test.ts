// SPDX-License-Identifier: Apache-2.0
/**
 * What a disk's reader sees while a registry fails, in every way of
 * spec/registry.md, section 11: what may pass is waited for, up to the
 * deadline; what is wrong in itself is an error; no byte is ever another one.
 *
 * @module
 */
import assert from "node:assert/strict";
import { readDevice } from "../../ffi/device.ts";
import { EngineError } from "../../ffi/errors.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { openImage } from "../../src/image/image.ts";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import { createSources } from "../../src/source/sources.ts";
import { tempDir } from "../lib/env.ts";
import {
  answerRange,
  answerStatus,
  type Asked,
  startFake,
} from "../lib/fake_registry.ts";
import { makeLayer } from "../lib/remote.ts";

const PIECE = 4096;

/** An answer that says 206 and is something else. */
function wrong(
  { range: [a, b] = [0, 0], response }: Asked,
  blob: Uint8Array,
  spoil: { from?: number; total?: number; encoding?: string },
) {
  const { from = a, total = blob.length, encoding } = spoil;
  const length = Math.min(b, blob.length - 1) - a + 1;
  response.writeHead(206, {
    "content-range": `bytes ${from}-${from + length - 1}/${total}`,
    "content-length": length,
    ...encoding === undefined ? {} : { "content-encoding": encoding },
  });
  response.end(blob.subarray(from, from + length));
}

const CASES: readonly (readonly [
  what: string,
  errno: string,
  answer: (asked: Asked, blob: Uint8Array) => unknown,
])[] = [
  ["401", "ETIMEDOUT", (asked) => answerStatus(asked, 401)],
  ["403", "ETIMEDOUT", (asked) => answerStatus(asked, 403)],
  ["404", "ETIMEDOUT", (asked) => answerStatus(asked, 404)],
  ["429", "ETIMEDOUT", (asked) => answerStatus(asked, 429)],
  ["500", "ETIMEDOUT", (asked) => answerStatus(asked, 500)],
  ["503", "ETIMEDOUT", (asked) => answerStatus(asked, 503)],
  ["no answer", "ETIMEDOUT", () => {}],
  ["a cut connection", "ETIMEDOUT", ({ response }) => response.destroy()],
  ["a body that is cut", "ETIMEDOUT", ({ response, range }, blob) => {
    const [a, b] = range ?? [0, 0];
    response.writeHead(206, {
      "content-range": `bytes ${a}-${b}/${blob.length}`,
      "content-length": b - a + 1,
    });
    response.write(blob.subarray(a, a + 10));
    setTimeout(() => response.destroy(), 5);
  }],
  [
    "a redirect to nowhere",
    "ETIMEDOUT",
    (asked) => answerStatus(asked, 307, { location: "http://127.0.0.1:1/" }),
  ],
  ["a whole body for a range", "EIO", ({ response }, blob) => {
    response.writeHead(200, { "content-length": blob.length });
    response.end(blob);
  }],
  ["another range", "EIO", (asked, blob) => wrong(asked, blob, { from: 5 })],
  [
    "another total",
    "EIO",
    (asked, blob) => wrong(asked, blob, { total: blob.length + 1 }),
  ],
  ["gzip", "EIO", (asked, blob) => wrong(asked, blob, { encoding: "gzip" })],
];

for (const [what, errno, answer] of CASES) {
  const meaning = errno === "EIO" ? "an error" : "waited for";
  Deno.test(`reads while a registry gives ${what}: ${meaning}, then right`, async () => {
    using dir = tempDir();
    const { path, content } = await makeLayer(dir, { zfile: true, tar: true });
    const blob = Deno.readFileSync(path);
    let fails = false;
    await using registry = await startFake((asked) =>
      fails ? answer(asked, blob) : answerRange(asked, blob)
    );
    const lines: string[] = [];
    using client = createRegistryClient({ attemptMs: 300 });
    await using sources = createSources({
      openBlob: client.openBlob,
      cacheDir: dir.file("cache"),
      refillSize: 65536,
      log: (line) => lines.push(line),
    });
    const config = parseImageConfig({
      repoBlobUrl: `${registry.origin}/v2/a/b/blobs`,
      lowers: [{ digest: "sha256:00" }],
    }, "test");
    const open = (deadlineMs: number) =>
      openImage(config, { sources, deadlineMs });
    await using hasty = await open(700);
    await using patient = await open(30_000);
    const read = async ({ device }: typeof hasty, at: number) => {
      const into = new Uint8Array(PIECE);
      await readDevice(device, into, at);
      return into;
    };
    fails = true;
    await assert.rejects(
      read(hasty, 2 << 20),
      (error) => error instanceof EngineError && error.code === errno,
    );
    assert.match(lines.join("\n"), /WARNING cannot read http/);
    const waits = errno === "EIO" ? undefined : read(patient, 4 << 20);
    setTimeout(() => fails = false, 200);
    if (waits !== undefined) {
      const at = 4 << 20;
      assert.deepEqual(await waits, content.slice(at, at + PIECE));
    }
    while (fails) await new Promise((done) => setTimeout(done, 20));
    for (const at of [2 << 20, 6 << 20]) {
      assert.deepEqual(await read(hasty, at), content.slice(at, at + PIECE));
    }
  });
}
