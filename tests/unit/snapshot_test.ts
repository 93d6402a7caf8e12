// SPDX-License-Identifier: Apache-2.0
import {
  deepEqual,
  equal,
  fail,
  match,
  notEqual,
  ok,
  rejects,
} from "node:assert/strict";
import { existsSync } from "node:fs";
import {
  discardDevice,
  flushDevice,
  readDeviceSync,
  writeDevice,
  zeroDevice,
} from "../../ffi/device.ts";
import type { Device } from "../../ffi/handle.ts";
import { readImageConfig } from "../../src/image/config.ts";
import { growImage } from "../../src/image/grow.ts";
import { type OpenImage, openImage } from "../../src/image/image.ts";
import { snapshotImage } from "../../src/image/snapshot.ts";
import { SnapshotError } from "../../src/image/successor.ts";
import { BusyError, openUpper } from "../../src/layer/upper.ts";
import { sha256, tempDir } from "../lib/env.ts";
import { newUpper } from "../lib/product.ts";
import { chooseSeed, generator, noise } from "../lib/random.ts";
import { newSubject, type Subject } from "../lib/snapshots.ts";
import { readDisk } from "../lib/spec_reader.ts";

const SIZE = 1 << 20;
const seed = chooseSeed();

async function open(path: string): Promise<OpenImage> {
  return await openImage(await readImageConfig(path));
}

function bytesOf(device: Device, size = SIZE): Uint8Array<ArrayBuffer> {
  const into = new Uint8Array(size);
  readDeviceSync(device, into, 0);
  return into;
}

/** Random changes; what the disk shows then. */
function change(image: OpenImage, random: () => number, count: number) {
  for (let i = 0; i < count; i++) {
    const sectors = 1 + Math.floor(random() * 40);
    const lba = Math.floor(random() * (SIZE / 512 - sectors));
    const [at, n] = [lba * 512, sectors * 512];
    const kind = random();
    if (kind < 0.6) {
      const bytes = noise(Math.floor(random() * 2 ** 31), n);
      writeDevice(image.device, bytes, at);
    } else if (kind < 0.8) zeroDevice(image.device, at, n);
    else discardDevice(image.device, at, n);
  }
  return bytesOf(image.device);
}

/** What others find: us after a restart, and an independent reader. */
async function checkReopen(subject: Subject, bytes: Uint8Array) {
  await using image = await open(subject.config);
  equal(sha256(bytesOf(image.device)), sha256(bytes), `SEED=${seed}`);
  deepEqual(image.stack.warnings, []);
  using spec = readDisk(subject.lowers, subject.upper);
  equal(sha256(spec.read(0, SIZE)), sha256(bytes), `SEED=${seed}`);
}

/** A configuration, and what is beside it. */
function onDisk(subject: Subject): string {
  return Deno.readTextFileSync(subject.config) +
    String(existsSync(`${subject.config}.snap`));
}

for (const from of [false, true]) {
  for (const to of [false, true]) {
    const kind = (sparse: boolean) => sparse ? "sparse" : "log";
    Deno.test(`a ${kind(from)} upper becomes a lower under a ${kind(to)} one: the disk and a reopen show the same bytes`, async () => {
      using dir = tempDir();
      const random = generator(seed);
      const subject = await newSubject(dir, { size: SIZE, sparse: from });
      const image = await open(subject.config);
      let bytes = change(image, random, 60);
      for (let round = 0; round < 3; round++) {
        const next = await subject.next({ sparse: to });
        const text = Deno.readTextFileSync(next);
        const report = await snapshotImage(image, subject.config, next);
        deepEqual(report.warnings, []);
        ok(report.pauseUs > 0);
        equal(image.snapshotPauseUs, report.pauseUs);
        subject.taken();
        equal(Deno.readTextFileSync(subject.config), text);
        ok(!existsSync(next), "the new config has been renamed");
        ok(!existsSync(`${subject.config}.snap`));
        equal(sha256(bytesOf(image.device)), sha256(bytes), `SEED=${seed}`);
        equal(image.stack.lowers.length, subject.lowers.length);
        bytes = change(image, random, 60);
      }
      await flushDevice(image.device);
      await image.close();
      await checkReopen(subject, bytes);
    });
  }
}

Deno.test("a hundred snapshots, one after the other", async () => {
  using dir = tempDir("memory");
  const random = generator(seed);
  const subject = await newSubject(dir, { size: SIZE });
  const image = await open(subject.config);
  let bytes = bytesOf(image.device);
  for (let round = 0; round < 100; round++) {
    bytes = change(image, random, 3);
    const next = await subject.next({ sparse: round % 7 === 3 });
    await snapshotImage(image, subject.config, next);
    subject.taken();
  }
  equal(sha256(bytesOf(image.device)), sha256(bytes), `SEED=${seed}`);
  await image.close();
  await checkReopen(subject, bytes);
});

Deno.test("255 lowers are the end: the snapshot after is refused", async () => {
  using dir = tempDir("memory");
  const subject = await newSubject(dir, { size: SIZE });
  const [lower = ""] = subject.lowers;
  subject.lowers = new Array<string>(254).fill(lower);
  subject.write(subject.config, subject.lowers, subject.upper);
  await using image = await open(subject.config);
  const before = bytesOf(image.device);
  await snapshotImage(image, subject.config, await subject.next());
  subject.taken();
  equal(image.stack.lowers.length, 255);
  await rejects(
    snapshotImage(image, subject.config, await subject.next()),
    /the image has 255 lowers, and at most 255 can be stacked/,
  );
  equal(sha256(bytesOf(image.device)), sha256(before));
});

Deno.test("a larger upper grows the disk and tells; a smaller one is refused", async () => {
  using dir = tempDir();
  const subject = await newSubject(dir, { size: SIZE });
  await using image = await open(subject.config);
  const told: bigint[] = [];
  image.grown.add((size) => told.push(size));
  await rejects(
    snapshotImage(
      image,
      subject.config,
      await subject.next({ size: SIZE - 512 }),
    ),
    /has a disk of 1048064 bytes, less than the device's 1048576/,
  );
  deepEqual(told, []);
  const next = await subject.next({ size: 2 * SIZE, sparse: true });
  await snapshotImage(image, subject.config, next);
  deepEqual(told, [BigInt(2 * SIZE)]);
  equal(image.stack.virtualSize, BigInt(2 * SIZE));
  writeDevice(image.device, noise(9, 512), 2 * SIZE - 512);
  const last = new Uint8Array(512);
  readDeviceSync(image.device, last, 2 * SIZE - 512);
  deepEqual(last, noise(9, 512));
});

Deno.test("after a snapshot that could not be ended the new upper is what grows", async () => {
  using dir = tempDir();
  const subject = await newSubject(dir, { size: SIZE });
  const image = await open(subject.config);
  const { stack } = image;
  const { upper: files } = await readImageConfig(await subject.next());
  const [data, index] = [files?.data ?? "", files?.index ?? ""];
  const upper = await openUpper({ data, index, readonly: false });
  stack.frozen = stack.upper ?? fail();
  stack.upper = upper;
  await growImage(image, BigInt(2 * SIZE));
  await image.close();
  using after = await openUpper({ data, index, readonly: true });
  equal(after.virtualSize, BigInt(2 * SIZE));
  using before = await openUpper({ ...subject.upper, readonly: true });
  equal(before.virtualSize, BigInt(SIZE));
});

Deno.test("an upper of size 0 takes the disk's size", async () => {
  using dir = tempDir();
  const subject = await newSubject(dir, { size: SIZE });
  await using image = await open(subject.config);
  await snapshotImage(
    image,
    subject.config,
    await subject.next({ size: 0, sparse: true }),
  );
  equal(image.stack.virtualSize, BigInt(SIZE));
  equal(image.stack.upper?.virtualSize, BigInt(SIZE));
});

// ---- refused --------------------------------------------------------

type Spoil = (
  subject: Subject,
  next: string,
  edit: (change: (config: Config) => void) => void,
) => Promise<void> | void;

interface Config {
  lowers: Record<string, string>[];
  upper?: { data: string; index: string; target?: string };
  accelerationLayer?: boolean;
}

const REFUSED: Record<string, [Spoil, RegExp]> = {
  "a new config that is not there": [
    (_, next) => Deno.removeSync(next),
    /cannot read image config .*no such file/,
  ],
  "a new config that is no JSON": [
    (_, next) => Deno.writeTextFileSync(next, "{"),
    /cannot parse image config/,
  ],
  "a new config that is a directory": [
    (_, next) => {
      Deno.removeSync(next);
      Deno.mkdirSync(next);
    },
    /is no regular file/,
  ],
  "a new config that never ends": [
    (_, next) => {
      Deno.removeSync(next);
      Deno.symlinkSync("/dev/zero", next);
    },
    /is no regular file/,
  ],
  "a new config that is huge": [
    (_, next) => Deno.truncateSync(next, (16 << 20) + 1),
    /expected a file of at most 16777216 bytes/,
  ],
  "a new config without an upper": [
    (_, __, edit) => edit((config) => delete config.upper),
    /the new config has no upper/,
  ],
  "an upper with a target": [
    (_, __, edit) =>
      edit((config) => config.upper && (config.upper.target = "/x")),
    /turboOCI/,
  ],
  "an index that is not there": [
    (_, __, edit) =>
      edit((config) => config.upper && (config.upper.index += ".none")),
    /the new upper's index .* does not exist/,
  ],
  "data that is not there": [
    (_, __, edit) =>
      edit((config) => config.upper && (config.upper.data += ".none")),
    /no such file/,
  ],
  "the same index but new data": [
    (subject, _, edit) =>
      edit((config) =>
        config.upper && (config.upper.index = subject.upper.index)
      ),
    /u0\.index is in use as .*u0\.index/,
  ],
  "the same data but a new index": [
    (subject, _, edit) =>
      edit((config) =>
        config.upper && (config.upper.data = subject.upper.data)
      ),
    /u0\.data is in use as .*u0\.data/,
  ],
  "the same upper by another name": [
    (subject, _, edit) => {
      Deno.linkSync(subject.upper.data, `${subject.upper.data}.link`);
      edit((config) =>
        config.upper && (config.upper.data = `${subject.upper.data}.link`)
      );
    },
    /is in use as/,
  ],
  "an upper that is not empty": [
    async (_, next) => {
      await using image = await openImage({
        ...await readImageConfig(next),
        lowers: [],
      });
      writeDevice(image.device, noise(1, 512), 0);
    },
    /is not empty/,
  ],
  "an upper that somebody else has open": [
    async (_, next) => {
      const { upper: { data, index } = fail() } = await readImageConfig(next);
      held.push(await openUpper({ readonly: false, data, index }));
    },
    /is in use by process/,
  ],
  "a lower too few": [
    (_, __, edit) => edit((config) => config.lowers.shift()),
    /has 1 lowers, not the image's 1 and its upper/,
  ],
  "another lower": [
    (subject, _, edit) => {
      Deno.copyFileSync(subject.lowers[0] ?? "", `${subject.config}.copy`);
      edit((config) => config.lowers[0] = { file: `${subject.config}.copy` });
    },
    /lowers\[0\] of the new config is not the image's/,
  ],
  "lowers without the upper on top": [
    (subject, _, edit) =>
      edit((config) => config.lowers[1] = { file: subject.lowers[0] ?? "" }),
    /lowers\[1\] of the new config is not the image's upper/,
  ],
  "an acceleration layer": [
    (_, __, edit) => edit((config) => config.accelerationLayer = true),
    /acceleration layer/,
  ],
  "a snapshot that is not done": [
    (subject) => Deno.writeTextFileSync(`${subject.config}.snap`, "{}"),
    /tells of another snapshot/,
  ],
};

const held: Disposable[] = [];

for (const [what, [spoil, why]] of Object.entries(REFUSED)) {
  Deno.test(`refused, and everything is as it was: ${what}`, async () => {
    using dir = tempDir();
    const subject = await newSubject(dir, { size: SIZE });
    await using image = await open(subject.config);
    const bytes = change(image, generator(seed), 20);
    const next = await subject.next();
    await spoil(subject, next, (edit) => {
      const config = JSON.parse(Deno.readTextFileSync(next)) as Config;
      edit(config);
      Deno.writeTextFileSync(next, JSON.stringify(config));
    });
    const files = [subject.upper.data, subject.upper.index, subject.config];
    await flushDevice(image.device);
    const before = files.map((path) => sha256(Deno.readFileSync(path)));
    const { stack: { upper, lowers: [...lowers] }, config } = image;
    try {
      await rejects(
        snapshotImage(image, subject.config, next),
        (error) => error instanceof SnapshotError && why.test(error.message),
      );
    } finally {
      for (const item of held.splice(0)) item[Symbol.dispose]();
    }
    deepEqual(files.map((path) => sha256(Deno.readFileSync(path))), before);
    equal(image.stack.upper, upper);
    deepEqual(image.stack.lowers, lowers);
    equal(image.config, config);
    equal(sha256(bytesOf(image.device)), sha256(bytes));
    // The next one, which is right, is taken.
    if (existsSync(`${subject.config}.snap`)) {
      Deno.removeSync(`${subject.config}.snap`);
    }
    await snapshotImage(image, subject.config, await subject.next());
    equal(sha256(bytesOf(image.device)), sha256(bytes));
  });
}

Deno.test("a read-only device, and one without lowers, are refused", async () => {
  using dir = tempDir();
  const subject = await newSubject(dir, { size: SIZE });
  const next = await subject.next();
  {
    const config = await readImageConfig(subject.config);
    await using image = await openImage(config, { readonly: true });
    await rejects(
      snapshotImage(image, subject.config, next),
      /the device is read-only/,
    );
  }
  const upper = await newUpper(dir.file("alone"), { size: SIZE });
  subject.write(dir.file("alone.json"), [], upper);
  await using image = await open(dir.file("alone.json"));
  await rejects(
    snapshotImage(image, dir.file("alone.json"), next),
    /the image has no lowers/,
  );
});

Deno.test("where the intent cannot be written, nothing happens", async () => {
  using dir = tempDir();
  const subject = await newSubject(dir, { size: SIZE });
  await using image = await open(subject.config);
  const next = await subject.next();
  // Root may write everywhere: a name that is too long with `.snap` behind.
  const long = dir.file("c".repeat(253));
  Deno.renameSync(subject.config, long);
  const before = onDisk({ ...subject, config: long });
  await rejects(
    snapshotImage(image, long, next),
    (error) => error instanceof SnapshotError,
  );
  equal(onDisk({ ...subject, config: long }), before);
  ok(existsSync(next));
});

// ---- who else is there ----------------------------------------------

Deno.test("two requests at once: one is taken, the other says why not", async () => {
  using dir = tempDir();
  const subject = await newSubject(dir, { size: SIZE });
  await using image = await open(subject.config);
  const bytes = change(image, generator(seed), 20);
  const next = [await subject.next(), await subject.next()];
  const ended = await Promise.allSettled(
    next.map((path) => snapshotImage(image, subject.config, path)),
  );
  equal(ended[0]?.status, "fulfilled");
  ok(ended[1]?.status === "rejected");
  match(String(ended[1].reason), /has 2 lowers, not the image's 2/);
  equal(sha256(bytesOf(image.device)), sha256(bytes));
  equal(image.stack.lowers.length, 2);
});

Deno.test("closing waits for a snapshot, and refuses the next", async () => {
  using dir = tempDir();
  const subject = await newSubject(dir, { size: SIZE });
  const image = await open(subject.config);
  const bytes = change(image, generator(seed), 20);
  const taken = snapshotImage(image, subject.config, await subject.next());
  const closed = image.close();
  await taken;
  subject.taken();
  await closed;
  await rejects(
    snapshotImage(image, subject.config, await subject.next()),
    /the image is being closed/,
  );
  await checkReopen(subject, bytes);
});

Deno.test("what was the upper stays locked against writers, and is open to readers", async () => {
  using dir = tempDir();
  const subject = await newSubject(dir, { size: SIZE });
  const image = await open(subject.config);
  change(image, generator(seed), 20);
  const before = subject.upper;
  await snapshotImage(image, subject.config, await subject.next());
  await rejects(openUpper({ ...before, readonly: false }), BusyError);
  (await openUpper({ ...before, readonly: true })).close();
  await image.close();
  (await openUpper({ ...before, readonly: false })).close();
});

Deno.test(
  "a new config on another file system takes the old one's place, with its rights",
  {
    ignore: !existsSync("/dev/shm"),
  },
  async () => {
    using dir = tempDir();
    using far = tempDir("memory");
    notEqual(Deno.statSync(dir.path).dev, Deno.statSync(far.path).dev);
    const subject = await newSubject(dir, { size: SIZE });
    await using image = await open(subject.config);
    const next = far.file("next.json");
    const near = await subject.next();
    Deno.copyFileSync(near, next);
    Deno.chmodSync(next, 0o640);
    await snapshotImage(image, subject.config, next);
    equal(
      Deno.readTextFileSync(subject.config),
      Deno.readTextFileSync(near),
    );
    equal((Deno.statSync(subject.config).mode ?? 0) & 0o777, 0o640);
    ok(!existsSync(next));
  },
);

Deno.test("a configuration that is a symbolic link stays one", async () => {
  using dir = tempDir();
  const subject = await newSubject(dir, { size: SIZE });
  const link = dir.file("link.json");
  Deno.symlinkSync(subject.config, link);
  await using image = await open(link);
  const next = await subject.next();
  const text = Deno.readTextFileSync(next);
  await snapshotImage(image, link, next);
  ok(Deno.lstatSync(link).isSymlink);
  equal(Deno.readTextFileSync(subject.config), text);
});
