// SPDX-License-Identifier: Apache-2.0
// API v1 as a client sees it: devices come, change and go while it serves.
import {
  deepStrictEqual as equal,
  match,
  ok,
  rejects,
} from "node:assert/strict";
import { freePort } from "../lib/daemons.ts";
import { connectNbd } from "../lib/nbd.ts";
import { mustTool, run, type TempDir, tempDir, tool } from "../lib/env.ts";
import { type Answer, type Ask, ask, rawHttp } from "../lib/http.ts";
import { ServeError, type Server, startServer } from "../lib/server.ts";

/** A service without devices, its API on a unix socket. */
async function service(
  dir: TempDir,
  config: Record<string, unknown> = {},
  listen = dir.file("api.sock"),
): Promise<Server> {
  const path = dir.file("overlaybd.json");
  Deno.writeTextFileSync(path, JSON.stringify(config));
  return await startServer(dir.file("nbd.sock"), [], {
    args: ["--listen", listen, "--service_config_path", path, "--verbose"],
  });
}

/** A writable image of 1 GiB; returns its configuration's path. */
async function image(
  dir: TempDir,
  name: string,
  ...options: string[]
): Promise<string> {
  const data = dir.file(`${name}.data`);
  const index = dir.file(`${name}.index`);
  await mustTool("overlaybd", ["create", ...options, data, index, "1"]);
  const path = dir.file(`${name}.json`);
  const resultFile = dir.file(`${name}.result`);
  Deno.writeTextFileSync(
    path,
    JSON.stringify({ upper: { data, index }, resultFile }),
  );
  return path;
}

function member(answer: Answer, name: string): unknown {
  ok(typeof answer.json === "object" && answer.json !== null, answer.text);
  return Reflect.get(answer.json, name);
}

function refused(answer: Answer, status: number, code: string): string {
  equal([answer.status, member(answer, "code")], [status, code], answer.text);
  equal(answer.headers["content-type"], "application/problem+json");
  return String(member(answer, "detail"));
}

Deno.test("a device is attached, written, grown, flushed and detached", async () => {
  using dir = tempDir();
  const config = await image(dir, "a");
  await using server = await service(dir);
  const to = (method: string, path: string, more?: Ask) =>
    ask(server.api, method, path, more);

  const made = await to("POST", "/v1/devices", {
    body: { config, devId: "a" },
  });
  equal(made.status, 201, made.text);
  equal(made.headers["location"], "/v1/devices/1");
  equal(member(made, "address"), server.export("a"));
  equal(Deno.readTextFileSync(dir.file("a.result")), "success");

  const client = await connectNbd(dir.file("nbd.sock"), "a");
  equal(client.size, 2 ** 30);
  await client.write(4096, new Uint8Array(512).fill(7));
  equal((await to("POST", "/v1/devices/1/flush")).status, 204);
  const shown = await to("GET", "/v1/devices?devId=a");
  match(shown.text, /"clients":1,.*"writtenBytes":512,.*"flushes":1/);

  match(
    refused(await to("DELETE", "/v1/devices/1"), 409, "busy"),
    /used by 1 client: force/,
  );
  const grown = await to("POST", "/v1/devices/1/resize", {
    body: { bytes: 2 ** 31 },
  });
  equal([grown.status, member(grown, "bytes")], [200, 2 ** 31]);
  await client.write(2 ** 31 - 512, new Uint8Array(512).fill(8));
  match(
    refused(
      await to("POST", "/v1/devices/1/resize", { body: { bytes: 512 } }),
      422,
      "invalid",
    ),
    /only grows/,
  );

  equal((await to("DELETE", "/v1/devices/1?force=true")).status, 204);
  await rejects(client.read(0, 512));
  client.close();
  refused(await to("GET", "/v1/devices/1"), 404, "not-found");

  // The layer is free again, and has what was written and its new size.
  match(
    await mustTool("overlaybd", ["inspect", dir.file("a.data")]),
    /virtual size +2 GiB/,
  );
  const again = await to("POST", "/v1/devices", { body: { config } });
  equal(again.status, 201, again.text);
  using reader = await connectNbd(dir.file("nbd.sock"), config);
  equal((await reader.read(4096, 512))[0], 7);
  equal((await reader.read(2 ** 31 - 512, 512))[511], 8);
});

Deno.test("what is wrong with a request is said in words, and named", async () => {
  using dir = tempDir();
  await using server = await service(dir);
  const attach = (body: unknown): [string, unknown] => ["/v1/devices", body];
  const config = "/x";
  for (
    const [[path, body], why] of [
      [attach({}), "body.config: expected string"],
      [attach({ config: 1 }), "body.config: expected string"],
      [attach({ config: "x" }), "body.config: expected an absolute path"],
      [
        attach({ config: `/${"x".repeat(4095)}` }),
        "body.config: expected at most 4095 characters",
      ],
      [
        attach({ config, transport: "x" }),
        'body.transport: expected "nbd" or "tcmu"',
      ],
      [
        attach({ config, devId: "\n" }),
        "body.devId: expected text on one line",
      ],
      [attach({ config, x: 1, y: 2 }), "body: unknown: x, y"],
      [
        ["/v1/devices/1/resize", { bytes: 10 }],
        "body.bytes: expected a number of at least 512",
      ],
      [
        ["/v1/devices/1/resize", { bytes: 513 }],
        "body.bytes: expected a multiple of 512",
      ],
      [["/v1/devices/x/flush", {}], "path.id: expected a number from 1"],
      [
        ["/v1/cache/verify", { names: ["x"] }],
        "body.names[0]: expected a digest",
      ],
    ] as const
  ) {
    const answer = await ask(server.api, "POST", path, { body });
    equal(refused(answer, 400, "invalid"), why);
  }
});

Deno.test("an image that cannot be shown leaves nothing behind", async () => {
  using dir = tempDir();
  const config = await image(dir, "a");
  const sparse = await image(dir, "s", "-s");
  await using server = await service(dir);
  const attach = (body: unknown) =>
    ask(server.api, "POST", "/v1/devices", { body });
  equal((await attach({ config, devId: "x" })).status, 201);

  match(
    refused(await attach({ config, devId: "x" }), 409, "exists"),
    /duplicated dev id: x/,
  );
  // The same writable layer under another name.
  match(
    refused(await attach({ config, devId: "y" }), 422, "image"),
    /in use by process/,
  );
  refused(await attach({ config: dir.file("none") }), 422, "image");
  refused(await attach({ config: "relative.json" }), 400, "invalid");
  refused(await attach({ config, dev_id: "typo" }), 400, "invalid");
  refused(await attach({ config, transport: "tcmu" }), 501, "unsupported");
  equal((await attach({ config: sparse })).status, 201);
  const resized = await ask(server.api, "POST", "/v1/devices/2/resize", {
    body: { bytes: 2 ** 31 },
  });
  equal(resized.status, 200, resized.text);
  const left = await ask(server.api, "GET", "/v1/devices");
  equal(left.text.match(/"id":/g)?.length, 2);
  equal((await server.stop()).code, 0);
});

Deno.test("a hundred devices come and go at once", async () => {
  using dir = tempDir();
  const layer = dir.file("l");
  await mustTool("overlaybd", [
    "create",
    dir.file("d"),
    dir.file("i"),
    "1",
  ]);
  await mustTool("overlaybd", [
    "commit",
    dir.file("d"),
    dir.file("i"),
    layer,
  ]);
  const config = dir.file("c.json");
  Deno.writeTextFileSync(config, JSON.stringify({ lowers: [{ file: layer }] }));
  const port = freePort();
  await using server = await service(dir, {
    exporterConfig: { enable: true, port },
  });
  // Metrics are read meanwhile.
  const end = new AbortController();
  const scraping = (async () => {
    let most = 0;
    while (!end.signal.aborted) {
      const answer = await fetch(`http://127.0.0.1:${port}/metrics`);
      const text = await answer.text();
      equal(answer.status, 200, text);
      const shown = /^overlaybd_devices (\d+)$/m.exec(text)?.[1];
      most = Math.max(most, Number(shown));
    }
    return most;
  })();
  for (let round = 0; round < 2; round++) {
    const made = await Promise.all(
      Array.from(
        { length: 100 },
        (_, i) =>
          ask(server.api, "POST", "/v1/devices", {
            body: { config, devId: `d${i}` },
          }),
      ),
    );
    ok(made.every(({ status }) => status === 201), made[0]?.text);
    const gone = await Promise.all(made.flatMap((answer) => {
      const path = `/v1/devices/${member(answer, "id")}`;
      return [ask(server.api, "DELETE", path), ask(server.api, "DELETE", path)];
    }));
    // Of two that detach one device, one does.
    equal(gone.filter(({ status }) => status === 204).length, 100);
    ok(gone.every(({ status }) => [204, 404, 409].includes(status)));
  }
  end.abort();
  ok(await scraping > 0);
  equal((await ask(server.api, "GET", "/v1/devices")).text, '{"devices":[]}');
});

Deno.test("the socket is its owner's; a live one is refused, a dead one not", async () => {
  using dir = tempDir();
  const path = dir.file("api.sock");
  const first = await service(dir);
  equal((Deno.statSync(path).mode ?? 0) & 0o777, 0o600);
  await rejects(
    startServer(dir.file("nbd2.sock"), [], { args: ["--listen", path] }),
    (error) =>
      error instanceof ServeError && /another server/.test(error.stderr),
  );
  await first.stop("SIGKILL");
  {
    await using second = await service(dir);
    equal((await ask(second.api, "GET", "/healthz")).status, 200);
    equal((await ask(second.api, "GET", "/readyz")).status, 200);
    match((await ask(second.api, "GET", "/version")).text, /"version":"/);
  }
  equal([...Deno.readDirSync(dir.path)].map(({ name }) => name), [
    "overlaybd.json",
  ]);
});

Deno.test("other machines need a token; web pages have no way in", async () => {
  using dir = tempDir();
  const token = dir.file("token");
  Deno.writeTextFileSync(token, "s3cret-t0ken\nnot this\n", { mode: 0o600 });
  await rejects(
    service(dir, {}, "0.0.0.0:0"),
    (error) =>
      error instanceof ServeError &&
      /other machines can reach it: apiConfig.tokenFile/.test(error.stderr),
  );
  {
    await using server = await service(
      dir,
      { apiConfig: { tokenFile: token } },
      "0.0.0.0:0",
    );
    match(server.said(), /WARNING the API at .* is not encrypted/);
    const to = (headers: Record<string, string>, path = "/version") =>
      ask(server.api, "GET", path, { headers });
    const none = await to({});
    refused(none, 401, "unauthorized");
    equal(none.headers["www-authenticate"], "Bearer");
    refused(await to({ authorization: "Bearer s3cret" }), 401, "unauthorized");
    equal((await to({ authorization: "Bearer s3cret-t0ken" })).status, 200);
    equal((await to({}, "/readyz")).status, 200);
    Deno.writeTextFileSync(token, "another\n");
    refused(
      await to({ authorization: "Bearer s3cret-t0ken" }),
      401,
      "unauthorized",
    );
    equal((await to({ authorization: "Bearer another" })).status, 200);
    ok(!server.said().includes("s3cret"), server.said());
  }
  await using server = await service(dir, {}, "127.0.0.1:0");
  const to = (headers: Record<string, string>) =>
    ask(server.api, "GET", "/version", { headers });
  equal((await to({})).status, 200);
  equal((await to({ host: "localhost:1" })).status, 200);
  refused(await to({ origin: "http://evil.example" }), 403, "forbidden");
  refused(await to({ host: "evil.example" }), 403, "forbidden");
});

Deno.test("with mTLS only clients of our CA are let in", async () => {
  using dir = tempDir();
  const pem = (name: string) => Deno.readTextFileSync(dir.file(name));
  const openssl = async (...args: string[]) => {
    const ended = await run("openssl", args, { cwd: dir.path });
    equal(ended.code, 0, ended.stderr);
  };
  const make = async (ca: string, name: string) => {
    await openssl(
      ..."req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        .split(" "),
      "-keyout",
      `${name}.key`,
      "-out",
      `${name}.csr`,
      "-subj",
      `/CN=${name}`,
      "-addext",
      "subjectAltName=IP:127.0.0.1",
    );
    await openssl(
      ..."x509 -req -days 2 -copy_extensions copy".split(" "),
      "-in",
      `${name}.csr`,
      "-CA",
      `${ca}.pem`,
      "-CAkey",
      `${ca}.key`,
      "-out",
      `${name}.pem`,
    );
  };
  for (const ca of ["ours", "theirs"]) {
    await openssl(
      ..."req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256"
        .split(" "),
      "-nodes",
      "-days",
      "2",
      "-keyout",
      `${ca}.key`,
      "-out",
      `${ca}.pem`,
      "-subj",
      `/CN=${ca}`,
    );
  }
  await make("ours", "server");
  await make("ours", "friend");
  await make("theirs", "foe");
  await using server = await service(dir, {
    apiConfig: {
      certFile: dir.file("server.pem"),
      keyFile: dir.file("server.key"),
      clientCaFile: dir.file("ours.pem"),
    },
  }, "127.0.0.1:0");
  match(server.api, /^https:/);
  const as = (name: string | undefined) =>
    ask(server.api, "GET", "/version", {}, {
      ca: pem("ours.pem"),
      ...(name === undefined
        ? {}
        : { cert: pem(`${name}.pem`), key: pem(`${name}.key`) }),
    });
  equal((await as("friend")).status, 200);
  await rejects(as(undefined));
  await rejects(as("foe"));
  equal((await as("friend")).status, 200);
});

Deno.test("what is no request is answered or hung up on, and nothing more", async () => {
  using dir = tempDir();
  await using server = await service(dir);
  const head = "GET /version HTTP/1.1\r\nHost: x\r\n";
  match(await rawHttp(server.api, ["GARBAGE\r\n\r\n"]), /^HTTP\/1.1 400 /);
  match(
    await rawHttp(server.api, [`${head}X: ${"a".repeat(20_000)}\r\n\r\n`]),
    /^HTTP\/1.1 431 .*"status":431/s,
  );
  match(
    await rawHttp(server.api, [
      `GET /v1/devices?devId=${"a".repeat(17_000)} HTTP/1.1\r\nHost: x\r\n\r\n`,
    ]),
    /^HTTP\/1.1 431 /,
  );
  const post = (headers: Record<string, string>, body: string) =>
    ask(server.api, "POST", "/v1/devices", { headers, body });
  refused(await post({}, "{"), 400, "invalid");
  refused(await post({}, "[]"), 400, "invalid");
  refused(await post({}, `"${"a".repeat(70_000)}"`), 413, "too-large");
  refused(
    await post({ "content-type": "text/plain" }, "{}"),
    415,
    "media-type",
  );
  match(
    await rawHttp(server.api, [
      "POST /v1/devices HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" +
      "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ]),
    /^HTTP\/1.1 411 /,
  );
  const wrong = await ask(server.api, "PUT", "/v1/devices");
  refused(wrong, 405, "method-not-allowed");
  equal(wrong.headers["allow"], "GET, POST");
  refused(await ask(server.api, "GET", "/v2"), 404, "not-found");
  // Two in one packet, and one that leaves in the middle.
  const two = await rawHttp(server.api, [
    `${head}\r\n${head}Connection: close\r\n\r\n`,
  ]);
  equal(two.match(/HTTP\/1.1 200/g)?.length, 2);
  (await Deno.connect({ transport: "unix", path: dir.file("api.sock") }))
    .close();
  equal((await ask(server.api, "GET", "/healthz")).status, 200);
  ok(!server.said().includes("ERROR"), server.said());
});

Deno.test("ctl: what a person types, and what a script reads", async () => {
  using dir = tempDir();
  await image(dir, "a");
  await using server = await service(dir, {
    apiConfig: { address: dir.file("api.sock") },
  });
  const configured = ["--service_config_path", dir.file("overlaybd.json")];
  const ctl = (...args: string[]) =>
    tool("overlaybd", ["ctl", ...configured, ...args], { cwd: dir.path });
  const says = async (code: number, out: RegExp, ...args: string[]) => {
    const ended = await ctl(...args);
    equal(ended.code, code, ended.stderr);
    match(code === 0 ? ended.stdout : ended.stderr, out);
    equal(code === 0 ? ended.stderr : ended.stdout, "");
  };
  await says(0, /^nbd\+unix:.*\/web\?socket=/, "attach", "a.json;web");
  await says(0, /^1 +web +nbd +1 GiB +rw +0 +nbd\+unix:/m, "devices");
  equal(JSON.parse((await ctl("devices", "--json")).stdout).devices.length, 1);
  // By its dev_id, its configuration, its id.
  await says(0, /^web has 2 GiB$/m, "resize", "web", "2G");
  await says(0, /^a.json is on disk$/m, "flush", "a.json");
  await says(0, /^bytes = 2147483648$/m, "device", "1");
  await says(0, /^1 +upper +local +log +\/.*a\.data$/m, "images");
  await says(0, /^apiConfig.address +"\/.*api.sock" +file$/m, "config");
  await says(0, /^warn$/m, "log-level", "warn");
  await says(0, /^ok$/m, "health");
  await says(0, /^version = "/m, "version");
  await says(255, /^overlaybd ctl: there is no device b$/m, "detach", "b");
  await says(255, /^overlaybd ctl: body.level: /m, "log-level", "loud");
  await says(105, /^action: no is none of devices, /, "no");
  await says(106, /^SIZE is required$/m, "resize", "web");
  await says(104, /^big is no size/, "resize", "web", "big");
  await says(109, /not expected: x$/m, "health", "x");
  await says(0, /^web is detached$/m, "detach", "web");
  await server.stop();
  await says(255, /cannot reach the API at .*: no service listens/, "health");
});

Deno.test("the configuration is read again: what counts at once, what later", async () => {
  using dir = tempDir();
  await using server = await service(dir);
  const path = dir.file("overlaybd.json");
  const reload = async (text: string) => {
    Deno.writeTextFileSync(path, text);
    return await ask(server.api, "POST", "/v1/config/reload");
  };
  const changed = await reload(JSON.stringify({
    logLevel: 0,
    readDeadlineSeconds: 9,
    download: { enable: true },
    userAgent: "me",
    cacheConfig: { refillSize: 65536 },
    nonsense: 1,
  }));
  equal(changed.json, {
    applied: ["logConfig.logLevel", "download.enable", "readDeadlineSeconds"],
    needsRestart: ["cacheConfig.refillSize", "userAgent"],
    warnings: [`${path}: unknown key nonsense is ignored`],
  });
  equal(
    (await ask(server.api, "GET", "/v1/log-level")).text,
    '{"level":"debug"}',
  );
  // What counts is shown, not what the file says.
  const { text } = await ask(server.api, "GET", "/v1/config");
  match(text, /"key":"readDeadlineSeconds","value":9,"from":"file"/);
  match(text, /"key":"cacheConfig.refillSize","value":262144,"from":"default"/);

  const broken = await reload('{"readDeadlineSeconds": "soon"}');
  match(refused(broken, 422, "image"), /readDeadlineSeconds: got "soon"/);
  equal((await ask(server.api, "GET", "/v1/config")).text, text);

  // What needs a restart is said until there is one; signals do the same.
  Deno.writeTextFileSync(path, '{"userAgent": "me"}');
  Deno.kill(server.pid, "SIGHUP");
  const said = /applied, userAgent needs a restart/;
  for (let i = 0; i < 200 && !said.test(server.said()); i++) {
    await new Promise((done) => setTimeout(done, 10));
  }
  match(server.said(), said);
  equal((await ask(server.api, "GET", "/healthz")).status, 200);
});

Deno.test("two servers on one port: neither starts, and it is said which", async () => {
  using dir = tempDir();
  await using other = await service(dir, {}, "127.0.0.1:0");
  const { port } = new URL(other.api);
  const refusal = (config: Record<string, unknown>, listen: string) => {
    const path = dir.file("second.json");
    Deno.writeTextFileSync(path, JSON.stringify(config));
    return startServer(dir.file("nbd2.sock"), [], {
      args: ["--listen", listen, "--service_config_path", path],
    });
  };
  await rejects(
    refusal({}, `127.0.0.1:${port}`),
    (error) => error instanceof ServeError && /in use/.test(error.stderr),
  );
  // The metrics have the port: the API of the same service has not.
  await rejects(
    refusal(
      { exporterConfig: { enable: true, port: Number(port) } },
      dir.file("api2.sock"),
    ),
    (error) =>
      error instanceof ServeError &&
      /metrics exporter: exporterConfig 127.0.0.1:\d+: /.test(error.stderr),
  );
  // Nor do two servers of one service share theirs.
  const free = freePort();
  await rejects(
    refusal(
      {
        exporterConfig: { enable: true, port: free },
        serviceConfig: { enable: true, address: `http://127.0.0.1:${free}` },
      },
      dir.file("api2.sock"),
    ),
    (error) =>
      error instanceof ServeError &&
      /live snapshot: serviceConfig.address http:.*: address already in use\n$/
        .test(error.stderr),
  );
  equal((await ask(other.api, "GET", "/healthz")).status, 200);
  ok(![...Deno.readDirSync(dir.path)].some(({ name }) => name === "nbd2.sock"));
});
