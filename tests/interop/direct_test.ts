// SPDX-License-Identifier: Apache-2.0
/**
 * How local layers are read: `ioEngine` 0, 1 and 2, with io_uring and where it
 * is forbidden, against a plain model and against the fixtures.
 *
 * @module
 */
import { deepStrictEqual as equal, match, ok } from "node:assert/strict";
import { join } from "node:path";
import * as fc from "fast-check";
import { uringError } from "../../ffi/engine.ts";
import { errnoText } from "../../ffi/errors.ts";
import { faultIo, IO } from "../../ffi/files.ts";
import type { Bytes } from "../../ffi/handle.ts";
import { readImageConfig } from "../../src/image/config.ts";
import { openImage } from "../../src/image/image.ts";
import { snapshotImage } from "../../src/image/snapshot.ts";
import { createIoEngine } from "../../src/layer/engine.ts";
import { openLayer } from "../../src/layer/open.ts";
import { readImage } from "../lib/blobs.ts";
import {
  fixture,
  haveFixtures,
  mustRun,
  mustTool,
  ROOT,
  type TempDir,
  tempDir,
} from "../lib/env.ts";
import { CONTENT, settings, setUp, SIZE } from "../lib/layer_dir.ts";
import { connectNbd, type NbdClient } from "../lib/nbd.ts";
import { newUpper, openDisk, writeConfig } from "../lib/product.ts";
import { chooseSeed, generator, noise } from "../lib/random.ts";
import { type Server, startServer } from "../lib/server.ts";
import { newSubject } from "../lib/snapshots.ts";
import { readDisk, type UpperPaths } from "../lib/spec_reader.ts";

const DIRECT = Deno.build.arch === "aarch64" ? 0o200000 : 0o40000;
const seed = chooseSeed();
const haveRing = uringError() === 0;
/** Runs a command where io_uring is forbidden. */
const NO_URING = [
  ...[Deno.execPath(), "run", "-A", "-q"],
  join(ROOT, "tests/lib/no_uring.ts"),
];

/** What `/proc` says of a descriptor; undefined: it has been closed since. */
function descriptor(
  pid: number,
  fd: string,
): { path: string; direct: boolean } | undefined {
  try {
    const path = Deno.readLinkSync(`/proc/${pid}/fd/${fd}`);
    const info = Deno.readTextFileSync(`/proc/${pid}/fdinfo/${fd}`);
    const flags = parseInt(/^flags:\s*(\d+)/m.exec(info)?.[1] ?? "0", 8);
    return { path, direct: (flags & DIRECT) !== 0 };
  } catch {
    return undefined;
  }
}

/** How often a process has a file open, with O_DIRECT and without. */
function openings(pid: number, path: string): { direct: number; all: number } {
  const found = [...Deno.readDirSync(`/proc/${pid}/fd`)]
    .map(({ name }) => descriptor(pid, name))
    .filter((it) => it?.path === path);
  const direct = found.filter((it) => it?.direct).length;
  return { direct, all: found.length };
}

function rings(pid: number): number {
  return openings(pid, "anon_inode:[io_uring]").all;
}

/** True where a file system takes O_DIRECT. */
async function takesDirect(dir: TempDir): Promise<boolean> {
  const path = dir.file("direct");
  Deno.writeFileSync(path, new Uint8Array(65536));
  try {
    await mustRun("dd", [`if=${path}`, "iflag=direct", "of=/dev/null"]);
    return true;
  } catch {
    return false;
  }
}

/** True when a file system can be made to forget: it is no tmpfs. */
async function forgets(dir: TempDir): Promise<boolean> {
  const type = await mustRun("stat", ["-f", "-c", "%T", dir.path]);
  return type.trim() !== "tmpfs";
}

/** Makes the page cache forget a file. */
async function forget(path: string): Promise<void> {
  await mustRun("dd", [`if=${path}`, "iflag=nocache", "count=0"]);
}

// ---- an image and its model ---------------------------------------------

const DISK = 2 << 20;

/** Three lowers and an upper of random writes, and what their disk holds. */
async function makeStack(
  dir: TempDir,
): Promise<{ lowers: string[]; upper: UpperPaths; bytes: Bytes }> {
  const random = generator(seed);
  const bytes = new Uint8Array(DISK);
  const lowers: string[] = [];
  const write = async (upper: UpperPaths, count: number) => {
    await using disk = await openDisk({ lowers, upper });
    for (let i = 0; i < count; i++) {
      const n = 512 * (1 + Math.floor(random() * (i % 5 === 0 ? 200 : 12)));
      const at = 512 * Math.floor(random() * (DISK - n) / 512);
      const part = noise(Math.floor(random() * 2 ** 31), n);
      bytes.set(part, at);
      disk.write(at, part);
    }
  };
  for (const [i, options] of [[], ["-z", "-t"], ["-z"]].entries()) {
    const upper = await newUpper(dir.file(`u${i}`), { size: DISK });
    await write(upper, 150);
    const path = dir.file(`layer${i}`);
    await mustTool("overlaybd-commit", [
      ...options,
      upper.data,
      upper.index,
      path,
    ]);
    lowers.push(path);
  }
  const upper = await newUpper(dir.file("top"), { size: DISK });
  await write(upper, 40);
  return { lowers, upper, bytes };
}

async function serve(
  dir: TempDir,
  ioEngine: number,
  config: string,
  under: readonly string[] = [],
): Promise<Server> {
  const service = dir.file("overlaybd.json");
  Deno.writeTextFileSync(service, JSON.stringify({ ioEngine }));
  return await startServer(dir.file("nbd"), [`${config};a`], {
    args: ["--service_config_path", service, "--verbose"],
    under,
  });
}

const sectors = DISK / 512;
const range = fc.tuple(
  fc.nat(sectors - 1),
  fc.oneof(fc.integer({ min: 1, max: 16 }), fc.integer({ min: 1, max: 700 })),
).map(([lba, n]) => ({
  at: lba * 512,
  n: Math.min(n, sectors - lba) * 512,
}));

/** Every batch of reads at once is as the model says. */
async function checkReads(
  client: NbdClient,
  bytes: Bytes,
  between: () => Promise<void>,
): Promise<void> {
  const ranges = fc.array(range, { minLength: 1, maxLength: 40 });
  await fc.assert(
    fc.asyncProperty(ranges, async (batch) => {
      await between();
      const got = await Promise.all(
        batch.map(({ at, n }) => client.read(at, n)),
      );
      for (const [i, { at, n }] of batch.entries()) {
        equal(got[i], bytes.slice(at, at + n));
      }
    }),
    { seed, numRuns: 50 },
  );
}

for (const forbidden of [false, true]) {
  for (const ioEngine of [0, 1, 2]) {
    const name = `ioEngine ${ioEngine}${forbidden ? " without io_uring" : ""}`;
    Deno.test(`${name}: any reads at once have the model's bytes`, async () => {
      using dir = tempDir();
      const { lowers, upper, bytes } = await makeStack(dir);
      const config = writeConfig(dir, { lowers, upper });
      const under = forbidden ? NO_URING : [];
      await using server = await serve(dir, ioEngine, config, under);
      const said = server.said().split("\n")
        .filter((line) => line.includes("ioEngine"));
      const direct = ioEngine === 1 && await takesDirect(dir);
      for (const path of lowers) {
        const { direct: found, all } = openings(server.pid, path);
        ok(all > 0);
        equal(found > 0, direct);
      }
      // Uppers are read through the page cache, which writes go to.
      equal(openings(server.pid, upper.data).direct, 0);
      using client = await connectNbd(dir.file("nbd"), "a");
      await checkReads(client, bytes, async () => {
        if (ioEngine === 2) { for (const path of lowers) await forget(path); }
      });
      const ring = haveRing && !forbidden;
      const onDisk = direct || await forgets(dir);
      equal(rings(server.pid) > 0, ioEngine !== 0 && ring && onDisk);
      equal(said, [
        ...(ioEngine !== 0 && !ring
          ? [
            `ioEngine ${ioEngine}: local layers are read by threads` +
            `${ioEngine === 1 ? " with O_DIRECT" : ""}: io_uring: ` +
            (forbidden ? "operation not permitted" : errnoText(uringError())),
          ]
          : []),
        ...said.filter((line) =>
          ioEngine === 1 && !direct && line.includes(": O_DIRECT: ")
        ).slice(0, 1),
      ]);
    });
  }
}

Deno.test("every engine reads the original's layers", {
  ignore: !haveFixtures,
}, async () => {
  const at = (...names: string[]) => names.map(fixture);
  const stacks = [
    at("04-commit/plain.lsmt"),
    at("05-sealed/sealed.lsmt"),
    at("07-commit-zfile/lz4-64k.zf"),
    at("07-commit-zfile/zstd-4k.zf"),
    at("08-tar/commit-lz4.tar"),
    at("09-stack/base.zf", "09-stack/u1.lsmt", "09-stack/u2.lsmt"),
  ];
  for (const ioEngine of [1, 2]) {
    for (const lowers of stacks) {
      using dir = tempDir();
      // Fixtures are the original's; these are this test's to forget.
      const copies = lowers.map((path, i) => {
        Deno.copyFileSync(path, dir.file(`l${i}`));
        return dir.file(`l${i}`);
      });
      const config = writeConfig(dir, { lowers: copies });
      await using _server = await serve(dir, ioEngine, config);
      for (const path of copies) {
        await mustRun("sync", ["-d", path]);
        await forget(path);
      }
      using client = await connectNbd(dir.file("nbd"), "a");
      using spec = readDisk(lowers);
      equal(client.size, spec.size);
      for (let from = 0; from < spec.size; from += 65536) {
        equal(await client.read(from, 65536), spec.read(from, 65536));
      }
    }
  }
});

// ---- layers that come later ----------------------------------------------

const silent = () => {};

Deno.test("a layer that has been downloaded is read by the image's engine", async () => {
  await using setup = await setUp();
  await using host = setup.host("cache");
  await using image = await host.open({ lowers: [setup.lower] }, {
    download: settings(),
    engine: createIoEngine({ direct: true, uring: haveRing }, silent),
  });
  equal(openings(Deno.pid, setup.commit).all, 0);
  await image.background.download?.ended;
  const { direct } = openings(Deno.pid, setup.commit);
  equal(direct, await takesDirect(setup.dir) ? 1 : 0);
  equal(await readImage(image, 0, SIZE), CONTENT);
});

Deno.test("so is one that a snapshot has made of an upper", async () => {
  using dir = tempDir();
  const subject = await newSubject(dir, { size: DISK });
  await using image = await openImage(await readImageConfig(subject.config), {
    engine: createIoEngine({ direct: true, uring: haveRing }, silent),
  });
  const sealed = subject.upper.data;
  equal(openings(Deno.pid, sealed).direct, 0);
  const before = await readImage(image, 0, DISK);
  await snapshotImage(image, subject.config, await subject.next());
  const { direct } = openings(Deno.pid, sealed);
  equal(direct, await takesDirect(dir) ? 1 : 0);
  equal(await readImage(image, 0, DISK), before);
});

// ---- file systems without O_DIRECT -----------------------------------------

Deno.test("a file system that refuses O_DIRECT is told of once an image, and read", async () => {
  const EINVAL = 22;
  using dir = tempDir();
  const { lowers } = await makeStack(dir);
  // Refused when the file is opened, or (nth 1) when it is read.
  for (const op of [IO.OPEN, IO.PREAD]) {
    const lines: string[] = [];
    const engine = createIoEngine(
      { direct: true, uring: haveRing },
      (line) => lines.push(line),
    );
    for (const path of lowers) {
      // Before that: one open, and a look at the head for a tar header.
      faultIo(op, 2, EINVAL);
      using layer = await openLayer(path, { engine });
      equal(layer.virtualSize, BigInt(DISK));
      equal(openings(Deno.pid, path), { direct: 0, all: 1 });
    }
    faultIo(op, 0, 0, 0);
    equal(lines.length, 1, lines.join("\n"));
    match(
      lines[0] ?? "",
      /^ioEngine 1: .*\/layer0 and other layers on its file system are read through the page cache: O_DIRECT: /,
    );
  }
});
