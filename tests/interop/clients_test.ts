// SPDX-License-Identifier: Apache-2.0
/**
 * Clients that nobody here wrote, against `overlaybd serve`: libnbd's
 * nbdinfo, nbdcopy and nbdfuse, qemu-img, the kernel's ext4 and e2fsprogs.
 */
import {
  deepEqual,
  equal,
  match,
  notEqual,
  ok,
  rejects,
} from "node:assert/strict";
import { existsSync } from "node:fs";
import {
  fixture,
  have,
  haveFixtures,
  mustRun,
  mustTool,
  run,
  sha256,
  sha256File,
  type TempDir,
  tempDir,
  tool,
} from "../lib/env.ts";
import { parseOps, playOps } from "../lib/ops.ts";
import { newUpper, openDisk, type Stack, writeConfig } from "../lib/product.ts";
import { noise } from "../lib/random.ts";
import { ServeError, startServer } from "../lib/server.ts";
import { readDisk } from "../lib/spec_reader.ts";

const MiB = 1 << 20;
const STACK_HASH =
  "98736c16c7678521445c82ce52f7a573a3f747d79a2587743c10bffa04cc6e46";

/** Says why tests are skipped, once per missing thing. */
function missing(...programs: string[]): boolean {
  const absent = programs.filter((program) => !have(program));
  if (absent.length > 0) console.log(`skipped: no ${absent.join(", ")}`);
  return absent.length > 0;
}

const noNbd = !haveFixtures || missing("nbdinfo", "nbdcopy");
const noQemu = !haveFixtures || missing("qemu-img");

function stackOfThree(): Stack {
  return {
    lowers: ["base.zf", "u1.lsmt", "u2.lsmt"]
      .map((name) => fixture(`09-stack/${name}`)),
  };
}

interface NbdInfo {
  protocol: string;
  structured: boolean;
  exports: {
    "export-name": string;
    contexts?: string[];
    is_read_only: boolean;
    can_multi_conn: boolean;
    can_flush: boolean;
    can_fua: boolean;
    can_trim: boolean;
    can_zero: boolean;
    "export-size": number;
  }[];
}

async function nbdinfo(uri: string): Promise<NbdInfo> {
  return JSON.parse(await mustRun("nbdinfo", ["--json", uri]));
}

Deno.test("nbdinfo sees a read-only export: size, flags, base:allocation", {
  ignore: noNbd,
}, async () => {
  using dir = tempDir();
  const config = writeConfig(dir, stackOfThree());
  await using server = await startServer(dir.file("s"), [config]);
  const info = await nbdinfo(server.uri);
  match(info.protocol, /^newstyle-fixed/);
  equal(info.structured, true);
  const [only] = info.exports;
  ok(only !== undefined);
  equal(only["export-size"], MiB);
  equal(only.is_read_only, true);
  equal(only.can_multi_conn, true);
  deepEqual(only.contexts, ["base:allocation"]);
  equal(await server.stop().then((end) => end.code), 0);
  equal(existsSync(dir.file("s")), false, "the socket is removed");
});

Deno.test("nbdinfo sees a writable export: flush, FUA, trim, zero", {
  ignore: noNbd,
}, async () => {
  using dir = tempDir();
  const upper = await newUpper(dir.file("w"), { size: 8 * MiB });
  const config = writeConfig(dir, { lowers: [], upper });
  await using server = await startServer(dir.file("s"), [config]);
  const [only] = (await nbdinfo(server.uri)).exports;
  ok(only !== undefined);
  equal(only["export-size"], 8 * MiB);
  equal(only.is_read_only, false);
  equal(only.can_multi_conn, false);
  for (const can of ["flush", "fua", "trim", "zero"] as const) {
    equal(only[`can_${can}`], true, can);
  }
});

Deno.test("nbdinfo --list names exports by dev_id, or by full path", {
  ignore: noNbd,
}, async () => {
  using dir = tempDir();
  const first = writeConfig(dir, stackOfThree(), "a.json");
  const second = writeConfig(dir, {
    lowers: [fixture("04-commit/plain.lsmt")],
  }, "b.json");
  await using server = await startServer(dir.file("s"), [
    first,
    `${second};dev one`,
  ]);
  const list: NbdInfo = JSON.parse(
    await mustRun("nbdinfo", ["--list", "--json", server.uri]),
  );
  deepEqual(list.exports.map((it) => it["export-name"]), [first, "dev one"]);
  const [named] = (await nbdinfo(server.export("dev one"))).exports;
  equal(named?.["export-size"], MiB);
  const unknown = await run("nbdinfo", [server.export("nobody")]);
  notEqual(unknown.code, 0);
});

Deno.test("two exports of one name are refused", {
  ignore: noNbd,
}, async () => {
  using dir = tempDir();
  const config = writeConfig(dir, stackOfThree());
  await rejects(
    startServer(dir.file("s"), [`${config};x`, `${config};x`]),
    (error) => {
      ok(error instanceof ServeError);
      match(error.stderr, /x/);
      equal(error.stderr.trim().split("\n").length, 1);
      return true;
    },
  );
  equal(existsSync(dir.file("s")), false);
});

Deno.test("nbdinfo --map shows what the layers map, in order", {
  ignore: noNbd,
}, async () => {
  using dir = tempDir();
  const stack = stackOfThree();
  const config = writeConfig(dir, stack);
  await using server = await startServer(dir.file("s"), [config]);
  const map: { offset: number; length: number; type: number }[] = JSON.parse(
    await mustRun("nbdinfo", ["--map", "--json", server.uri]),
  );
  const HOLE = 1;
  const ZERO = 2;
  using spec = readDisk(stack.lowers);
  let at = 0;
  for (const { offset, length, type } of map) {
    equal(offset, at);
    at += length;
    const bytes = spec.read(offset, length);
    if (type & ZERO) ok(bytes.every((byte) => byte === 0), `zero at ${offset}`);
    if (type & HOLE) ok(type & ZERO, "a hole of an image reads as zeros");
  }
  equal(at, MiB);
  // Sector by sector: mapped data is not called a hole.
  for (const layer of spec.layers) {
    for (const { lba, length, zeroed } of layer.segments) {
      if (zeroed) continue;
      const inside = map.find((it) =>
        it.offset <= lba * 512 && it.offset + it.length > lba * 512
      );
      ok(inside !== undefined && length > 0);
    }
  }
});

Deno.test("nbdcopy reads a stack of three layers byte for byte", {
  ignore: noNbd,
}, async () => {
  using dir = tempDir();
  const config = writeConfig(dir, stackOfThree());
  await using server = await startServer(dir.file("s"), [config]);
  await mustRun("nbdcopy", [server.uri, dir.file("out")]);
  equal(sha256File(dir.file("out")), STACK_HASH);
});

Deno.test("nbdcopy writes an image; a restart and a commit read it back", {
  ignore: noNbd,
}, async () => {
  for (const sparse of [false, true]) {
    using dir = tempDir();
    const image = new Uint8Array(8 * MiB);
    image.set(noise(1, 3 * MiB), MiB);
    image.set(noise(2, 4096), 8 * MiB - 4096);
    Deno.writeFileSync(dir.file("in"), image);
    const upper = await newUpper(dir.file("w"), { size: 8 * MiB, sparse });
    const config = writeConfig(dir, { lowers: [], upper });
    {
      await using server = await startServer(dir.file("s"), [config]);
      await mustRun("nbdcopy", ["--flush", dir.file("in"), server.uri]);
      equal((await server.stop()).code, 0);
    }
    {
      await using server = await startServer(dir.file("s"), [config]);
      await mustRun("nbdcopy", [server.uri, dir.file("out")]);
    }
    equal(sha256File(dir.file("out")), sha256(image));
    using spec = readDisk([], upper);
    equal(sha256(spec.read(0, 8 * MiB)), sha256(image));
    const layer = dir.file("layer");
    await mustTool("overlaybd-commit", ["-z", upper.data, upper.index, layer]);
    using committed = readDisk([layer]);
    equal(sha256(committed.read(0, 8 * MiB)), sha256(image));
  }
});

Deno.test("a read-only export refuses writes and keeps serving", {
  ignore: noNbd,
}, async () => {
  using dir = tempDir();
  const config = writeConfig(dir, stackOfThree());
  Deno.writeFileSync(dir.file("in"), new Uint8Array(MiB));
  await using server = await startServer(dir.file("s"), [config]);
  const refused = await run("nbdcopy", [dir.file("in"), server.uri]);
  notEqual(refused.code, 0);
  await mustRun("nbdcopy", [server.uri, dir.file("out")]);
  equal(sha256File(dir.file("out")), STACK_HASH);
});

Deno.test("qemu-img compare, convert and map agree with the layers", {
  ignore: noQemu,
}, async () => {
  using dir = tempDir();
  const config = writeConfig(dir, stackOfThree());
  const image = playOps(
    new Uint8Array(MiB),
    ["base", "u1", "u2"].flatMap((name) =>
      parseOps(Deno.readTextFileSync(fixture(`09-stack/${name}.ops`)))
    ),
  );
  Deno.writeFileSync(dir.file("flat"), image);
  await using server = await startServer(dir.file("s"), [config]);
  const raw = ["-f", "raw", "-F", "raw"];
  await mustRun("qemu-img", [
    "compare",
    ...raw,
    server.uri,
    dir.file("flat"),
  ]);
  image[MiB - 1] = (image[MiB - 1] ?? 0) ^ 1;
  Deno.writeFileSync(dir.file("other"), image);
  const differs = await run("qemu-img", [
    "compare",
    ...raw,
    server.uri,
    dir.file("other"),
  ]);
  equal(differs.code, 1);
  await mustRun("qemu-img", [
    "convert",
    "-f",
    "raw",
    "-O",
    "qcow2",
    server.uri,
    dir.file("q"),
  ]);
  await mustRun("qemu-img", [
    "compare",
    "-F",
    "raw",
    dir.file("q"),
    dir.file("flat"),
  ]);
  const map: { start: number; length: number; zero: boolean }[] = JSON.parse(
    await mustRun("qemu-img", [
      "map",
      "--output=json",
      "-f",
      "raw",
      server.uri,
    ]),
  );
  using spec = readDisk(stackOfThree().lowers);
  equal(map.reduce((sum, it) => sum + it.length, 0), MiB);
  for (const { start, length, zero } of map) {
    if (zero) ok(spec.read(start, length).every((byte) => byte === 0));
  }
});

Deno.test("qemu-img convert writes an image through the server", {
  ignore: noQemu,
}, async () => {
  using dir = tempDir();
  const upper = await newUpper(dir.file("w"), { size: 8 * MiB });
  const config = writeConfig(dir, { lowers: [], upper });
  const image = new Uint8Array(8 * MiB);
  image.set(noise(7, MiB), 5 * MiB);
  Deno.writeFileSync(dir.file("in"), image);
  {
    await using server = await startServer(dir.file("s"), [config]);
    await mustRun("qemu-img", [
      "convert",
      "-n",
      "-f",
      "raw",
      "-O",
      "raw",
      dir.file("in"),
      server.uri,
    ]);
  }
  await using disk = await openDisk({ lowers: [], upper });
  equal(sha256(disk.read(0, 8 * MiB)), sha256(image));
});

// ---- who may open what ----------------------------------------------

Deno.test("a second server on one upper is refused with the holder's pid", {
  ignore: noNbd,
}, async () => {
  using dir = tempDir();
  const upper = await newUpper(dir.file("w"), { size: MiB });
  const config = writeConfig(dir, { lowers: [], upper });
  await using server = await startServer(dir.file("s"), [config]);
  await rejects(startServer(dir.file("s2"), [config]), (error) => {
    ok(error instanceof ServeError);
    notEqual(error.code, 0);
    match(error.stderr, new RegExp(`\\b${server.pid}\\b`));
    equal(error.stderr.trim().split("\n").length, 1, error.stderr);
    return true;
  });
});

Deno.test("commit, seal and resize under a live writer are refused", {
  ignore: noNbd,
}, async () => {
  using dir = tempDir();
  const upper = await newUpper(dir.file("w"), { size: MiB });
  const config = writeConfig(dir, { lowers: [], upper });
  await using server = await startServer(dir.file("s"), [config]);
  const before = Deno.readFileSync(upper.data);
  const commands: [string, string[], number][] = [
    ["overlaybd-commit", [upper.data, upper.index, dir.file("out")], 255],
    ["overlaybd-commit", ["--seal", upper.data, upper.index], 255],
    ["overlaybd-resize", ["--config", config, "--size", "2"], 1],
  ];
  for (const [name, args, code] of commands) {
    const refused = await tool(name, args);
    equal(refused.code, code, `${name} ${args}: ${refused.stderr}`);
    match(refused.stderr, new RegExp(`\\b${server.pid}\\b`));
  }
  equal(existsSync(dir.file("out")), false);
  deepEqual(Deno.readFileSync(upper.data), before);
});

Deno.test("a stale socket is replaced, a live one is not", {
  ignore: noNbd,
}, async () => {
  using dir = tempDir();
  const config = writeConfig(dir, stackOfThree());
  const socket = dir.file("s");
  const first = await startServer(socket, [config]);
  await rejects(startServer(socket, [config]), ServeError);
  await nbdinfo(first.uri);
  await first.stop("SIGKILL");
  equal(existsSync(socket), true, "killed: the socket stays");
  await using second = await startServer(socket, [config]);
  await nbdinfo(second.uri);
});

Deno.test("other addresses than loopback need --insecure", {
  ignore: noNbd,
}, async () => {
  using dir = tempDir();
  const config = writeConfig(dir, stackOfThree());
  await rejects(startServer("0.0.0.0:0", [config]), (error) => {
    ok(error instanceof ServeError);
    match(error.stderr, /--insecure/);
    return true;
  });
  await using server = await startServer("127.0.0.1:0", [config]);
  match(server.uri, /^nbd:\/\/127\.0\.0\.1:\d+/);
  await mustRun("nbdcopy", [server.uri, dir.file("out")]);
  equal(sha256File(dir.file("out")), STACK_HASH);
});

// ---- a file system --------------------------------------------------

const noMount = noNbd ||
  missing("nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck", "losetup") ||
  !canMount();

function canMount(): boolean {
  const able = Deno.uid() === 0 && existsSync("/dev/fuse") &&
    existsSync("/dev/loop-control");
  if (!able) console.log("skipped: mounting needs root, FUSE and loop devices");
  return able;
}

/** Shows an export as a file through FUSE while `use` runs. */
async function withFuse(
  dir: TempDir,
  uri: string,
  use: (file: string) => Promise<void>,
): Promise<void> {
  const point = Deno.makeTempDirSync({ dir: dir.path, prefix: "fuse" });
  const child = new Deno.Command("nbdfuse", {
    args: [`${point}/nbd`, uri],
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const errors = new Response(child.stderr).text();
  try {
    let ended = false;
    child.status.then(() => ended = true);
    while (!existsSync(`${point}/nbd`)) {
      if (ended) throw new Error(`nbdfuse: ${await errors}`);
      await new Promise((done) => setTimeout(done, 20));
    }
    await use(`${point}/nbd`);
  } finally {
    await run("fusermount3", ["-u", point]);
    await child.status;
    await errors;
  }
}

/** Mounts a file system in a file while `use` runs. */
async function withMount(
  dir: TempDir,
  file: string,
  options: string,
  use: (root: string) => Promise<void>,
): Promise<void> {
  const point = Deno.makeTempDirSync({ dir: dir.path, prefix: "mnt" });
  const loop = (await mustRun("losetup", [
    "--find",
    "--show",
    ...(options.includes("ro") ? ["--read-only"] : []),
    file,
  ])).trim();
  try {
    await mustRun("mount", ["-t", "ext4", "-o", options, loop, point]);
    try {
      await use(point);
    } finally {
      await mustRun("umount", [point]);
    }
  } finally {
    await mustRun("losetup", ["--detach", loop]);
  }
}

Deno.test("mkfs.ext4, files, fstrim and e2fsck on a writable image", {
  ignore: noMount,
}, async () => {
  for (const sparse of [false, true]) {
    using dir = tempDir();
    const size = 64 * MiB;
    const upper = await newUpper(dir.file("w"), { size: size, sparse });
    const config = writeConfig(dir, { lowers: [], upper });
    const content = noise(11, 5 * MiB);
    {
      await using server = await startServer(dir.file("s"), [config]);
      await withFuse(dir, server.uri, async (file) => {
        await mustRun("mkfs.ext4", ["-q", "-F", file]);
        await mustRun("e2fsck", ["-fn", file]);
        await withMount(dir, file, "rw", async (root) => {
          Deno.writeFileSync(`${root}/keep`, content);
          Deno.writeFileSync(`${root}/gone`, noise(12, 20 * MiB));
          await mustRun("sync", ["-f", root]);
          Deno.removeSync(`${root}/gone`);
          // Blocks are free once the journal says so.
          await mustRun("sync", ["-f", root]);
          const trimmed = await run("fstrim", ["-v", root]);
          equal(trimmed.code, 0, trimmed.stderr);
        });
        await mustRun("e2fsck", ["-fn", file]);
      });
      equal((await server.stop()).code, 0);
    }
    const layer = dir.file("layer.zf");
    await mustTool("overlaybd-commit", ["-z", upper.data, upper.index, layer]);
    // What was trimmed is not in the layer: 20 MiB of noise cannot hide.
    ok(Deno.statSync(layer).size < 16 * MiB);
    const ro = writeConfig(dir, { lowers: [layer] }, "ro.json");
    await using server = await startServer(dir.file("s"), [ro]);
    await withFuse(dir, server.uri, async (file) => {
      await mustRun("e2fsck", ["-fn", file]);
      await withMount(dir, file, "ro,noload", (root) => {
        deepEqual([...Deno.readDirSync(root)].map((it) => it.name).sort(), [
          "keep",
          "lost+found",
        ]);
        equal(sha256File(`${root}/keep`), sha256(content));
        return Promise.resolve();
      });
    });
  }
});

Deno.test("the original's ext4 layers mount; whiteouts of the second hold", {
  ignore: noMount,
}, async () => {
  using dir = tempDir();
  const config = writeConfig(dir, {
    lowers: ["e1.lz4.zf", "e2.zstd16k.zf"]
      .map((name) => fixture(`12-ext4-apply/${name}`)),
  });
  await using server = await startServer(dir.file("s"), [config]);
  await withFuse(dir, server.uri, async (file) => {
    const checked = await run("e2fsck", ["-fn", file]);
    // Stale free counts are the original's defect 11; nothing else is.
    ok(
      checked.code === 0 || /free (blocks|inodes) count/i.test(checked.stdout),
    );
    await withMount(dir, file, "ro,noload", async (root) => {
      const want = new Set<string>();
      const list = async (name: string) =>
        (await mustRun("tar", ["-tf", fixture(`12-ext4-apply/${name}`)]))
          .trim().split("\n").map((path) => path.replace(/^\.\//, ""));
      for (const path of await list("layer1.tar")) want.add(path);
      const second = await list("layer2.tar");
      for (const path of second) {
        const [, parent = "", gone] = /^(.*\/)?\.wh\.(.+)$/.exec(path) ?? [];
        if (gone === undefined || gone === ".wh..opq") continue;
        equal(existsSync(`${root}/${parent}${gone}`), false, path);
      }
      ok(want.size > 0);
      for (const path of second) {
        if (path === "" || path.includes(".wh.") || path.endsWith("/")) {
          continue;
        }
        ok(
          await run("test", [
            "-e",
            `${root}/${path}`,
            "-o",
            "-L",
            `${root}/${path}`,
          ])
            .then((end) => end.code === 0),
          path,
        );
      }
    });
  });
});
