// SPDX-License-Identifier: Apache-2.0
/** What opening does with a snapshot that was interrupted. */
import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { existsSync } from "node:fs";
import { readDeviceSync, writeDevice } from "../../ffi/device.ts";
import { readImageConfig } from "../../src/image/config.ts";
import { type OpenImage, openImage } from "../../src/image/image.ts";
import { finishSnapshot } from "../../src/image/intent.ts";
import { sealLayer } from "../../src/layer/commit.ts";
import { openUpper } from "../../src/layer/upper.ts";
import { sha256, tempDir } from "../lib/env.ts";
import { noise } from "../lib/random.ts";
import { newSubject, type Subject } from "../lib/snapshots.ts";

const SIZE = 1 << 20;

async function open(path: string): Promise<OpenImage> {
  return await openImage(await readImageConfig(path));
}

function hashOf({ device }: OpenImage): string {
  const into = new Uint8Array(SIZE);
  readDeviceSync(device, into, 0);
  return sha256(into);
}

/** Writes, and closes; what the disk shows then. */
async function write(path: string, nr: number): Promise<string> {
  await using image = await open(path);
  writeDevice(image.device, noise(nr, 70000 - 70000 % 512), nr * 8192);
  return hashOf(image);
}

/** An image with writes, and the configuration that is to follow. */
async function interrupted(
  dir: ReturnType<typeof tempDir>,
  sparse: boolean,
): Promise<{ subject: Subject; next: string; intent: string; hash: string }> {
  const subject = await newSubject(dir, { size: SIZE, sparse });
  const hash = await write(subject.config, 1);
  const next = await subject.next();
  return { subject, next, intent: `${subject.config}.snap`, hash };
}

for (const sparse of [false, true]) {
  const kind = sparse ? "sparse" : "log";

  Deno.test(`interrupted before the switch: it is finished, ${kind}`, async () => {
    using dir = tempDir();
    const { subject, next, intent, hash } = await interrupted(dir, sparse);
    const text = Deno.readTextFileSync(next);
    Deno.renameSync(next, intent);
    deepEqual(await finishSnapshot(subject.config), [
      `${subject.config}: an interrupted snapshot was finished`,
    ]);
    equal(Deno.readTextFileSync(subject.config), text);
    ok(!existsSync(intent));
    await using image = await open(subject.config);
    equal(image.stack.lowers.length, 2);
    equal(hashOf(image), hash);
    deepEqual(await finishSnapshot(subject.config), []);
  });

  Deno.test(`interrupted before the rename, with writes in the new upper: they are there, ${kind}`, async () => {
    using dir = tempDir();
    const { subject, next, intent } = await interrupted(dir, sparse);
    await sealLayer(subject.upper.data, subject.upper.index);
    const hash = await write(next, 2);
    Deno.renameSync(next, intent);
    await finishSnapshot(subject.config);
    await using image = await open(subject.config);
    equal(hashOf(image), hash);
    deepEqual(image.stack.warnings, []);
  });

  Deno.test(`interrupted, and the new upper is gone: undone, ${kind}`, async () => {
    using dir = tempDir();
    const { subject, next, intent, hash } = await interrupted(dir, sparse);
    const before = Deno.readTextFileSync(subject.config);
    await sealLayer(subject.upper.data, subject.upper.index);
    const { upper } = await readImageConfig(next);
    Deno.removeSync(upper?.data ?? "");
    Deno.renameSync(next, intent);
    const [did = ""] = await finishSnapshot(subject.config);
    ok(/was undone: its new upper .* does not exist/.test(did), did);
    equal(Deno.readTextFileSync(subject.config), before);
    ok(!existsSync(intent));
    await using image = await open(subject.config);
    equal(hashOf(image), hash);
    writeDevice(image.device, noise(5, 512), 0);
  });
}

Deno.test("until it is finished, a configuration cannot be used as it is", async () => {
  using dir = tempDir();
  const { subject, next, intent } = await interrupted(dir, false);
  Deno.renameSync(next, intent);
  await rejects(
    readImageConfig(subject.config),
    /config\.v1\.json\.snap tells of a snapshot that is not done/,
  );
});

Deno.test("an intent that does not follow the configuration is refused, and kept", async () => {
  using dir = tempDir();
  const { subject, next, intent } = await interrupted(dir, false);
  const files = [subject.config, subject.upper.data, subject.upper.index];
  const before = files.map((path) => sha256(Deno.readFileSync(path)));
  for (
    const [text, why] of [
      ["{", /cannot parse/],
      [Deno.readTextFileSync(subject.config), /has 1 lowers, not the image's/],
      [
        Deno.readTextFileSync(next).replace('/lower"', '/u0.index"'),
        /lowers\[0\] of the new config is not the image's/,
      ],
    ] as const
  ) {
    Deno.writeTextFileSync(intent, text);
    await rejects(finishSnapshot(subject.config), why);
    equal(Deno.readTextFileSync(intent), text);
  }
  deepEqual(files.map((path) => sha256(Deno.readFileSync(path))), before);
});

Deno.test("a snapshot that another process is taking is left alone", async () => {
  using dir = tempDir();
  const { subject, next, intent } = await interrupted(dir, false);
  Deno.copyFileSync(next, intent);
  const text = Deno.readTextFileSync(intent);
  using _upper = await openUpper({ ...subject.upper, readonly: false });
  await rejects(
    finishSnapshot(subject.config),
    /cannot finish the snapshot of .* is in use by process/,
  );
  equal(Deno.readTextFileSync(intent), text);
});
