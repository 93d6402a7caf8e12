// SPDX-License-Identifier: Apache-2.0
/**
 * The product against what the original's tools made: every file reads
 * right, and every file that the spec makes reproducible is reproduced byte
 * for byte from the same input.
 */
import { deepEqual, equal, match, ok } from "node:assert/strict";
import {
  fixture,
  haveFixtures,
  mustRun,
  mustTool,
  sha256,
  sha256Disk,
  sha256File,
  type TempDir,
  tempDir,
  tool,
} from "../lib/env.ts";
import { parseOps, patternBytes, playOps } from "../lib/ops.ts";
import {
  newUpper,
  openDisk,
  playOnDisk,
  type Stack,
  writeConfig,
} from "../lib/product.ts";
import {
  checkCommitted,
  checkTar,
  checkZfile,
  dataRanges,
  openUpper,
  parseRecords,
  readDisk,
} from "../lib/spec_reader.ts";

const MiB = 1 << 20;
const GiB = 1 << 30;
const ignore = !haveFixtures;
const BLOCK_SIZES = [4, 8, 16, 32, 64] as const;

const UUID1 = "11111111-1111-4111-8111-111111111111";
const UUID2 = "22222222-2222-4222-8222-222222222222";
const UUID3 = "33333333-3333-4333-8333-333333333333";

const RW_HASH =
  "1f89e33fedcc29cc7e199809bb6312129a5970376b1624e75b8e227dec33c698";
const SPARSE_HASH =
  "988b4e1c7453e4739144a0318b1cbe6436d0b159e53921b0190e689a5750920c";
const STACK_HASH =
  "98736c16c7678521445c82ce52f7a573a3f747d79a2587743c10bffa04cc6e46";
const BIG_HASH =
  "a6eb0a755b893f0ccd27794074ba86cd2a57e4e446bd80fe018beb6736ea7879";
const E1_HASH =
  "779c0719fc308df2c4a2d1aa2775c89ac379ef39d60ee10886665f5f2525e988";
const E2_HASH =
  "b4534b1b01a59c0b803cc32a776b5c8fe04b2ee756708eb0389d5b2622751dc6";
const MKFS_HASH =
  "6cb1141a495cf07a7677e644056c90e578252e53e64cd87977a89fc8c45b310a";

function ops(name: string) {
  return parseOps(Deno.readTextFileSync(fixture(name)));
}

/** Copies fixtures into a directory, since tools open them for writing. */
function copy(dir: TempDir, ...names: string[]): string[] {
  return names.map((name) => {
    const to = dir.file(name.replaceAll("/", "_"));
    Deno.copyFileSync(fixture(name), to);
    return to;
  });
}

async function untar(dir: TempDir, name: string): Promise<void> {
  await mustRun("tar", ["-xSf", fixture(name), "-C", dir.path]);
}

function sameBytes(a: Uint8Array, b: Uint8Array, what: string): void {
  equal(a.length, b.length, `${what}: length`);
  const at = a.findIndex((byte, i) => byte !== b[i]);
  equal(at, -1, `${what}: differs at byte ${at}`);
}

function sameFile(got: string, wanted: string): void {
  sameBytes(
    Deno.readFileSync(got),
    Deno.readFileSync(wanted),
    `${got}, ${wanted}`,
  );
}

async function reads(stack: Stack, size: number, hash: string) {
  await using disk = await openDisk(stack, { readonly: true });
  equal(disk.size, size);
  equal(sha256Disk(size, disk.read), hash, stack.lowers.join(" "));
}

/** Runs a command of the original that makes `out` in a directory. */
async function commit(
  dir: TempDir,
  inputs: readonly string[],
  out: string,
  ...options: string[]
): Promise<string> {
  const path = dir.file(out);
  const stdout = await mustTool("overlaybd-commit", [
    ...options,
    ...inputs,
    path,
  ]);
  equal(
    stdout.trimEnd().split("\n").at(-1),
    "overlaybd-commit has committed files SUCCESSFULLY",
  );
  return path;
}

const RW = ["03-rw-data/rw.data", "03-rw-data/rw.index"] as const;

// ---- reading --------------------------------------------------------

Deno.test("every layer of the 1 MiB disk reads right", {
  ignore,
}, async () => {
  const names = [
    "04-commit/plain.lsmt",
    "04-commit/tagged.lsmt",
    "04-commit/tagged.lz4.zf",
    "05-sealed/sealed.lsmt",
    "05-sealed/commit-of-sealed.lsmt",
    "05-sealed/commit-of-sealed.lz4.zf",
    "07-commit-zfile/lz4-4k.mt2.zf",
    "08-tar/commit-lz4.tar",
    "08-tar/commit-zstd16k.tar",
  ];
  for (const algo of ["lz4", "zstd"]) {
    for (const kib of BLOCK_SIZES) {
      names.push(`07-commit-zfile/${algo}-${kib}k.zf`);
    }
  }
  for (const name of names) {
    await reads({ lowers: [fixture(name)] }, MiB, RW_HASH);
  }
});

Deno.test("log uppers read right, also with padding inside the index", {
  ignore,
}, async () => {
  for (const index of ["rw.index", "rwg.index"]) {
    const upper = {
      data: fixture(RW[0]),
      index: fixture(`03-rw-data/${index}`),
    };
    await reads({ lowers: [], upper }, MiB, RW_HASH);
  }
});

Deno.test("sparse uppers and their sealed form read right", {
  ignore,
}, async () => {
  using dir = tempDir();
  await untar(dir, "02-rw-sparse/sp1m.tar");
  await untar(dir, "02-rw-sparse/sp1g-empty.tar");
  await untar(dir, "05-sealed/sealed-sparse.tar");
  const pair = (name: string) => ({
    data: dir.file(`${name}.data`),
    index: dir.file(`${name}.index`),
  });
  await reads({ lowers: [], upper: pair("sp1m") }, MiB, SPARSE_HASH);
  await using empty = await openDisk({ lowers: [], upper: pair("sp1g") });
  deepEqual(empty.extents(0, GiB), [{ length: GiB, state: "hole" }]);
  await reads(
    { lowers: [dir.file("sealed-sparse.lsmt")] },
    MiB,
    SPARSE_HASH,
  );
  await reads(
    { lowers: [fixture("02-rw-sparse/sp1m.commit.lsmt")] },
    MiB,
    SPARSE_HASH,
  );
});

Deno.test("stacks of read-only layers and of an upper read right", {
  ignore,
}, async () => {
  const at = (name: string) => fixture(`09-stack/${name}`);
  const upper = (name: string) => ({
    data: at(`${name}.data`),
    index: at(`${name}.index`),
  });
  const base = at("base.zf");
  const one =
    "f9caa3a876fc748f528948c469599e3dcf37bacddd4855ce6109497d00547935";
  await reads({ lowers: [base, at("u1.lsmt")] }, MiB, one);
  await reads({ lowers: [base], upper: upper("u1") }, MiB, one);
  await reads(
    { lowers: [base, at("u1.lsmt"), at("u2.lsmt")] },
    MiB,
    STACK_HASH,
  );
  await reads(
    { lowers: [base, at("u1.lsmt")], upper: upper("u2") },
    MiB,
    STACK_HASH,
  );
  for (
    const name of [
      "merged.lsmt",
      "merged.drv.lsmt",
      "merged.zf",
      "merged-with-rw-upper.lsmt",
    ]
  ) {
    await reads({ lowers: [fixture(`10-merge/${name}`)] }, MiB, STACK_HASH);
  }
});

Deno.test("a disk of 16 TiB reads right past 2 TiB, where the original fails", {
  ignore,
}, async () => {
  const upper = {
    data: fixture("11-extents/huge.data"),
    index: fixture("11-extents/huge.index"),
  };
  const stacks: Stack[] = [
    { lowers: [fixture("11-extents/huge.lsmt")] },
    { lowers: [], upper },
    {
      lowers: [fixture("04-commit/empty1m.lsmt")],
      upper,
    },
  ];
  for (const stack of stacks) {
    await using disk = await openDisk(stack, { readonly: true });
    equal(disk.size, 2 ** 44);
    for (
      const [name, at] of [["tail", 17592186040320], [
        "mid",
        8796093018112,
      ]] as const
    ) {
      const want = Deno.readFileSync(fixture(`11-extents/huge.${name}.bin`));
      deepEqual(disk.read(at, want.length), want);
    }
    for (
      const { kind, offset, length, pattern } of ops("11-extents/huge.ops")
    ) {
      if (kind === "discard") continue;
      deepEqual(disk.read(offset, length), patternBytes(pattern, length));
    }
  }
  await reads(
    { lowers: [fixture("11-extents/big.lz4.zf")] },
    64 * MiB,
    BIG_HASH,
  );
});

Deno.test("real ext4 layers, made and resized by the original, read right", {
  ignore,
}, async () => {
  const at = (name: string) => fixture(`12-ext4-apply/${name}`);
  await reads({ lowers: [at("e1.lz4.zf")] }, GiB, E1_HASH);
  await reads(
    { lowers: [at("e1.lz4.zf"), at("e2.zstd16k.zf")] },
    GiB,
    E2_HASH,
  );
  await reads({ lowers: [at("mkfs1g.lz4.zf")] }, GiB, MKFS_HASH);
  await reads(
    { lowers: [fixture("14-resize/rs-1g.lz4.zf")] },
    GiB,
    "b12880ffeaa034f258c710621ae4d686016bb4534340066d54d6fa7dd9de8321",
  );
  await reads(
    { lowers: [fixture("14-resize/rs-2g.lz4.zf")] },
    2 * GiB,
    "e9e4d9509e431b3b8cbeb6550d88002b661239aa85a9793108572257e9d85a1c",
  );
});

Deno.test("an upper that the original left reads as the original reads it", {
  ignore,
}, async () => {
  using dir = tempDir();
  await untar(dir, "15-quirks/qs.tar");
  await reads(
    {
      lowers: [fixture("15-quirks/qbase.zf")],
      upper: { data: dir.file("qs.data"), index: dir.file("qs.index") },
    },
    MiB,
    "a5463719a396adbf771301702220e3590b9bea130835cda0b2227c88c60837ff",
  );
});

Deno.test("the base layer of 2021, garbage in reserved bytes, reads right", {
  ignore,
}, async () => {
  using dir = tempDir();
  await mustRun("tar", [
    "-xzf",
    fixture("16-baselayer/ext4_64.tar.gz"),
    "-C",
    dir.path,
  ]);
  const path = dir.file("ext4_64");
  await using disk = await openDisk({ lowers: [path] });
  using spec = readDisk([path]);
  equal(disk.size, spec.size);
  for (let at = 0; at < disk.size; at += 4 * GiB) {
    equal(sha256(disk.read(at, MiB)), sha256(spec.read(at, MiB)), `at ${at}`);
  }
  // Every mapped byte, by the independent reader's map.
  for (const segment of spec.layers[0]?.segments ?? []) {
    if (segment.zeroed) continue;
    const [from, n] = [segment.lba * 512, segment.length * 512];
    equal(sha256(disk.read(from, n)), sha256(spec.read(from, n)));
  }
});

// ---- create ---------------------------------------------------------

/** Bytes of a new layer with its random uuid blanked. */
function withoutUuid(path: string): Uint8Array {
  return Deno.readFileSync(path).fill(0, 56, 92);
}

Deno.test("create makes the original's files, the random uuid aside", {
  ignore,
}, async () => {
  using dir = tempDir();
  const cases = [
    { name: "vs1g", args: ["1"] },
    { name: "vs1g-parent", args: ["-u", UUID1, "1"] },
    { name: "vs0", args: ["0"] },
  ];
  for (const { name, args } of cases) {
    const [data, index] = [dir.file(`${name}.d`), dir.file(`${name}.i`)];
    const out = await mustTool("overlaybd-create", [data, index, ...args]);
    match(out, /overlaybd-create has created files SUCCESSFULLY\n$/);
    for (const [got, kind] of [[data, "data"], [index, "index"]] as const) {
      deepEqual(
        withoutUuid(got),
        withoutUuid(fixture(`01-rw-empty/${name}.${kind}`)),
      );
      equal((Deno.statSync(got).mode ?? 0) & 0o777, 0o644 & ~Deno.umask());
    }
  }
});

Deno.test("create -s makes the original's sparse layer, holes and all", {
  ignore,
}, async () => {
  using dir = tempDir();
  await untar(dir, "02-rw-sparse/sp1g-empty.tar");
  const [data, index] = [dir.file("d"), dir.file("i")];
  await mustTool("overlaybd-create", ["-s", data, index, "1"]);
  equal(Deno.statSync(index).size, 0);
  equal(Deno.statSync(data).size, GiB + 4096);
  using got = Deno.openSync(data);
  deepEqual(openUpper({ data, index }).segments, []);
  using wanted = Deno.openSync(dir.file("sp1g.data"));
  const [a, b] = [new Uint8Array(4096), new Uint8Array(4096)];
  got.readSync(a);
  wanted.readSync(b);
  deepEqual(a.fill(0, 56, 92), b.fill(0, 56, 92));
});

// ---- writing an upper -----------------------------------------------

/** Index records without the padding that FLUSH leaves. */
function realRecords(path: string) {
  return parseRecords(Deno.readFileSync(path).subarray(4096))
    .filter((record) => record.lba !== 2 ** 50 - 1);
}

Deno.test("the same operations on a log upper append the same bytes", {
  ignore,
}, async () => {
  using dir = tempDir();
  const cases = [
    { name: "03-rw-data/rw", ops: "03-rw-data/ops.txt", lowers: [] },
    {
      name: "09-stack/u1",
      ops: "09-stack/u1.ops",
      lowers: [fixture("09-stack/base.zf")],
    },
    {
      name: "09-stack/u2",
      ops: "09-stack/u2.ops",
      lowers: [fixture("09-stack/base.zf"), fixture("09-stack/u1.lsmt")],
    },
  ];
  for (const { name, ops: file, lowers } of cases) {
    const base = dir.file(name.replace("/", "_"));
    const upper = await newUpper(base, { size: MiB });
    {
      await using disk = await openDisk({ lowers, upper });
      playOnDisk(disk, ops(file));
    }
    const [got, wanted] = [upper.data, fixture(`${name}.data`)]
      .map((path) => Deno.readFileSync(path).subarray(4096));
    equal(sha256(got ?? new Uint8Array()), sha256(wanted ?? new Uint8Array()));
    deepEqual(realRecords(upper.index), realRecords(fixture(`${name}.index`)));
  }
});

Deno.test("a sparse upper keeps discards and unaligned writes over lowers", {
  ignore,
}, async () => {
  using dir = tempDir();
  const lowers = [fixture("15-quirks/qbase.zf")];
  const upper = await newUpper(dir.file("q"), { size: MiB, sparse: true });
  const base = ops("15-quirks/qb.ops");
  const [write, discard] = ops("15-quirks/qs.ops");
  ok(write !== undefined && discard !== undefined);
  const want = playOps(new Uint8Array(MiB), [...base, write, discard]);
  equal(
    sha256(want),
    "988e74b562ab8e1be822981fad98c45aa1b14686dc935647875c2167d5fa1365",
  );
  {
    await using disk = await openDisk({ lowers, upper });
    disk.write(write.offset, patternBytes(write.pattern, write.length));
    disk.zero(discard.offset, discard.length);
    equal(sha256(disk.read(0, MiB)), sha256(want));
  }
  // What was read before the close is read after it, by us and by others.
  await reads({ lowers, upper }, MiB, sha256(want));
  using spec = readDisk(lowers, upper);
  equal(sha256(spec.read(0, MiB)), sha256(want));
});

// ---- commit ---------------------------------------------------------

Deno.test("commit reproduces the original's plain layers byte for byte", {
  ignore,
}, async () => {
  using dir = tempDir();
  const rw = copy(dir, ...RW);
  sameFile(await commit(dir, rw, "plain"), fixture("04-commit/plain.lsmt"));
  const tagged = ["-m", "user tag: build 42", "--uuid", UUID3, "-p", UUID2];
  sameFile(
    await commit(dir, rw, "tagged", ...tagged),
    fixture("04-commit/tagged.lsmt"),
  );
  sameFile(
    await commit(dir, rw, "tagged.zf", "-z", ...tagged),
    fixture("04-commit/tagged.lz4.zf"),
  );
  const drv = copy(dir, "01-rw-empty/drv1m.data", "01-rw-empty/drv1m.index");
  sameFile(
    await commit(dir, drv, "tag256", "-m", "x".repeat(256)),
    fixture("04-commit/tag256.lsmt"),
  );
  sameFile(await commit(dir, drv, "e1m"), fixture("04-commit/empty1m.lsmt"));
  const vs = copy(dir, "01-rw-empty/vs1g.data", "01-rw-empty/vs1g.index");
  sameFile(await commit(dir, vs, "e1g"), fixture("04-commit/empty1g.lsmt"));
  const [data = ""] = rw;
  const grouped = copy(dir, "03-rw-data/rwg.index");
  sameFile(
    await commit(dir, [data, ...grouped], "grouped"),
    fixture("04-commit/plain.lsmt"),
  );
});

Deno.test("commit -z reproduces every lz4 ZFile, for every thread count", {
  ignore,
}, async () => {
  using dir = tempDir();
  const rw = copy(dir, ...RW);
  for (const kib of BLOCK_SIZES) {
    for (const threads of kib === 64 ? [1, 2, 8, 32] : [1, 3]) {
      const out = await commit(
        dir,
        rw,
        `lz4-${kib}-${threads}`,
        "-z",
        "--algorithm",
        "lz4",
        "--bs",
        `${kib}`,
        "--compress_threads",
        `${threads}`,
      );
      sameFile(out, fixture(`07-commit-zfile/lz4-${kib}k.zf`));
    }
  }
});

Deno.test("commit -z zstd decodes to the committed layer, threads or not", {
  ignore,
}, async () => {
  using dir = tempDir();
  const rw = copy(dir, ...RW);
  const plain = sha256File(fixture("04-commit/plain.lsmt"));
  for (const kib of BLOCK_SIZES) {
    const options = ["-z", "--algorithm", "zstd", "--bs", `${kib}`];
    const one = await commit(dir, rw, `z${kib}`, ...options);
    const two = await commit(
      dir,
      rw,
      `z${kib}-2`,
      ...options,
      "--compress_threads",
      "2",
    );
    sameFile(two, one);
    checkZfile(one);
    checkCommitted(one);
    const back = dir.file(`back${kib}`);
    await mustTool("overlaybd-zfile", ["-x", one, back]);
    equal(sha256File(back), plain);
  }
});

Deno.test("commit -z -t reproduces the tar wrapper", {
  ignore,
}, async () => {
  using dir = tempDir();
  const rw = copy(dir, ...RW);
  const out = await commit(dir, rw, "t.tar", "-z", "-t");
  sameFile(out, fixture("08-tar/commit-lz4.tar"));
  const listed = await mustRun("tar", ["-tvf", out], { env: { TZ: "UTC" } });
  equal(
    listed,
    Deno.readTextFileSync(fixture("08-tar/commit-lz4.tar.tvf.txt")),
  );
  const zstd = await commit(
    dir,
    rw,
    "z.tar",
    "-z",
    "-t",
    "--algorithm",
    "zstd",
    "--bs",
    "16",
  );
  checkTar(zstd);
  checkCommitted(zstd);
});

Deno.test("commit -t without -z makes a plain layer and warns", {
  ignore,
}, async () => {
  using dir = tempDir();
  const out = dir.file("out");
  const ended = await tool("overlaybd-commit", [
    "-t",
    ...copy(dir, ...RW),
    out,
  ]);
  equal(ended.code, 0, ended.stderr);
  match(ended.stderr, /-t/);
  sameFile(out, fixture("04-commit/plain.lsmt"));
});

Deno.test("commit of a sparse upper reproduces the original's layer", {
  ignore,
}, async () => {
  using dir = tempDir();
  await untar(dir, "02-rw-sparse/sp1m.tar");
  const out = await commit(
    dir,
    [dir.file("sp1m.data"), dir.file("sp1m.index")],
    "out",
  );
  sameFile(out, fixture("02-rw-sparse/sp1m.commit.lsmt"));
});

Deno.test("commit reproduces stacks' layers, long runs and 16 TiB disks", {
  ignore,
}, async () => {
  using dir = tempDir();
  const at = (name: string) => copy(dir, `${name}.data`, `${name}.index`);
  sameFile(
    await commit(dir, at("09-stack/u1"), "u1", "--uuid", UUID2, "-p", UUID1),
    fixture("09-stack/u1.lsmt"),
  );
  sameFile(
    await commit(dir, at("09-stack/u2"), "u2", "--uuid", UUID3, "-p", UUID2),
    fixture("09-stack/u2.lsmt"),
  );
  sameFile(
    await commit(dir, at("11-extents/huge"), "huge"),
    fixture("11-extents/huge.lsmt"),
  );
  const made = async (name: string, size: number, file: string) => {
    const upper = await newUpper(dir.file(`made-${name}`), { size });
    await using disk = await openDisk({ lowers: [], upper });
    playOnDisk(disk, ops(file));
    return [upper.data, upper.index];
  };
  sameFile(
    await commit(
      dir,
      await made("base", MiB, "09-stack/base.ops"),
      "base",
      "-z",
      "--uuid",
      UUID1,
    ),
    fixture("09-stack/base.zf"),
  );
  sameFile(
    await commit(
      dir,
      await made("big", 64 * MiB, "11-extents/big.ops"),
      "big",
      "-z",
    ),
    fixture("11-extents/big.lz4.zf"),
  );
  sameFile(
    await commit(
      dir,
      await made("qb", MiB, "15-quirks/qb.ops"),
      "qb",
      "-z",
      "--uuid",
      UUID1,
    ),
    fixture("15-quirks/qbase.zf"),
  );
});

// ---- seal -----------------------------------------------------------

/** A sealed file with the bytes that the original leaves to chance zeroed. */
function sealedBytes(path: string): Uint8Array {
  const bytes = Deno.readFileSync(path);
  const trailer = new DataView(bytes.buffer, bytes.length - 4096);
  const index = Number(trailer.getBigUint64(32, true));
  const end = index + 16 * Number(trailer.getBigUint64(40, true));
  return bytes.fill(0, end, bytes.length - 4096);
}

Deno.test("commit --seal appends what the original appends, padding aside", {
  ignore,
}, async () => {
  using dir = tempDir();
  const [data = "", index = ""] = copy(dir, ...RW);
  const before = Deno.readFileSync(index);
  equal(await mustTool("overlaybd-commit", ["--seal", data, index]), "");
  const wanted = sealedBytes(fixture("05-sealed/sealed.lsmt"));
  sameBytes(sealedBytes(data), wanted, "sealed");
  sameBytes(Deno.readFileSync(data), sealedBytes(data), "padding is zero");
  sameBytes(Deno.readFileSync(index), before, "the index is left alone");

  await untar(dir, "02-rw-sparse/sp1m.tar");
  await untar(dir, "05-sealed/sealed-sparse.tar");
  // As the fixture was made: zero data became holes.
  const sparse = dir.file("sparse.data");
  await mustRun("cp", ["--sparse=always", dir.file("sp1m.data"), sparse]);
  await mustTool("overlaybd-commit", [
    "--seal",
    sparse,
    dir.file("sp1m.index"),
  ]);
  sameBytes(
    sealedBytes(sparse),
    sealedBytes(dir.file("sealed-sparse.lsmt")),
    "sealed sparse",
  );
  using file = Deno.openSync(sparse);
  ok(dataRanges(fdOf(file), 4096, Deno.statSync(sparse).size).length > 1);
});

/** The descriptor number of an open file, through /proc. */
function fdOf(file: Deno.FsFile): number {
  const { ino, dev } = file.statSync();
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    try {
      const stat = Deno.statSync(`/proc/self/fd/${name}`);
      if (stat.ino === ino && stat.dev === dev) return Number(name);
    } catch {
      // Not a file, or closed meanwhile.
    }
  }
  throw new Error("no descriptor");
}

Deno.test("commit --commit_sealed compacts a sealed layer as the original", {
  ignore,
}, async () => {
  using dir = tempDir();
  const inputs = copy(dir, "05-sealed/sealed.lsmt");
  sameFile(
    await commit(dir, inputs, "plain", "--commit_sealed"),
    fixture("05-sealed/commit-of-sealed.lsmt"),
  );
  sameFile(
    await commit(dir, inputs, "z", "-z", "--commit_sealed"),
    fixture("05-sealed/commit-of-sealed.lz4.zf"),
  );
  const again = copy(dir, "04-commit/plain.lsmt");
  sameFile(
    await commit(dir, again, "again", "--commit_sealed"),
    fixture("04-commit/plain.lsmt"),
  );
});

// ---- zfile ----------------------------------------------------------

Deno.test("zfile reproduces every lz4 file of the original", {
  ignore,
}, async () => {
  using dir = tempDir();
  const zfile = async (from: string, to: string, ...options: string[]) => {
    const source = fixture(`06-zfile/${from}`);
    const target = dir.file(to);
    const out = await mustTool("overlaybd-zfile", [
      ...options,
      source,
      target,
    ]);
    equal(
      out,
      `compress file ${source} as ${target}\ncompress file done.\n`,
    );
    return target;
  };
  for (const kib of BLOCK_SIZES) {
    sameFile(
      await zfile("plain.bin", `p${kib}`, "--bs", `${kib}`),
      fixture(`06-zfile/lz4-${kib}k.crc.zf`),
    );
  }
  for (const name of ["empty", "one", "twoblk"]) {
    sameFile(
      await zfile(`${name}.bin`, name),
      fixture(`06-zfile/${name}.lz4.zf`),
    );
  }
  sameFile(
    await zfile("empty.bin", "empty-zstd", "--algorithm", "zstd"),
    fixture("06-zfile/empty.zstd.zf"),
  );
  sameFile(
    await zfile("incompressible.bin", "noise", "--bs", "32"),
    fixture("06-zfile/incompressible.lz4-32k.zf"),
  );
  sameFile(
    await zfile("plain.bin", "tar", "-t"),
    fixture("08-tar/zfile-plain.tar"),
  );
});

Deno.test("zfile of incompressible data at 64 KiB starts again at 32 KiB", {
  ignore,
}, async () => {
  using dir = tempDir();
  const noise = fixture("06-zfile/incompressible.bin");
  await mustTool("overlaybd-zfile", ["--bs", "64", noise, dir.file("a")]);
  sameFile(dir.file("a"), fixture("06-zfile/incompressible.lz4-32k.zf"));
  // A pipe cannot be read twice: refused, and nothing is left.
  const piped = await tool(
    "overlaybd-zfile",
    ["--bs", "64", dir.file("b")],
    { stdin: Deno.readFileSync(noise) },
  );
  equal(piped.code, 255);
  match(piped.stderr, /32|smaller/);
  equal(Deno.lstatSync(dir.path) && fileExists(dir.file("b")), false);
});

function fileExists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

Deno.test("zfile -x and --verify take every file of the original", {
  ignore,
}, async () => {
  using dir = tempDir();
  const names = ["lz4-4k.hdr", "lz4-4k.hdr-mt2", "zstd-16k.hdr"];
  for (const algo of ["lz4", "zstd"]) {
    for (const kib of BLOCK_SIZES) {
      names.push(`${algo}-${kib}k.crc`, `${algo}-${kib}k.nocrc`);
    }
  }
  const cases = names.map((name) => [name, "plain.bin"] as const);
  const all = [
    ...cases,
    ["empty.lz4", "empty.bin"],
    ["empty.zstd", "empty.bin"],
    ["one.lz4", "one.bin"],
    ["twoblk.lz4", "twoblk.bin"],
    ["incompressible.lz4-32k", "incompressible.bin"],
    ["incompressible.lz4-64k.UNREADABLE-BY-UPSTREAM", "incompressible.bin"],
  ] as const;
  for (const [name, plain] of all) {
    const source = fixture(`06-zfile/${name}.zf`);
    const target = dir.file(name);
    const out = await mustTool("overlaybd-zfile", ["-x", source, target]);
    equal(
      out,
      `decompress file ${source} as ${target}\ndecompress file done.\n`,
    );
    sameFile(target, fixture(`06-zfile/${plain}`));
    equal((Deno.statSync(target).mode ?? 0) & 0o777, 0o700 & ~Deno.umask());
    const verified = await tool("overlaybd-zfile", ["--verify", source]);
    if (name.endsWith("nocrc")) {
      equal(verified.code, 255);
      match(verified.stdout, /checksum can't be found/);
    } else {
      equal(verified.code, 0, verified.stderr);
      equal(verified.stdout, `${source} is a valid zfile blob.\n`);
    }
  }
  const tar = fixture("08-tar/zfile-plain.tar");
  await mustTool("overlaybd-zfile", ["-x", "-t", tar, dir.file("untarred")]);
  sameFile(dir.file("untarred"), fixture("06-zfile/plain.bin"));
});

Deno.test("zfile reads a slow pipe in full blocks", {
  ignore,
}, async () => {
  using dir = tempDir();
  const out = dir.file("out.zf");
  const { command, args, env } = (await import("../lib/env.ts"))
    .toolCommand("overlaybd-zfile", [out]);
  const child = new Deno.Command(command, {
    args,
    env,
    stdin: "piped",
    stdout: "null",
    stderr: "inherit",
  }).spawn();
  const writer = child.stdin.getWriter();
  const plain = Deno.readFileSync(fixture("06-zfile/plain.bin"));
  for (let at = 0; at < plain.length; at += 9001) {
    await writer.write(plain.subarray(at, at + 9001));
    await new Promise((done) => setTimeout(done, 1));
  }
  await writer.close();
  equal((await child.status).code, 0);
  sameFile(out, fixture("06-zfile/lz4-4k.crc.zf"));
});

Deno.test("zfile zstd decodes to its input at every block size", {
  ignore,
}, async () => {
  using dir = tempDir();
  const plain = fixture("06-zfile/plain.bin");
  for (const kib of BLOCK_SIZES) {
    const out = dir.file(`z${kib}`);
    const options = ["--algorithm", "zstd", "--bs", `${kib}`];
    await mustTool("overlaybd-zfile", [...options, plain, out]);
    const spec = checkZfile(out);
    equal(spec.header.blockSize, kib * 1024);
    equal(spec.header.algo, 2);
    await mustTool("overlaybd-zfile", ["-x", out, dir.file(`x${kib}`)]);
    sameFile(dir.file(`x${kib}`), plain);
  }
});

// ---- merge ----------------------------------------------------------

Deno.test("merge reproduces the original's merged layers", {
  ignore,
}, async () => {
  using dir = tempDir();
  const at = (name: string) => fixture(`09-stack/${name}`);
  const lowers = [at("base.zf"), at("u1.lsmt"), at("u2.lsmt")];
  const three = writeConfig(dir, { lowers });
  const merge = async (out: string, config: string, ...options: string[]) => {
    const path = dir.file(out);
    equal(await mustTool("overlaybd-merge", [...options, config, path]), "");
    equal(Deno.readTextFileSync(dir.file("result")), "success");
    return path;
  };
  sameFile(await merge("m.zf", three), fixture("10-merge/merged.zf"));
  sameFile(
    await merge("m.lsmt", three, "--compress=false"),
    fixture("10-merge/merged.lsmt"),
  );
  const [data = "", index = ""] = copy(
    dir,
    "09-stack/u2.data",
    "09-stack/u2.index",
  );
  const config = writeConfig(dir, {
    lowers: lowers.slice(0, 2),
    upper: { data, index },
  }, "rw.json");
  sameFile(
    await merge("rw.lsmt", config, "--compress=false"),
    fixture("10-merge/merged-with-rw-upper.lsmt"),
  );
  // It overwrites what is there.
  sameFile(await merge("rw.lsmt", three), fixture("10-merge/merged.zf"));
});
