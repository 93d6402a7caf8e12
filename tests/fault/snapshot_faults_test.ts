// SPDX-License-Identifier: Apache-2.0
/**
 * Every system call of a live snapshot fails once: the snapshot is taken or
 * is not, and either way the device shows what was written, takes writes,
 * and so does whoever opens the image next.
 */
import { deepEqual, equal, fail, match, ok } from "node:assert/strict";
import { existsSync } from "node:fs";
import {
  flushDevice,
  readDeviceSync,
  writeDeviceAsync,
} from "../../ffi/device.ts";
import { faultIo, IO } from "../../ffi/files.ts";
import { readImageConfig } from "../../src/image/config.ts";
import { type OpenImage, openImage } from "../../src/image/image.ts";
import { finishSnapshot } from "../../src/image/intent.ts";
import { snapshotImage } from "../../src/image/snapshot.ts";
import { tempDir } from "../lib/env.ts";
import { chooseSeed, generator, noise, numberFromEnv } from "../lib/random.ts";
import { newSubject, onSwitch, type Subject } from "../lib/snapshots.ts";

const SIZE = 256 << 10;
const EIO = 5;
const ENOSPC = 28;
const seed = chooseSeed();

/** The disk as it should be. */
class Model {
  readonly bytes = new Uint8Array(SIZE);

  /** Not on this thread: it may have to wait for what this thread does. */
  async write(
    image: OpenImage,
    at: number,
    from: Uint8Array<ArrayBuffer>,
  ): Promise<boolean> {
    try {
      await writeDeviceAsync(image.device, from, at);
    } catch {
      return false;
    }
    this.bytes.set(from, at);
    return true;
  }

  check(image: OpenImage, what: string): void {
    const got = new Uint8Array(SIZE);
    readDeviceSync(image.device, got, 0);
    for (let at = 0; at < SIZE; at += 512) {
      deepEqual(
        got.subarray(at, at + 512),
        this.bytes.subarray(at, at + 512),
        `${what}: sector ${at / 512}`,
      );
    }
  }
}

type Fault = [op: number, nth: number, errno: number, count: number];

interface Outcome {
  error: string | undefined;
  pending: boolean;
}

async function snapshotWith(
  subject: Subject,
  image: OpenImage,
  model: Model,
  next: string,
  faults: readonly Fault[],
): Promise<Outcome> {
  const random = generator(seed);
  const writes: Promise<boolean>[] = [];
  let armed = true;
  onSwitch(image, () => {
    for (let n = 1; armed && n <= 4; n++) {
      // Each has its own quarter: they run at once.
      const at = (n - 1) * 65536 + Math.floor(random() * 100) * 512;
      writes.push(model.write(image, at, noise(n, 512 * n * 3)));
    }
  });
  for (const [op, nth, errno, count] of faults) faultIo(op, nth, errno, count);
  const error = await snapshotImage(image, subject.config, next).then(
    () => undefined,
    (error) => String(error),
  );
  await Promise.all(writes);
  armed = false;
  for (const [op] of faults) faultIo(op, 0, 0, 0);
  return { error, pending: existsSync(`${subject.config}.snap`) };
}

async function round(sparse: boolean, ...faults: Fault[]): Promise<Outcome> {
  using dir = tempDir("memory");
  const subject = await newSubject(dir, { size: SIZE, sparse });
  const what = `${sparse ? "sparse" : "log"}, faults ${
    faults.join(" ")
  }, SEED=${seed}`;
  const model = new Model();
  const image = await openImage(await readImageConfig(subject.config));
  readDeviceSync(image.device, model.bytes, 0);
  for (let i = 0; i < 6; i++) {
    ok(await model.write(image, i * 20480, noise(50 + i, 8192 + 512 * i)));
  }
  await flushDevice(image.device);
  const before = Deno.readTextFileSync(subject.config);
  const next = await subject.next();
  const outcome = await snapshotWith(subject, image, model, next, faults);
  model.check(image, what);
  // A layer whose sync has failed promises nothing any more.
  const broken = faults.some(([op]) => op === IO.SYNC);
  ok(await model.write(image, 512, noise(99, 1024)), what);
  model.check(image, what);
  const flushed = await flushDevice(image.device).then(() => true, () => false);
  ok(flushed || broken, `${what}: FLUSH fails`);
  if (outcome.error === undefined) {
    ok(!outcome.pending, what);
    equal(image.stack.lowers.length, 2, what);
  } else if (!outcome.pending) {
    equal(Deno.readTextFileSync(subject.config), before, what);
    equal(image.stack.lowers.length, 1, what);
    // Tried again, it is taken: its files are what they were, unless giving
    // them back failed as well.
    if (!broken && faults.length === 1) {
      await snapshotImage(image, subject.config, next);
      model.check(image, `${what}, tried again`);
    }
  }
  await image.close().catch(() => {});
  await finishSnapshot(subject.config);
  await using again = await openImage(await readImageConfig(subject.config));
  model.check(again, `${what}, opened again`);
  // The next snapshot is taken: nothing is left in its way.
  await snapshotImage(again, subject.config, await following(subject));
  model.check(again, `${what}, after another`);
  return outcome;
}

/** What follows the configuration as it is now on disk. */
async function following(subject: Subject): Promise<string> {
  const { lowers, upper } = await readImageConfig(subject.config);
  subject.lowers = lowers.map(({ file }) => file);
  subject.upper = { data: upper?.data ?? "", index: upper?.index ?? "" };
  return await subject.next();
}

const OPS: Record<string, [op: number, errno: number, most: number]> = {
  open: [IO.OPEN, EIO, 14],
  pwrite: [IO.PWRITE, ENOSPC, 16],
  sync: [IO.SYNC, EIO, 14],
  truncate: [IO.TRUNCATE, EIO, 3],
  link: [IO.LINK, EIO, 3],
  rename: [IO.RENAME, EIO, 3],
  unlink: [IO.UNLINK, EIO, 3],
};

for (const sparse of [false, true]) {
  for (const [name, [op, errno, most]] of Object.entries(OPS)) {
    Deno.test(`a ${sparse ? "sparse" : "log"} upper, ${name} fails at any point of a snapshot: taken, or all as it was`, async () => {
      let failed = 0;
      for (let nth = 1; nth <= most; nth++) {
        const { error } = await round(sparse, [op, nth, errno, 1]);
        if (error !== undefined) failed++;
      }
      if (name !== "truncate" && name !== "unlink") {
        ok(failed > 0, "no fault was met");
      }
    });
  }
}

Deno.test("a disk that stays full from any point on: taken, or all as it was", async () => {
  for (let nth = 1; nth <= 8; nth++) {
    await round(false, [IO.PWRITE, nth, ENOSPC, 99]);
  }
});

Deno.test("what can go neither on nor back goes on with both uppers, and the next open finishes it", async () => {
  for (const sparse of [false, true]) {
    const { pending, error } = await round(
      sparse,
      [IO.RENAME, 1, EIO, 1],
      [IO.TRUNCATE, 1, EIO, 99],
    );
    ok(pending, `the intent is gone: ${error}`);
    match(error ?? "", /opening the image again finishes the snapshot/);
  }
});

/** What a client does that was told "failed": as if it had never been. */
const CLEAN_UP: Record<string, (paths: readonly string[]) => void> = {
  "removes its new upper": (paths) =>
    paths.forEach((it) => Deno.removeSync(it)),
  "makes its new upper anew": (paths) => {
    for (const path of paths) {
      const empty = Deno.readFileSync(path).subarray(0, 4096);
      Deno.removeSync(path);
      Deno.writeFileSync(path, empty);
    }
  },
  "does nothing": () => {},
};

for (const [what, cleanUp] of Object.entries(CLEAN_UP)) {
  for (const sparse of [false, true]) {
    const kind = sparse ? "sparse" : "log";
    Deno.test(`what was flushed after a snapshot that could not be ended is there, though the client ${what}, ${kind}`, async () => {
      using dir = tempDir("memory");
      const subject = await newSubject(dir, { size: SIZE, sparse });
      const model = new Model();
      const image = await openImage(await readImageConfig(subject.config));
      readDeviceSync(image.device, model.bytes, 0);
      const next = await subject.next();
      const { upper } = await readImageConfig(next);
      const files = [upper?.data ?? "", upper?.index ?? ""];
      const { error, pending } = await snapshotWith(
        subject,
        image,
        model,
        next,
        [[IO.RENAME, 1, EIO, 1], [IO.TRUNCATE, 1, EIO, 99]],
      );
      ok(error !== undefined && pending, error);
      ok(await model.write(image, 4096, noise(31, 8192)));
      await flushDevice(image.device);
      cleanUp(files);
      ok(await model.write(image, 65536, noise(32, 8192)));
      await image.close();
      await finishSnapshot(subject.config);
      for (const path of files) ok(!existsSync(`${path}.kept`), path);
      await using again = await openImage(
        await readImageConfig(subject.config),
      );
      model.check(again, `opened again, SEED=${seed}`);
      await snapshotImage(again, subject.config, await following(subject));
      model.check(again, `after another, SEED=${seed}`);
    });
  }
}

Deno.test("a seal that can be neither ended nor cut off again is no end of the layer", async () => {
  for (const sparse of [false, true]) {
    for (let nth = 1; nth <= 6; nth++) {
      await round(sparse, [IO.PWRITE, nth, ENOSPC, 1], [
        IO.TRUNCATE,
        1,
        EIO,
        99,
      ]);
      await round(sparse, [IO.SYNC, nth, EIO, 1], [IO.TRUNCATE, 1, EIO, 99]);
    }
  }
});

Deno.test("any two system calls fail, once or from then on: taken, or all as it was", async () => {
  const random = generator(seed);
  const fault = (): Fault => {
    const all = Object.values(OPS);
    const [op, errno, most] = all[Math.floor(random() * all.length)] ?? fail();
    const nth = 1 + Math.floor(random() * most);
    return [op, nth, errno, random() < 0.3 ? 99 : 1];
  };
  const pairs = numberFromEnv("PAIRS", 100);
  for (let i = 0; i < pairs; i++) {
    const one = fault();
    let other = fault();
    while (other[0] === one[0]) other = fault();
    await round(random() < 0.5, one, other);
  }
  console.log(`${pairs} pairs, SEED=${seed}`);
});
