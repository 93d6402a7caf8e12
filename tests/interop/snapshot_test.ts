// SPDX-License-Identifier: Apache-2.0
/**
 * Live snapshots of an image that NBD clients use (spec/api.md, section 4).
 */
import { deepEqual, equal, ok } from "node:assert/strict";
import { existsSync } from "node:fs";
import { equalBytes } from "../lib/crash.ts";
import { sha256, tempDir } from "../lib/env.ts";
import { CMD, connectNbd, type NbdClient } from "../lib/nbd.ts";
import { openDisk } from "../lib/product.ts";
import { chooseSeed, generator, noise } from "../lib/random.ts";
import { newSubject } from "../lib/snapshots.ts";
import {
  DEV_ID,
  layersOf,
  prepareNext,
  serveSnapshots,
} from "../lib/snapshot_server.ts";
import { readDisk } from "../lib/spec_reader.ts";

const SECTOR = 512;
const MIB = 1 << 20;
const seed = chooseSeed();

/** What the disk of a configuration shows to a second reader. */
function sealedBytes(config: string, size: number): string {
  const { lowers, upper } = layersOf(config);
  using spec = readDisk(lowers, upper);
  return sha256(spec.read(0, size));
}

for (const sparse of [false, true]) {
  const kind = sparse ? "sparse" : "log";
  Deno.test(`1 MiB written, a snapshot, half of it written again: ${kind}, a disk of 64 MiB`, async () => {
    using dir = tempDir();
    const size = 64 * MIB;
    const subject = await newSubject(dir, { size, sparse });
    await using served = await serveSnapshots(dir, subject.config);
    using client = await connectNbd(served.socket, DEV_ID);
    const model = (await client.read(0, 4 * MIB)).slice();
    const put = async (at: number, n: number, nr: number) => {
      await client.write(at, noise(nr, n));
      model.set(noise(nr, n), at);
    };
    await put(MIB, MIB, 1);
    const next = await prepareNext(subject.config, dir.file("n1"), {
      size,
      sparse,
    });
    const text = Deno.readTextFileSync(next);
    const { status, text: body } = await served.snapshot(next);
    equal(status, 200, body);
    equal(
      body,
      '{\n        "success": true,\n        "message": "Snapshot created successfully"\n}',
    );
    equal(Deno.readTextFileSync(subject.config), text);
    ok(!existsSync(next));
    equal(sha256(await client.read(0, 4 * MIB)), sha256(model));
    const { lowers, upper } = layersOf(subject.config);
    {
      // The sealed layer alone holds what was there when it was taken.
      await using disk = await openDisk({ lowers });
      equal(sha256(disk.read(0, 4 * MIB)), sha256(model));
    }
    await put(MIB + MIB / 4, MIB / 2, 2);
    await client.flush();
    equal(sha256(await client.read(0, 4 * MIB)), sha256(model));
    await served.server.stop();
    await using again = await openDisk({ lowers, upper });
    equal(sha256(again.read(0, 4 * MIB)), sha256(model));
  });
}

Deno.test("what cannot be is answered as the original does, and the device goes on", async () => {
  using dir = tempDir();
  const size = MIB;
  const subject = await newSubject(dir, { size });
  await using served = await serveSnapshots(dir, subject.config);
  using client = await connectNbd(served.socket, DEV_ID);
  await client.write(0, noise(1, 4096));
  const before = Deno.readTextFileSync(subject.config);
  const { status, text } = await served.snapshot(dir.file("none.json"));
  equal(status, 500);
  equal(
    text,
    '{\n        "success": false,\n        "message": "Failed to create snapshot`"\n}',
  );
  equal(Deno.readTextFileSync(subject.config), before);
  deepEqual(await client.read(0, 4096), noise(1, 4096));
  client.close();
  const { stderr: log } = await served.server.stop();
  ok(/cannot take a snapshot of .*none\.json: cannot read/.test(log), log);
});

/** A client's view of a part of the disk that nobody else writes. */
async function hammer(
  client: NbdClient,
  model: Uint8Array,
  from: number,
  to: number,
  random: () => number,
  stop: { now: boolean },
): Promise<number> {
  let done = 0;
  while (!stop.now) {
    const sectors = 1 + Math.floor(random() * 24);
    const at = (from + Math.floor(random() * (to - from - sectors))) * SECTOR;
    const n = sectors * SECTOR;
    const dice = random();
    if (dice < 0.55) {
      const bytes = noise(1 + Math.floor(random() * 2 ** 30), n);
      await client.write(at, bytes);
      model.set(bytes, at);
    } else if (dice < 0.7) {
      await client.request(CMD.ZEROES, at, n);
      model.fill(0, at, at + n);
    } else if (dice < 0.8) {
      // A discard promises nothing: what is there then has to stay.
      await client.request(CMD.TRIM, at, n);
      model.set(await client.read(at, n), at);
    } else if (dice < 0.83) {
      await client.flush();
    } else if (
      !equalBytes(await client.read(at, n), model.subarray(at, at + n))
    ) {
      throw new Error(`bytes ${at} to ${at + n} are wrong (SEED=${seed})`);
    }
    done++;
  }
  return done;
}

for (const kinds of ["log", "sparse", "both"]) {
  Deno.test(`snapshots in a row under writes, discards and flushes: ${kinds}`, async () => {
    using dir = tempDir();
    const size = 4 * MIB;
    const random = generator(seed);
    const isSparse = (nr: number) =>
      kinds === "both" ? nr % 2 === 1 : kinds === "sparse";
    const subject = await newSubject(dir, { size, sparse: isSparse(0) });
    await using served = await serveSnapshots(dir, subject.config);
    using client = await connectNbd(served.socket, DEV_ID);
    const model = (await client.read(0, size)).slice();
    const stop = { now: false };
    const parts = 6;
    const part = Math.floor(size / SECTOR / parts);
    const load = Promise.all(
      Array.from({ length: parts }, (_, nr) =>
        hammer(
          client,
          model,
          nr * part,
          (nr + 1) * part,
          generator(seed + nr),
          stop,
        )),
    );
    // Should a snapshot fail, that is the failure to be told.
    load.catch(() => {});
    const rounds = kinds === "both" ? 8 : 3;
    for (let nr = 1; nr <= rounds; nr++) {
      await new Promise((done) => setTimeout(done, 30 + random() * 60));
      const next = await prepareNext(subject.config, dir.file(`n${nr}`), {
        size,
        sparse: isSparse(nr),
      });
      const { status, text } = await served.snapshot(next);
      equal(status, 200, text);
    }
    await new Promise((done) => setTimeout(done, 50));
    stop.now = true;
    const done = (await load).reduce((sum, n) => sum + n);
    ok(done > rounds * 20, `only ${done} requests`);
    equal(sha256(await client.read(0, size)), sha256(model), `SEED=${seed}`);
    equal(layersOf(subject.config).lowers.length, rounds + 1);
    client.close();
    equal((await served.server.stop()).code, 0);
    equal(sealedBytes(subject.config, size), sha256(model), `SEED=${seed}`);
    const { lowers, upper } = layersOf(subject.config);
    await using again = await openDisk({ lowers, upper });
    deepEqual(again.warnings, []);
    equal(sha256(again.read(0, size)), sha256(model), `SEED=${seed}`);
  });
}

Deno.test("two requests at once: one is taken, one is refused", async () => {
  using dir = tempDir();
  const subject = await newSubject(dir, { size: MIB });
  await using served = await serveSnapshots(dir, subject.config);
  const next = await Promise.all(
    [1, 2].map((nr) =>
      prepareNext(subject.config, dir.file(`n${nr}`), {
        size: MIB,
        sparse: false,
      })
    ),
  );
  const answers = await Promise.all(next.map((path) => served.snapshot(path)));
  deepEqual(answers.map(({ status }) => status).toSorted(), [200, 500]);
  equal(layersOf(subject.config).lowers.length, 2);
  const again = await prepareNext(subject.config, dir.file("n3"), {
    size: MIB,
    sparse: true,
  });
  equal((await served.snapshot(again)).status, 200);
});

Deno.test("a request while the service ends: it is taken whole, or not at all", async () => {
  for (let delay = 0; delay < 30; delay += 6) {
    using dir = tempDir();
    const subject = await newSubject(dir, { size: MIB });
    await using served = await serveSnapshots(dir, subject.config);
    using client = await connectNbd(served.socket, DEV_ID);
    await client.write(0, noise(7, 65536));
    client.close();
    const next = await prepareNext(subject.config, dir.file("n1"), {
      size: MIB,
      sparse: false,
    });
    const asked = served.snapshot(next).catch(() => undefined);
    await new Promise((done) => setTimeout(done, delay));
    equal((await served.server.stop()).code, 0);
    const status = (await asked)?.status;
    const { lowers, upper } = layersOf(subject.config);
    equal(lowers.length, status === 200 ? 2 : lowers.length);
    ok(!existsSync(`${subject.config}.snap`));
    await using disk = await openDisk({ lowers, upper });
    deepEqual(disk.read(0, 65536), noise(7, 65536));
  }
});
