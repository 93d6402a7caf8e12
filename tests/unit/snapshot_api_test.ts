// SPDX-License-Identifier: Apache-2.0
/** Every row of spec/api.md, section 1.1, byte for byte. */
import { deepEqual, equal, ok, throws } from "node:assert/strict";
import { startSnapshotServer } from "../../src/service/api/snapshot.ts";
import type { ServedImage } from "../../src/service/service.ts";

const body = (success: boolean, message: string) =>
  `{\n        "success": ${success},\n        "message": "${message}"\n}`;
const MISSING = body(false, "Missing dev_id or config in snapshot request");
const UNKNOWN = body(false, "Image file not found");
const FAILED = body(false, "Failed to create snapshot`");
const DONE = body(true, "Snapshot created successfully");

/** A service with the images `a`, `b;c`, `ü x`; `bad` fails. */
function stub() {
  const asked: [string, string][] = [];
  const lines: string[] = [];
  const note = (text: string) => void lines.push(text);
  const log = {
    level: 0 as const,
    debug: note,
    info: note,
    warn: note,
    error: note,
    with: () => log,
    close: () => {},
  };
  const names = new Set(["a", "b;c", "ü x", "bad"]);
  const service = {
    find: (devId: string) =>
      names.has(devId)
        ? { name: devId, log } as unknown as ServedImage
        : undefined,
    snapshot: ({ name }: ServedImage, config: string) => {
      asked.push([name, config]);
      return name === "bad"
        ? Promise.reject(new Error("the disk is full"))
        : Promise.resolve({ pauseUs: 1, warnings: [] });
    },
    log: log as never,
  };
  return { service, asked, lines };
}

/** Raw bytes to a server, and all that comes back until it hangs up. */
async function raw(url: string, text: string): Promise<string> {
  const { hostname, port } = new URL(url);
  using conn = await Deno.connect({
    hostname: hostname.replace(/^\[|\]$/g, ""),
    port: Number(port),
  });
  await conn.write(new TextEncoder().encode(text));
  let got = "";
  const decoder = new TextDecoder();
  const buffer = new Uint8Array(65536);
  for (;;) {
    const n = await conn.read(buffer);
    if (n === null) return got;
    got += decoder.decode(buffer.subarray(0, n), { stream: true });
  }
}

interface Answer {
  status: number;
  headers: Map<string, string>;
  body: string;
}

async function ask(url: string, target: string, more = {}): Promise<Answer> {
  const { method = "GET", sent = "", headers = "" } = more as {
    method?: string;
    sent?: string;
    headers?: string;
  };
  const text = await raw(
    url,
    `${method} ${target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n` +
      headers + (sent === "" ? "" : `Content-Length: ${sent.length}\r\n`) +
      `\r\n${sent}`,
  );
  const [head = "", ...rest] = text.split("\r\n\r\n");
  const [first = "", ...lines] = head.split("\r\n");
  return {
    status: Number(first.split(" ")[1]),
    headers: new Map(lines.map((line) => {
      const [key = "", value = ""] = line.split(/: */, 2);
      return [key.toLowerCase(), value];
    })),
    body: rest.join("\r\n\r\n"),
  };
}

const ROWS: [target: string, status: number, body: string][] = [
  ["/snapshot", 400, MISSING],
  ["/snapshot/", 400, MISSING],
  ["/snapshotX", 400, MISSING],
  ["/snapshot?V#RNWQC&*@#", 400, MISSING],
  ["/snapshot?dev_id=", 400, MISSING],
  ["/snapshot?dev_id=&config=/c", 400, MISSING],
  ["/snapshot?dev_id&config=/c", 400, MISSING],
  ["/snapshot?dev_id=a", 400, MISSING],
  ["/snapshot?dev_id=a&config=", 400, MISSING],
  ["/snapshot?dev_id=a&config=/c&config=", 400, MISSING],
  ["/snapshot?dev_id=nobody&config=/c", 404, UNKNOWN],
  ["/snapshot?dev_id=bad&config=/c", 500, FAILED],
  ["/snapshot?dev_id=a&config=/c", 200, DONE],
  ["/snapshot?config=/c&x=1&dev_id=nobody&dev_id=a", 200, DONE],
  ["/snapshot/any/thing?dev_id=a&config=%2Ftmp%2Fnew+one%26.json", 200, DONE],
  ["/snapshot?dev_id=b;c&config=/c", 200, DONE],
  ["/snapshot?dev_id=b%3Bc&config=/c", 200, DONE],
  ["/snapshot?dev_id=%C3%BC+x&config=/c", 200, DONE],
  ["/snapshot?dev_id=a&config=/c%zz", 200, DONE],
  ["/%73napshot?dev_id=a&config=/c", 404, ""],
  ["/", 404, ""],
  ["/snap", 404, ""],
  ["/metrics", 404, ""],
];

Deno.test("every row of the original's table, byte for byte", async () => {
  const { service, asked } = stub();
  const server = startSnapshotServer("http://127.0.0.1:0", service);
  try {
    for (const [target, status, body] of ROWS) {
      const got = await ask(server.url, target);
      deepEqual([target, got.status, got.body], [target, status, body]);
      equal(got.headers.get("content-length"), `${body.length}`, target);
      ok(!got.headers.has("content-type"), target);
    }
    deepEqual(asked, [
      ["bad", "/c"],
      ["a", "/c"],
      ["a", "/c"],
      ["a", "/tmp/new one&.json"],
      ["b;c", "/c"],
      ["b;c", "/c"],
      ["ü x", "/c"],
      ["a", "/c%zz"],
    ]);
  } finally {
    await server.close();
  }
});

Deno.test("methods mean the same, a body nothing; HEAD has none", async () => {
  const { service, asked } = stub();
  const server = startSnapshotServer("http://127.0.0.1:0", service);
  try {
    const target = "/snapshot?dev_id=a&config=/c";
    for (const method of ["GET", "POST", "PUT", "DELETE", "BREW"]) {
      const got = await ask(server.url, target, { method, sent: "dev_id=x" });
      deepEqual([got.status, got.body], [200, DONE], method);
    }
    const head = await ask(server.url, target, { method: "HEAD" });
    deepEqual([head.status, head.body], [200, ""]);
    equal(head.headers.get("content-length"), `${DONE.length}`);
    equal(asked.length, 6);
  } finally {
    await server.close();
  }
});

Deno.test("a query of 8 KiB is read whole", async () => {
  const { service, asked } = stub();
  const server = startSnapshotServer("http://127.0.0.1:0", service);
  try {
    const config = "/" + "c".repeat(8192);
    const got = await ask(
      server.url,
      `/snapshot?dev_id=a&config=${config}`,
    );
    equal(got.status, 200);
    deepEqual(asked, [["a", config]]);
  } finally {
    await server.close();
  }
});

Deno.test("requests in a row are answered in order, and share nothing", async () => {
  const { service, lines } = stub();
  const server = startSnapshotServer("http://127.0.0.1:0", service);
  try {
    const targets = [
      "/snapshot?dev_id=a&config=/c",
      "/snapshot",
      "/snapshot?dev_id=nobody&config=/c",
      "/snapshot?config=/c",
    ];
    const text = targets.map((target, nr) =>
      `GET ${target} HTTP/1.1\r\nHost: x\r\n` +
      `${nr === targets.length - 1 ? "Connection: close\r\n" : ""}\r\n`
    ).join("");
    const got = await raw(server.url, text);
    deepEqual(
      [...got.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => status),
      ["200", "400", "404", "400"],
    );
    const bodies = [DONE, MISSING, UNKNOWN, MISSING];
    let at = 0;
    for (const body of bodies) {
      at = got.indexOf(body, at);
      ok(at >= 0, body);
      at += body.length;
    }
    ok(lines.includes("Snapshot query: dev_id=a&config=/c"));
    ok(lines.includes("Snapshot query: "));
  } finally {
    await server.close();
  }
});

Deno.test("a page in a browser is refused", async () => {
  const { service, asked } = stub();
  const server = startSnapshotServer("http://127.0.0.1:0", service);
  try {
    const target = "/snapshot?dev_id=a&config=/c";
    for (
      const headers of [
        "Origin: http://evil.example\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
      ]
    ) {
      equal((await ask(server.url, target, { headers })).status, 403);
    }
    deepEqual(asked, []);
    const headers = "Sec-Fetch-Site: none\r\n";
    equal((await ask(server.url, target, { headers })).status, 200);
  } finally {
    await server.close();
  }
});

Deno.test("a host is what it says, and never every interface by accident", async () => {
  const { service, lines } = stub();
  for (const host of ["127.0.0.1", "localhost", "[::1]", "127.1"]) {
    const server = startSnapshotServer(`http://${host}:0`, service);
    const { hostname } = new URL(server.url);
    ok(["127.0.0.1", "[::1]"].includes(hostname), `${host}: ${hostname}`);
    equal((await ask(server.url, "/snapshot")).status, 400);
    await server.close();
  }
  ok(!lines.some((line) => line.startsWith("other machines")));
  const open = startSnapshotServer("http://0.0.0.0:0", service);
  await open.close();
  ok(lines.some((line) => /^other machines can reach/.test(line)));
  for (
    const address of [
      "",
      "127.0.0.1:9862",
      "https://127.0.0.1:0",
      "http://",
      "http://127.0.0.1:0/path",
      "http://127.0.0.1:99999",
      "http://no.such.host.invalid:0",
    ]
  ) {
    throws(
      () => startSnapshotServer(address, service),
      /^AddressError: Failed to start http server for live snapshot/,
      address,
    );
  }
});

Deno.test("a port that is taken is said, and not shared", async () => {
  const { service } = stub();
  const server = startSnapshotServer("http://127.0.0.1:0", service);
  try {
    throws(() => startSnapshotServer(server.url, service), /in use/i);
  } finally {
    await server.close();
  }
});
