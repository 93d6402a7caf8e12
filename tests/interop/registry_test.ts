// SPDX-License-Identifier: Apache-2.0
/**
 * The registry client against Debian's docker-registry and nginx.
 *
 * @module
 */
import assert from "node:assert/strict";
import {
  createCredentials,
  type CredentialOptions,
} from "../../src/source/credential/credentials.ts";
import {
  createRegistryClient,
  type RegistryOptions,
} from "../../src/source/registry/client.ts";
import { currentCertificates } from "../../src/service/certificates.ts";
import { mustRun, tempDir } from "../lib/env.ts";
import {
  type Certificate,
  haveRegistry,
  makeAuthority,
  makeCertificate,
  startNginx,
  startRegistry,
} from "../lib/daemons.ts";
import { blobBytes } from "../lib/fake_registry.ts";
import { pushBlob } from "../lib/push.ts";
import { read, rejects } from "../lib/registry_client.ts";
import { startTokenServer } from "../lib/token_server.ts";

const BLOB = blobBytes(1_000_000);
const AUTHORITIES = tempDir();
globalThis.addEventListener("unload", () => AUTHORITIES[Symbol.dispose]());

/** A test that needs both servers. */
function test(name: string, work: () => Promise<void>) {
  Deno.test({
    name: `registry: ${name}${haveRegistry ? "" : " (no docker-registry)"}`,
    ignore: !haveRegistry,
    fn: work,
  });
}

let certificates: Promise<{ ca: Certificate; server: Certificate }> | undefined;
/** An authority and a server's certificate, made once. */
function certified() {
  certificates ??= (async () => {
    const ca = await makeAuthority(AUTHORITIES, "authority");
    return { ca, server: await makeCertificate(AUTHORITIES, "server", ca) };
  })();
  return certificates;
}

const pem = (path: string) => Deno.readTextFileSync(path);

/** Size, head, middle and tail are as they should be. */
async function checkBlob(url: string, options: RegistryOptions) {
  using client = createRegistryClient(options);
  const blob = client.openBlob(url);
  assert.equal(await blob.size(), BLOB.length);
  assert.deepEqual(await read(blob, 0, 70_000), BLOB.slice(0, 70_000));
  assert.deepEqual(await read(blob, 555_555, 5), BLOB.slice(555_555, 555_560));
  assert.deepEqual(await read(blob, 999_000, 5000), BLOB.slice(999_000));
}

test("anonymous; a blob that is not there", async () => {
  using dir = tempDir();
  await using registry = await startRegistry(dir);
  const repository = `http://127.0.0.1:${registry.port}/v2/a/b`;
  const digest = await pushBlob({ repository }, BLOB);
  await checkBlob(`${repository}/blobs/${digest}`, {});
  using client = createRegistryClient();
  const missing = `${repository}/blobs/sha256:${"0".repeat(64)}`;
  await rejects(client.openBlob(missing).size(), "ENOENT", /HTTP status 404/);
});

test("htpasswd over TLS of a private authority", async () => {
  using dir = tempDir();
  const { ca, server } = await certified();
  const htpasswd = dir.file("htpasswd");
  await mustRun("htpasswd", ["-Bbc", htpasswd, "jürgen", "pass:wörd"]);
  await using registry = await startRegistry(dir, { htpasswd, tls: server });
  const host = `localhost:${registry.port}`;
  const repository = `https://${host}/v2/a/b`;
  const basic = btoa(
    String.fromCharCode(...new TextEncoder().encode("jürgen:pass:wörd")),
  );
  using push = Deno.createHttpClient({ caCerts: [pem(ca.cert)] });
  const digest = await pushBlob({
    repository,
    authorization: `Basic ${basic}`,
    client: push,
  }, BLOB);
  const url = `${repository}/blobs/${digest}`;
  const path = dir.file("cred.json");
  Deno.writeTextFileSync(
    path,
    JSON.stringify({ auths: { [host]: { auth: basic } } }),
  );
  const credentials = createCredentials({ mode: "file", path });

  await checkBlob(url, { credentials, ca: pem(ca.cert) });
  await checkBlob(url, { credentials, insecure: [host] });

  // By default it is not trusted; the message names the keys that help.
  using client = createRegistryClient({ credentials });
  await rejects(
    client.openBlob(url).size(),
    "ENOTCONN",
    new RegExp(
      `the certificate of ${host} is not trusted: name its CA in ` +
        `certConfig.caFile; "${host}" in insecureRegistries turns the check off$`,
    ),
  );
  // Another authority does not do: caFile is a pin.
  const other = await makeAuthority(dir, "other");
  using pinned = createRegistryClient({ credentials, ca: pem(other.cert) });
  await rejects(pinned.openBlob(url).size(), "ENOTCONN", /is not trusted/);
  // Neither does another host in the list.
  using wrong = createRegistryClient({ credentials, insecure: ["localhost"] });
  await rejects(wrong.openBlob(url).size(), "ENOTCONN", /is not trusted/);

  Deno.writeTextFileSync(
    path,
    JSON.stringify({ auths: { [host]: { username: "jürgen" } } }),
  );
  using refused = createRegistryClient({ credentials, insecure: [host] });
  await rejects(
    refused.openBlob(url).size(),
    "EACCES",
    /HTTP status 401: the credentials of jürgen in .*cred.json are refused/,
  );
  // A changed password is used without a restart.
  Deno.writeTextFileSync(
    path,
    JSON.stringify({ auths: { [host]: { auth: basic } } }),
  );
  assert.equal(await refused.openBlob(url).size(), BLOB.length);
});

test("a certificate that signs itself, as plain openssl makes it", async () => {
  using dir = tempDir();
  const self = await makeAuthority(dir, "self");
  await using registry = await startRegistry(dir, { tls: self });
  const host = `127.0.0.1:${registry.port}`;
  const url = `https://${host}/v2/a/b/blobs/sha256:${"0".repeat(64)}`;
  for (const options of [{ ca: pem(self.cert) }, { insecure: [host] }]) {
    using client = createRegistryClient(options);
    await rejects(client.openBlob(url).size(), "ENOENT", /HTTP status 404/);
  }
  using client = createRegistryClient();
  await rejects(
    client.openBlob(url).size(),
    "ENOTCONN",
    /is not trusted: name its CA in certConfig.caFile/,
  );
});

test("tokens, with and without credentials, refused ones", async () => {
  using dir = tempDir();
  const signer = await makeAuthority(dir, "signer");
  const about = { issuer: "tests", service: "registry of the tests" };
  await using tokens = await startTokenServer({
    ...about,
    signer,
    basic: "user:secret",
    seconds: 300,
  });
  await using registry = await startRegistry(dir, {
    token: { ...about, realm: `${tokens.origin}/token`, certs: signer.cert },
  });
  const host = `127.0.0.1:${registry.port}`;
  const path = dir.file("cred.json");
  Deno.writeTextFileSync(
    path,
    JSON.stringify({ auths: { [`${host}/a`]: { auth: btoa("user:secret") } } }),
  );
  const credentials = createCredentials({ mode: "file", path });
  const repository = `http://${host}/v2/a/b`;
  const scope = "repository:a/b:pull,push";
  const push = await fetch(
    `${tokens.origin}/token?service=x&scope=${scope}`,
    { headers: { authorization: `Basic ${btoa("user:secret")}` } },
  );
  const { token } = await push.json();
  const digest = await pushBlob({
    repository,
    authorization: `Bearer ${token}`,
  }, BLOB);
  const before = tokens.asked.length;
  await checkBlob(`${repository}/blobs/${digest}`, { credentials });
  assert.equal(tokens.asked.length, before + 1);

  using client = createRegistryClient({ credentials });
  const other = `http://${host}/v2/other/b/blobs/${digest}`;
  await rejects(
    client.openBlob(other).size(),
    "EACCES",
    /cannot get a token from .*\/token: HTTP status 401$/,
  );
});

// ---- nginx -----------------------------------------------------------------

/** A directory that nginx serves as a registry's blobs. */
function blobRoot() {
  const dir = tempDir();
  Deno.mkdirSync(dir.file("www/v2/a/b/blobs"), { recursive: true });
  Deno.writeFileSync(dir.file("www/v2/a/b/blobs/x"), BLOB);
  Deno.mkdirSync(dir.file("www/store"));
  Deno.writeFileSync(dir.file("www/store/x"), BLOB);
  return dir;
}

test("nginx sends elsewhere, where nobody sees the Authorization", async () => {
  using dir = blobRoot();
  await using nginx = await startNginx(
    dir,
    `server {
      listen 127.0.0.1:$PORT;
      location /v2/ {
        if ($http_authorization = "") {
          add_header WWW-Authenticate 'Basic realm="x"' always;
          return 401;
        }
        return 307 http://127.0.0.2:$PORT/store/x?sig=1;
      }
    }
    server {
      listen 127.0.0.2:$PORT;
      root ${dir.file("www")};
      if ($http_authorization) { return 400; }
    }`,
  );
  const path = dir.file("cred.json");
  Deno.writeTextFileSync(
    path,
    JSON.stringify({
      auths: { [`127.0.0.1:${nginx.port}`]: { username: "u" } },
    }),
  );
  await checkBlob(`http://127.0.0.1:${nginx.port}/v2/a/b/blobs/x`, {
    credentials: createCredentials({ mode: "file", path }),
  });
});

test("nginx ignores ranges", async () => {
  using dir = blobRoot();
  await using nginx = await startNginx(
    dir,
    `server { listen 127.0.0.1:$PORT; root ${dir.file("www")}; max_ranges 0; }`,
  );
  using client = createRegistryClient();
  const blob = client.openBlob(`http://127.0.0.1:${nginx.port}/v2/a/b/blobs/x`);
  assert.equal(await blob.size(), BLOB.length);
  await rejects(read(blob, 1, 10), "EIO", /the server ignores ranges/);
});

test("nginx lets 10 in at once: 32 opens succeed", async () => {
  using dir = blobRoot();
  await using nginx = await startNginx(
    dir,
    `limit_conn_zone $server_port zone=all:1m;
    server {
      listen 127.0.0.1:$PORT; root ${dir.file("www")};
      limit_conn all 10; limit_rate 2m;
    }`,
  );
  using client = createRegistryClient();
  const url = `http://127.0.0.1:${nginx.port}/v2/a/b/blobs/x`;
  await client.openBlob(url).size();
  await Promise.all(Array.from({ length: 32 }, async () => {
    const blob = client.openBlob(url);
    assert.deepEqual(await read(blob, 0, 65536), BLOB.slice(0, 65536));
    assert.deepEqual(await read(blob, 990_000, 20_000), BLOB.slice(990_000));
  }));
});

test("nginx limits the rate of requests by 429", async () => {
  using dir = blobRoot();
  await using nginx = await startNginx(
    dir,
    `limit_req_zone $server_port zone=all:1m rate=20r/s;
    limit_req_status 429;
    server {
      listen 127.0.0.1:$PORT; root ${dir.file("www")};
      limit_req zone=all burst=5 nodelay;
    }`,
  );
  using client = createRegistryClient();
  const blob = client.openBlob(`http://127.0.0.1:${nginx.port}/v2/a/b/blobs/x`);
  await blob.size();
  await Promise.all(Array.from({ length: 16 }, async (_, i) => {
    assert.deepEqual(await read(blob, i, 10), BLOB.slice(i, i + 10));
  }));
});

test("nginx drips: an attempt ends in time", async () => {
  using dir = blobRoot();
  await using nginx = await startNginx(
    dir,
    `server {
      listen 127.0.0.1:$PORT; root ${dir.file("www")};
      sendfile off; output_buffers 1 512; limit_rate 100;
    }`,
  );
  using client = createRegistryClient({ attemptMs: 500 });
  const blob = client.openBlob(`http://127.0.0.1:${nginx.port}/v2/a/b/blobs/x`);
  await rejects(read(blob, 0, 500_000), "ETIMEDOUT", /no answer within 0.5 s/);
});

test("TLS 1.3 alone, names that decide the certificate, IPv6", async () => {
  using dir = blobRoot();
  const { ca, server } = await certified();
  const other = await makeAuthority(dir, "other");
  const tls = ({ cert, key }: Certificate) =>
    `ssl_certificate ${cert}; ssl_certificate_key ${key};`;
  await using nginx = await startNginx(
    dir,
    `root ${dir.file("www")};
    server { listen [::1]:$PORT ssl; server_name other; ${tls(other)} }
    server {
      listen [::1]:$PORT ssl; listen 127.0.0.1:$PORT ssl;
      server_name localhost; ${tls(server)}
      ssl_protocols TLSv1.3;
    }`,
    "::1",
  );
  const url = `https://localhost:${nginx.port}/v2/a/b/blobs/x`;
  const host = new URL(url).host;
  await checkBlob(url, { ca: pem(ca.cert) });
  await checkBlob(url, { insecure: [host.toUpperCase()] });
  const v6 = `https://[::1]:${nginx.port}`;
  await checkBlob(`${v6}/v2/a/b/blobs/x`, { ca: pem(other.cert) });
  await checkBlob(`${v6}/v2/a/b/blobs/x`, { insecure: [new URL(v6).host] });
});

test("client certificates: every form of key, a chain of more than 4 KiB, none", async () => {
  using dir = blobRoot();
  const { ca, server } = await certified();
  const user = await makeCertificate(dir, "user", ca);
  const pkcs1 = dir.file("pkcs1.key");
  await mustRun("openssl", [
    ..."rsa -traditional -in".split(" "),
    user.key,
    "-out",
    pkcs1,
  ]);
  assert.match(pem(pkcs1), /BEGIN RSA PRIVATE KEY/);
  await using nginx = await startNginx(
    dir,
    `server {
      listen 127.0.0.1:$PORT ssl; root ${dir.file("www")};
      ssl_certificate ${server.cert}; ssl_certificate_key ${server.key};
      ssl_client_certificate ${ca.cert}; ssl_verify_client on;
    }`,
  );
  const url = `https://localhost:${nginx.port}/v2/a/b/blobs/x`;
  const trust = { ca: pem(ca.cert) };
  const chain = pem(user.cert) + pem(ca.cert).repeat(4);
  assert(chain.length > 4096);
  await checkBlob(url, { ...trust, cert: pem(user.cert), key: pem(user.key) });
  await checkBlob(url, { ...trust, cert: chain, key: pem(pkcs1) });
  const insecure = [`localhost:${nginx.port}`];
  await checkBlob(url, { insecure, cert: pem(user.cert), key: pem(pkcs1) });
  // Bag attributes and the like make files long.
  const long = "Key Attributes\n".repeat(300) + pem(user.key);
  assert(long.length > 4096);
  await checkBlob(url, { ...trust, cert: pem(user.cert), key: long });
  using client = createRegistryClient(trust);
  // nginx takes the handshake and answers 400.
  await rejects(client.openBlob(url).size(), "EIO", /HTTP status 400/);
});

test("certificates that are replaced are read again, bad ones are not used", async () => {
  using dir = blobRoot();
  const { ca, server } = await certified();
  const other = await makeAuthority(dir, "other");
  const [first, second] = [
    await makeCertificate(dir, "first", other),
    await makeCertificate(dir, "second", ca),
  ];
  await using nginx = await startNginx(
    dir,
    `server {
      listen 127.0.0.1:$PORT ssl; root ${dir.file("www")};
      ssl_certificate ${server.cert}; ssl_certificate_key ${server.key};
      ssl_client_certificate ${ca.cert}; ssl_verify_client on;
    }`,
  );
  const [certFile, keyFile] = [dir.file("tls.crt"), dir.file("tls.key")];
  const use = (cert: string, key: string) => {
    Deno.writeTextFileSync(certFile, cert);
    Deno.writeTextFileSync(keyFile, key);
  };
  use(pem(first.cert), pem(first.key));
  const lines: string[] = [];
  let now = 0;
  const certConfig = { certFile, keyFile, caFile: ca.cert };
  using client = createRegistryClient({
    certificates: currentCertificates(
      { certConfig },
      (line) => lines.push(line),
      () => now,
    ),
  });
  const url = `https://localhost:${nginx.port}/v2/a/b/blobs/x`;
  const size = () => client.openBlob(url).size();
  const twice = async () => {
    for (let i = 0; i < 2; i++) {
      now += 1000;
      await size().catch(() => {});
    }
  };
  // nginx takes the handshake and answers 400.
  await rejects(size(), "EIO", /HTTP status 400/);
  use(pem(second.cert), pem(second.key));
  now += 1000;
  await rejects(size(), "EIO", /HTTP status 400/);
  assert.deepEqual(lines, []);
  now += 1000;
  assert.equal(await size(), BLOB.length);
  assert.deepEqual(lines, [
    `${certFile}, ${keyFile}, ${ca.cert}: read again`,
  ]);
  for (const [cert, key] of [["no", "PEM"], [pem(first.cert), "none"]]) {
    use(cert ?? "", key ?? "");
    await twice();
    assert.match(lines.at(-1) ?? "", /^WARNING the certificates of before/);
    assert.equal(await size(), BLOB.length);
  }
  Deno.removeSync(certFile);
  await twice();
  assert.match(lines.at(-1) ?? "", /cannot open .*tls.crt: no such file/i);
  assert.equal(await size(), BLOB.length);
  assert.equal(lines.length, 4);
});

test("a credential service over https: its authority, our certificate", async () => {
  using dir = tempDir();
  const { ca, server } = await certified();
  const user = await makeCertificate(dir, "user", ca);
  const both = dir.file("both.pem");
  Deno.writeTextFileSync(both, pem(user.cert) + pem(user.key));
  const answer = JSON.stringify({
    success: true,
    data: { auths: { "reg.io": { auth: btoa("u:p") } } },
  });
  await using nginx = await startNginx(
    dir,
    `server {
      listen 127.0.0.1:$PORT ssl;
      ssl_certificate ${server.cert}; ssl_certificate_key ${server.key};
      ssl_client_certificate ${ca.cert}; ssl_verify_client on;
      location /auth { return 200 '${answer}'; }
    }`,
  );
  const other = await makeAuthority(dir, "other");
  const find = async (options: Partial<CredentialOptions>) => {
    const lines: string[] = [];
    const found = await createCredentials({
      mode: "https",
      path: `https://localhost:${nginx.port}/auth`,
      timeout: 5,
      log: (line) => lines.push(line),
      ...options,
    }).find("https://reg.io/v2/a/blobs/x");
    return { basic: found?.basic, log: lines.join() };
  };
  const trust = { server_ca_path: ca.cert };
  const identity = {
    client_cert_path: user.cert,
    client_key_path: user.key,
  };
  const good = { basic: btoa("u:p"), log: "" };
  assert.deepEqual(await find({ ...trust, ...identity }), good);
  assert.deepEqual(await find({ ...trust, client_cert_path: both }), good);
  assert.match((await find(trust)).log, /HTTP status 400$/);
  const pin = { ...identity, server_ca_path: other.cert };
  assert.match(
    (await find(pin)).log,
    /is not trusted: name its CA in credentialConfig.server_ca_path$/,
  );
  assert.match((await find(identity)).log, /is not trusted/);
  const byAddress = `https://127.0.0.2:${nginx.port}/auth`;
  assert.match(
    (await find({ ...trust, ...identity, path: byAddress })).log,
    /connection refused$/,
  );
  const missing = { ...trust, client_cert_path: dir.file("none") };
  assert.match((await find(missing)).log, /none/);
});

test("a certificate for another name is refused, and who turns the check off", async () => {
  using dir = blobRoot();
  const { ca, server } = await certified();
  await using nginx = await startNginx(
    dir,
    `server {
      listen 127.0.0.2:$PORT ssl; listen 127.0.0.1:$PORT ssl;
      root ${dir.file("www")};
      ssl_certificate ${server.cert}; ssl_certificate_key ${server.key};
    }`,
  );
  const host = `127.0.0.2:${nginx.port}`;
  const url = `https://${host}/v2/a/b/blobs/x`;
  using client = createRegistryClient({ ca: pem(ca.cert) });
  await rejects(
    client.openBlob(url).size(),
    "ENOTCONN",
    new RegExp(
      `the certificate of ${host} is for another name: "${host}" in ` +
        "insecureRegistries turns the check off$",
    ),
  );
  await checkBlob(url, { ca: pem(ca.cert), insecure: [host] });
});

test("a plain server where TLS is expected says so", async () => {
  using dir = blobRoot();
  await using nginx = await startNginx(
    dir,
    `server { listen 127.0.0.1:$PORT; root ${dir.file("www")}; }`,
  );
  const host = `127.0.0.1:${nginx.port}`;
  for (const options of [{}, { insecure: [host] }]) {
    using client = createRegistryClient(options);
    await rejects(
      client.openBlob(`https://${host}/v2/a/b/blobs/x`).size(),
      "ENOTCONN",
      new RegExp(`${host} does not answer in TLS`),
    );
  }
});
