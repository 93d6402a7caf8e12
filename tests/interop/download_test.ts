// SPDX-License-Identifier: Apache-2.0
/**
 * Layers brought into their directories while the image is used, against a
 * server that counts (spec/image.md, section 6 and items 12 and 13 of
 * section 9).
 *
 * @module
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { writeDevice } from "../../ffi/device.ts";
import { faultIo, IO } from "../../ffi/files.ts";
import type { OpenImage } from "../../src/image/image.ts";
import type { ImageAudit } from "../../src/image/log.ts";
import { snapshotImage } from "../../src/image/snapshot.ts";
import { openAudit } from "../../src/service/audit.ts";
import { loadServiceConfig } from "../../src/service/config.ts";
import { createLog } from "../../src/service/log.ts";
import { createService } from "../../src/service/service.ts";
import { commitLayer, logTo, noise, readImage, until } from "../lib/blobs.ts";
import { mustRun, sha256File } from "../lib/env.ts";
import {
  BLOCK,
  CONTENT,
  refuseAgain,
  settings,
  setUp,
  SIZE,
  writtenBlocks,
} from "../lib/layer_dir.ts";
import { newUpper } from "../lib/product.ts";

const MIB = 1 << 20;

/** All of the disk is what it should be. */
async function checkDisk(image: OpenImage): Promise<void> {
  for (let at = 0; at < SIZE; at += MIB) {
    assert.deepEqual(
      await readImage(image, at, MIB),
      CONTENT.slice(at, at + MIB),
    );
  }
}

function isLocal(image: OpenImage): boolean {
  return image.stack.lowers.every(({ remote }) => remote === undefined);
}

/** A promise that is kept from its end until it is let go. */
function gate(): { closed: Promise<void>; open: () => void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { closed: promise, open: resolve };
}

Deno.test("a layer is brought, checked, renamed, and shown", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache");
  const lines: string[] = [];
  const audited: Parameters<ImageAudit["record"]>[0][] = [];
  await using image = await host.open({ lowers: [setup.lower] }, {
    download: settings(),
    log: logTo(lines),
    audit: { record: (done) => audited.push(done) },
  });
  assert(!isLocal(image));
  await image.background.download?.ended;
  assert(isLocal(image));
  assert.equal(`sha256:${sha256File(setup.commit)}`, setup.lower.digest);
  assert(!existsSync(setup.temp));
  const before = setup.server.requests.length;
  await checkDisk(image);
  assert.equal(setup.server.requests.length, before, "all of it is local");
  const url = `${setup.server.url}/${setup.lower.digest}`;
  assert.deepEqual(lines, [
    `background download is enabled, delay 0, maxMBps 0, tryCnt 3, ` +
    `blockSize ${BLOCK}`,
    "BACKGROUND DOWNLOAD THREAD STARTED.",
    `download blob start. (${url})`,
    `download blob done. (${setup.temp})`,
    `download verify done. rename(${setup.temp},${setup.commit}) success`,
    `switch to localfile '${setup.commit}' success.`,
    "BACKGROUND DOWNLOAD THREAD EXIT.",
  ]);
  assert(audited.length > 50);
  assert(
    audited.every(({ op, pathname, size, offset, latencyUs }) =>
      op === "bk_download" && pathname === url && size > 0 &&
      offset % BLOCK === 0 && latencyUs >= 0
    ),
  );
  // The next one has nothing to do, and asks nobody.
  await using again = await host.open({ lowers: [setup.lower] }, {
    download: settings(),
    log: logTo(lines),
  });
  assert.equal(again.background.download, undefined);
  assert.equal(lines.at(-1), "no need to download");
  await checkDisk(again);
  assert.equal(setup.server.requests.length, before);
});

Deno.test("what the cache has is not fetched again", async () => {
  await using setup = await setUp([]);
  await using host = setup.host("cache");
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings({ delay: 1 }) },
  );
  await readImage(image, 0, 2 * MIB);
  await readImage(image, 4 * MIB, MIB);
  const before = setup.sent();
  assert(before > 3 * MIB);
  await image.background.download?.ended;
  assert(isLocal(image));
  // The tail that opening brought and units at the edges are there as well.
  assert(setup.sent() <= setup.size + 2 * BLOCK, `${setup.sent()}`);
  await checkDisk(image);
});

Deno.test("a download that was ended goes on where it stopped", async () => {
  await using setup = await setUp();
  {
    await using host = setup.host("cache 1");
    await using image = await host.open(
      { lowers: [setup.lower] },
      { download: settings({ maxMBps: 2 }) },
    );
    await until(
      () =>
        existsSync(setup.temp) &&
        (Deno.statSync(setup.temp).blocks ?? 0) * 512 > MIB,
      "a MiB has come",
    );
    await image.background.download?.close();
  }
  const blocks = await writtenBlocks(setup.temp, setup.size);
  assert(blocks.length >= 16);
  setup.server.requests.length = 0;
  await using host = setup.host("cache 2");
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings() },
  );
  await image.background.download?.ended;
  assert.equal(`sha256:${sha256File(setup.commit)}`, setup.lower.digest);
  refuseAgain(setup.server.requests, blocks, setup.size);
  await checkDisk(image);
});

Deno.test("a damaged block of an earlier run is found, and all of it fetched anew", async () => {
  await using setup = await setUp();
  Deno.writeFileSync(setup.temp, noise(99, setup.size));
  await using host = setup.host("cache");
  const lines: string[] = [];
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings(), log: logTo(lines) },
  );
  await image.background.download?.ended;
  assert.equal(`sha256:${sha256File(setup.commit)}`, setup.lower.digest);
  assert(
    lines.some((line) =>
      line.startsWith(
        `WARNING verify checksum ${setup.temp} failed (expect: ` +
          `${setup.lower.digest}, got: sha256:`,
      )
    ),
    lines.join("\n"),
  );
  await checkDisk(image);
});

Deno.test("a longer file of an earlier run is cut, a shorter one filled", async () => {
  for (const length of [10, SIZE * 2]) {
    await using setup = await setUp();
    Deno.writeFileSync(setup.temp, noise(98, length));
    await using host = setup.host("cache");
    await using image = await host.open(
      { lowers: [{ ...setup.lower, size: 1 }] },
      { download: settings() },
    );
    await image.background.download?.ended;
    assert.equal(`sha256:${sha256File(setup.commit)}`, setup.lower.digest);
    await checkDisk(image);
  }
});

Deno.test("a server that sends wrong bytes: so many attempts, then no more, and nothing left", async () => {
  await using setup = await setUp([]);
  await using host = setup.host("cache");
  const lines: string[] = [];
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings({ tryCnt: 2 }), log: logTo(lines) },
  );
  setup.server.intercept = ({ from, to }) =>
    Promise.resolve(
      new Response(noise(5, to - from), {
        status: 206,
        headers: { "content-range": `bytes ${from}-${to - 1}/${setup.size}` },
      }),
    );
  await image.background.download?.ended;
  assert.equal(lines.filter((line) => /verify checksum/.test(line)).length, 2);
  assert(!existsSync(setup.temp) && !existsSync(setup.commit));
  assert(!isLocal(image));
  setup.server.intercept = undefined;
  await checkDisk(image);
});

Deno.test("short answers and errors cost an attempt, not the download", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache");
  const lines: string[] = [];
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings({ tryCnt: 5 }), log: logTo(lines) },
  );
  let bad = 6;
  setup.server.intercept = ({ from, to }) => {
    if (bad-- <= 0) return Promise.resolve(undefined);
    if (bad % 2 === 0) {
      return Promise.resolve(new Response("no", { status: 500 }));
    }
    return Promise.resolve(
      new Response(noise(5, (to - from) >> 1), {
        status: 206,
        headers: { "content-range": `bytes ${from}-${to - 1}/${setup.size}` },
      }),
    );
  };
  await image.background.download?.ended;
  assert(isLocal(image), lines.join("\n"));
  await checkDisk(image);
});

Deno.test("two images with one directory bring the layer once, and both switch", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache");
  const lines: string[] = [];
  const images = await Promise.all([0, 1].map(() =>
    host.open(
      { lowers: [setup.lower] },
      { download: settings(), log: logTo(lines) },
    )
  ));
  await using _one = images[0];
  await using _two = images[1];
  await Promise.all(images.map((image) => image.background.download?.ended));
  assert(images.every(isLocal));
  const count = (what: RegExp) => lines.filter((l) => what.test(l)).length;
  assert.equal(count(/download blob start/), 1);
  assert.equal(count(/switch to localfile/), 2);
  assert.equal(count(/WARNING/), 0);
  assert(setup.sent() <= setup.size + 4 * BLOCK, `${setup.sent()}`);
  for (const image of images) await checkDisk(image);
});

Deno.test("a layer that somebody else has brought is only switched to", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache");
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings({ delay: 1 }) },
  );
  const before = setup.server.requests.length;
  await mustRun("cp", [setup.dir.file("layer.layer"), setup.commit]);
  await image.background.download?.ended;
  assert(isLocal(image));
  assert.equal(setup.server.requests.length, before);
  await checkDisk(image);
});

Deno.test("a local file that is damaged is not switched to", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache");
  const lines: string[] = [];
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings(), log: logTo(lines) },
  );
  Deno.writeTextFileSync(setup.commit, "no layer");
  await image.background.download?.ended;
  assert(!isLocal(image));
  assert.match(lines.join("\n"), /ERROR cannot switch to .*overlaybd.commit/);
  await checkDisk(image);
});

Deno.test("bytes are right through a switch under heavy reads", async () => {
  await using setup = await setUp();
  const more = await commitLayer(
    setup.dir,
    "more",
    noise(7, 2 * MIB),
    [],
    SIZE,
  );
  const dir = setup.dir.file("snapshot 2");
  Deno.mkdirSync(dir);
  const lowers = [setup.lower, { digest: setup.server.add(more), dir }];
  const expected = CONTENT.slice();
  expected.set(noise(7, 2 * MIB));
  for (let round = 0; round < 3; round++) {
    await using host = setup.host(`cache ${round}`);
    await using image = await host.open(
      { lowers },
      { download: settings({ delayExtra: 1 }) },
    );
    let stop = false;
    let reads = 0;
    const reader = async (seed: number) => {
      let x = seed;
      while (!stop) {
        x = (x * 1103515245 + 12345) & 0x7fffffff;
        const at = (x % (SIZE / 512 - 256)) * 512;
        const n = 512 * (1 + x % 255);
        assert.deepEqual(
          await readImage(image, at, n),
          expected.slice(at, at + n),
        );
        reads++;
      }
    };
    const readers = [1, 2, 3, 4, 5, 6].map((seed) => reader(seed + round));
    await image.background.download?.ended;
    assert(isLocal(image));
    const at = reads;
    await until(() => reads > at + 50, "reads go on");
    stop = true;
    await Promise.all(readers);
    // Nobody has the blobs any more.
    for (let i = 0; i < 400; i++) {
      if ((await host.sources.blobs()).size === 0) break;
      await new Promise((done) => setTimeout(done, 5));
    }
    assert.equal((await host.sources.blobs()).size, 0);
    Deno.removeSync(setup.commit);
    Deno.removeSync(`${dir}/overlaybd.commit`);
  }
});

for (const writable of [false, true]) {
  const kind = writable ? "with an upper" : "read-only";
  Deno.test(`a read that waits for its registry survives the switch: ${kind}`, async () => {
    await using setup = await setUp();
    await using host = setup.host("cache");
    const upper = await newUpper(setup.dir.file("up"), { size: SIZE });
    await using image = await host.open(
      { lowers: [setup.lower], ...(writable ? { upper } : {}) },
      { download: settings({ delay: 1 }) },
    );
    const block = gate();
    let held = 0;
    setup.server.intercept = async () => {
      held++;
      await block.closed;
      return undefined;
    };
    const waiting = readImage(image, 3 * MIB, 4096);
    await until(() => held > 0, "the read has asked");
    await mustRun("cp", [setup.dir.file("layer.layer"), setup.commit]);
    await image.background.download?.ended;
    assert(isLocal(image));
    await checkDisk(image);
    assert.equal((await host.sources.blobs()).size, 1, "it is still used");
    block.open();
    assert.deepEqual(await waiting, CONTENT.slice(3 * MIB, 3 * MIB + 4096));
  });
}

Deno.test("a snapshot and a switch, in either order and at once: every byte stays", async () => {
  for (const order of ["snapshot", "switch", "both"] as const) {
    await using setup = await setUp();
    await using host = setup.host("cache");
    const upper = await newUpper(setup.dir.file("up"), { size: SIZE });
    const fresh = await newUpper(setup.dir.file("up2"), { size: SIZE });
    const config = {
      ...{ repoBlobUrl: setup.server.url, lowers: [setup.lower], upper },
    };
    const path = setup.dir.file("config.v1.json");
    const next = setup.dir.file("next.json");
    Deno.writeTextFileSync(path, JSON.stringify(config));
    Deno.writeTextFileSync(
      next,
      JSON.stringify({
        ...config,
        lowers: [setup.lower, { file: upper.data }],
        upper: fresh,
      }),
    );
    await using image = await host.open(config, {
      download: settings({ delay: order === "snapshot" ? 1 : 0 }),
    });
    const expected = CONTENT.slice();
    const write = (at: number, seed: number) => {
      const bytes = noise(seed, MIB);
      writeDevice(image.device, bytes, at);
      expected.set(bytes, at);
    };
    write(MIB, 21);
    const { download } = image.background;
    if (order === "switch") await download?.ended;
    const taken = snapshotImage(image, path, next);
    if (order === "snapshot") await taken;
    await Promise.all([taken, download?.ended]);
    write(MIB + MIB / 2, 22);
    assert(isLocal(image));
    assert.equal(image.stack.lowers.length, 2);
    for (let at = 0; at < SIZE; at += MIB) {
      assert.deepEqual(
        await readImage(image, at, MIB),
        expected.slice(at, at + MIB),
      );
    }
  }
});

Deno.test("an image that closes during its download does not wait for the server", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache");
  const image = await host.open(
    { lowers: [setup.lower] },
    { download: settings() },
  );
  const block = gate();
  let held = 0;
  setup.server.intercept = async () => {
    held++;
    await block.closed;
    return undefined;
  };
  await until(() => held > 0, "the download has asked");
  await image.close();
  block.open();
  assert(!existsSync(setup.commit));
  assert(existsSync(setup.temp), "it is kept for the next time");
});

Deno.test("a snapshot directory that goes away meanwhile does no harm", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache");
  const lines: string[] = [];
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings({ maxMBps: 2 }), log: logTo(lines) },
  );
  await until(() => existsSync(setup.temp), "the download has begun");
  Deno.removeSync(setup.layerDir, { recursive: true });
  await image.background.download?.ended;
  assert(!existsSync(setup.layerDir));
  assert(!isLocal(image));
  await checkDisk(image);
});

for (
  const [what, spoil] of [
    ["is not there", (path: string) => Deno.removeSync(path)],
    ["is a file", (path: string) => {
      Deno.removeSync(path);
      Deno.writeTextFileSync(path, "");
    }],
  ] as const
) {
  Deno.test(`a directory that ${what}: the layer stays remote`, async () => {
    await using setup = await setUp();
    await using host = setup.host("cache");
    const lines: string[] = [];
    await using image = await host.open(
      { lowers: [{ ...setup.lower, dir: setup.dir.file("gone") }] },
      { download: settings(), log: logTo(lines) },
    );
    Deno.mkdirSync(setup.dir.file("gone"));
    spoil(setup.dir.file("gone"));
    await image.background.download?.ended;
    assert(!isLocal(image));
    assert.equal(lines.filter((line) => /WARNING/.test(line)).length, 1);
    await checkDisk(image);
  });
}

Deno.test("a full disk: given up, nothing left on it, reads go on", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache");
  const lines: string[] = [];
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings({ delay: 1 }), log: logTo(lines) },
  );
  await checkDisk(image); // the cache has it all: only the download writes
  const ENOSPC = 28;
  faultIo(IO.PWRITE, 3, ENOSPC);
  await image.background.download?.ended;
  assert(!existsSync(setup.temp) && !existsSync(setup.commit));
  assert.match(lines.join("\n"), /WARNING cannot download .* no space left/);
  await checkDisk(image);
});

Deno.test("a layer is on disk before it has its name", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache");
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings({ delay: 1 }) },
  );
  await checkDisk(image);
  const EIO = 5;
  faultIo(IO.SYNC, 1, EIO);
  await image.background.download?.ended;
  assert(!existsSync(setup.commit) && !isLocal(image));
});

Deno.test("a digest that is no sha256 cannot be checked: not downloaded", async () => {
  await using setup = await setUp();
  const digest = setup.server.add(
    setup.dir.file("layer.layer"),
    `sha512:${"ab".repeat(64)}`,
  );
  await using host = setup.host("cache");
  const lines: string[] = [];
  await using image = await host.open(
    { lowers: [{ digest, dir: setup.layerDir }] },
    { download: settings(), log: logTo(lines) },
  );
  await image.background.download?.ended;
  assert.match(lines.join("\n"), /its digest is no sha256/);
  assert(!existsSync(setup.temp) && !existsSync(setup.commit));
});

Deno.test("a layer on tmpfs is brought as well", async () => {
  await using setup = await setUp(["-z"], "memory");
  await using host = setup.host("cache");
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings() },
  );
  await image.background.download?.ended;
  assert(isLocal(image));
  await checkDisk(image);
});

Deno.test("the image's own settings take the place of the service's as a whole", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache");
  const config = { lowers: [setup.lower] };
  const download = settings();
  await using off = await host.open({ ...config, download: {} }, { download });
  assert.equal(off.background.download, undefined, "{}: not enabled");
  await using tool = await host.open({ ...config, download: { enable: true } });
  assert.equal(tool.background.download, undefined, "a tool downloads nothing");
  await using none = await host.open(
    { lowers: [{ digest: setup.lower.digest }] },
    { download },
  );
  assert.equal(none.background.download, undefined, "no directory");
  const lines: string[] = [];
  await using on = await host.open(
    { ...config, download: { enable: true, delay: 1000, tryCnt: 7 } },
    { download: { ...download, enable: false }, log: logTo(lines) },
  );
  assert.match(
    lines[0] ?? "",
    /delay 10[0-3]\d, maxMBps 100, tryCnt 7, blockSize 262144$/,
  );
  assert(on.background.download !== undefined);
  const bent = { enable: true, delay: -300, delayExtra: -30, maxMBps: -1 };
  await using _bent = await host.open({ ...config, download: bent }, {
    download,
    log: logTo(lines),
  });
  assert.match(
    lines.at(-2) ?? "",
    /delay [12]?\d, maxMBps -1, tryCnt 5, blockSize 262144$/,
  );
});

Deno.test("the service's settings count as its file has them when an image is opened", async () => {
  await using setup = await setUp();
  const path = setup.dir.file("overlaybd.json");
  const write = (download: unknown) =>
    Deno.writeTextFileSync(
      path,
      JSON.stringify({
        cacheConfig: { cacheType: "file", cacheDir: setup.dir.file("cache") },
        ...{ enableAudit: false, download },
      }),
    );
  write({ enable: false });
  const loaded = await loadServiceConfig(path);
  const lines: string[] = [];
  const log = createLog({
    write: ({ text }) => lines.push(text),
    [Symbol.dispose]() {},
  }, 0);
  const service = createService({
    ...{ loaded, log, audit: openAudit(loaded.config, log) },
  });
  const image = (name: string, more: Record<string, unknown> = {}) => {
    const config = setup.dir.file(name);
    Deno.writeTextFileSync(
      config,
      JSON.stringify({
        ...{ repoBlobUrl: setup.server.url, lowers: [setup.lower], ...more },
      }),
    );
    return service.open({ path: config, devId: "", transport: "nbd" });
  };
  const downloads = async (name: string, more?: Record<string, unknown>) =>
    (await image(name, more)).image.background.download !== undefined;
  assert.equal(await downloads("a"), false);
  write({ enable: true, delay: 1000 });
  assert.equal(await downloads("b"), true);
  assert.equal(await downloads("c", { download: {} }), false);
  Deno.writeTextFileSync(path, "{ no JSON");
  assert.equal(await downloads("d"), false);
  assert.match(lines.join("\n"), /no background download: .*overlaybd.json/);
  await service.close();
});

Deno.test("cacheType download: the cache's own file is completed, and is the layer then", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache", "download");
  const lines: string[] = [];
  await using image = await host.open(
    { lowers: [setup.lower] },
    { download: settings({ delay: 1 }), log: logTo(lines) },
  );
  await readImage(image, MIB, 2 * MIB);
  assert(existsSync(setup.temp));
  await image.background.download?.ended;
  assert(isLocal(image), lines.join("\n"));
  assert.equal(`sha256:${sha256File(setup.commit)}`, setup.lower.digest);
  assert(!existsSync(setup.temp));
  assert(setup.sent() <= setup.size + 4 * BLOCK, `${setup.sent()}`);
  await checkDisk(image);
});
