// SPDX-License-Identifier: Apache-2.0
// What `ctl` makes of answers, the wrong ones too.
import { deepStrictEqual as equal, rejects } from "node:assert/strict";
import { askApi } from "../../src/service/api/client.ts";
import { tempDir } from "../lib/env.ts";

const BODY = '{"text":"grün"}';
const HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";

/** Answers one request with these bytes, part by part; returns the request. */
async function answerOnce(
  listener: Deno.Listener,
  parts: readonly Uint8Array[],
): Promise<string> {
  using connection = await listener.accept();
  const part = new Uint8Array(4096);
  let request = "";
  while (!/\r\n\r\n/.test(request)) {
    const n = await connection.read(part) ?? 0;
    request += new TextDecoder().decode(part.subarray(0, n));
  }
  for (const bytes of parts) await connection.write(bytes);
  return request;
}

async function ask(
  answer: string,
  cuts: readonly number[] = [],
): Promise<{ value: unknown; request: string }> {
  using dir = tempDir("memory");
  const path = dir.file("socket");
  using listener = Deno.listen({ transport: "unix", path });
  const bytes = new TextEncoder().encode(answer);
  const parts = [...cuts, bytes.length]
    .map((cut, i) => bytes.subarray(cuts[i - 1] ?? 0, cut));
  const asked = askApi(
    { address: path, secure: false, token: "t" },
    "GET",
    "/v1/x",
  );
  const [value, request] = await Promise.all([
    asked.catch((error) => error),
    answerOnce(listener, parts),
  ]);
  if (value instanceof Error) throw value;
  return { value, request };
}

Deno.test("an answer counts whole, however it comes", async () => {
  const whole = `${HEAD}Content-Length: 16\r\n\r\n${BODY}`;
  const cut = new TextEncoder().encode(whole).length - 4;
  for (const cuts of [[], [10], [cut, cut + 1]]) {
    const { value, request } = await ask(whole, cuts);
    equal(value, { text: "grün" });
    equal(request.split("\r\n"), [
      "GET /v1/x HTTP/1.0",
      "host: localhost",
      "authorization: Bearer t",
      "",
      "",
    ]);
  }
  equal((await ask(`${HEAD}\r\n${BODY}`)).value, { text: "grün" });
});

Deno.test("an answer that is cut off, or none of the API, is refused", async () => {
  await rejects(
    ask(`${HEAD}Content-Length: 17\r\n\r\n${BODY}`),
    /cannot reach the API at .*: its answer is cut off/,
  );
  for (const answer of ["", "SSH-2.0-x\r\n\r\n", HEAD]) {
    await rejects(ask(answer), /cannot use what .* answers: it is no API/);
  }
  await rejects(ask(`${HEAD}\r\n<html>`), /answers \(200\): it is no API/);
  await rejects(
    ask(
      "HTTP/1.1 409 Conflict\r\n\r\n" +
        '{"code":"EBUSY","detail":"it is in use"}',
    ),
    { name: "ApiError", status: 409, code: "EBUSY", message: "it is in use" },
  );
});

Deno.test("a service that is not there is named", async () => {
  for (const address of ["/nonexistent/socket", "127.0.0.1:1"]) {
    await rejects(
      askApi({ address, secure: false }, "GET", "/v1/x"),
      { message: new RegExp(`API at ${address}: no service listens there`) },
    );
  }
});
