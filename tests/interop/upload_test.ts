// SPDX-License-Identifier: Apache-2.0
/**
 * `commit --upload` and `merge --upload` into Debian's docker-registry
 * (spec/tools.md, sections 3 and 5).
 *
 * @module
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mustRun, sha256, type TempDir, tempDir, tool } from "../lib/env.ts";
import { haveRegistry, makeAuthority, startRegistry } from "../lib/daemons.ts";
import { newUpper, openDisk, writeConfig } from "../lib/product.ts";
import { startTokenServer } from "../lib/token_server.ts";

/** A test that needs a registry. */
function test(name: string, work: () => Promise<void>) {
  Deno.test({
    name: `upload: ${name}${haveRegistry ? "" : " (no docker-registry)"}`,
    ignore: !haveRegistry,
    fn: work,
  });
}

/** A writable layer with data that hardly compresses. */
async function makeUpper(dir: TempDir) {
  const upper = await newUpper(dir.file("up"), { size: 4 << 20 });
  await using disk = await openDisk({ lowers: [], upper });
  for (let at = 0; at < 1 << 20; at += 65536) {
    disk.write(at, crypto.getRandomValues(new Uint8Array(65536)));
  }
  return upper;
}

/** The blob that a registry has. */
async function pull(
  repository: string,
  digest: string,
  authorization?: string,
) {
  const response = await fetch(`${repository}/blobs/${digest}`, {
    headers: authorization === undefined ? {} : { authorization },
  });
  const bytes = new Uint8Array(await response.arrayBuffer());
  assert.equal(response.status, 200, new TextDecoder().decode(bytes));
  return bytes;
}

test("commit, by both names: the registry has the output", async () => {
  using dir = tempDir();
  await using registry = await startRegistry(dir);
  const repository = `http://127.0.0.1:${registry.port}/v2/a/b`;
  const { data, index } = await makeUpper(dir);
  for (const name of ["overlaybd-commit", "overlaybd"]) {
    const output = dir.file(`${name}.layer`);
    const { code, stdout, stderr } = await tool(name, [
      ...name === "overlaybd" ? ["commit"] : [],
      "-z",
      data,
      index,
      output,
      "--upload",
      `${repository}/blobs/uploads/`,
      "--upload_bs",
      "100",
    ]);
    assert.equal(code, 0, stderr);
    const bytes = Deno.readFileSync(output);
    const digest = `sha256:${sha256(bytes)}`;
    const lines = (name === "overlaybd" ? stdout : stderr).split("\n");
    assert(lines.includes(digest), `${stdout}${stderr}`);
    assert.match(
      stdout,
      /overlaybd-commit has committed files SUCCESSFULLY\n$/,
    );
    assert.deepEqual(await pull(repository, digest), bytes);
    assert((registry.output().match(/PATCH/g) ?? []).length > 1);
    const check = await tool("overlaybd", ["check", output]);
    assert.equal(check.code, 0, check.stderr);
  }
});

test("merge: with a password from the file that is named", async () => {
  using dir = tempDir();
  const htpasswd = dir.file("htpasswd");
  await mustRun("htpasswd", ["-Bbc", htpasswd, "user", "secret"]);
  await using registry = await startRegistry(dir, { htpasswd });
  const host = `127.0.0.1:${registry.port}`;
  const repository = `http://${host}/v2/a/b`;
  const upper = await makeUpper(dir);
  const config = writeConfig(dir, { lowers: [], upper });
  const output = dir.file("flat");
  const cred = dir.file("cred.json");
  const run = () =>
    tool("overlaybd-merge", [
      config,
      output,
      "--upload",
      `${repository}/blobs/uploads/`,
      "--cred_file_path",
      cred,
    ]);
  Deno.writeTextFileSync(cred, "{}");
  const refused = await run();
  assert.equal(refused.code, 255);
  assert.match(
    refused.stderr,
    /^failed to upload: cannot upload to http.*uploads\/: HTTP status 401: no credentials for 127.0.0.1:\d+ in .*cred.json\n$/,
  );
  assert(!existsSync(output));
  const auth = btoa("user:secret");
  Deno.writeTextFileSync(cred, JSON.stringify({ auths: { [host]: { auth } } }));
  const { code, stdout, stderr } = await run();
  assert.equal(code, 0, stderr);
  assert.equal(stdout, "");
  const bytes = Deno.readFileSync(output);
  assert.equal(stderr, `sha256:${sha256(bytes)}\n`);
  assert.deepEqual(
    await pull(repository, stderr.trim(), `Basic ${auth}`),
    bytes,
  );
});

test("a token to push, of a token server", async () => {
  using dir = tempDir();
  const signer = await makeAuthority(dir, "signer");
  const about = { issuer: "tests", service: "s" };
  await using tokens = await startTokenServer({
    ...about,
    signer,
    seconds: 300,
  });
  await using registry = await startRegistry(dir, {
    token: { ...about, realm: `${tokens.origin}/token`, certs: signer.cert },
  });
  const { data, index } = await makeUpper(dir);
  const url = `http://127.0.0.1:${registry.port}/v2/a/b/blobs/uploads/`;
  const { code, stderr } = await tool("overlaybd-commit", [
    ...["-z", data, index, dir.file("layer")],
    ...["--upload", url, "--upload_bs", "256"],
  ]);
  assert.equal(code, 0, stderr);
  assert.equal(
    stderr,
    `sha256:${sha256(Deno.readFileSync(dir.file("layer")))}\n`,
  );
  const scope = new URL(tokens.asked[0]?.url ?? "", "http://x").searchParams;
  assert.equal(tokens.asked.length, 1);
  assert.deepEqual(
    scope.get("scope")?.split(":").at(-1)?.split(",").sort(),
    ["pull", "push"],
  );
});

Deno.test("upload: a failure leaves no output, nothing listens", async () => {
  using dir = tempDir();
  const { data, index } = await makeUpper(dir);
  const output = dir.file("layer");
  for (
    const [url, original, subcommand] of [
      [
        "http://127.0.0.1:1/v2/a/blobs/uploads/",
        /^failed to commit or upload: cannot upload to http/,
        /^overlaybd commit: cannot upload to http/,
      ],
      [
        "ftp://x/",
        /^failed to commit or upload: cannot open ftp:\/\/x\/: no http/,
        /^overlaybd commit: cannot open ftp/,
      ],
    ] as const
  ) {
    const args = ["-z", data, index, output, "--upload", url];
    for (
      const [name, text] of [["overlaybd-commit", original], [
        "overlaybd",
        subcommand,
      ]] as const
    ) {
      const { code, stdout, stderr } = await tool(
        name,
        name === "overlaybd" ? ["commit", ...args] : args,
      );
      assert.equal(code, 255);
      assert.equal(stdout, "");
      assert.match(stderr, text);
      assert.equal(stderr.trim().split("\n").length, 1, stderr);
      assert(!existsSync(output));
    }
  }
});

Deno.test("upload: options that do not go together", async () => {
  using dir = tempDir();
  const { data, index } = await makeUpper(dir);
  const url = "http://127.0.0.1:1/";
  const commit = (...args: string[]) =>
    tool("overlaybd-commit", [data, index, dir.file("layer"), "-f", ...args]);
  const tar = await commit("-z", "-t", "--upload", url);
  assert.equal(tar.code, 255);
  assert.match(
    tar.stderr,
    /unsupport option with '-t' and '--upload' at the same time\./,
  );
  const plain = await commit("--upload", url);
  assert.equal(plain.code, 0);
  assert.match(plain.stderr, /'--upload' will be ignored without '-z'/);
  const alone = await commit("--upload_bs", "4");
  assert.match(
    alone.stderr,
    /'--upload_bs' will be ignored without '--upload'/,
  );
  const half = await commit("-z", "--upload", url, "--tls_key_path", data);
  assert.equal(half.code, 255);
  assert.match(half.stderr, /--tls_cert_path is empty/);
});
