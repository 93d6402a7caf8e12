// SPDX-License-Identifier: Apache-2.0
/**
 * A server that answers as a test says, right or wrong.
 *
 * @module
 */
import * as http from "node:http";

/** A request as a test sees it. */
export interface Asked {
  /** path and query */
  url: string;
  method: string;
  headers: http.IncomingHttpHeaders;
  /** [first, last] of the Range header */
  range: [number, number] | undefined;
  /** of the connection: the same port is the same connection */
  port: number;
  request: http.IncomingMessage;
  response: http.ServerResponse;
}

/** See the module's comment. */
export interface FakeRegistry extends AsyncDisposable {
  readonly origin: string;
  readonly asked: readonly Asked[];
  /** most requests at once */
  readonly peak: number;
}

/** Answers a range of a blob as it should be. */
export function answerRange({ range, response }: Asked, blob: Uint8Array) {
  const [from, to] = range ?? [0, blob.length - 1];
  const last = Math.min(to, blob.length - 1);
  if (from > last) {
    response.writeHead(416, { "content-range": `bytes */${blob.length}` });
    response.end();
    return;
  }
  const status = range === undefined ? 200 : 206;
  response.writeHead(status, {
    "content-length": last - from + 1,
    ...(range === undefined
      ? {}
      : { "content-range": `bytes ${from}-${last}/${blob.length}` }),
  });
  response.end(blob.subarray(from, last + 1));
}

/** Ends an answer with a status. */
export function answerStatus(
  { response }: Asked,
  status: number,
  headers: http.OutgoingHttpHeaders = {},
) {
  response.writeHead(status, { "content-length": 2, ...headers });
  response.end("no");
}

/** Starts a server; `answer` may end the response at any time. */
export async function startFake(
  answer: (asked: Asked) => unknown,
  hostname = "127.0.0.1",
): Promise<FakeRegistry> {
  const asked: Asked[] = [];
  let active = 0;
  const fake = { peak: 0 };
  const server = http.createServer((request, response) => {
    const { url = "", method = "", headers } = request;
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? "") ?? [];
    const one: Asked = {
      url,
      method,
      headers,
      range: from === undefined ? undefined : [Number(from), Number(to)],
      port: request.socket.remotePort ?? 0,
      request,
      response,
    };
    asked.push(one);
    fake.peak = Math.max(fake.peak, ++active);
    response.on("close", () => active--);
    answer(one);
    request.resume();
  });
  await new Promise<void>((ready) => server.listen(0, hostname, ready));
  const address = server.address();
  const port = typeof address === "object" ? address?.port ?? 0 : 0;
  const host = hostname.includes(":") ? `[${hostname}]` : hostname;
  return {
    origin: `http://${host}:${port}`,
    asked,
    get peak() {
      return fake.peak;
    },
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise<void>((done) => server.close(() => done()));
    },
  };
}

/** Bytes that tell where they belong. */
export function blobBytes(size: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  let x = 12345;
  for (let i = 0; i < size; i++) {
    x = (x * 1103515245 + 12345) & 0x7fffffff;
    bytes[i] = x >> 16;
  }
  return bytes;
}
