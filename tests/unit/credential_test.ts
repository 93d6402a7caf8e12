// SPDX-License-Identifier: Apache-2.0
// Credentials: spec/service-config.md, sections 7 and 8; Docker's config.json.
import assert from "node:assert/strict";
import fc from "fast-check";
import type { Credential } from "../../src/source/credential/credential.ts";
import { createCredentials } from "../../src/source/credential/credentials.ts";
import { findIn, readStore } from "../../src/source/credential/docker.ts";
import { type TempDir, tempDir } from "../lib/env.ts";
import { type Asked, startFake } from "../lib/fake_registry.ts";

const URL_AB = "https://reg.io/v2/ns/repo/blobs/sha256:00";
const HUB = "https://registry-1.docker.io/v2/library/redis/blobs/sha256:00";

/** `user:password` of what a config.json has for a URL. */
function found(config: unknown, url = URL_AB): string | undefined {
  const match = findIn(readStore(config), url);
  if (match.kind === "helper") return `${match.helper} ${match.server}`;
  return match.kind === "none" ? undefined : plain(match.credential);
}

/** What a server makes of it. */
function plain({ basic }: Credential): string {
  const bytes = Uint8Array.from(atob(basic), (c) => c.charCodeAt(0));
  return new TextDecoder().decode(bytes);
}

const auth = (text: string) => ({
  auth: btoa(String.fromCharCode(...new TextEncoder().encode(text))),
});

Deno.test("credential: the longest match wins, whatever the order", () => {
  const auths = {
    "reg.io": auth("host:1"),
    "reg.io/ns/repo": auth("repo:3"),
    "reg.io/ns": auth("ns:2"),
    "reg.io/ns/repository": auth("other:4"),
    "other.io": auth("other:5"),
  };
  assert.equal(found({ auths }), "repo:3");
  const at = (path: string) => found({ auths }, `https://reg.io/v2/${path}`);
  assert.equal(at("ns/x/blobs/sha256:00"), "ns:2");
  assert.equal(at("x/repo/blobs/sha256:00"), "host:1");
  assert.equal(at("ns/repo/manifests/latest"), "repo:3");
  assert.equal(at("ns/repo/blobs/uploads/"), "repo:3");
  assert.equal(found({ auths }, "https://third.io/v2/a/blobs/x"), undefined);
  assert.equal(found({ auths }, "https://reg.io:5000/v2/a/blobs/x"), undefined);
});

for (
  const key of [
    "https://index.docker.io/v1/",
    "docker.io",
    "registry-1.docker.io",
    "index.docker.io",
    "https://registry-1.docker.io/v2/",
    "docker.io/library",
  ]
) {
  Deno.test(`credential: ${key} is Docker Hub`, () => {
    assert.equal(found({ auths: { [key]: auth("u:p") } }, HUB), "u:p");
    assert.equal(found({ auths: { [key]: auth("u:p") } }), undefined);
  });
}

for (
  const [key, url] of [
    ["reg.io:5000", "http://reg.io:5000/v2/a/blobs/x"],
    ["https://reg.io", URL_AB],
    ["http://reg.io/", URL_AB],
    ["REG.io", URL_AB],
    ["reg.io:443", URL_AB],
    ["https://reg.io/v2/", URL_AB],
    ["[::1]:5000", "http://[::1]:5000/v2/a/blobs/x"],
  ] as const
) {
  Deno.test(`credential: ${key} names ${url}`, () => {
    assert.equal(found({ auths: { [key]: auth("u:p") } }, url), "u:p");
  });
}

for (
  const [what, entry, expected] of [
    ["a password with colons", auth("u:p:q:"), "u:p:q:"],
    ["non-ASCII", auth("jürgen:пароль"), "jürgen:пароль"],
    ["a name without a password", auth("u:"), "u:"],
    ["a trailing newline", { auth: `${btoa("u:p")}\n` }, "u:p"],
    ["name and password apart", { username: "u", password: "ü:p" }, "u:ü:p"],
    ["a name alone", { username: "u" }, "u:"],
    ["auth before name and password", {
      ...auth("a:b"),
      username: "u",
      password: "p",
    }, "a:b"],
    ["nothing, as Docker writes it beside a store", {}, undefined],
    ["no colon", auth("secret"), undefined],
    ["no base64", { auth: "%%%" }, undefined],
    ["neither name nor password", auth(":"), undefined],
    ["a number", 5, undefined],
  ] as const
) {
  Deno.test(`credential: an entry with ${what}`, () => {
    assert.equal(found({ auths: { "reg.io": entry } }), expected);
  });
}

Deno.test("credential: what cannot be used is told without what it is, the rest counts", () => {
  const store = readStore({
    auths: { "reg.io/ns": auth("secretword"), "reg.io": auth("u:p") },
  });
  assert.deepEqual(store.warnings, [
    'auths["reg.io/ns"] has an `auth` that is no user:password',
  ]);
  assert.equal(
    found({ auths: { "reg.io/ns": 5, "reg.io": auth("u:p") } }),
    "u:p",
  );
});

Deno.test("credential: any JSON object is searched, anything else refused", () => {
  fc.assert(fc.property(
    fc.record({
      auths: fc.oneof(
        fc.dictionary(fc.string(), fc.jsonValue()),
        fc.jsonValue(),
      ),
      credHelpers: fc.jsonValue(),
      credsStore: fc.jsonValue(),
    }, { requiredKeys: [] }),
    (config) => void findIn(readStore(config), URL_AB),
  ));
  for (const bad of [null, 5, "x", []]) {
    assert.throws(() => readStore(bad), TypeError);
  }
});

Deno.test("credential: raw bytes pass through as they are", () => {
  fc.assert(fc.property(
    fc.uint8Array({ maxLength: 20 }),
    fc.uint8Array({ maxLength: 20 }),
    (user, password) => {
      const name = user.filter((byte) => byte !== 58);
      const raw = String.fromCharCode(...name, 58, ...password);
      const match = findIn(
        readStore({ auths: { "reg.io": { auth: btoa(raw) } } }),
        URL_AB,
      );
      assert.equal(
        match.kind === "credential" ? match.credential.basic : btoa(":"),
        btoa(raw),
      );
    },
  ));
});

Deno.test("credential: programs: a registry's own, then what is written, then the one for all", () => {
  const config = {
    auths: {
      "reg.io/ns": auth("u:p"),
      "second.io": {},
      "https://index.docker.io/v1/": {},
    },
    credHelpers: { "reg.io": "own", "third.io": "third" },
    credsStore: "all",
  };
  assert.equal(found(config), "u:p");
  assert.equal(found(config, "https://reg.io/v2/x/blobs/y"), "own reg.io");
  assert.equal(
    found(config, "https://third.io/v2/x/blobs/y"),
    "third third.io",
  );
  assert.equal(
    found(config, "https://second.io/v2/x/blobs/y"),
    "all second.io",
  );
  assert.equal(found(config, HUB), "all https://index.docker.io/v1/");
});

// ---- files -----------------------------------------------------------------

async function ask(
  credentials: ReturnType<typeof createCredentials>,
  url = URL_AB,
  fresh = false,
): Promise<string | undefined> {
  const match = await credentials.find(url, { fresh });
  return match === undefined ? undefined : plain(match);
}

function fileCredentials(dir: TempDir) {
  const lines: string[] = [];
  const path = dir.file("cred.json");
  const log = (line: string) => lines.push(line);
  const credentials = createCredentials({ mode: "file", path, log });
  return { credentials, path, lines };
}

Deno.test("credential: a file is read again when it changes, a bad edit is not the end", async () => {
  using dir = tempDir();
  const { credentials, path, lines } = fileCredentials(dir);
  assert.equal(await ask(credentials), undefined);
  const write = (config: unknown) =>
    Deno.writeTextFileSync(
      path,
      typeof config === "string" ? config : JSON.stringify(config),
    );
  write({ auths: { "reg.io": auth("u:1") } });
  assert.equal(await ask(credentials), "u:1");
  write({ auths: { "reg.io": auth("u:22") } });
  assert.equal(await ask(credentials), "u:22");
  assert.deepEqual(lines, []);
  write(`{"auths": {"reg.io": {"auth": "secretword`);
  assert.equal(await ask(credentials), "u:22");
  assert.equal(await ask(credentials), "u:22");
  assert.deepEqual(lines, [
    `WARNING cannot read credentials from ${path}: it is no JSON, ` +
    "what it had before still counts",
  ]);
  Deno.removeSync(path);
  assert.equal(await ask(credentials), undefined);
});

for (
  const [text, told] of [
    ["", 1],
    ["{}", 0],
    ['{"auths": null}', 0],
    ['{"auths": []}', 1],
    ['{"auths": 1}', 1],
  ] as const
) {
  Deno.test(`credential: a file with "${text}" is anonymous`, async () => {
    using dir = tempDir();
    const { credentials, path, lines } = fileCredentials(dir);
    Deno.writeTextFileSync(path, text);
    assert.equal(await ask(credentials), undefined);
    assert.equal(lines.length, told, lines.join());
  });
}

for (
  const [what, options] of [
    ["an unknown mode", { mode: "ldap", path: "x" }],
    ["no path", { mode: "file", path: "" }],
    ["a directory", { mode: "file", path: "/" }],
  ] as const
) {
  Deno.test(`credential: ${what} is anonymous`, async () => {
    assert.equal(await ask(createCredentials(options)), undefined);
  });
}

// ---- services --------------------------------------------------------------

const GOOD = {
  traceId: "x",
  success: true,
  data: { auths: { "reg.io": auth("u:p") } },
};

Deno.test("credential: a service is asked once for a repository, in the original's words", async () => {
  await using server = await startFake(({ response }) => {
    setTimeout(() => response.end(JSON.stringify(GOOD)), 5);
  });
  const credentials = createCredentials({
    mode: "http",
    path: `${server.origin}/auth`,
  });
  const all = await Promise.all(
    Array.from({ length: 20 }, () => ask(credentials)),
  );
  assert.deepEqual(new Set(all), new Set(["u:p"]));
  assert.equal(server.asked.length, 1);
  assert.equal(server.asked[0]?.url, `/auth?remote_url=${URL_AB}`);
  await ask(credentials, URL_AB, true);
  assert.equal(server.asked.length, 2);
});

Deno.test("credential: what would break a service's query is escaped", async () => {
  await using server = await startFake(({ response }) => response.end("{}"));
  const credentials = createCredentials({
    mode: "http",
    path: `${server.origin}/a?k=1`,
  });
  await ask(credentials, "https://reg.io/v2/a/blobs/x?a=1&b=#c");
  assert.equal(
    server.asked[0]?.url,
    "/a?k=1&remote_url=https://reg.io/v2/a/blobs/x%3Fa%3D1%26b%3D%23c",
  );
});

const json = (value: unknown) => ({ response }: Asked) =>
  response.end(JSON.stringify(value));

for (
  const [what, answer, line] of [
    ["success false", json({ ...GOOD, success: false }), undefined],
    [
      "500",
      ({ response }: Asked) => response.writeHead(500).end(),
      /HTTP status 500/,
    ],
    [
      "a redirect",
      ({ response }: Asked) =>
        response.writeHead(302, { location: "/x" }).end(),
      /HTTP status 302/,
    ],
    [
      "no JSON",
      ({ response }: Asked) => response.end("secret"),
      /the answer is no JSON/,
    ],
    ["no data", json({ success: true }), /no `data`/],
    ["no end", () => {}, /no answer within 1 s/],
  ] as const
) {
  Deno.test(`credential: a service that answers with ${what} is anonymous`, async () => {
    const lines: string[] = [];
    await using server = await startFake(answer);
    const credentials = createCredentials({
      mode: "http",
      path: `${server.origin}/auth?token=secret`,
      log: (text) => lines.push(text),
    });
    assert.equal(await ask(credentials), undefined);
    assert.equal(lines.length, line === undefined ? 0 : 1);
    if (line !== undefined) assert.match(lines[0] ?? "", line);
    assert(!lines.join().includes("secret"));
  });
}

Deno.test("credential: chunked answers are read to their end", async () => {
  const text = JSON.stringify(GOOD);
  await using server = await startFake(({ response }) => {
    response.write(text.slice(0, 20));
    setTimeout(() => response.end(text.slice(20)), 20);
  });
  const credentials = createCredentials({ mode: "http", path: server.origin });
  assert.equal(await ask(credentials), "u:p");
});

Deno.test("credential: the last good answer is kept while the service is down", async () => {
  let up = true;
  const lines: string[] = [];
  await using server = await startFake(({ response }) =>
    up ? response.end(JSON.stringify(GOOD)) : response.writeHead(500).end()
  );
  const credentials = createCredentials({
    mode: "http",
    path: server.origin,
    log: (line) => lines.push(line),
  });
  assert.equal(await ask(credentials), "u:p");
  up = false;
  assert.equal(await ask(credentials, URL_AB, true), "u:p");
  assert.match(lines.join(), /HTTP status 500: the last answer is used again$/);
});

Deno.test("credential: over a unix socket", async () => {
  using dir = tempDir();
  const path = dir.file("socket");
  const asked: string[] = [];
  const server = Deno.serve({ path, onListen: () => {} }, (request) => {
    asked.push(request.url);
    return Response.json(GOOD);
  });
  const lines: string[] = [];
  const credentials = createCredentials({
    mode: "uds",
    path,
    log: (line) => lines.push(line),
  });
  assert.equal(await ask(credentials), "u:p", lines.join());
  assert.match(asked[0] ?? "", /\/auth\?remote_url=https:\/\/reg.io\/v2\/ns/);
  await server.shutdown();
});

for (
  const [what, make] of [
    ["that is missing", () => {}],
    ["that is no socket", (path: string) => Deno.writeTextFileSync(path, "x")],
  ] as const
) {
  Deno.test(`credential: a socket ${what} is anonymous`, async () => {
    using dir = tempDir();
    const path = dir.file("socket");
    make(path);
    const lines: string[] = [];
    const credentials = createCredentials({
      mode: "uds",
      path,
      log: (line) => lines.push(line),
    });
    assert.equal(await ask(credentials), undefined);
    assert.match(
      lines.join(),
      new RegExp(`^WARNING no credentials for reg.io: cannot ask ${path}`),
    );
  });
}

// ---- programs --------------------------------------------------------------

/** Runs `work` with docker-credential-NAME programs in PATH. */
async function withPrograms(
  programs: Record<string, string>,
  work: (dir: TempDir) => Promise<void>,
): Promise<void> {
  using dir = tempDir();
  for (const [name, script] of Object.entries(programs)) {
    const path = dir.file(`docker-credential-${name}`);
    Deno.writeTextFileSync(path, `#!/bin/sh\n${script}\n`);
    Deno.chmodSync(path, 0o755);
  }
  const before = Deno.env.get("PATH") ?? "";
  Deno.env.set("PATH", `${dir.path}:${before}`);
  try {
    await work(dir);
  } finally {
    Deno.env.set("PATH", before);
  }
}

const PRINT =
  `printf '{"ServerURL":"%s","Username":"%s","Secret":"s:%s"}' "$server" u "$1"`;

Deno.test("credential: a program is asked for what its registry is called, once", async () => {
  await withPrograms({
    own: `server=$(cat); echo "$server" >>"$0.log"; ${PRINT}`,
  }, async (dir) => {
    const { credentials, path } = fileCredentials(dir);
    Deno.writeTextFileSync(path, JSON.stringify({ credsStore: "own" }));
    assert.equal(await ask(credentials), "u:s:get");
    assert.equal(await ask(credentials), "u:s:get");
    assert.equal(await ask(credentials, HUB), "u:s:get");
    assert.equal(
      Deno.readTextFileSync(dir.file("docker-credential-own.log")),
      "reg.io\nhttps://index.docker.io/v1/\n",
    );
  });
});

for (
  const [what, script, line] of [
    [
      "has nothing",
      "cat >/dev/null; echo credentials not found in native keychain; exit 1",
      undefined,
    ],
    [
      "fails",
      "echo secret; echo secret >&2; exit 3",
      /docker-credential-own ended with code 3$/,
    ],
    [
      "prints no JSON",
      "cat >/dev/null; echo secret",
      /docker-credential-own did not print JSON$/,
    ],
  ] as const
) {
  Deno.test(`credential: a program that ${what} is anonymous`, async () => {
    await withPrograms({ own: script }, async (dir) => {
      const { credentials, path, lines } = fileCredentials(dir);
      Deno.writeTextFileSync(
        path,
        JSON.stringify({ credHelpers: { "reg.io": "own" } }),
      );
      assert.equal(await ask(credentials), undefined);
      assert.equal(lines.length, line === undefined ? 0 : 1);
      if (line !== undefined) assert.match(lines[0] ?? "", line);
      assert(!lines.join().includes("secret"));
    });
  });
}

for (const helper of ["none-of-this-name", "../../bin/sh", ""]) {
  Deno.test(`credential: no program is run for "${helper}"`, async () => {
    using dir = tempDir();
    const { credentials, path, lines } = fileCredentials(dir);
    Deno.writeTextFileSync(
      path,
      JSON.stringify({ credHelpers: { "reg.io": helper } }),
    );
    assert.equal(await ask(credentials), undefined);
    assert.match(
      lines.join(),
      helper === "" ? /^$/ : /no such program|bad name/,
    );
  });
}

Deno.test("credential: an identity token of a program, and of a file", async () => {
  await withPrograms({
    own: `cat >/dev/null; echo '{"Username":"<token>","Secret":"refresh"}'`,
  }, async (dir) => {
    const { credentials, path } = fileCredentials(dir);
    Deno.writeTextFileSync(
      path,
      JSON.stringify({
        auths: { "file.io": { ...auth("u:p"), identitytoken: "of the file" } },
        credHelpers: { "reg.io": "own" },
      }),
    );
    assert.equal((await credentials.find(URL_AB))?.identityToken, "refresh");
    const other = await credentials.find("https://file.io/v2/a/blobs/x");
    assert.equal(other?.identityToken, "of the file");
  });
});
