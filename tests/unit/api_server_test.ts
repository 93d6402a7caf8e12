// SPDX-License-Identifier: Apache-2.0
// Where the API is served, and what clients may take of it.
import {
  deepStrictEqual as equal,
  match,
  ok,
  rejects,
} from "node:assert/strict";
import {
  API_LIMITS,
  type ApiLimits,
  startApiServer,
} from "../../src/service/api/server.ts";
import { parseServiceConfig } from "../../src/service/config.ts";
import { createLog, plainSink } from "../../src/service/log.ts";
import { tempDir } from "../lib/env.ts";
import { ask, rawHttp } from "../lib/http.ts";

function serve(
  apiConfig: Record<string, unknown>,
  limits: Partial<ApiLimits> = {},
  answer: (request: Request) => Response | Promise<Response> = async (
    request,
  ) => new Response(await request.text()),
) {
  const lines: string[] = [];
  const { config } = parseServiceConfig({ apiConfig }, "overlaybd.json");
  return startApiServer(
    config.apiConfig,
    answer,
    createLog(plainSink((line) => lines.push(line)), 0),
    { ...API_LIMITS, ...limits },
  );
}

Deno.test("who is slow with a header or a body is told so, and hung up on", async () => {
  using dir = tempDir();
  const address = dir.file("s");
  const server = await serve({ address }, { headerMs: 300, requestMs: 600 });
  const late = /^HTTP\/1.1 408 Request Timeout\r\n.*"status":408/s;
  const begun = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc";
  const answers = await Promise.all([
    rawHttp(server.url, ["POST / HTTP/1.1\r\nHost:"]),
    rawHttp(server.url, [begun]),
    rawHttp(server.url, [...begun.slice(0, 20)], 50),
    rawHttp(server.url, [begun, "d", "e", "f", "g", "h", "i"], 200),
  ]);
  for (const answer of answers) match(answer, late);
  // In time: all of it in pieces.
  const [head = "", body = ""] = begun.split("abc");
  match(
    await rawHttp(server.url, [
      head.replace("Host", "Connection: close\r\nHost"),
      body,
      "abcd",
      "efghi",
    ], 20),
    /^HTTP\/1.1 200 .*abcdefghi$/s,
  );
  await server.close();
});

Deno.test("an idle connection does not last", async () => {
  using dir = tempDir();
  const server = await serve({ address: dir.file("s") }, {
    headerMs: 200,
    idleMs: 200,
  });
  const answer = await rawHttp(server.url, [
    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok",
  ]);
  match(answer, /^HTTP\/1.1 200 .*ok$/s);
  await server.close();
});

Deno.test("requests that are running end when the service does", async () => {
  using dir = tempDir();
  const gate = Promise.withResolvers<void>();
  const server = await serve({ address: dir.file("s") }, {}, async () => {
    await gate.promise;
    return new Response("late");
  });
  const running = ask(server.url, "GET", "/");
  await new Promise((done) => setTimeout(done, 100));
  const closed = server.close();
  await rejects(ask(server.url, "GET", "/"), /ENOENT/);
  gate.resolve();
  equal((await running).text, "late");
  await closed;
  // One that never ends is left.
  const stuck = await serve(
    { address: dir.file("s") },
    { closeMs: 100 },
    () => new Promise<Response>(() => {}),
  );
  const left = ask(stuck.url, "GET", "/");
  await new Promise((done) => setTimeout(done, 100));
  await Promise.all([stuck.close(), rejects(left)]);
});

Deno.test("files that the configuration names are looked at at the start", async () => {
  using dir = tempDir();
  const path = dir.file("f");
  Deno.writeTextFileSync(path, "\n");
  const refused = (config: Record<string, unknown>, why: RegExp) =>
    rejects(serve({ address: "127.0.0.1:0", ...config }), why);
  await refused({ tokenFile: path }, /its first line is no token/);
  await refused({ tokenFile: dir.file("no") }, /tokenFile .*no such file/);
  await refused({ certFile: path }, /certFile and keyFile need each other/);
  await refused({ clientCaFile: path }, /clientCaFile needs certFile/);
  await refused({ certFile: path, keyFile: dir.file("no") }, /keyFile/);
  await refused({ address: "127.0.0.1:99999" }, /no port 99999/);
  ok(![...Deno.readDirSync(dir.path)].some(({ isSymlink }) => isSymlink));
});
