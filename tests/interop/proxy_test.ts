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
import { createRegistryClient } from "../../src/source/registry/client.ts";
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

const NAMES = ["http_proxy", "https_proxy", "no_proxy"];

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
