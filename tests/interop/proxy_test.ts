// SPDX-License-Identifier: Apache-2.0
/**
 * Proxies that the environment names: plain ones, tunnels, and hosts that are
 * reached without (Dragonfly's HTTP proxy is one).
 *
 * @module
 */
import assert from "node:assert/strict";
import * as http from "node:http";
import * as net from "node:net";
import { createCredentials } from "../../src/source/credential/credentials.ts";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import { proxyFor } from "../../src/source/registry/proxies.ts";
import { createTransport } from "../../src/source/registry/transport.ts";
import { have, tempDir } from "../lib/env.ts";
import {
  haveRegistry,
  makeAuthority,
  makeCertificate,
  startNginx,
} from "../lib/daemons.ts";
import { answerRange, blobBytes, startFake } from "../lib/fake_registry.ts";
import { PATH, read } from "../lib/registry_client.ts";

const BLOB = blobBytes(10_000);

/** A proxy that says what it was asked for. */
async function startProxy() {
  const asked: string[] = [];
  const server = http.createServer((request, response) => {
    asked.push(`GET ${request.url}`);
    const onward = http.get(request.url ?? "", {
      headers: request.headers,
    }, (answer) => {
      response.writeHead(answer.statusCode ?? 0, answer.rawHeaders);
      answer.pipe(response);
    });
    onward.on("error", () => response.destroy());
  });
  server.on("connect", (request, socket, head) => {
    asked.push(`CONNECT ${request.url}`);
    const { hostname, port } = new URL(`tcp://${request.url}`);
    const onward = net.connect(Number(port), hostname, () => {
      socket.write("HTTP/1.1 200 OK\r\n\r\n");
      if (head.length > 0) onward.write(head);
      onward.pipe(socket).pipe(onward);
    });
    onward.on("error", () => socket.destroy());
    socket.on("error", () => onward.destroy());
    socket.on("close", () => onward.destroy());
  });
  await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
  const address = server.address();
  const port = typeof address === "object" ? address?.port ?? 0 : 0;
  return {
    asked,
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise<void>((done) => server.close(() => done()));
    },
  };
}

const NAMES = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];

/** Sets variables for a while; all others of their kind are unset. */
function environment(values: Record<string, string>): Disposable {
  const all = NAMES.flatMap((name) => [name, name.toUpperCase()]);
  const before = all.map((name) => [name, Deno.env.get(name)] as const);
  for (const name of all) Deno.env.delete(name);
  for (const [name, value] of Object.entries(values)) {
    Deno.env.set(name, value);
  }
  return {
    [Symbol.dispose]() {
      for (const [name, value] of before) {
        if (value === undefined) Deno.env.delete(name);
        else Deno.env.set(name, value);
      }
    },
  };
}

Deno.test("proxy: http_proxy is asked, no_proxy excepts", async () => {
  await using server = await startFake((asked) => answerRange(asked, BLOB));
  await using proxy = await startProxy();
  for (const except of ["", "127.0.0.1", "other.io"]) {
    proxy.asked.length = 0;
    using _ = environment({ http_proxy: proxy.url, no_proxy: except });
    using client = createRegistryClient();
    const blob = client.openBlob(server.origin + PATH);
    assert.deepEqual(await read(blob, 5, 10), BLOB.slice(5, 15));
    assert.deepEqual(
      proxy.asked,
      except === "127.0.0.1" ? [] : [`GET ${server.origin}${PATH}`],
    );
  }
});

for (
  const [except, host, reached] of [
    ["", "reg.io", "by proxy"],
    ["*", "reg.io", "directly"],
    ["reg.io", "reg.io", "directly"],
    ["reg.io", "a.reg.io", "directly"],
    ["reg.io", "areg.io", "by proxy"],
    [".reg.io", "a.reg.io", "directly"],
    [".reg.io", "reg.io", "directly"],
    ["*.reg.io", "a.reg.io", "directly"],
    ["REG.io", "reg.IO", "directly"],
    ["reg.io:8080", "reg.io:8080", "directly"],
    ["reg.io:80", "reg.io", "directly"],
    ["reg.io:8080", "reg.io", "by proxy"],
    [" a.io, reg.io ", "reg.io", "directly"],
    ["a.io reg.io", "reg.io", "directly"],
    ["127.0.0.1", "127.0.0.1:9999", "directly"],
    ["127.0.0.1:9998", "127.0.0.1:9999", "by proxy"],
    ["27.0.0.1", "127.0.0.1", "by proxy"],
    ["10.0.0.0/8,192.168.0.0/16", "192.168.7.5", "directly"],
    ["10.0.0.0/8", "11.0.0.1", "by proxy"],
    ["10.0.0.0/33", "10.0.0.1", "by proxy"],
    ["10.0.0.0/", "10.0.0.1", "by proxy"],
    ["10.0.0.0/8", "reg.io", "by proxy"],
    ["::1", "[::1]:5000", "directly"],
    ["[::1]", "[::1]:5000", "directly"],
    ["[::1]:5000", "[::1]:5000", "directly"],
    ["[::1]:5001", "[::1]:5000", "by proxy"],
    ["0:0:0:0:0:0:0:1", "[::1]", "directly"],
    ["fd00::/8", "[fd12::5]", "directly"],
    ["fd00::/8", "[fe80::5]", "by proxy"],
    [",, ,", "reg.io", "by proxy"],
  ] as const
) {
  Deno.test(`proxy: no_proxy "${except}": ${host} is reached ${reached}`, async () => {
    using _ = environment({ HTTP_PROXY: "proxy.io:3128", NO_PROXY: except });
    assert.equal(
      await proxyFor(new URL(`http://${host}/v2/`)),
      reached === "by proxy" ? "http://proxy.io:3128" : undefined,
    );
  });
}

Deno.test("proxy: which variable counts for what", async () => {
  const find = async (url: string, values: Record<string, string>) => {
    using _ = environment(values);
    return await proxyFor(new URL(url));
  };
  const [http, https] = ["http://reg.io", "https://reg.io"];
  const all = {
    http_proxy: "http://a",
    https_proxy: "http://b",
    all_proxy: "socks5://c",
  };
  assert.equal(await find(http, all), "http://a");
  assert.equal(await find(https, all), "http://b");
  assert.equal(await find(https, { all_proxy: "socks5://c" }), "socks5://c");
  assert.equal(await find(https, { http_proxy: "http://a" }), undefined);
  assert.equal(
    await find(http, { http_proxy: "http://a", HTTP_PROXY: "http://d" }),
    "http://a",
  );
});

Deno.test("proxy: ranges of addresses are excepted whatever sends the request, IPv6 too", async () => {
  await using proxy = await startProxy();
  for (const hostname of ["127.0.0.1", "::1"]) {
    await using server = await startFake(
      (asked) => answerRange(asked, BLOB),
      hostname,
    );
    const url = new URL(server.origin + PATH);
    for (
      const [except, direct] of [
        ["127.0.0.0/8,::/64", true],
        ["10.0.0.0/8,fd00::/8", false],
      ] as const
    ) {
      using _ = environment({ http_proxy: proxy.url, no_proxy: except });
      using transport = createTransport({ userAgent: "tests" });
      const bytes = new Uint8Array(3);
      for (const body of [undefined, bytes]) {
        proxy.asked.length = 0;
        const answer = await transport.send({
          url,
          headers: {},
          signal: AbortSignal.timeout(10_000),
          ...body === undefined ? {} : {
            method: "PUT",
            body: {
              length: body.length,
              async *chunks() {
                yield await Promise.resolve(body);
              },
            },
          },
        });
        await answer.body?.cancel();
        assert.equal(proxy.asked.length, direct ? 0 : 1, `${except} ${body}`);
      }
    }
  }
});

Deno.test("proxy: a user and password are shown to the proxy, and to nobody else", async () => {
  await using server = await startFake((asked) => answerRange(asked, BLOB));
  await using proxy = await startFake((asked) => answerRange(asked, BLOB));
  using _ = environment({
    http_proxy: proxy.origin.replace("//", "//us%20er:p%3Aw@"),
  });
  using client = createRegistryClient();
  const blob = client.openBlob(server.origin + PATH);
  assert.deepEqual(await read(blob, 5, 10), BLOB.slice(5, 15));
  assert.equal(server.asked.length, 0);
  const { headers } = proxy.asked[0] ?? {};
  assert.equal(
    headers?.["proxy-authorization"],
    `Basic ${btoa("us er:p:w")}`,
  );
  assert.equal(headers?.authorization, undefined);
});

Deno.test("proxy: a credential service's socket is asked whatever the environment says", async () => {
  using dir = tempDir();
  const path = dir.file("socket");
  const server = Deno.serve(
    { path, onListen: () => {} },
    () =>
      Response.json({
        success: true,
        data: {
          auths: {
            "reg.io": {
              username: "u",
              password: "p",
            },
          },
        },
      }),
  );
  await using proxy = await startProxy();
  for (const no_proxy of ["", "*", "localhost,127.0.0.1"]) {
    using _ = environment({ http_proxy: proxy.url, no_proxy });
    const credentials = createCredentials({ mode: "uds", path, log() {} });
    const found = await credentials.find("https://reg.io/v2/a/blobs/x");
    assert.equal(found?.username, "u", no_proxy);
  }
  assert.deepEqual(proxy.asked, []);
  await server.shutdown();
});

Deno.test({
  name: `proxy: https_proxy tunnels, certificates are checked behind it${
    haveRegistry ? "" : " (no nginx)"
  }`,
  ignore: !haveRegistry || !have("openssl"),
  async fn() {
    using dir = tempDir();
    const ca = await makeAuthority(dir, "ca");
    const { cert, key } = await makeCertificate(dir, "server", ca);
    Deno.mkdirSync(dir.file("www/v2/a/b/blobs"), { recursive: true });
    Deno.writeFileSync(dir.file(`www${PATH}`), BLOB);
    await using nginx = await startNginx(
      dir,
      `server {
        listen 127.0.0.1:$PORT ssl; root ${dir.file("www")};
        ssl_certificate ${cert}; ssl_certificate_key ${key};
      }`,
    );
    await using proxy = await startProxy();
    const host = `localhost:${nginx.port}`;
    for (const except of ["", "localhost"]) {
      using _ = environment({ https_proxy: proxy.url, no_proxy: except });
      const authority = Deno.readTextFileSync(ca.cert);
      for (const options of [{ ca: authority }, { insecure: [host] }]) {
        proxy.asked.length = 0;
        using client = createRegistryClient(options);
        const blob = client.openBlob(`https://${host}${PATH}`);
        assert.deepEqual(await read(blob, 5, 10), BLOB.slice(5, 15));
        assert.deepEqual(
          proxy.asked,
          except === "" ? [`CONNECT ${host}`] : [],
        );
      }
      // And by fetch, which does not trust this authority.
      proxy.asked.length = 0;
      using client = createRegistryClient();
      await assert.rejects(
        client.openBlob(`https://${host}${PATH}`).size(),
        /is not trusted/,
      );
      assert.deepEqual(proxy.asked, except === "" ? [`CONNECT ${host}`] : []);
    }
  },
});
