// SPDX-License-Identifier: Apache-2.0
/**
 * Cold reads from a server without a line between: in order against curl,
 * one miss against a bare fetch.
 *
 * @module
 */
import { spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import { createSources } from "../../src/source/sources.ts";
import { diskOf } from "../lib/origin.ts";
import { median, pairs, type Result, time } from "./measure.ts";

const SIZE = 256 << 20;
const UNIT = 262144;
const NAME = `sha256:${"ab".repeat(32)}`;

/** A port that nobody had a moment ago. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  return typeof address === "object" ? address?.port ?? 0 : 0;
}

async function answers(port: number): Promise<void> {
  for (let i = 0; i < 100; i++) {
    const socket = connect(port, "127.0.0.1");
    const open = await new Promise<boolean>((done) => {
      socket.on("connect", () => done(true)).on("error", () => done(false));
    });
    socket.destroy();
    if (open) return;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error("nginx does not answer");
}

/** nginx with one blob, plain and over TLS. */
async function startNginx(dir: string) {
  const root = join(dir, "root");
  mkdirSync(root);
  chmodSync(dir, 0o755);
  writeFileSync(join(root, NAME), randomBytes(SIZE));
  const [plain, secure] = [await freePort(), await freePort()];
  const made = spawnSync("openssl", [
    ..."req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256".split(" "),
    ..."-nodes -days 2 -subj /CN=localhost".split(" "),
    ...["-addext", "subjectAltName=IP:127.0.0.1"],
    ...["-keyout", join(dir, "key.pem"), "-out", join(dir, "cert.pem")],
  ]);
  if (made.status !== 0) throw new Error(`openssl: ${made.stderr}`);
  const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((name) => `${name}_temp_path ${join(dir, name)};`).join(" ");
  writeFileSync(
    join(dir, "nginx.conf"),
    `daemon off; pid ${join(dir, "pid")}; error_log ${join(dir, "log")};
worker_processes 1; events {}
http { access_log off; sendfile on; keepalive_requests 1000000; ${paths}
  root ${root};
  server { listen 127.0.0.1:${plain}; }
  server { listen 127.0.0.1:${secure} ssl;
    ssl_certificate ${join(dir, "cert.pem")};
    ssl_certificate_key ${join(dir, "key.pem")}; } }
`,
  );
  const nginx = spawn("nginx", ["-c", join(dir, "nginx.conf")], {
    stdio: "ignore",
  });
  await answers(plain);
  return {
    plain: `http://127.0.0.1:${plain}/${NAME}`,
    secure: `https://127.0.0.1:${secure}/${NAME}`,
    ca: readFileSync(join(dir, "cert.pem"), "utf8"),
    async stop() {
      nginx.kill();
      await once(nginx, "exit");
    },
  };
}

type Nginx = Awaited<ReturnType<typeof startNginx>>;

/** Reads a cold blob with `work`, in a new cache. */
async function cold(
  dir: string,
  url: string,
  ca: string | undefined,
  work: (disk: ReturnType<typeof diskOf>) => Promise<void>,
): Promise<void> {
  const cacheDir = join(dir, "cache");
  {
    using client = createRegistryClient({ ca });
    await using sources = createSources({
      openBlob: client.openBlob,
      cacheDir,
      refillSize: UNIT,
      log: (line) => console.error(line),
    });
    using disk = diskOf(await sources.open(url));
    await work(disk);
  }
  Deno.removeSync(cacheDir, { recursive: true });
  Deno.removeSync(`${cacheDir}.state`, { recursive: true });
}

async function inOrder(
  dir: string,
  url: string,
  ca: string | undefined,
): Promise<void> {
  const STEP = 1 << 20;
  // Memory that is made and cleared for each read is no part of the reading.
  const memory = new Uint8Array(STEP);
  await cold(dir, url, ca, async (disk) => {
    for (let at = 0; at < SIZE; at += STEP) await disk.read(at, STEP, memory);
  });
}

function curl(dir: string, url: string): void {
  const { status } = spawnSync("curl", [
    ...["-s", "--cacert", join(dir, "cert.pem")],
    ...["-o", join(dir, "copy"), url],
  ]);
  if (status !== 0) throw new Error(`curl: ${status}`);
}

async function throughput(
  dir: string,
  nginx: Nginx,
  tls: boolean,
): Promise<Result> {
  const url = tls ? nginx.secure : nginx.plain;
  const { ours, theirs, ratio } = await pairs(
    () => inOrder(dir, url, tls ? nginx.ca : undefined),
    () => curl(dir, url),
    5,
  );
  const speed = (ms: number) => `${Math.round(SIZE / 1e6 / ms * 1000)} MB/s`;
  return {
    what: `cold reads in order${tls ? ", TLS" : ""}`,
    reference: "curl -o",
    ratio,
    aim: tls ? 0.6 : 0.8,
    ours: speed(ours),
    theirs: speed(theirs),
  };
}

async function oneMiss(dir: string, nginx: Nginx): Promise<Result> {
  const client = Deno.createHttpClient({ http2: false });
  const bare = async (at: number) => {
    const response = await fetch(nginx.plain, {
      client,
      headers: { range: `bytes=${at}-${at + UNIT - 1}` },
    });
    await response.arrayBuffer();
  };
  const ours: number[] = [];
  const theirs: number[] = [];
  const hits: number[] = [];
  await cold(dir, nginx.plain, undefined, async (disk) => {
    // Backwards, so that nothing is read ahead.
    for (let at = SIZE - UNIT; at > 0; at -= 2 * UNIT) {
      ours.push(await time(() => disk.read(at, 4096)));
      theirs.push(await time(() => bare(at)));
      // What the call itself takes is none of the miss.
      hits.push(await time(() => disk.read(at, 4096)));
    }
  });
  client.close();
  const us = (ms: number) => `${Math.round(ms * 1000)} µs`;
  const LIMIT_MS = 0.1;
  const over = median(
    ours.map((ms, i) => ms - (theirs[i] ?? 0) - (hits[i] ?? 0)),
  );
  return {
    what: "one miss of 256 KiB: time over a bare fetch and a hit",
    reference: "100 µs over fetch()",
    ratio: over / LIMIT_MS,
    aim: 1,
    most: true,
    ours: `${us(median(ours))}, hit ${us(median(hits))}, ${us(over)} over`,
    theirs: us(median(theirs)),
  };
}

/** Cold reads against curl and fetch. */
export async function benchFetch(dir: string): Promise<Result[]> {
  const nginx = await startNginx(dir);
  try {
    return [
      await throughput(dir, nginx, false),
      await throughput(dir, nginx, true),
      await oneMiss(dir, nginx),
    ];
  } finally {
    await nginx.stop();
  }
}
