// SPDX-License-Identifier: Apache-2.0
/**
 * Real servers of a test, on free ports of the loopback, ended with it:
 * Debian's docker-registry and nginx, and certificates by openssl.
 *
 * @module
 */
import { have, mustRun, type TempDir } from "./env.ts";

/** A server of its own process. */
export interface Daemon extends AsyncDisposable {
  readonly port: number;
  /** everything that it said so far */
  output(): string;
}

/** What a test needs to be installed; the reason why it is ignored. */
export const haveRegistry = have("docker-registry") && have("nginx");

/** A port that was free a moment ago. */
export function freePort(hostname = "127.0.0.1"): number {
  using listener = Deno.listen({ port: 0, hostname });
  return listener.addr.port;
}

const READY_TIMEOUT_MS = 15_000;

/** Starts a server and waits until it takes connections. */
async function startDaemon(
  command: string,
  args: readonly string[],
  port: number,
  hostname = "127.0.0.1",
): Promise<Daemon> {
  const child = new Deno.Command(command, {
    args: [...args],
    stdin: "null",
    stdout: "null",
    stderr: "piped",
    env: { OTEL_TRACES_EXPORTER: "none" },
  }).spawn();
  let text = "";
  const decoder = new TextDecoder();
  const reading = (async () => {
    for await (const chunk of child.stderr) {
      text += decoder.decode(chunk, { stream: true });
    }
  })();
  let over = false;
  const status = child.status.then(() => over = true);
  const stop = async () => {
    if (!over) child.kill("SIGKILL");
    await Promise.all([status, reading]);
  };
  const deadline = Date.now() + READY_TIMEOUT_MS;
  for (;;) {
    try {
      (await Deno.connect({ port, hostname })).close();
      break;
    } catch {
      if (over || Date.now() > deadline) {
        await stop();
        throw new Error(`${command} did not start: ${text}`);
      }
      await new Promise((done) => setTimeout(done, 20));
    }
  }
  return { port, output: () => text, [Symbol.asyncDispose]: stop };
}

/** How a registry is set up. */
export interface RegistrySetup {
  /** path of an htpasswd file: basic authentication */
  htpasswd?: string;
  /** bearer tokens of this token server */
  token?: { realm: string; service: string; issuer: string; certs: string };
  tls?: { cert: string; key: string };
}

/** Starts Debian's docker-registry; its storage lies in `dir`. */
export async function startRegistry(
  dir: TempDir,
  setup: RegistrySetup = {},
): Promise<Daemon> {
  const port = freePort();
  const root = dir.file(`registry-${port}`);
  Deno.mkdirSync(root);
  const auth = setup.htpasswd !== undefined
    ? { htpasswd: { realm: "test registry", path: setup.htpasswd } }
    : setup.token !== undefined
    ? {
      token: {
        realm: setup.token.realm,
        service: setup.token.service,
        issuer: setup.token.issuer,
        rootcertbundle: setup.token.certs,
      },
    }
    : undefined;
  const config = {
    version: 0.1,
    log: { level: "info", accesslog: { disabled: false } },
    storage: { filesystem: { rootdirectory: root } },
    ...(auth === undefined ? {} : { auth }),
    http: {
      addr: `127.0.0.1:${port}`,
      secret: "of the test",
      ...(setup.tls === undefined
        ? {}
        : { tls: { certificate: setup.tls.cert, key: setup.tls.key } }),
    },
  };
  const path = dir.file(`registry-${port}.yml`);
  // JSON is YAML.
  Deno.writeTextFileSync(path, JSON.stringify(config));
  return await startDaemon("docker-registry", ["serve", path], port);
}

/**
 * Starts nginx with what stands inside `http { … }`.
 *
 * @param servers may use `$PORT`
 */
export async function startNginx(
  dir: TempDir,
  servers: string,
  hostname = "127.0.0.1",
): Promise<Daemon> {
  const port = freePort(hostname);
  const root = dir.file(`nginx-${port}`);
  Deno.mkdirSync(root);
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((name) => `${name}_temp_path ${root}/${name};`).join("\n");
  const path = dir.file(`nginx-${port}.conf`);
  Deno.writeTextFileSync(
    path,
    `daemon off;
master_process off;
pid ${root}/pid;
error_log stderr warn;
events { worker_connections 512; }
http {
  access_log off;
  client_max_body_size 0;
  ${temporary}
  ${servers.replaceAll("$PORT", String(port))}
}
`,
  );
  const args = ["-c", path, "-p", root];
  return await startDaemon("nginx", args, port, hostname);
}

/** A certificate with its key, as files. */
export interface Certificate {
  cert: string;
  key: string;
}

const NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1";

/** An authority, or a certificate that signs itself as plain openssl does. */
export async function makeAuthority(
  dir: TempDir,
  name: string,
): Promise<Certificate> {
  const made = { cert: dir.file(`${name}.crt`), key: dir.file(`${name}.key`) };
  await mustRun("openssl", [
    ..."req -x509 -newkey rsa:2048 -nodes -days 2 -subj".split(" "),
    `/CN=${name}`,
    "-addext",
    NAMES,
    "-keyout",
    made.key,
    "-out",
    made.cert,
  ]);
  return made;
}

/** A certificate that an authority signed. */
export async function makeCertificate(
  dir: TempDir,
  name: string,
  authority: Certificate,
): Promise<Certificate> {
  const made = { cert: dir.file(`${name}.crt`), key: dir.file(`${name}.key`) };
  const request = dir.file(`${name}.csr`);
  const extensions = dir.file(`${name}.ext`);
  Deno.writeTextFileSync(
    extensions,
    `${NAMES}\nbasicConstraints=CA:FALSE\n` +
      "extendedKeyUsage=serverAuth,clientAuth\n",
  );
  await mustRun("openssl", [
    ..."req -newkey rsa:2048 -nodes -subj".split(" "),
    `/CN=${name}`,
    "-keyout",
    made.key,
    "-out",
    request,
  ]);
  await mustRun("openssl", [
    ..."x509 -req -days 2 -CAcreateserial -in".split(" "),
    request,
    "-CA",
    authority.cert,
    "-CAkey",
    authority.key,
    "-extfile",
    extensions,
    "-out",
    made.cert,
  ]);
  return made;
}
