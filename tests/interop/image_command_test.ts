// SPDX-License-Identifier: Apache-2.0
/**
 * `overlaybd image` against Debian's docker-registry, and the image that its
 * output opens.
 *
 * @module
 */
import assert from "node:assert/strict";
import { mustRun, mustTool, sha256, tempDir, tool } from "../lib/env.ts";
import {
  haveRegistry,
  makeAuthority,
  makeCertificate,
  startNginx,
  startRegistry,
} from "../lib/daemons.ts";
import { newUpper, openDisk } from "../lib/product.ts";
import { pushBlob, pushManifest, type PushOptions } from "../lib/push.ts";
import { startServer } from "../lib/server.ts";

const LABEL = "containerd.io/snapshot/overlaybd";
const MANIFEST = "application/vnd.oci.image.manifest.v1+json";
const INDEX = "application/vnd.oci.image.index.v1+json";
const LAYER = "application/vnd.oci.image.layer.v1.tar";

/** A test that needs a registry. */
function test(name: string, work: () => Promise<void>) {
  Deno.test({
    name: `image: ${name}${haveRegistry ? "" : " (no docker-registry)"}`,
    ignore: !haveRegistry,
    fn: work,
  });
}

const json = (value: unknown) =>
  new TextEncoder().encode(JSON.stringify(value));

/** A manifest of blobs, with these annotations on each. */
async function pushImage(
  push: PushOptions,
  name: string,
  blobs: readonly Uint8Array<ArrayBuffer>[],
  annotate: (digest: string, position: number) => Record<string, string> = (
    digest,
  ) => ({ [`${LABEL}/blob-digest`]: digest }),
) {
  const config = json({});
  const layers = await Promise.all(blobs.map(async (bytes, position) => {
    const digest = await pushBlob(push, bytes);
    const annotations = annotate(digest, position);
    return { mediaType: LAYER, digest, size: bytes.length, annotations };
  }));
  const manifest = {
    schemaVersion: 2,
    mediaType: MANIFEST,
    config: {
      mediaType: "application/vnd.oci.image.config.v1+json",
      digest: await pushBlob(push, config),
      size: config.length,
    },
    layers,
  };
  const digest = await pushManifest(push, name, manifest);
  return { digest, size: json(manifest).length, layers };
}

/** Runs the command; without a service configuration of this machine. */
async function image(
  args: readonly string[],
  env: Record<string, string> = {},
) {
  using dir = tempDir();
  const config = dir.file("overlaybd.json");
  Deno.writeTextFileSync(config, "{}");
  return await tool(
    "overlaybd",
    ["image", "--service_config_path", config, ...args],
    { env },
  );
}

test("a tag, a digest, an index; the configuration opens the image", async () => {
  using dir = tempDir();
  await using registry = await startRegistry(dir);
  const host = `127.0.0.1:${registry.port}`;
  const push = { repository: `http://${host}/v2/a/b` };
  const upper = await newUpper(dir.file("up"), { size: 1 << 20 });
  {
    await using disk = await openDisk({ lowers: [], upper });
    disk.write(4096, new Uint8Array(4096).fill(7));
  }
  const layer = dir.file("layer");
  await mustTool("overlaybd-commit", ["-z", upper.data, upper.index, layer]);
  const bytes = Deno.readFileSync(layer);
  const made = await pushImage(push, "latest", [bytes]);
  const other = await pushImage(push, "other", [new Uint8Array(512)]);
  const index = await pushManifest(push, "multi", {
    ...{ schemaVersion: 2 },
    mediaType: INDEX,
    ...{
      manifests: [
        { ...other, architecture: "s390x" },
        {
          ...made,
          architecture: Deno.build.arch === "x86_64" ? "amd64" : "arm64",
        },
      ].map(({ digest, size, architecture }) => ({
        mediaType: MANIFEST,
        digest,
        size,
        platform: { os: "linux", architecture },
      })),
    },
  });
  const expected = {
    repoBlobUrl: `http://${host}/v2/a/b/blobs`,
    lowers: [{ digest: `sha256:${sha256(bytes)}`, size: bytes.length }],
    upper: {},
    resultFile: "",
  };
  for (
    const reference of [
      `${host}/a/b`,
      `http://${host}/a/b:latest`,
      `${host}/a/b@${made.digest}`,
      `${host}/a/b:multi`,
      `${host}/a/b@${index}`,
    ]
  ) {
    const { code, stdout, stderr } = await image([reference]);
    assert.equal(code, 0, stderr);
    assert.deepEqual(JSON.parse(stdout), expected);
  }
  const platform = await image([
    `${host}/a/b:multi`,
    "--platform",
    "linux/s390x",
    "--json",
  ]);
  const { reference, digest, config } = JSON.parse(platform.stdout);
  assert.equal(reference, `${host}/a/b:multi`);
  assert.equal(digest, other.digest);
  assert.equal(config.lowers[0].size, 512);

  const file = dir.file("config.v1.json");
  Deno.writeTextFileSync(file, "old, and longer than nothing");
  const written = await image([
    `${host}/a/b`,
    "-o",
    file,
    "--dir",
    `${dir.path}/x/../layers`,
  ]);
  assert.equal(written.stdout, "");
  const text = Deno.readTextFileSync(file);
  assert.deepEqual(JSON.parse(text).lowers, [{
    ...expected.lowers[0],
    dir: `${dir.path}/layers/sha256:${sha256(bytes)}`,
  }]);
  // The snapshotter's order of fields.
  assert.deepEqual(Object.keys(JSON.parse(text)), Object.keys(expected));

  const service = dir.file("overlaybd.json");
  Deno.writeTextFileSync(
    service,
    JSON.stringify({
      cacheConfig: { cacheType: "file", cacheDir: dir.file("cache") },
      enableAudit: false,
      logConfig: { logPath: dir.file("log") },
    }),
  );
  await using server = await startServer(dir.file("nbd"), [file], {
    args: ["--service_config_path", service],
  });
  await mustRun("nbdcopy", [server.uri, dir.file("copy")]);
  const disk = new Uint8Array(1 << 20);
  disk.fill(7, 4096, 8192);
  assert.deepEqual(Deno.readFileSync(dir.file("copy")), disk);
});

test("the system's own authorities count; credentials of the configuration", async () => {
  using dir = tempDir();
  const ca = await makeAuthority(dir, "ca");
  const tls = await makeCertificate(dir, "server", ca);
  const htpasswd = dir.file("htpasswd");
  await mustRun("htpasswd", ["-Bbc", htpasswd, "user", "secret"]);
  await using registry = await startRegistry(dir, { tls, htpasswd });
  const host = `localhost:${registry.port}`;
  using client = Deno.createHttpClient({
    caCerts: [Deno.readTextFileSync(ca.cert)],
  });
  const made = await pushImage(
    {
      repository: `https://${host}/v2/a`,
      authorization: `Basic ${btoa("user:secret")}`,
      client,
    },
    "latest",
    [new Uint8Array(512)],
  );
  const cred = dir.file("cred.json");
  const config = dir.file("overlaybd.json");
  const configure = (more: Record<string, unknown>) =>
    Deno.writeTextFileSync(
      config,
      JSON.stringify({
        credentialConfig: { mode: "file", path: cred },
        ...more,
      }),
    );
  configure({});
  const ask = (env: Record<string, string> = {}) =>
    tool(
      "overlaybd",
      ["image", `${host}/a`, "--json", "--service_config_path", config],
      { env },
    );
  const untrusted = await ask();
  assert.equal(untrusted.code, 255);
  assert.match(
    untrusted.stderr,
    /^overlaybd image: cannot get https:.*name its CA in certConfig.caFile/,
  );
  // What a system's bundle does; the launcher asks for it by itself.
  const system = {
    SSL_CERT_FILE: ca.cert,
    ...(Deno.env.has("OVERLAYBD_BIN") ? {} : { DENO_TLS_CA_STORE: "system" }),
  };
  const refused = await ask(system);
  assert.equal(refused.code, 255);
  assert.match(
    refused.stderr,
    /HTTP status 401: no credentials for localhost:\d+ in .*cred.json\n$/,
  );
  Deno.writeTextFileSync(
    cred,
    JSON.stringify({ auths: { [host]: { auth: btoa("user:secret") } } }),
  );
  const good = await ask(system);
  assert.equal(good.code, 0, good.stderr);
  assert.equal(JSON.parse(good.stdout).digest, made.digest);
  configure({ insecureRegistries: [host] });
  assert.equal((await ask()).code, 0);
  configure({ certConfig: { caFile: ca.cert } });
  assert.equal((await ask()).code, 0);
  configure({ certConfig: { caFile: cred } });
  assert.match(
    (await ask()).stderr,
    /cannot use certConfig.caFile: .* is not PEM/,
  );
  configure({ certConfig: { certFile: tls.cert } });
  assert.match((await ask()).stderr, /keyFile is empty/);

  // Behind one that wants a certificate of ours, without an authority of ours.
  await using nginx = await startNginx(
    dir,
    `server {
      listen 127.0.0.1:$PORT ssl;
      ssl_certificate ${tls.cert}; ssl_certificate_key ${tls.key};
      ssl_client_certificate ${ca.cert}; ssl_verify_client on;
      location / {
        proxy_pass https://127.0.0.1:${registry.port};
        proxy_set_header Host $http_host;
      }
    }`,
  );
  const mutual = `localhost:${nginx.port}`;
  Deno.writeTextFileSync(
    cred,
    JSON.stringify({
      auths: { [mutual]: { username: "user", password: "secret" } },
    }),
  );
  const askMutual = () =>
    tool("overlaybd", [
      ...["image", `${mutual}/a`, "--json"],
      ...["--service_config_path", config],
    ], { env: system });
  configure({});
  assert.match((await askMutual()).stderr, /HTTP status 400/);
  configure({ certConfig: { certFile: tls.cert, keyFile: tls.key } });
  const mutually = await askMutual();
  assert.equal(mutually.code, 0, mutually.stderr);
});

test("what is no image of overlaybd is refused, with the reason", async () => {
  using dir = tempDir();
  await using registry = await startRegistry(dir);
  const host = `127.0.0.1:${registry.port}`;
  const push = { repository: `http://${host}/v2/a` };
  const blob = new Uint8Array(600);
  await pushImage(push, "plain", [blob], () => ({}));
  await pushImage(push, "lies", [blob], () => ({
    [`${LABEL}/blob-digest`]: `sha256:${"0".repeat(64)}`,
  }));
  await pushImage(push, "turbo", [blob], (digest) => ({
    [`${LABEL}/blob-digest`]: digest,
    [`${LABEL}/turbo-oci/target-digest`]: digest,
  }));
  await pushImage(push, "none", []);
  const made = await pushImage(push, "traced", [blob, new Uint8Array(700)], (
    digest,
    position,
  ) => ({
    [`${LABEL}/blob-digest`]: digest,
    ...(position === 1 ? { [`${LABEL}/acceleration-layer`]: "yes" } : {}),
  }));
  await pushManifest(push, "index", {
    mediaType: INDEX,
    ...{
      schemaVersion: 2,
      manifests: [{
        mediaType: MANIFEST,
        digest: made.digest,
        size: made.size,
        platform: { os: "linux", architecture: "arm64", variant: "v9" },
      }],
    },
  });
  for (
    const [tag, text, more] of [
      ["plain", /layers\[0\] \(.*\) is no overlaybd layer/, []],
      ["lies", /its annotation says sha256:00/, []],
      ["turbo", /layers\[0\] is a turboOCI layer/, []],
      ["none", /it has no layers/, []],
      ["missing", /manifests\/missing: HTTP status 404/, []],
      ["index", /no manifest for linux\/x, only for linux\/arm64\/v9/, [
        "--platform",
        "linux/x",
      ]],
      ["index", /cannot use the platform linux: expected OS/, [
        "--platform",
        "linux",
      ]],
      ["BAD TAG", /cannot use the image reference .*its tag is bad/, []],
    ] as const
  ) {
    const { code, stdout, stderr } = await image([`${host}/a:${tag}`, ...more]);
    assert.equal(code, 255);
    assert.equal(stdout, "");
    assert.match(stderr, text);
    assert.equal(stderr.trim().split("\n").length, 1, stderr);
  }
  const traced = await image([`${host}/a:traced`]);
  assert.equal(traced.code, 0);
  assert.equal(JSON.parse(traced.stdout).lowers.length, 1);
  assert.match(
    traced.stderr,
    /^WARNING the acceleration layer of .* is left out/,
  );
});
