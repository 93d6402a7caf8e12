// SPDX-License-Identifier: Apache-2.0
/**
 * Traces recorded and replayed, and lists of files, against a server that
 * counts (spec/image.md, section 5 and items 9 to 11 of section 9).
 *
 * @module
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { crc32c } from "../../ffi/crc32c.ts";
import { deviceStats, readDeviceSync } from "../../ffi/device.ts";
import { faultIo, IO } from "../../ffi/files.ts";
import {
  encodeTraceHeader,
  encodeTraceRecords,
  parseTrace,
  TRACE_BLOCK,
  type TraceRecord,
} from "../../src/format/trace.ts";
import { ImageError } from "../../src/image/error.ts";
import { type OpenImage } from "../../src/image/image.ts";
import { openLayer } from "../../src/layer/open.ts";
import { startRecording } from "../../src/image/record.ts";
import {
  type BlobServer,
  commitLayer,
  type Host,
  logTo,
  noise,
  openHost,
  readImage,
  startBlobServer,
  until,
} from "../lib/blobs.ts";
import { mustRun, type TempDir, tempDir } from "../lib/env.ts";

const MIB = 1 << 20;
const UNIT = 65536;
const SIZE = 8 * MIB;
const CONTENT = noise(1, SIZE);

/** Two lowers: 8 MiB compressed, 1 MiB of it hidden by a raw one. */
interface Setup extends AsyncDisposable {
  dir: TempDir;
  server: BlobServer;
  lowers: { digest: string }[];
  host(cache: string): Host;
}
const TOP = noise(2, MIB);

async function setUp(): Promise<Setup> {
  const dir = tempDir();
  const server = startBlobServer();
  const bottom = await commitLayer(dir, "bottom", CONTENT, ["-z", "-t"]);
  const top = await commitLayer(dir, "top", TOP, [], SIZE);
  return {
    dir,
    server,
    lowers: [bottom, top].map((path) => ({ digest: server.add(path) })),
    host: (cache) => openHost(server.url, dir.file(cache), UNIT),
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      dir[Symbol.dispose]();
    },
  };
}

function writeTrace(path: string, records: readonly TraceRecord[]): void {
  const data = encodeTraceRecords(records);
  Deno.writeFileSync(path, encodeTraceHeader(data.length, crc32c(0, data)));
  Deno.writeFileSync(path, data, { append: true });
}
const readTrace = (path: string) => parseTrace(Deno.readFileSync(path), crc32c);

/** Opens an image, waits for its replay, and counts what that costs. */
async function replay(
  setup: Setup,
  path: string,
  cache: string,
  lines: string[] = [],
  more: Record<string, unknown> = {},
): Promise<{ requests: number; bytes: number; open: number }> {
  await using host = setup.host(cache);
  await using image = await host.open(
    { lowers: setup.lowers, recordTracePath: path, ...more },
    { prefetchConcurrency: 16, log: logTo(lines) },
  );
  // What opening took: the replay starts before this returns.
  await using plain = await host.open({ lowers: setup.lowers });
  assert(plain.background.replay === undefined);
  await image.background.replay?.ended;
  const all = setup.server.requests.splice(0);
  return {
    requests: all.length,
    bytes: all.reduce((sum, { from, to }) => sum + to - from, 0),
    open: 0,
  };
}

Deno.test("a recorded trace has the layers' ranges, is acknowledged, and replays", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  Deno.writeTextFileSync(path, "");
  Deno.writeTextFileSync(`${path}.ok`, "of an earlier run");
  const lines: string[] = [];
  {
    await using host = setup.host("cold");
    await using image = await host.open(
      {
        lowers: setup.lowers,
        recordTracePath: path,
        download: { enable: true, delay: 0 },
      },
      {
        prefetchConcurrency: 16,
        log: logTo(lines),
        download: {
          ...{ enable: true, delay: 0, delayExtra: 1, maxMBps: 0, tryCnt: 1 },
          blockSize: 65536,
        },
      },
    );
    assert(existsSync(`${path}.lock`));
    assert(!existsSync(`${path}.ok`), "a stale .ok is taken away");
    assert.equal(image.background.download, undefined);
    await readImage(image, MIB - 4096, 8192); // both layers
    await readImage(image, 5 * MIB, 4096);
    await assert.rejects(readImage(image, SIZE, 4096));
    Deno.removeSync(`${path}.lock`);
    await until(() => existsSync(`${path}.ok`), "the trace is acknowledged");
    const before = Deno.readFileSync(path);
    await readImage(image, 6 * MIB, 4096); // not in it any more
    await image.close();
    assert.deepEqual(Deno.readFileSync(path), before);
  }
  assert.deepEqual(
    readTrace(path).map(({ op, layer, count }) => [op, layer, count]),
    [["read", 1, 4096], ["read", 0, 4096], ["read", 0, 4096]],
  );
  assert.deepEqual(lines, [
    `Prefetch: recording to ${path}`,
    `Prefetch: recorded 3 records to ${path}`,
  ]);

  setup.server.requests.length = 0;
  lines.length = 0;
  await using host = setup.host("warm");
  await using image = await host.open(
    { lowers: setup.lowers, recordTracePath: path },
    { prefetchConcurrency: 16, log: logTo(lines) },
  );
  await image.background.replay?.ended;
  assert.equal(
    lines[0],
    "Prefetch: Replay 3 records from 2 layers, concurrency 16",
  );
  assert.match(
    lines[1] ?? "",
    /^Prefetch: Replay 3 records done, time cost \d+ ms$/,
  );
  const fetched = setup.server.requests.length;
  assert.deepEqual(
    await readImage(image, 5 * MIB, 4096),
    CONTENT.slice(5 * MIB, 5 * MIB + 4096),
  );
  await readImage(image, MIB - 4096, 8192);
  assert.equal(setup.server.requests.length, fetched, "nothing is missing");
});

Deno.test("a device that closes first writes its trace; none read: 24 bytes, replayed as nothing", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  Deno.writeTextFileSync(path, "");
  {
    await using host = setup.host("cold");
    await using _ = await host.open(
      { lowers: setup.lowers, recordTracePath: path },
      { prefetchConcurrency: 16 },
    );
  }
  assert.equal(Deno.statSync(path).size, TRACE_BLOCK);
  assert(existsSync(`${path}.ok`) && !existsSync(`${path}.lock`));
  const lines: string[] = [];
  await replay(setup, path, "cold", lines);
  assert.match(lines.join("\n"), /Replay 0 records from 2 layers/);
});

Deno.test("a trace on a full disk is emptied, and not acknowledged", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  Deno.writeTextFileSync(path, "");
  const lines: string[] = [];
  {
    await using host = setup.host("cold");
    await using image = await host.open(
      { lowers: setup.lowers, recordTracePath: path },
      { prefetchConcurrency: 16, log: logTo(lines) },
    );
    await readImage(image, 0, 4096);
    const ENOSPC = 28;
    faultIo(IO.PWRITE, 2, ENOSPC);
    await image.close();
  }
  assert.equal(Deno.statSync(path).size, 0);
  assert(!existsSync(`${path}.ok`));
  assert.match(lines.join("\n"), /ERROR cannot write the trace .*no space/);
});

Deno.test("a trace is on disk before it is acknowledged", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  Deno.writeTextFileSync(path, "");
  const lines: string[] = [];
  {
    await using host = setup.host("cold");
    await using image = await host.open(
      { lowers: setup.lowers, recordTracePath: path },
      { prefetchConcurrency: 16, log: logTo(lines) },
    );
    const EIO = 5;
    faultIo(IO.SYNC, 1, EIO);
    await image.close();
  }
  assert.equal(Deno.statSync(path).size, 0);
  assert(!existsSync(`${path}.ok`));
});

Deno.test("a lock that cannot be made is told, the trace ends with the device", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  Deno.writeTextFileSync(path, "");
  const lines: string[] = [];
  await using host = setup.host("cold");
  await using image = await host.open({ lowers: setup.lowers });
  const EACCES = 13;
  faultIo(IO.OPEN, 2, EACCES); // the first opens the trace
  const recording = startRecording({
    ...{ device: image.device, path, log: logTo(lines) },
  });
  assert(!existsSync(`${path}.lock`));
  assert.match(lines[0] ?? "", /cannot make the lock .*permission denied/);
  await readImage(image, 0, 4096);
  await new Promise((done) => setTimeout(done, 1200)); // a look for the lock
  assert(!existsSync(`${path}.ok`));
  await readImage(image, 5 * MIB, 4096);
  await recording.close();
  assert.equal(readTrace(path).length, 2);
  assert(existsSync(`${path}.ok`));
});

Deno.test("a recording is bounded, and says what is missing", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  Deno.writeTextFileSync(path, "");
  const lines: string[] = [];
  await using host = setup.host("cold");
  await using image = await host.open({ lowers: setup.lowers });
  const recording = startRecording({
    ...{ device: image.device, path, log: logTo(lines), maxReads: 70_000 },
  });
  for (let i = 0; i < 5; i++) await readImage(image, i * 2 * MIB % SIZE, 512);
  await recording.close();
  assert.equal(readTrace(path).length, 5);

  Deno.writeTextFileSync(path, "");
  const short = startRecording({
    ...{ device: image.device, path, log: logTo(lines), maxReads: 3 },
  });
  for (let i = 0; i < 5; i++) await readImage(image, i * 1024, 512);
  await short.close();
  assert.equal(readTrace(path).length, 3);
  assert(
    lines.includes(
      `WARNING the trace is full: the last 2 reads are not in ${path}`,
    ),
    lines.join("\n"),
  );
});

Deno.test("a lock that goes away among reads ends the trace; long ones are whole", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  Deno.writeTextFileSync(path, "");
  await using host = setup.host("cold");
  await using image = await host.open(
    { lowers: setup.lowers, recordTracePath: path },
    { prefetchConcurrency: 16 },
  );
  await readImage(image, 0, SIZE);
  const into = new Uint8Array(512);
  // Backwards: no read goes on where another ended.
  const read = (i: number) =>
    readDeviceSync(image.device, into, SIZE - 512 - (i * 512) % SIZE);
  for (let i = 0; i < 70_000; i++) read(i);
  Deno.removeSync(`${path}.lock`);
  let more = 70_000;
  await until(() => {
    for (let i = 0; i < 100; i++) read(more++);
    return existsSync(`${path}.ok`);
  }, "the trace is acknowledged");
  const records = readTrace(path);
  assert(records.length > 70_000 && records.length < 70_000 + more);
  const last = records.slice(-70_000);
  assert(last.every(({ count }) => count === 512));
});

Deno.test("500 records cost at most their units, and neighbours one request", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  await replay(setup, path, "open only"); // no trace: the cost of opening
  const cost = await replay(setup, path, "also");
  const records: TraceRecord[] = [];
  for (let i = 0; i < 500; i++) {
    records.push({
      ...{ op: "read", layer: 0, offset: (i * 4099 * 37) % (3 * MIB) },
      count: 4096,
    });
  }
  writeTrace(path, records);
  const got = await replay(setup, path, "scattered");
  // All of 3 MiB of noise, which does not get smaller: two requests at most
  // beyond those of opening, and hardly a byte twice.
  assert(got.requests <= cost.requests + 2, `${got.requests}`);
  assert(got.bytes <= cost.bytes + 3.3 * MIB, `${got.bytes}`);
  assert(got.bytes >= 3 * MIB);

  // Far apart: as many requests as units.
  const far = [0, 1, 2, 3, 4, 5].map((i): TraceRecord => ({
    ...{ op: "read", layer: 0, offset: MIB + i * 1_200_000, count: 8192 },
  }));
  writeTrace(path, [...far, ...far, ...far]);
  const few = await replay(setup, path, "few");
  assert(few.requests <= cost.requests + 2 * far.length, `${few.requests}`);
});

Deno.test("a replay brings what it needs, a miss all of its refill", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  const raw = await commitLayer(setup.dir, "raw", CONTENT);
  const lowers = [{ digest: setup.server.add(raw) }];
  const REFILL = 4 * UNIT;
  // The data begins at 4096 in the layer: these are offsets in the blob.
  const at = (unit: number): TraceRecord => ({
    ...{ op: "read", layer: 0, offset: 16 * REFILL + unit * UNIT, count: 512 },
  });
  writeTrace(path, [at(2), at(0), at(9), at(2)]);
  await using host = openHost(setup.server.url, setup.dir.file("c"), REFILL);
  await using other = await host.open({ lowers });
  setup.server.requests.length = 0;
  const hanging: (() => void)[] = [];
  setup.server.intercept = () =>
    new Promise((done) => hanging.push(() => done(undefined)));
  await using image = await host.open(
    { lowers, recordTracePath: path },
    { prefetchConcurrency: 4 },
  );
  await until(() => hanging.length === 2, "both are asked for");
  const asked = () =>
    setup.server.requests.map(({ from, to }) => [
      (from - 16 * REFILL) / UNIT,
      (to - 16 * REFILL) / UNIT,
    ]);
  assert.deepEqual(asked(), [[0, 3], [9, 10]]);
  // Who waits for what is on its way asks for nothing else.
  const reads = [readImage(other, 16 * REFILL + 9 * UNIT, 512)];
  await until(() => deviceStats(other.device).parked === 1, "it waits");
  await new Promise((done) => setTimeout(done, 20));
  assert.equal(hanging.length, 2);
  reads.push(readImage(other, 16 * REFILL + 15 * UNIT, 512));
  await until(() => hanging.length === 3, "a miss");
  assert.deepEqual(asked()[2], [12, 16]);
  for (const go of hanging) go();
  await Promise.all([...reads, image.background.replay?.ended]);
});

Deno.test("records are fetched in the order of the trace", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  const at = (mib: number): TraceRecord => ({
    ...{ op: "read", layer: 0, offset: mib * MIB, count: 4096 },
  });
  writeTrace(path, [6, 2, 4, 6, 3, 2].map(at));
  await using host = setup.host("cold");
  await using warm = await host.open({ lowers: setup.lowers });
  setup.server.requests.length = 0;
  await using image = await host.open(
    { lowers: setup.lowers, recordTracePath: path },
    { prefetchConcurrency: 1 },
  );
  await image.background.replay?.ended;
  assert(warm !== image);
  assert.deepEqual(
    setup.server.requests.map(({ from }) => Math.round(from / MIB)),
    [6, 2, 4, 3],
  );
});

Deno.test("records that no layer has cost nothing and hurt nothing", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  const cost = await replay(setup, path, "plain");
  const read = { op: "read", layer: 0, offset: 0, count: 4096 } as const;
  writeTrace(path, [
    { ...read, layer: 2 },
    { ...read, layer: 0xffff_ffff },
    { ...read, op: "write", offset: 4 * MIB },
    { ...read, offset: -4096 },
    { ...read, offset: 2 ** 52 },
    { ...read, layer: 1, offset: 2 * MIB, count: 4096 },
  ]);
  const lines: string[] = [];
  const got = await replay(setup, path, "odd", lines);
  assert.equal(got.requests, cost.requests);
  assert.match(lines.join("\n"), /Replay 5 records done/);
});

Deno.test("a count of 0 takes nothing, one past 1 MiB and the end what there is", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  const records = new Uint8Array(48);
  const fields = new DataView(records.buffer);
  for (const [at, count, offset] of [[0, 0n, 2], [24, 2n ** 63n, 4]] as const) {
    fields.setUint8(at, 0x52);
    fields.setBigUint64(at + 8, count, true);
    fields.setBigInt64(at + 16, BigInt(offset * MIB), true);
  }
  const header = encodeTraceHeader(48, crc32c(0, records));
  Deno.writeFileSync(path, new Uint8Array([...header, ...records]));
  await using host = setup.host("cold");
  await using image = await host.open(
    { lowers: setup.lowers, recordTracePath: path },
    { prefetchConcurrency: 4 },
  );
  await image.background.replay?.ended;
  const before = setup.server.requests.length;
  await readImage(image, 5 * MIB, MIB);
  await readImage(image, SIZE - MIB, MIB);
  assert.equal(setup.server.requests.length, before);
  await readImage(image, 2 * MIB, 4096);
  assert(setup.server.requests.length > before);
});

for (
  const [what, spoil, why] of [
    ["a wrong checksum", (b: Uint8Array) => b[30] = 9, /checksum/],
    ["a truncated trace", undefined, /its header says 48/],
  ] as const
) {
  Deno.test(`${what}: the image opens, nothing is replayed`, async () => {
    await using setup = await setUp();
    const path = setup.dir.file("trace");
    writeTrace(
      path,
      [1, 2].map((layer) => ({
        ...{ op: "read", layer, offset: 4 * MIB, count: 4096 },
      })),
    );
    const bytes = Deno.readFileSync(path);
    spoil?.(bytes);
    Deno.writeFileSync(path, spoil === undefined ? bytes.slice(0, -1) : bytes);
    const lines: string[] = [];
    const cost = await replay(setup, setup.dir.file("none"), "plain");
    const got = await replay(setup, path, "spoilt", lines);
    assert.equal(got.requests, cost.requests);
    assert.match(lines.join("\n"), why);
    assert(lines.every((line) => line.startsWith("ERROR")));
  });
}

Deno.test("concurrency 0 and below: traces are not replayed", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  writeTrace(path, [{ op: "read", layer: 0, offset: 0, count: 4096 }]);
  await using host = setup.host("cold");
  for (const prefetchConcurrency of [0, -1]) {
    await using image = await host.open(
      { lowers: setup.lowers, recordTracePath: path },
      { prefetchConcurrency },
    );
    assert.equal(image.background.replay, undefined);
  }
});

Deno.test("an image that closes does not wait for its replay", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  writeTrace(
    path,
    [1, 3, 5, 7].map((mib) => ({
      ...{ op: "read", layer: 0, offset: mib * MIB, count: 4096 },
    })),
  );
  await using host = setup.host("cold");
  await using other = await host.open({ lowers: setup.lowers });
  const hanging: (() => void)[] = [];
  setup.server.intercept = () =>
    new Promise((done) => hanging.push(() => done(undefined)));
  const lines: string[] = [];
  const image = await host.open(
    { lowers: setup.lowers, recordTracePath: path },
    { prefetchConcurrency: 2, log: logTo(lines) },
  );
  await until(() => hanging.length === 2, "two fetches run");
  await image.close();
  assert.equal(hanging.length, 2);
  for (const go of hanging) go();
  setup.server.intercept = undefined;
  assert.deepEqual(
    await readImage(other, MIB, 4096),
    CONTENT.slice(MIB, MIB + 4096),
  );
  assert(!lines.some((line) => /done|WARNING|ERROR/.test(line)), lines.join());
});

Deno.test("a miss does not stand behind a replay that hangs", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  writeTrace(
    path,
    Array.from({ length: 20 }, (_, i) => ({
      ...{ op: "read", layer: 0, offset: MIB + i * 4 * UNIT, count: 4096 },
    })),
  );
  await using host = setup.host("cold");
  await using other = await host.open({ lowers: setup.lowers });
  const hanging: (() => void)[] = [];
  let hang = true;
  setup.server.intercept = () =>
    hang
      ? new Promise((done) => hanging.push(() => done(undefined)))
      : Promise.resolve(undefined);
  await using image = await host.open(
    { lowers: setup.lowers, recordTracePath: path },
    { prefetchConcurrency: 16 },
  );
  await until(() => hanging.length >= 12, "fetches run");
  hang = false;
  const at = SIZE - 4 * UNIT;
  assert.deepEqual(
    await readImage(other, at, 4096),
    CONTENT.slice(at, at + 4096),
  );
  assert(hanging.length < 16);
  for (const go of hanging) go();
  await image.background.replay?.ended;
});

Deno.test("an acceleration layer is not opened, its trace is replayed", async () => {
  await using setup = await setUp();
  const carrier = setup.dir.file("carrier");
  Deno.mkdirSync(carrier);
  const config = {
    lowers: [...setup.lowers, { dir: carrier }],
    accelerationLayer: true,
  };
  await using host = setup.host("cold");
  {
    await using image = await host.open(config, { prefetchConcurrency: 4 });
    assert.equal(image.stack.lowers.length, 2);
    assert.equal(image.background.replay, undefined, "there is no trace");
  }
  Deno.writeTextFileSync(`${carrier}/trace`, "");
  {
    await using image = await host.open(config, { prefetchConcurrency: 4 });
    assert.equal(image.background.replay, undefined, "it is empty");
    assert.equal(image.background.recording, undefined);
  }
  writeTrace(`${carrier}/trace`, [
    { op: "read", layer: 0, offset: 4 * MIB, count: 4096 },
  ]);
  {
    await using image = await host.open(config, { prefetchConcurrency: 4 });
    await image.background.replay?.ended;
    const before = setup.server.requests.length;
    await readImage(image, 4 * MIB, 4096);
    assert.equal(setup.server.requests.length, before);
  }
  await assert.rejects(
    host.open({ ...config, recordTracePath: `${carrier}/trace` }),
    ImageError,
  );
  await assert.rejects(
    host.open({ ...config, lowers: [{ dir: carrier }] }),
    /neither lowers nor an upper/,
  );
});

Deno.test("a tool neither records nor replays", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("trace");
  Deno.writeTextFileSync(path, "");
  await using host = setup.host("cold");
  {
    await using image = await host.open({
      ...{ lowers: setup.lowers, recordTracePath: path },
    });
    await readImage(image, 0, 4096);
  }
  assert.equal(Deno.statSync(path).size, 0);
  assert(!existsSync(`${path}.lock`));
});

// ---- lists of files ------------------------------------------------------

const haveErofs = existsSync("/usr/bin/mkfs.erofs");

/** A remote layer with a file system of a few files. */
async function fileSystemImage(
  dir: TempDir,
  server: BlobServer,
  kind: "ext4" | "erofs",
): Promise<{ digest: string; files: Record<string, Uint8Array> }> {
  const root = dir.file("root");
  const files: Record<string, Uint8Array> = {
    "usr/bin/tool": noise(11, 900_000),
    "usr/lib/a b@1+2": noise(12, 300_000),
    "usr/lib/deep/er/file": noise(13, 200_000),
    "usr/lib/deep/small": noise(14, 100),
    "data/large": noise(15, 5_000_000),
  };
  for (const [name, bytes] of Object.entries(files)) {
    Deno.mkdirSync(`${root}/${name.replace(/[^/]*$/, "")}`, {
      recursive: true,
    });
    Deno.writeFileSync(`${root}/${name}`, bytes);
  }
  Deno.symlinkSync("usr/lib", `${root}/lib`);
  const image = dir.file("fs.img");
  if (kind === "erofs") await mustRun("mkfs.erofs", ["--quiet", image, root]);
  else {
    await mustRun("mke2fs", [
      ...["-q", "-F", "-t", "ext4", "-d", root, image, "24M"],
    ]);
  }
  const bytes = Deno.readFileSync(image);
  const whole = new Uint8Array(Math.ceil(bytes.length / 4096) * 4096);
  whole.set(bytes);
  const layer = await commitLayer(dir, kind, whole, ["-z", "-t"]);
  return { digest: server.add(layer), files };
}

/** Where a file's content begins on the disk. */
function findContent(disk: Uint8Array, content: Uint8Array): number {
  for (let at = 0; at + 4096 <= disk.length; at += 4096) {
    if (content.every((byte, i) => i >= 64 || disk[at + i] === byte)) return at;
  }
  return -1;
}

for (const kind of ["ext4", "erofs"] as const) {
  Deno.test({
    name: `a list of files on ${kind} fetches those files${
      kind === "erofs" ? " (needs mkfs.erofs)" : ""
    }`,
    ignore: kind === "erofs" && !haveErofs,
    async fn() {
      using dir = tempDir();
      await using server = startBlobServer();
      const { digest, files } = await fileSystemImage(dir, server, kind);
      const list = dir.file("trace");
      Deno.writeTextFileSync(
        list,
        "/usr/bin/tool \r\n\n  /lib/a b@1+2\n/usr/lib/deep/\n/no/such\n" +
          "/usr/lib\n/bad\u0001name\n",
      );
      await using host = openHost(server.url, dir.file("cache"), UNIT);
      const lines: string[] = [];
      await using image = await host.open(
        { lowers: [{ digest }], recordTracePath: list },
        { prefetchConcurrency: 4, log: logTo(lines) },
      );
      await image.background.replay?.ended;
      assert.equal(lines[0], `Prefetch: ${list} lists 4 files`);
      assert.match(lines[1] ?? "", /2 paths of .* the first is \/no\/such$/);
      assert.match(lines[2] ?? "", /Replay \d+ records from 1 layers/);
      const before = server.requests.length;
      const fetched = server.requests.reduce((n, r) => n + r.to - r.from, 0);
      assert(fetched < 4_000_000, `not all of it: ${fetched}`);
      const disk = Deno.readFileSync(dir.file("fs.img"));
      for (const name of ["usr/bin/tool", "usr/lib/a b@1+2"]) {
        const content = files[name] ?? new Uint8Array();
        const at = findContent(disk, content);
        assert(at >= 0);
        const part = content.length - content.length % 4096;
        assert.deepEqual(
          await readImage(image, at, part),
          new Uint8Array(content.slice(0, part)),
        );
      }
      assert.equal(server.requests.length, before, "nothing was missing");
    },
  });
}

Deno.test("a list may have 65536 bytes, one more is refused; no file system is told", async () => {
  await using setup = await setUp();
  const list = setup.dir.file("trace");
  const line = "/some/file\n";
  const text = line.repeat(10_000).slice(0, 65535) + "\n";
  const cost = await replay(setup, setup.dir.file("none"), "plain");
  for (
    const [content, why] of [
      [text, /neither an EROFS nor an ext4/],
      [`${text}x`, /longer than 65536 bytes/],
    ] as const
  ) {
    Deno.writeTextFileSync(list, content);
    const lines: string[] = [];
    const got = await replay(setup, list, `cache${content.length}`, lines);
    assert.match(lines.join("\n"), why);
    assert(got.requests <= cost.requests + 1);
  }
});

Deno.test("closing during a list does not wait for its reads", async () => {
  using dir = tempDir();
  await using server = startBlobServer();
  const { digest } = await fileSystemImage(dir, server, "ext4");
  const list = dir.file("trace");
  Deno.writeTextFileSync(list, "/usr/\n");
  await using host = openHost(server.url, dir.file("cache"), UNIT);
  await using other = await host.open({ lowers: [{ digest }] });
  const hanging: (() => void)[] = [];
  server.intercept = () =>
    new Promise((done) => hanging.push(() => done(undefined)));
  const image: OpenImage = await host.open(
    { lowers: [{ digest }], recordTracePath: list },
    { prefetchConcurrency: 4 },
  );
  await until(() => hanging.length > 0, "the superblock is fetched");
  await image.close();
  server.intercept = undefined;
  for (const go of hanging) go();
  await readImage(other, 0, 4096);
});

Deno.test("a list goes on at the layer that has taken its blob's place", async () => {
  using dir = tempDir();
  await using server = startBlobServer();
  const { digest } = await fileSystemImage(dir, server, "ext4");
  const list = dir.file("trace");
  Deno.writeTextFileSync(list, "/usr/\n");
  await using host = openHost(server.url, dir.file("cache"), UNIT);
  {
    // What opening reads is here: what comes next is the replay's.
    await using _ = await host.open({ lowers: [{ digest }] });
  }
  let asked = 0;
  server.intercept = () => {
    asked++;
    return new Promise(() => {});
  };
  const lines: string[] = [];
  await using image = await host.open(
    { lowers: [{ digest }], recordTracePath: list },
    { prefetchConcurrency: 4, log: logTo(lines) },
  );
  await until(() => asked > 0, "the list's file system is fetched");
  const local = await openLayer(dir.file("ext4.layer"));
  const [remote] = image.stack.lowers;
  assert(remote !== undefined);
  await image.view.show([local], image.stack.virtualSize);
  image.stack.lowers[0] = local;
  image.view.retire(remote);
  await image.background.replay?.ended;
  assert.equal(lines[0], `Prefetch: ${list} lists 4 files`);
  assert.match(lines[1] ?? "", /Replay \d+ records from 1 layers/);
  assert.match(lines[2] ?? "", /done/);
  assert.equal(lines.length, 3);
});
