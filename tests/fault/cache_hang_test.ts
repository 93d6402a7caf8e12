// SPDX-License-Identifier: Apache-2.0
/**
 * A cache disk that hangs in any call: reads go on past it, the daemon
 * answers, and the cache is used again when its disk is well.
 *
 * @module
 */
import { deepEqual, equal, match, ok } from "node:assert/strict";
import { EngineError } from "../../ffi/errors.ts";
import { faultIo, HANG, IO } from "../../ffi/files.ts";
import type { Bytes } from "../../ffi/handle.ts";
import { createDisk } from "../../src/source/cache/disk.ts";
import { mustRun, sha256, sha256File, tempDir } from "../lib/env.ts";
import { canHang, mountHanging } from "../lib/hanging_mount.ts";
import { ask } from "../lib/http.ts";
import { connectNbd } from "../lib/nbd.ts";
import { diskOf, makeOrigin, sourcesOf } from "../lib/origin.ts";
import { newUpper, writeConfig } from "../lib/product.ts";
import { noise } from "../lib/random.ts";
import { makeLayer, serveBlob, SIZE } from "../lib/remote.ts";
import { startServer } from "../lib/server.ts";

const UNIT = 65536;
const MIB = 1 << 20;
/** Long enough for the disk of a busy machine. */
const DISK_MS = 3000;

function sleep(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}

function urlOf(content: Bytes): string {
  return `https://r.example/v2/a/b/blobs/sha256:${sha256(content)}`;
}

/** The code of what a call ends with, "" for none. */
function codeOf(call: Promise<unknown>): Promise<string> {
  return call.then(
    () => "",
    (error) => error instanceof EngineError ? error.code : String(error),
  );
}

Deno.test("calls on a disk: few at once, given up in time, none while one is late, nothing closed under one", async () => {
  const disk = createDisk(30);
  const hung = Array.from(
    { length: 20 },
    () => Promise.withResolvers<number>(),
  );
  let running = 0;
  let most = 0;
  const closed: number[] = [];
  const ends = hung.map(({ promise }, i) =>
    codeOf(disk.call("cannot try", () => {
      most = Math.max(most, ++running);
      return promise.finally(() => running--);
    }, { late: (n) => closed.push(n + i) }))
  );
  ok(running === 8 && disk.late() === 0);
  // Four end in time: as many begin.
  for (const { resolve } of hung.slice(0, 4)) resolve(0);
  await sleep(5);
  equal(running, 8);
  deepEqual(await Promise.all(ends), [
    ...Array(4).fill(""),
    ...Array(16).fill("ETIMEDOUT"),
  ]);
  equal([most, disk.late()].join(), "8,8");
  equal(await codeOf(disk.call("cannot try", () => sleep(0))), "ETIMEDOUT");
  let closes = 0;
  await disk.closing(() => Promise.resolve(void closes++));
  for (const { resolve } of hung.slice(4, 11)) resolve(100);
  await sleep(5);
  equal([disk.late(), closes].join(), "1,0");
  hung[11]?.reject(new Error("gone"));
  await sleep(5);
  equal([disk.late(), closes].join(), "0,1");
  // Their results are not lost: a descriptor among them would be.
  deepEqual(closed, [104, 105, 106, 107, 108, 109, 110]);
  equal(await codeOf(disk.call("cannot try", () => sleep(0))), "");
});

for (
  const [op, what] of [[IO.OPEN, "an open"], [IO.PWRITE, "a state"]] as const
) {
  Deno.test(`${what} that hangs: the blob is read past the cache, and others as before`, async () => {
    using dir = tempDir();
    const [a, b] = [noise(60, 16 * UNIT), noise(61, 16 * UNIT)];
    const origin = makeOrigin(a);
    const other = makeOrigin(b);
    const lines: string[] = [];
    await using sources = sourcesOf(origin, dir.file("cache"), {
      log: (line) => lines.push(line),
      diskMs: DISK_MS,
      openBlob: (url) => (url === urlOf(a) ? origin : other).openBlob(url),
    });
    using first = diskOf(await sources.open(urlOf(a)));
    deepEqual(await first.read(0, 4 * UNIT), a.slice(0, 4 * UNIT));
    faultIo(op, 1, HANG, 1);
    let ticks = 0;
    const ticking = setInterval(() => ticks++, 5);
    using second = diskOf(await sources.open(urlOf(b)));
    deepEqual(await second.read(0, b.length), b);
    clearInterval(ticking);
    ok(ticks > 3, `${ticks} ticks`);
    // What is here is read from here.
    const { delivered } = origin;
    deepEqual(await first.read(0, 4 * UNIT), a.slice(0, 4 * UNIT));
    equal(origin.delivered, delivered);
    deepEqual(await first.read(0, a.length), a);
    match(lines.join("\n"), /the cache cannot keep .*timed out/);
    faultIo(op, 1, 0, 0);
    while (sources.disk.late() > 0) await sleep(5);
  });
}

Deno.test("a hole that is not punched in time: what was evicted comes again beside the file", async () => {
  using dir = tempDir();
  const content = noise(62, 32 * UNIT);
  const origin = makeOrigin(content);
  const options = {
    cacheSize: 2 ** 40,
    diskFloor: 0,
    diskMs: DISK_MS,
  };
  {
    await using sources = sourcesOf(origin, dir.file("cache"), options);
    using disk = diskOf(await sources.open(urlOf(content)));
    deepEqual(await disk.read(0, content.length), content);
    faultIo(IO.ALLOCATE, 1, HANG, 1);
    let ticks = 0;
    const ticking = setInterval(() => ticks++, 5);
    await sources.pool.prune(4 * UNIT);
    clearInterval(ticking);
    ok(ticks > 3, `${ticks} ticks`);
    const { delivered } = origin;
    deepEqual(await disk.read(0, content.length), content);
    ok(origin.delivered > delivered);
    // Now the hole comes, under what was fetched since.
    faultIo(IO.ALLOCATE, 1, 0, 0);
    while (sources.disk.late() > 0) await sleep(5);
    deepEqual(await disk.read(0, content.length), content);
  }
  await using sources = sourcesOf(origin, dir.file("cache"), options);
  using disk = diskOf(await sources.open(urlOf(content)));
  deepEqual(await disk.read(0, content.length), content);
});

Deno.test("a sync that hangs: the blob is closed in time, and nothing believes its state", async () => {
  using dir = tempDir();
  const content = noise(63, 8 * UNIT);
  const origin = makeOrigin(content);
  const sources = sourcesOf(origin, dir.file("cache"), {
    diskMs: DISK_MS / 3,
  });
  {
    using disk = diskOf(await sources.open(urlOf(content)));
    deepEqual(await disk.read(0, content.length), content);
    faultIo(IO.SYNC, 1, HANG, 1);
  }
  await sources.close();
  equal(sources.disk.late(), 1);
  {
    await using again = sourcesOf(origin, dir.file("cache"));
    using disk = diskOf(await again.open(urlOf(content)));
    deepEqual(await disk.read(0, content.length), content);
  }
  faultIo(IO.SYNC, 1, 0, 0);
  while (sources.disk.late() > 0) await sleep(5);
  origin.failures = Infinity;
  await using sound = sourcesOf(origin, dir.file("cache"));
  using disk = diskOf(await sound.open(urlOf(content)));
  deepEqual(await disk.read(0, content.length), content);
});

/** More than there are threads for all that waits for disks. */
const READS = 40;
/** dd's, to forget what memory has of a file. */
const DROP = ["of=/dev/null", "iflag=nocache", "count=0", "status=none"];

/** A layer behind a server, and an image of it. */
async function remoteImage(zfile: boolean) {
  const dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile, tar: false });
  const blob = serveBlob(path);
  const config = dir.file("config.v1.json");
  const name = `sha256:${sha256File(path)}`;
  const lowers = [{ digest: name }];
  Deno.writeTextFileSync(
    config,
    JSON.stringify({ repoBlobUrl: blob.url, lowers }),
  );
  return {
    config,
    content,
    name,
    async [Symbol.asyncDispose]() {
      await blob[Symbol.asyncDispose]();
      dir[Symbol.dispose]();
    },
  };
}

Deno.test(
  "a daemon whose cache disk hangs altogether reads, attaches, detaches, answers and ends, with bindfs",
  {
    ignore: !canHang,
  },
  async () => {
    using dir = tempDir();
    await using a = await remoteImage(true);
    await using b = await remoteImage(false);
    const local = writeConfig(dir, {
      lowers: [],
      upper: await newUpper(dir.file("u"), { size: 1 << 20 }),
    });
    await using mount = await mountHanging(dir);
    const service = dir.file("overlaybd.json");
    Deno.writeTextFileSync(
      service,
      JSON.stringify({
        cacheConfig: {
          cacheType: "file",
          cacheDir: `${mount.path}/cache`,
          refillSize: UNIT,
        },
        enableAudit: false,
        logPath: "",
      }),
    );
    await using server = await startServer(
      dir.file("nbd"),
      [`${a.config};a`, `${local};local`],
      { args: ["--listen", dir.file("api"), "--service_config_path", service] },
    );
    const api = (method: string, path: string, body?: unknown) =>
      ask(server.api, method, path, body === undefined ? {} : { body });
    const far = SIZE / 2;
    using first = await connectNbd(dir.file("nbd"), "a");
    using disk = await connectNbd(dir.file("nbd"), "local");
    // From the end, which is no reason to read ahead.
    for (let i = READS - 1; i >= 0; i--) await first.read(i * UNIT, UNIT);

    // What is here is to come from the disk, not from memory.
    const cached = `${mount.path}/cache/${a.name}`;
    await mustRun("dd", [`if=${cached}`, ...DROP]);

    mount.hang();
    const waiting = Array.from(
      { length: READS },
      (_, i) => first.read(i * UNIT, UNIT),
    );
    let answered = 0;
    for (const read of waiting) read.then(() => answered++, () => {});
    let [over, rounds, longest] = [false, 0, 0];
    const others = (async () => {
      for (; !over; rounds++) {
        const began = performance.now();
        equal((await api("GET", "/healthz")).status, 200);
        await disk.write(0, noise(rounds, 4096));
        deepEqual(await disk.read(0, 4096), noise(rounds, 4096));
        longest = Math.max(longest, performance.now() - began);
        await sleep(20);
      }
    })();
    try {
      // What is not here cannot be kept, and what was not open cannot be opened.
      const [rest, attached] = await Promise.all([
        first.read(far, MIB),
        api("POST", "/v1/devices", { config: b.config, devId: "b" }),
      ]);
      deepEqual(rest, a.content.slice(far, far + MIB));
      equal(attached.status, 201, attached.text);
      {
        using second = await connectNbd(dir.file("nbd"), "b");
        deepEqual(await second.read(0, SIZE), b.content);
      }
      match((await api("GET", "/v1/cache")).text, /timed out/);
      equal((await api("DELETE", "/v1/devices/3")).status, 204);
      // The disk of one that hangs altogether would take as long as that hangs.
      ok(rounds > 20 && longest < 4000, `${rounds} rounds, ${longest} ms`);
    } finally {
      over = true;
      await others.catch(() => {});
    }
    await others;
    equal(answered, 0);
    mount.resume();
    for (const [i, read] of waiting.entries()) {
      deepEqual(await read, a.content.slice(i * UNIT, (i + 1) * UNIT));
    }
    deepEqual(await first.read(0, far), a.content.slice(0, far));
    mount.hang();
    const { code } = await server.stop();
    equal(code, 0);
    mount.resume();
  },
);
