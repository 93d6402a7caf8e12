// SPDX-License-Identifier: Apache-2.0
/**
 * Redirects: who is asked next, and what they are shown (spec/registry.md,
 * section 11.2).
 *
 * @module
 */
import assert from "node:assert/strict";
import { answerRange, answerStatus, startFake } from "../lib/fake_registry.ts";
import {
  asyncDir,
  BASIC,
  BLOB,
  PATH,
  read,
  rejects,
  withServer,
} from "../lib/registry_client.ts";

for (const status of [301, 302, 303, 307, 308]) {
  Deno.test(`registry: a ${status} to another host is followed without Authorization`, async () => {
    await using store = await startFake((asked) => answerRange(asked, BLOB));
    await using dir = asyncDir();
    await withServer((asked) => {
      if (asked.headers.authorization !== BASIC) {
        return answerStatus(asked, 401, {
          "www-authenticate": "Basic realm=x",
        });
      }
      return answerStatus(asked, status, {
        location: `${store.origin}/data?sig=secret`,
      });
    }, async (blob, server) => {
      const body = await blob.range(0, 10);
      assert.deepEqual(await body.read(new Uint8Array(10)), BLOB.slice(0, 10));
      assert.deepEqual(await read(blob, 10, 10), BLOB.slice(10, 20));
      assert.equal(server.asked.length, 2);
      assert.equal(store.asked.length, 2);
      for (const { headers, url } of store.asked) {
        assert.equal(headers.authorization, undefined);
        assert.equal(url, "/data?sig=secret");
      }
    }, { credentials: dir.credentials });
  });
}

Deno.test("registry: a relative Location, with Authorization: it is the same server", async () => {
  await using dir = asyncDir();
  await withServer((asked) => {
    if (asked.headers.authorization !== BASIC) {
      return answerStatus(asked, 401, { "www-authenticate": "basic" });
    }
    if (asked.url === PATH) {
      return answerStatus(asked, 307, { location: "../../../../store/x?y=1" });
    }
    return answerRange(asked, BLOB);
  }, async (blob, server) => {
    assert.deepEqual(await read(blob, 10, 10), BLOB.slice(10, 20));
    assert.equal(server.asked.at(-1)?.url, "/store/x?y=1");
  }, { credentials: dir.credentials });
});

for (
  const [what, location, text] of [
    ["in a loop", PATH, /1 redirects and no end/],
    ["to nothing", "", /redirects to no URL/],
    ["to another scheme", "file:///etc/passwd", /redirects to no URL/],
    ["to a bad URL", "http://[", /redirects to no URL/],
    [
      "to a URL with a password",
      "http://u:p@127.0.0.1/",
      /redirects to no URL/,
    ],
  ] as const
) {
  Deno.test(`registry: a redirect ${what} is an error`, async () => {
    await withServer(
      (asked) => answerStatus(asked, 302, { location }),
      async (blob) => void await rejects(blob.size(), "EIO", text),
    );
  });
}

Deno.test("registry: redirects without end are an error", async () => {
  let n = 0;
  await withServer(
    (asked) => answerStatus(asked, 302, { location: `/more/${n++}` }),
    async (blob, server) => {
      await rejects(blob.size(), "EIO", /9 redirects and no end/);
      assert.equal(server.asked.length, 9);
    },
  );
});

Deno.test("registry: a signed URL that expires is made anew, once", async () => {
  let good = 1;
  await using store = await startFake((asked) => {
    if (asked.url === `/data?sig=${good}`) answerRange(asked, BLOB);
    else answerStatus(asked, 403);
  });
  await withServer(
    (asked) =>
      answerStatus(asked, 307, {
        location: `${store.origin}/data?sig=${good}`,
      }),
    async (blob, server) => {
      await read(blob, 0, 10);
      good = 2;
      assert.deepEqual(await read(blob, 10, 10), BLOB.slice(10, 20));
      await read(blob, 20, 10);
      assert.equal(server.asked.length, 2);
      assert.deepEqual(
        store.asked.map(({ url }) => url.slice(-1)),
        ["1", "1", "2", "2"],
      );
    },
  );
});

Deno.test("registry: a store that refuses a new URL is EACCES, and not named with its query", async () => {
  await using store = await startFake((asked) => answerStatus(asked, 403));
  await withServer(
    (asked) =>
      answerStatus(asked, 307, { location: `${store.origin}/data?sig=secret` }),
    async (blob, server) => {
      const error = await rejects(blob.size(), "EACCES", /403 from .*\/data$/);
      assert(!error.message.includes("secret"));
      assert.equal(server.asked.length, 1);
    },
  );
});

Deno.test("registry: a store that is gone is named without its query", async () => {
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const { port } = listener.addr;
  listener.close();
  await withServer(
    (asked) =>
      answerStatus(asked, 307, {
        location: `http://127.0.0.1:${port}/data?sig=secret`,
      }),
    async (blob) => {
      const error = await rejects(
        blob.size(),
        "ENOTCONN",
        new RegExp(`:${port}: `),
      );
      assert(!Deno.inspect(error).includes("secret"));
    },
  );
});
