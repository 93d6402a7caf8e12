// SPDX-License-Identifier: Apache-2.0
/**
 * Challenges, tokens, passwords: who is asked how often, and who is shown what
 * (spec/registry.md, sections 2, 3 and 11).
 *
 * @module
 */
import assert from "node:assert/strict";
import { keptRealms } from "../../src/service/realms.ts";
import {
  createRegistryClient,
  type RegistryClient,
} from "../../src/source/registry/client.ts";
import { createCredentials } from "../../src/source/credential/credentials.ts";
import { tempDir } from "../lib/env.ts";
import {
  answerRange,
  answerStatus,
  type Asked,
  type FakeRegistry,
  startFake,
} from "../lib/fake_registry.ts";
import {
  asyncDir,
  BASIC,
  BLOB,
  PATH,
  read,
  rejects,
  withServer,
} from "../lib/registry_client.ts";

/** A registry with a token server, both of which the test can spoil. */
function tokenServer(options: {
  challenge?: (origin: string) => string;
  token?: (asked: Asked, n: number) => unknown;
} = {}) {
  let tokens = 0;
  const state = { good: new Set<string>(), origin: "" };
  const answer = (asked: Asked) => {
    if (asked.url.startsWith("/token")) {
      const n = ++tokens;
      if (options.token !== undefined) return options.token(asked, n);
      const token = `t${n}`;
      state.good.add(token);
      const text = JSON.stringify({ token, expires_in: 300 });
      asked.response.writeHead(200, { "content-length": text.length });
      return asked.response.end(text);
    }
    const shown = asked.headers.authorization?.replace(/^Bearer /, "") ?? "";
    if (state.good.has(shown)) return answerRange(asked, BLOB);
    const host = `http://${asked.headers.host}`;
    return answerStatus(asked, 401, {
      "www-authenticate": options.challenge?.(host) ??
        `Bearer realm="${host}/token",service="reg",scope="repository:a/b:pull"`,
    });
  };
  return { state, answer };
}

const ofTokens = (server: FakeRegistry) =>
  server.asked.filter(({ url }) => url.startsWith("/token"));

Deno.test("registry: 30 blobs opened at once cost one challenge and one token", async () => {
  const { answer } = tokenServer();
  await using server = await startFake(answer);
  using client = createRegistryClient();
  await Promise.all(Array.from({ length: 30 }, async (_, i) => {
    const blob = client.openBlob(`${server.origin}/v2/a/b/blobs/sha256:${i}`);
    const head = await blob.range(0, 65536);
    await head.read(new Uint8Array(65536));
    await read(blob, head.total - 1000, 1000);
  }));
  assert.equal(ofTokens(server).length, 1);
  assert.equal(server.asked.length, 1 + 1 + 2 * 30);
  const url = new URL(ofTokens(server)[0]?.url ?? "", "http://x");
  assert.equal(url.searchParams.get("service"), "reg");
  assert.equal(url.searchParams.get("scope"), "repository:a/b:pull");
});

Deno.test("registry: a token that the registry no longer takes is replaced, once for all", async () => {
  const { answer, state } = tokenServer();
  await withServer(answer, async (blob, server) => {
    await read(blob, 0, 10);
    state.good.clear();
    const parts = await Promise.all(
      Array.from({ length: 20 }, (_, i) => read(blob, i * 10, 10)),
    );
    parts.forEach((part, i) =>
      assert.deepEqual(part, BLOB.slice(i * 10, i * 10 + 10))
    );
    assert.equal(ofTokens(server).length, 2);
  });
});

for (
  const [what, seconds, tokens] of [
    ["a short one is renewed before it ends", 0.2, 2],
    ["a long one is used again", 300, 1],
    ["one that does not say lives a minute", undefined, 1],
  ] as const
) {
  Deno.test(`registry: expires_in: ${what}`, async () => {
    const good = new Set<string>();
    const { answer } = tokenServer({
      token: ({ response }, n) => {
        good.add(`t${n}`);
        response.end(
          JSON.stringify({ access_token: `t${n}`, expires_in: seconds }),
        );
      },
    });
    await withServer((asked) => {
      const shown = asked.headers.authorization?.replace(/^Bearer /, "") ?? "";
      return good.has(shown) ? answerRange(asked, BLOB) : answer(asked);
    }, async (blob, server) => {
      await read(blob, 0, 10);
      await new Promise((done) => setTimeout(done, 150));
      await read(blob, 10, 10);
      assert.equal(ofTokens(server).length, tokens);
      // Renewed, not refused.
      const refused = server.asked.filter(({ url, headers }) =>
        url === PATH && headers.authorization === undefined
      );
      assert.equal(refused.length, 1);
    });
  });
}

for (
  const [what, challenge, query] of [
    [
      "lower case, spaces, no service",
      (o: string) =>
        `bearer realm="${o}/token", scope="repository:a/b:pull,push"`,
      "/token?scope=repository%3Aa%2Fb%3Apull%2Cpush",
    ],
    [
      "a realm with a query",
      (o: string) => `Bearer realm="${o}/token?x=1",service="a b&c"`,
      "/token?x=1&service=a+b%26c",
    ],
    [
      "no scope, Basic offered too",
      (o: string) => `Basic realm="r", Bearer realm="${o}/token",service="s"`,
      "/token?service=s",
    ],
    ["a realm alone", (o: string) => `Bearer realm=${o}/token`, "/token"],
    ["a relative realm", () => `Bearer realm="/token"`, "/token"],
  ] as const
) {
  Deno.test(`registry: challenge with ${what}`, async () => {
    const { answer } = tokenServer({ challenge });
    await withServer(answer, async (blob, server) => {
      assert.deepEqual(await read(blob, 0, 10), BLOB.slice(0, 10));
      assert.equal(ofTokens(server)[0]?.url, query);
    });
  });
}

for (
  const [what, token, code, text, requests] of [
    [
      "says 401",
      (asked: Asked) => answerStatus(asked, 401),
      "EACCES",
      /token from .*\/token: HTTP status 401/,
      1,
    ],
    [
      "says 403",
      (asked: Asked) => answerStatus(asked, 403),
      "EACCES",
      /HTTP status 403/,
      1,
    ],
    [
      "says 500",
      (asked: Asked) => answerStatus(asked, 500),
      "EIO",
      /HTTP status 500/,
      4,
    ],
    [
      "says 429",
      (asked: Asked) => answerStatus(asked, 429),
      "EBUSY",
      /HTTP status 429/,
      4,
    ],
    ["never answers", () => {}, "ETIMEDOUT", /no answer within/, 1],
    [
      "answers with no JSON",
      ({ response }: Asked) => response.end("<html>"),
      "EIO",
      /no JSON/,
      4,
    ],
    [
      "answers without a token",
      ({ response }: Asked) => response.end("{}"),
      "EIO",
      /no token/,
      4,
    ],
    [
      "answers without an end",
      ({ response }: Asked) => response.end("x".repeat(2 << 20)),
      "EIO",
      /longer than 1048576 bytes/,
      4,
    ],
    [
      "answers with a token that ends a header",
      ({ response }: Asked) =>
        response.end(JSON.stringify({ token: "a\r\nx: y" })),
      "EIO",
      /no token/,
      4,
    ],
  ] as const
) {
  Deno.test(`registry: a token server that ${what} is ${code}`, async () => {
    const { answer } = tokenServer({ token });
    await withServer(answer, async (blob, server) => {
      await rejects(blob.size(), code, text);
      assert.equal(ofTokens(server).length, requests);
    }, { attemptMs: 1500 });
  });
}

Deno.test("registry: a token answer of more than 16 KiB, in chunks", async () => {
  const text = JSON.stringify({ more: "x".repeat(40_000), token: "t" });
  const { answer, state } = tokenServer({
    token: ({ response }) => {
      response.write(text.slice(0, 100));
      setTimeout(() => response.end(text.slice(100)), 10);
    },
  });
  state.good.add("t");
  await withServer(answer, async (blob) => {
    assert.equal(await blob.size(), BLOB.length);
  });
});

Deno.test("registry: the user's password goes to no plain token server of another host", async () => {
  await using dir = asyncDir();
  await using thief = await startFake(({ response }) => {
    response.end(JSON.stringify({ token: "t" }));
  }, "127.0.0.2");
  await withServer((asked) => {
    if (asked.headers.authorization === "Bearer t") {
      return answerRange(asked, BLOB);
    }
    return answerStatus(asked, 401, {
      "www-authenticate": `Bearer realm="${thief.origin}/token"`,
    });
  }, async (blob) => {
    await blob.size();
    assert.equal(thief.asked.length, 1);
    assert.equal(thief.asked[0]?.headers.authorization, undefined);
  }, { credentials: dir.credentials });
});

Deno.test("registry: a registry is never shown another one's token", async () => {
  await using dir = asyncDir();
  const realm = await startFake(({ response, headers }) => {
    response.end(JSON.stringify({
      token: headers.authorization === undefined ? "anonymous" : "private",
    }));
  });
  await using _ = realm;
  const challenge = {
    "www-authenticate": `Bearer realm="${realm.origin}/token",` +
      'service="s",scope="repository:a/b:pull"',
  };
  const answer = (asked: Asked) =>
    asked.headers.authorization === undefined
      ? answerStatus(asked, 401, challenge)
      : answerRange(asked, BLOB);
  await using mine = await startFake(answer);
  await using evil = await startFake(answer);
  using client = createRegistryClient({
    credentials: {
      ...dir.credentials,
      find: (url: string) =>
        url.startsWith(mine.origin)
          ? dir.credentials.find(url)
          : Promise.resolve(undefined),
    },
  });
  await client.openBlob(mine.origin + PATH).size();
  await client.openBlob(evil.origin + PATH).size();
  const shown = (server: FakeRegistry) =>
    server.asked.at(-1)?.headers.authorization;
  assert.equal(shown(mine), "Bearer private");
  assert.equal(shown(evil), "Bearer anonymous");
});

/** A registry of several repositories; `open/` ones want nothing. */
function repositories() {
  const state = { refuses: false, basic: false, forbids: false };
  const answer = (asked: Asked) => {
    const { url, headers, response } = asked;
    if (url.startsWith("/token")) {
      if (state.refuses) return answerStatus(asked, 403);
      const scope = new URL(url, "http://x").searchParams.get("scope");
      return response.end(JSON.stringify({ token: btoa(scope ?? "") }));
    }
    const [, name = ""] = /^\/v2\/(.+)\/blobs\//.exec(url) ?? [];
    const scope = `repository:${name}:pull`;
    const wanted = state.basic ? BASIC : `Bearer ${btoa(scope)}`;
    if (state.forbids && headers.authorization?.startsWith("Bearer")) {
      return answerStatus(asked, 403);
    }
    if (name.startsWith("open/") || headers.authorization === wanted) {
      return answerRange(asked, BLOB);
    }
    answerStatus(asked, 401, {
      "www-authenticate": state.basic
        ? "Basic realm=x"
        : `Bearer realm="http://${headers.host}/token",service="s",` +
          `scope="${scope}"`,
    });
  };
  return { state, answer };
}

Deno.test("registry: one refusal for all repositories of a registry, and after a restart", async () => {
  using dir = tempDir();
  const { answer, state } = repositories();
  await using server = await startFake(answer);
  await using other = await startFake(answer);
  const path = dir.file("realms.json");
  const asked = async (
    client: RegistryClient,
    name: string,
    { origin, asked } = server,
  ) => {
    const before = asked.length;
    const blob = client.openBlob(`${origin}/v2/${name}/blobs/sha256:1`);
    assert.deepEqual(await read(blob, 5, 10), BLOB.slice(5, 15));
    return asked.slice(before).map(({ url, headers }) =>
      url.startsWith("/token")
        ? "token"
        : headers.authorization === undefined
        ? "nothing"
        : "shown"
    );
  };
  {
    using client = createRegistryClient({ realms: keptRealms(path) });
    assert.deepEqual(await asked(client, "a/b"), ["nothing", "token", "shown"]);
    assert.deepEqual(await asked(client, "a/c"), ["token", "shown"]);
    assert.deepEqual(await asked(client, "a/c"), ["shown"]);
    assert.deepEqual(await asked(client, "open/a"), ["token", "shown"]);
    assert.deepEqual((await asked(client, "a/b", other))[0], "nothing");
  }
  {
    using client = createRegistryClient({ realms: keptRealms(path) });
    assert.deepEqual(await asked(client, "a/b"), ["token", "shown"]);
    assert.deepEqual(await asked(client, "a/b", other), ["token", "shown"]);
    // A guess that is wrong costs no more than itself.
    state.refuses = true;
    assert.deepEqual(await asked(client, "open/b"), ["token", "nothing"]);
    state.refuses = false;
  }
  // What cannot be right is nobody's advice.
  for (const text of ["", "[]", '{"http://x": {"realm": 1}}', "{"]) {
    Deno.writeTextFileSync(path, text);
    using client = createRegistryClient({ realms: keptRealms(path) });
    assert.equal((await asked(client, "a/b"))[0], "nothing");
  }
  const old = JSON.parse(Deno.readTextFileSync(path));
  assert.deepEqual(Object.keys(old), [server.origin]);
  old[server.origin].learned -= 8 * 24 * 3600 * 1000;
  Deno.writeTextFileSync(path, JSON.stringify(old));
  using client = createRegistryClient({ realms: keptRealms(path) });
  assert.equal((await asked(client, "a/b"))[0], "nothing");
});

Deno.test("registry: a repository that wants something else than others is found out", async () => {
  const { answer, state } = repositories();
  await using server = await startFake(answer);
  await using dir = asyncDir();
  using client = createRegistryClient({ credentials: dir.credentials });
  const size = (name: string) =>
    client.openBlob(`${server.origin}/v2/${name}/blobs/sha256:1`).size();
  assert.equal(await size("a/b"), BLOB.length);
  state.basic = true;
  assert.equal(await size("a/c"), BLOB.length);
  // One that takes no token at all, and says so for good.
  state.forbids = true;
  assert.equal(await size("a/d"), BLOB.length);
  assert.equal(await size("open/e"), BLOB.length);
});

Deno.test("registry: Basic without credentials says where they are looked for", async () => {
  using dir = tempDir();
  await withServer(
    (asked) =>
      answerStatus(asked, 401, { "www-authenticate": "Basic realm=x" }),
    async (blob, server) => {
      await rejects(
        blob.size(),
        "EACCES",
        /HTTP status 401: no credentials for 127.0.0.1:\d+ in .*\/none.json$/,
      );
      assert.equal(server.asked.length, 1);
    },
    {
      credentials: createCredentials({
        mode: "file",
        path: dir.file("none.json"),
      }),
    },
  );
});

Deno.test("registry: a wrong password is refused after one more request, and not told", async () => {
  await using dir = asyncDir();
  await withServer(
    (asked) =>
      answerStatus(asked, 401, { "www-authenticate": "Basic realm=x" }),
    async (blob, server) => {
      const error = await rejects(
        blob.size(),
        "EACCES",
        /the credentials of user in .* are refused/,
      );
      assert.equal(server.asked.length, 2);
      assert(!Deno.inspect(error).includes("secret"));
      assert.deepEqual(dir.lines, []);
    },
    { credentials: dir.credentials },
  );
});

Deno.test("registry: an identity token is exchanged by a form", async () => {
  let form = "";
  const { answer, state } = tokenServer({
    token: ({ request, method, response }) => {
      assert.equal(method, "POST");
      request.on("data", (chunk: Uint8Array) => {
        form += new TextDecoder().decode(chunk);
      });
      request.on("end", () => {
        response.end(JSON.stringify({ access_token: "t" }));
      });
    },
  });
  state.good.add("t");
  await withServer(answer, async (blob, server) => {
    assert.equal(await blob.size(), BLOB.length);
    assert.equal(ofTokens(server)[0]?.headers.authorization, undefined);
    assert.deepEqual(Object.fromEntries(new URLSearchParams(form)), {
      grant_type: "refresh_token",
      client_id: "overlaybd",
      refresh_token: "secret",
      service: "reg",
      scope: "repository:a/b:pull",
    });
  }, {
    credentials: {
      where: "here",
      find: () =>
        Promise.resolve({
          username: "",
          basic: btoa(":"),
          identityToken: "secret",
        }),
    },
  });
});

Deno.test("registry: who is gone before a token fails leaves nothing behind", async () => {
  const { answer } = tokenServer({
    token: (asked) => {
      setTimeout(() => answerStatus(asked, 500), 50);
    },
  });
  await withServer(answer, async (blob) => {
    const stop = new AbortController();
    const reading = read(blob, 0, 10, stop.signal);
    setTimeout(() => stop.abort(), 25);
    await rejects(reading, "EIO", /it was ended/);
    await new Promise((done) => setTimeout(done, 100));
  });
});
