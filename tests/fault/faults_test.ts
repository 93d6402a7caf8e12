// SPDX-License-Identifier: Apache-2.0
/**
 * Full disks, failing disks, missing rights, missing and damaged layers: one
 * clear line, an exit code, and nothing left behind or changed.
 */
import {
  deepEqual,
  equal,
  match,
  notEqual,
  ok,
  rejects,
  throws,
} from "node:assert/strict";
import { EngineError } from "../../ffi/errors.ts";
import { faultIo, IO } from "../../ffi/files.ts";
import {
  type Ended,
  have,
  mustRun,
  mustTool,
  run,
  sha256,
  type TempDir,
  tempDir,
  tool,
} from "../lib/env.ts";
import { newUpper, openDisk, writeConfig } from "../lib/product.ts";
import { noise } from "../lib/random.ts";
import { ServeError, startServer } from "../lib/server.ts";
import { openZfileAt, readDisk } from "../lib/spec_reader.ts";
import { encodeFullLayer, encodeLayer } from "../lib/spec_writer.ts";

const SECTOR = 512;
const MiB = 1 << 20;
const EIO = 5;
const ENOSPC = 28;

/** Everything in a directory, by name and content. */
function snapshot(dir: TempDir): Record<string, string> {
  const out: Record<string, string> = {};
  for (const { name, isFile } of Deno.readDirSync(dir.path)) {
    out[name] = isFile ? sha256(Deno.readFileSync(dir.file(name))) : "";
  }
  return out;
}

/** A command failed with one line that says why. */
function failed(ended: Ended, code: number, why: RegExp): void {
  equal(ended.code, code, ended.stdout + ended.stderr);
  const lines = ended.stderr.trimEnd().split("\n");
  equal(lines.length, 1, ended.stderr);
  match(lines[0] ?? "", why);
  ok(!/SUCCESSFULLY|done/.test(ended.stdout), ended.stdout);
  ok(!/\bat (async )?\S+ \(|file:\/\//.test(ended.stderr), ended.stderr);
}

const SIZE = 256 * 1024;

/** An upper of 256 KiB with 128 KiB of noise in it. */
async function someUpper(dir: TempDir, sparse = false) {
  const upper = await newUpper(dir.file("u"), { size: SIZE, sparse });
  await using disk = await openDisk({ lowers: [], upper });
  disk.write(4096, noise(1, SIZE / 2));
  disk.zero(8192, 4096);
  return upper;
}

// ---- failing calls under every command ------------------------------

interface Case {
  name: string;
  program: string;
  code: number;
  /** it replaces `out`: the directory's sync comes after the rename */
  replaces?: true;
  /** failing calls in a row; an undo in place must not fail, too */
  count?: number;
  prepare(dir: TempDir): Promise<string[]>;
}

const CASES: Case[] = [
  {
    name: "commit",
    program: "overlaybd-commit",
    code: 255,
    prepare: async (dir) => {
      const { data, index } = await someUpper(dir);
      return [data, index, dir.file("out")];
    },
  },
  {
    name: "commit -z -t",
    program: "overlaybd-commit",
    code: 255,
    prepare: async (dir) => {
      const { data, index } = await someUpper(dir);
      return ["-z", "-t", data, index, dir.file("out")];
    },
  },
  {
    name: "commit -f over an old file",
    program: "overlaybd-commit",
    code: 255,
    replaces: true,
    prepare: async (dir) => {
      const { data, index } = await someUpper(dir);
      Deno.writeTextFileSync(dir.file("out"), "old");
      return ["-f", data, index, dir.file("out")];
    },
  },
  {
    name: "commit --seal",
    program: "overlaybd-commit",
    code: 255,
    prepare: async (dir) => {
      const { data, index } = await someUpper(dir);
      return ["--seal", data, index];
    },
  },
  {
    name: "commit --seal of a sparse upper",
    program: "overlaybd-commit",
    code: 255,
    prepare: async (dir) => {
      const { data, index } = await someUpper(dir, true);
      return ["--seal", data, index];
    },
  },
  {
    name: "zfile",
    program: "overlaybd-zfile",
    code: 255,
    prepare: (dir) => {
      Deno.writeFileSync(dir.file("in"), noise(2, SIZE));
      return Promise.resolve([dir.file("in"), dir.file("out")]);
    },
  },
  {
    name: "zfile -x",
    program: "overlaybd-zfile",
    code: 255,
    prepare: async (dir) => {
      Deno.writeFileSync(dir.file("in"), noise(2, SIZE));
      await mustTool("overlaybd-zfile", [dir.file("in"), dir.file("z")]);
      return ["-x", dir.file("z"), dir.file("out")];
    },
  },
  {
    name: "merge over an old file",
    program: "overlaybd-merge",
    code: 255,
    replaces: true,
    prepare: async (dir) => {
      const upper = await someUpper(dir);
      Deno.writeFileSync(dir.file("low"), encodeFullLayer(noise(3, SIZE)));
      Deno.writeTextFileSync(dir.file("out"), "old");
      // Without a result file: that is written in any case.
      Deno.writeTextFileSync(
        dir.file("c.json"),
        JSON.stringify({ lowers: [{ file: dir.file("low") }], upper }),
      );
      return [dir.file("c.json"), dir.file("out")];
    },
  },
  {
    name: "create",
    program: "overlaybd-create",
    code: 255,
    prepare: (dir) => Promise.resolve([dir.file("d"), dir.file("i"), "1"]),
  },
  {
    name: "resize",
    program: "overlaybd-resize",
    code: 1,
    count: 1,
    prepare: async (dir) => {
      const upper = await someUpper(dir);
      Deno.writeTextFileSync(
        dir.file("c.json"),
        JSON.stringify({ lowers: [], upper }),
      );
      return ["--config", dir.file("c.json"), "--size", "1"];
    },
  },
];

const FAULTS = [
  { op: "pwrite", errno: ENOSPC, why: /no space left on device/i },
  { op: "pwrite", errno: EIO, why: /input\/output error/i },
  { op: "pread", errno: EIO, why: /input\/output error/i },
  { op: "sync", errno: EIO, why: /input\/output error/i },
  { op: "link", errno: ENOSPC, why: /no space left on device/i },
  { op: "rename", errno: EIO, why: /input\/output error/i },
] as const;

for (const it of CASES) {
  const { name, program, code, prepare, replaces, count = 1000 } = it;
  Deno.test(`${name}: any call that fails leaves everything as it was`, async () => {
    using dir = tempDir();
    const args = await prepare(dir);
    const before = snapshot(dir);
    let injected = 0;
    for (const { op, errno, why } of FAULTS) {
      // The first, a later and the last call of its kind, as far as there
      // are that many: a run that succeeds saw no fault.
      for (const nth of [1, 2, 3, 5]) {
        const ended = await tool(program, args, {
          env: { OVERLAYBD_IO_FAULT: `${op}:${nth}:${errno}:${count}` },
        });
        const where = `${op} number ${nth}`;
        if (ended.code === 0) {
          await restore(dir, before, prepare);
          break;
        }
        // resize under the original's name says 1 also when it worked, for
        // the file system inside did not grow.
        if (code === 1 && !why.test(ended.stderr)) {
          await restore(dir, before, prepare);
          break;
        }
        try {
          failed(ended, code, why);
          const after = snapshot(dir);
          if (replaces === true && op === "sync" && nth > 1) {
            // Only the directory's sync failed: the new file is whole and
            // durable, only its name may be the old file's after power loss.
            if (after["out"] !== before["out"]) {
              readDisk([dir.file("out")]).close();
            }
            after["out"] = before["out"] ?? "";
            Deno.writeTextFileSync(dir.file("out"), "old");
          }
          deepEqual(after, before);
        } catch (cause) {
          throw new Error(`${where}: ${cause}`, { cause });
        }
        injected++;
      }
    }
    ok(injected >= 3, `only ${injected} faults were met`);
  });
}

/** Puts a directory back after a command that succeeded. */
async function restore(
  dir: TempDir,
  before: Record<string, string>,
  prepare: Case["prepare"],
): Promise<void> {
  for (const { name } of Deno.readDirSync(dir.path)) {
    Deno.removeSync(dir.file(name), { recursive: true });
  }
  await prepare(dir);
  deepEqual(Object.keys(snapshot(dir)).sort(), Object.keys(before).sort());
  for (const key of Object.keys(before)) delete before[key];
  Object.assign(before, snapshot(dir));
}

// ---- a disk that is really full -------------------------------------

const noTmpfs = Deno.uid() !== 0 || !have("mount");
if (noTmpfs) console.log("skipped: a full tmpfs needs root");

Deno.test("a full disk: each command says so and leaves nothing", {
  ignore: noTmpfs,
}, async () => {
  using dir = tempDir();
  const upper = await newUpper(dir.file("u"), { size: 8 * MiB });
  {
    await using disk = await openDisk({ lowers: [], upper });
    disk.write(0, noise(5, 4 * MiB));
  }
  const small = dir.file("small");
  Deno.mkdirSync(small);
  await mustRun("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", small]);
  try {
    const full = /no space left on device/i;
    const { data, index } = upper;
    const config = writeConfig(dir, { lowers: [], upper });
    const commands: [string, string[]][] = [
      ["overlaybd-commit", [data, index, `${small}/out`]],
      ["overlaybd-commit", ["-z", data, index, `${small}/out`]],
      ["overlaybd-zfile", [data, `${small}/out`]],
      ["overlaybd-merge", [config, `${small}/out`]],
    ];
    for (const [program, args] of commands) {
      failed(await tool(program, args), 255, full);
      deepEqual([...Deno.readDirSync(small)], []);
    }
  } finally {
    await mustRun("umount", [small]);
  }
});

Deno.test(
  "a full disk under an upper: writes fail, reads and later writes go on",
  {
    ignore: noTmpfs,
  },
  async () => {
    for (const sparse of [false, true]) {
      using dir = tempDir();
      const small = dir.file("small");
      Deno.mkdirSync(small);
      await mustRun("mount", ["-t", "tmpfs", "-o", "size=2m", "tmpfs", small]);
      try {
        const upper = await newUpper(`${small}/u`, { size: 8 * MiB, sparse });
        const plain = new Uint8Array(8 * MiB);
        let refused = 0;
        {
          await using disk = await openDisk({ lowers: [], upper });
          for (let at = 0; at < 8 * MiB; at += 256 * 1024) {
            const bytes = noise(at + 1, 256 * 1024);
            try {
              disk.write(at, bytes);
              plain.set(bytes, at);
            } catch (error) {
              ok(error instanceof EngineError);
              equal(error.code, "ENOSPC");
              // What is there now is old or new, by sector.
              const got = disk.read(at, bytes.length);
              for (let i = 0; i < bytes.length; i += SECTOR) {
                const sector = got.subarray(i, i + SECTOR);
                const known = sector.every((byte) => byte === 0) ||
                  sha256(sector) === sha256(bytes.subarray(i, i + SECTOR));
                ok(known, `sector at ${at + i}`);
              }
              plain.set(got, at);
              refused++;
            }
          }
          ok(refused > 3);
          equal(sha256(disk.read(0, 8 * MiB)), sha256(plain));
          await disk.flush();
        }
        await using again = await openDisk({ lowers: [], upper });
        equal(sha256(again.read(0, 8 * MiB)), sha256(plain));
      } finally {
        await mustRun("umount", [small]);
      }
    }
  },
);

// ---- failures under a device ----------------------------------------

for (const sparse of [false, true]) {
  const kind = sparse ? "sparse" : "log";
  Deno.test(`${kind} upper: a write that fails leaves old or new sectors, now and later`, async () => {
    for (const nth of [1, 2, 3]) {
      for (const errno of [EIO, ENOSPC]) {
        using dir = tempDir();
        Deno.writeFileSync(dir.file("low"), encodeFullLayer(noise(3, SIZE)));
        const lowers = [dir.file("low")];
        const upper = await newUpper(dir.file("u"), { size: SIZE, sparse });
        const before = noise(3, SIZE).slice();
        const mixed: Uint8Array[] = [];
        {
          await using disk = await openDisk({ lowers, upper });
          disk.write(4096, noise(9, 4096));
          before.set(noise(9, 4096), 4096);
          faultIo(IO.PWRITE, nth, errno, 1);
          const bytes = noise(10, 5 * SECTOR);
          try {
            // Not on any block's edges, half over what is there.
            disk.write(3 * SECTOR + 4096, bytes);
            before.set(bytes, 3 * SECTOR + 4096);
          } catch (error) {
            ok(error instanceof EngineError);
            equal(error.errno, errno);
          } finally {
            faultIo(IO.PWRITE, 1, EIO, 0);
          }
          const got = disk.read(0, SIZE);
          for (let at = 0; at < SIZE; at += SECTOR) {
            const sector = sha256(got.subarray(at, at + SECTOR));
            const inside = at - 4096 - 3 * SECTOR;
            const options = [before.subarray(at, at + SECTOR)];
            if (inside >= 0 && inside < bytes.length) {
              options.push(bytes.subarray(inside, inside + SECTOR));
            }
            ok(
              options.some((it) => sha256(it) === sector),
              `sector ${at / SECTOR}`,
            );
          }
          mixed.push(got);
          // It goes on.
          disk.write(64 * SECTOR, noise(11, SECTOR));
          mixed[0]?.set(noise(11, SECTOR), 64 * SECTOR);
          equal(sha256(disk.read(0, SIZE)), sha256(mixed[0] ?? got));
        }
        await using again = await openDisk({ lowers, upper });
        equal(sha256(again.read(0, SIZE)), sha256(mixed[0] ?? before));
      }
    }
  });

  Deno.test(`${kind} upper: a flush that failed never succeeds later`, async () => {
    using dir = tempDir();
    const upper = await newUpper(dir.file("u"), { size: SIZE, sparse });
    const disk = await openDisk({ lowers: [], upper });
    disk.write(0, noise(1, 4096));
    faultIo(IO.SYNC, 1, EIO, 1);
    await rejects(disk.flush(), EngineError);
    faultIo(IO.SYNC, 1, EIO, 0);
    // The kernel has dropped the pages: a success now would be a lie.
    await rejects(disk.flush(), EngineError);
    await rejects(disk.close(), EngineError);
  });

  Deno.test(`${kind} upper: a read that fails is an error, not zeros`, async () => {
    using dir = tempDir();
    const upper = await newUpper(dir.file("u"), { size: SIZE, sparse });
    await using disk = await openDisk({ lowers: [], upper });
    disk.write(0, noise(1, 4096));
    faultIo(IO.PREAD, 1, EIO, 8);
    throws(() => disk.read(0, 4096), /input\/output error/);
    faultIo(IO.PREAD, 1, EIO, 0);
    equal(sha256(disk.read(0, 4096)), sha256(noise(1, 4096)));
  });
}

// ---- rights ---------------------------------------------------------

const NOBODY = 65534;
const noDrop = Deno.uid() !== 0;
if (noDrop) console.log("skipped: tests of rights need root, to drop it");

/** Runs the tool as nobody; its caches go to a directory of its own. */
async function asNobody(
  home: TempDir,
  program: string,
  args: readonly string[],
): Promise<Ended> {
  Deno.chmodSync(home.path, 0o777);
  return await tool(program, args, {
    uid: NOBODY,
    gid: NOBODY,
    env: {
      HOME: home.path,
      XDG_CACHE_HOME: home.path,
      DENO_NO_UPDATE_CHECK: "1",
    },
  });
}

/** What an unprivileged user needs to run the tool at all. */
async function nobodyCanRun(): Promise<boolean> {
  using home = tempDir();
  const ended = await asNobody(home, "overlaybd", ["version"]);
  if (ended.code !== 0) {
    console.log(`skipped: nobody cannot run the tool: ${ended.stderr}`);
  }
  return ended.code === 0;
}

Deno.test("without rights: one line, exit code, nothing left", {
  ignore: noDrop,
}, async () => {
  if (!await nobodyCanRun()) return;
  using home = tempDir();
  using dir = tempDir();
  const upper = await someUpper(dir);
  for (const path of [upper.data, upper.index]) Deno.chmodSync(path, 0o644);
  // Without a result file: that could not be written, either.
  const config = dir.file("c.json");
  Deno.writeTextFileSync(config, JSON.stringify({ lowers: [], upper }));
  Deno.chmodSync(dir.path, 0o555);
  const before = snapshot(dir);
  const denied = /permission denied/i;
  const [d, i] = [dir.file("d"), dir.file("i")];
  const commands: [string, string[], number][] = [
    ["overlaybd-create", [d, i, "1"], 255],
    ["overlaybd-commit", [upper.data, upper.index, dir.file("out")], 255],
    ["overlaybd-zfile", [upper.data, dir.file("out")], 255],
    ["overlaybd-merge", [config, dir.file("out")], 255],
    ["overlaybd-commit", ["--seal", upper.data, upper.index], 255],
    ["overlaybd-resize", ["--config", config, "--size", "1"], 1],
  ];
  for (const [program, args, code] of commands) {
    failed(await asNobody(home, program, args), code, denied);
    deepEqual(snapshot(dir), before);
  }
  Deno.chmodSync(dir.path, 0o755);
  Deno.chmodSync(upper.data, 0o600);
  Deno.chmodSync(dir.path, 0o777);
  failed(
    await asNobody(home, "overlaybd-commit", [
      upper.data,
      upper.index,
      dir.file("out"),
    ]),
    255,
    denied,
  );
  deepEqual(snapshot(dir), before);
});

// ---- layers that are not what they should be ------------------------

/** Every way to open an image fails with one line. */
async function refusedEverywhere(
  dir: TempDir,
  config: string,
  why: RegExp,
): Promise<void> {
  const out = dir.file("out");
  failed(await tool("overlaybd-merge", [config, out]), 255, why);
  match(Deno.readTextFileSync(dir.file("result")), /^failed:/);
  const mapped = await tool("overlaybd", ["map", config]);
  notEqual(mapped.code, 0);
  match(mapped.stderr, why);
  await rejects(startServer(dir.file("s"), [config]), (error) => {
    ok(error instanceof ServeError);
    match(error.stderr, why);
    equal(error.stderr.trimEnd().split("\n").length, 1, error.stderr);
    return true;
  });
  throws(() => Deno.lstatSync(out), Deno.errors.NotFound);
  throws(() => Deno.lstatSync(dir.file("s")), Deno.errors.NotFound);
}

Deno.test("a missing layer is named, and nothing is served", async () => {
  using dir = tempDir();
  const gone = dir.file("gone.layer");
  const config = writeConfig(dir, { lowers: [gone] });
  await refusedEverywhere(dir, config, /gone\.layer/);
  const checked = await tool("overlaybd", ["check", config]);
  notEqual(checked.code, 0);
});

Deno.test("255 layers work, 256 are refused", async () => {
  using dir = tempDir();
  const disk = noise(1, 256 * SECTOR);
  const lowers = Array.from({ length: 256 }, (_, i) => {
    const sector = disk.subarray(i * SECTOR, (i + 1) * SECTOR);
    const path = dir.file(`l${i}`);
    Deno.writeFileSync(
      path,
      encodeLayer(disk.length, [{ lba: i, length: 1, at: 8 }], sector),
    );
    return path;
  });
  const most = lowers.slice(0, 255);
  await using image = await openDisk({ lowers: most });
  const want = disk.slice().fill(0, 255 * SECTOR);
  equal(sha256(image.read(0, disk.length)), sha256(want));
  const upper = await newUpper(dir.file("u"), { size: 0 });
  await using writable = await openDisk({ lowers: most, upper });
  equal(sha256(writable.read(0, disk.length)), sha256(want));
  const good = writeConfig(dir, { lowers: most }, "good.json");
  await mustTool("overlaybd-merge", [good, dir.file("flat")]);
  using flat = readDisk([dir.file("flat")]);
  equal(sha256(flat.read(0, disk.length)), sha256(want));
  await refusedEverywhere(
    dir,
    writeConfig(dir, { lowers }),
    /255/,
  );
});

Deno.test("layers of other sizes: the topmost that has one decides", async () => {
  using dir = tempDir();
  const write = (name: string, size: number, bytes: Uint8Array) => {
    Deno.writeFileSync(
      dir.file(name),
      encodeLayer(size, [
        { lba: 0, length: bytes.length / SECTOR, at: 8 },
      ], bytes),
    );
    return dir.file(name);
  };
  const large = write("large", 64 * SECTOR, noise(1, 64 * SECTOR));
  const small = write("small", 16 * SECTOR, noise(2, 8 * SECTOR));
  const none = write("none", 0, noise(3, 4 * SECTOR));
  {
    await using disk = await openDisk({ lowers: [large, small, none] });
    equal(disk.size, 16 * SECTOR);
    const got = disk.read(0, 16 * SECTOR);
    const want = noise(1, 64 * SECTOR).slice(0, 16 * SECTOR);
    want.set(noise(2, 8 * SECTOR));
    want.set(noise(3, 4 * SECTOR));
    equal(sha256(got), sha256(want));
    throws(() => disk.read(16 * SECTOR, SECTOR), EngineError);
  }
  {
    const upper = await newUpper(dir.file("u"), { size: 128 * SECTOR });
    await using disk = await openDisk({ lowers: [large], upper });
    equal(disk.size, 128 * SECTOR);
    deepEqual(disk.read(100 * SECTOR, SECTOR), new Uint8Array(SECTOR));
  }
  await refusedEverywhere(
    dir,
    writeConfig(dir, { lowers: [none] }),
    /size/,
  );
});

Deno.test("what is no layer, and a layer cut short, are refused with the reason", async () => {
  using dir = tempDir();
  const whole = encodeFullLayer(noise(1, 64 * SECTOR));
  const cases: [string, Uint8Array][] = [
    ["empty", new Uint8Array()],
    ["text", new TextEncoder().encode("no layer\n".repeat(2000))],
    ["short", whole.slice(0, 4096)],
    ["cut", whole.slice(0, -1)],
    ["without-trailer", whole.slice(0, -4096)],
  ];
  for (const [name, bytes] of cases) {
    Deno.writeFileSync(dir.file(name), bytes);
    const config = writeConfig(dir, { lowers: [dir.file(name)] });
    await refusedEverywhere(dir, config, new RegExp(name));
    const checked = await tool("overlaybd", ["check", dir.file(name)]);
    equal(checked.code, 2, `${name}: ${checked.stdout}${checked.stderr}`);
  }
});

Deno.test("a file that got shorter under an image is an error, not zeros", async () => {
  for (const compressed of [false, true]) {
    using dir = tempDir();
    const bytes = noise(1, SIZE);
    const path = dir.file("layer");
    Deno.writeFileSync(dir.file("raw"), encodeFullLayer(bytes));
    if (compressed) {
      await mustTool("overlaybd-zfile", [dir.file("raw"), path]);
    } else Deno.copyFileSync(dir.file("raw"), path);
    await using disk = await openDisk({ lowers: [path] });
    equal(sha256(disk.read(0, SIZE)), sha256(bytes));
    Deno.truncateSync(path, 4096 + SIZE / 2);
    throws(() => disk.read(0, SIZE), EngineError);
    throws(() => disk.read(SIZE - 4096, 4096), EngineError);
    equal(sha256(disk.read(0, 65536)), sha256(bytes.subarray(0, 65536)));
  }
});

Deno.test("a damaged block is an error there, and nowhere else", async () => {
  for (const algorithm of ["lz4", "zstd"]) {
    using dir = tempDir();
    const bytes = noise(1, SIZE);
    Deno.writeFileSync(dir.file("raw.layer"), encodeFullLayer(bytes));
    await mustTool("overlaybd-zfile", [
      "--algorithm",
      algorithm,
      dir.file("raw.layer"),
      dir.file("good"),
    ]);
    const zfile = openZfileAt(dir.file("good"));
    const count = zfile.lengths.length;
    zfile.close();
    // Not the first and the last: they hold the layer's header and trailer.
    for (const nr of [1, Math.floor(count / 2), count - 3]) {
      const bad = dir.file("bad");
      Deno.copyFileSync(dir.file("good"), bad);
      // In the middle of literals: only the crc can tell.
      const at = 512 + zfile.lengths.subarray(0, nr)
        .reduce((sum, n) => sum + n, 0) +
        1000;
      flip(bad, at);
      const verified = await tool("overlaybd-zfile", ["--verify", bad]);
      equal(verified.code, 255);
      match(verified.stdout + verified.stderr, /not a valid zfile/);
      failed(
        await tool("overlaybd-zfile", ["-x", bad, dir.file("out")]),
        255,
        /\S/,
      );
      throws(() => Deno.lstatSync(dir.file("out")), Deno.errors.NotFound);
      const checked = await tool("overlaybd", ["check", bad]);
      equal(checked.code, 2, checked.stdout + checked.stderr);
      match(checked.stdout + checked.stderr, new RegExp(`\\b${nr}\\b`));
      await using disk = await openDisk({ lowers: [bad] });
      // Block nr holds the disk's bytes from 4096 * (nr - 1) on.
      const from = 4096 * (nr - 1);
      throws(() => disk.read(from, SECTOR), EngineError);
      const rest = Math.min(SIZE, from + 4096);
      if (from > 0) {
        equal(sha256(disk.read(0, from)), sha256(bytes.subarray(0, from)));
      }
      equal(
        sha256(disk.read(rest, SIZE - rest)),
        sha256(bytes.subarray(rest)),
      );
      const config = writeConfig(dir, { lowers: [bad] });
      failed(
        await tool("overlaybd-merge", [config, dir.file("out")]),
        255,
        /\S/,
      );
      throws(() => Deno.lstatSync(dir.file("out")), Deno.errors.NotFound);
    }
    // The first block is the header's: the layer does not open at all.
    Deno.copyFileSync(dir.file("good"), dir.file("first"));
    flip(dir.file("first"), 512 + 3);
    await refusedEverywhere(
      dir,
      writeConfig(dir, { lowers: [dir.file("first")] }),
      /first/,
    );
  }
});

function flip(path: string, at: number): void {
  using file = Deno.openSync(path, { read: true, write: true });
  const one = new Uint8Array(1);
  file.seekSync(at, Deno.SeekMode.Start);
  file.readSync(one);
  one[0] = (one[0] ?? 0) ^ 0x40;
  file.seekSync(at, Deno.SeekMode.Start);
  file.writeSync(one);
}

Deno.test("outputs: never over an existing file, through a link, into a pipe", async () => {
  using dir = tempDir();
  const { data, index } = await someUpper(dir);
  Deno.writeTextFileSync(dir.file("old"), "old");
  failed(
    await tool("overlaybd-commit", [data, index, dir.file("old")]),
    255,
    /exists/i,
  );
  equal(Deno.readTextFileSync(dir.file("old")), "old");
  // A link is followed: what it points at is replaced, the link stays.
  Deno.symlinkSync(dir.file("old"), dir.file("link"));
  await mustTool("overlaybd-commit", ["-f", data, index, dir.file("link")]);
  equal(Deno.lstatSync(dir.file("link")).isSymlink, true);
  using linked = readDisk([dir.file("old")]);
  equal(linked.size, SIZE);
  // /dev/null stays a device.
  await mustTool("overlaybd-commit", ["-f", data, index, "/dev/null"]);
  equal(Deno.lstatSync("/dev/null").isCharDevice, true);
  await mustRun("mkfifo", [dir.file("fifo")]);
  const reader = run("cat", [dir.file("fifo")], {});
  const writer = tool("overlaybd-commit", [data, index, dir.file("fifo")]);
  const [read, wrote] = await Promise.all([reader, writer]);
  equal(wrote.code, 0, wrote.stderr);
  ok(read.stdout.length > 0);
  equal(Deno.lstatSync(dir.file("fifo")).isFifo, true);
});
