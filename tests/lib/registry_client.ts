// SPDX-License-Identifier: Apache-2.0
/**
 * The registry client against a server of a test.
 *
 * @module
 */
import assert from "node:assert/strict";
import {
  createRegistryClient,
  type RegistryClient,
  type RegistryOptions,
} from "../../src/source/registry/client.ts";
import { createCredentials } from "../../src/source/credential/credentials.ts";
import {
  type Blob,
  type SourceCode,
  SourceError,
} from "../../src/source/source.ts";
import { tempDir } from "./env.ts";
import {
  type Asked,
  blobBytes,
  type FakeRegistry,
  startFake,
} from "./fake_registry.ts";

/** What the servers of these tests have. */
export const BLOB = blobBytes(300_000);
/** Where they have it. */
export const PATH = "/v2/a/b/blobs/sha256:00";

/** Exactly [at, at + n), by one range. */
export async function read(
  blob: Blob,
  at: number,
  n: number,
  signal?: AbortSignal,
) {
  const body = await blob.range(at, n, signal);
  const into = new Uint8Array(body.length);
  return await body.read(into);
}

/** It must fail, and say why. */
export async function rejects(
  work: Promise<unknown>,
  code: SourceCode,
  text: RegExp,
): Promise<SourceError> {
  const error: unknown = await work.then(
    () => assert.fail("it did not fail"),
    (error) => error,
  );
  assert(error instanceof SourceError, String(error));
  assert.equal(error.code, code, error.message);
  assert.match(error.message, text);
  return error;
}

/** A client and a server for one test. */
export async function withServer(
  answer: (asked: Asked) => unknown,
  work: (
    blob: Blob,
    server: FakeRegistry,
    client: RegistryClient,
  ) => Promise<void>,
  options: RegistryOptions = {},
): Promise<void> {
  await using server = await startFake(answer);
  using client = createRegistryClient({ attemptMs: 5000, ...options });
  await work(client.openBlob(server.origin + PATH), server, client);
}

/** What that user shows. */
export const BASIC = `Basic ${btoa("user:secret")}`;

/** A directory with credentials, the same for every server. */
export function asyncDir() {
  const dir = tempDir();
  const lines: string[] = [];
  const path = dir.file("cred.json");
  const credentials = createCredentials({
    mode: "file",
    path,
    log: (line) => lines.push(line),
  });
  // Any registry of a test: the port is not known yet.
  return {
    dir,
    lines,
    credentials: {
      ...credentials,
      find: (url: string) => {
        const auths = { [new URL(url).host]: { auth: btoa("user:secret") } };
        Deno.writeTextFileSync(path, JSON.stringify({ auths }));
        return credentials.find(url);
      },
    },
    [Symbol.asyncDispose]: () => {
      dir[Symbol.dispose]();
      return Promise.resolve();
    },
  };
}
