// SPDX-License-Identifier: Apache-2.0
/** The independent reader against every file that the original made. */
import { deepEqual, equal, throws } from "node:assert/strict";
import { join } from "node:path";
import { zstdDecompressSync } from "node:zlib";
import {
  fixture,
  haveFixtures,
  mustRun,
  sha256,
  sha256Disk,
  type TempDir,
  tempDir,
} from "./env.ts";
import { parseOps, patternBytes, playOps } from "./ops.ts";
import {
  checkCommitted,
  checkTar,
  checkZfile,
  type LayerPath,
  openLayer,
  openUpper,
  openZfileAt,
  readDisk,
  type UpperPaths,
} from "./spec_reader.ts";

const MiB = 1 << 20;
const ignore = !haveFixtures;

function ops(name: string) {
  return parseOps(Deno.readTextFileSync(fixture(name)));
}

/** Unpacks a GNU sparse archive of the fixtures with its holes. */
async function untar(dir: TempDir, name: string): Promise<void> {
  await mustRun("tar", ["-xSf", fixture(name), "-C", dir.path]);
}

function expectDisk(
  lowers: readonly LayerPath[],
  upper: UpperPaths | undefined,
  size: number,
  hash: string,
): void {
  using disk = readDisk(lowers, upper);
  equal(disk.size, size);
  equal(sha256Disk(size, disk.read), hash);
}

const RW = {
  data: fixture("03-rw-data/rw.data"),
  index: fixture("03-rw-data/rw.index"),
};
const RW_HASH =
  "1f89e33fedcc29cc7e199809bb6312129a5970376b1624e75b8e227dec33c698";
const SPARSE_HASH =
  "988b4e1c7453e4739144a0318b1cbe6436d0b159e53921b0190e689a5750920c";

Deno.test("reader: an operations file played on zeros is the recorded disk", {
  ignore,
}, () => {
  const image = playOps(new Uint8Array(MiB), ops("03-rw-data/ops.txt"));
  equal(sha256(image), RW_HASH);
  const packed = Deno.readFileSync(fixture("03-rw-data/rw.expected.img.zst"));
  equal(sha256(zstdDecompressSync(packed)), RW_HASH);
  const sparse = playOps(new Uint8Array(MiB), ops("02-rw-sparse/ops4k.txt"));
  equal(sha256(sparse), SPARSE_HASH);
});

Deno.test("reader: log uppers, with and without group commit", {
  ignore,
}, () => {
  expectDisk([], RW, MiB, RW_HASH);
  const grouped = { ...RW, index: fixture("03-rw-data/rwg.index") };
  expectDisk([], grouped, MiB, RW_HASH);
});

Deno.test("reader: sparse uppers by their holes", { ignore }, async () => {
  using dir = tempDir();
  await untar(dir, "02-rw-sparse/sp1m.tar");
  const upper = { data: dir.file("sp1m.data"), index: dir.file("sp1m.index") };
  expectDisk([], upper, MiB, SPARSE_HASH);
  expectDisk(
    [fixture("02-rw-sparse/sp1m.commit.lsmt")],
    undefined,
    MiB,
    SPARSE_HASH,
  );
  await untar(dir, "02-rw-sparse/sp1g-empty.tar");
  const layer = openUpper({
    data: dir.file("sp1g.data"),
    index: dir.file("sp1g.index"),
  });
  equal(layer.virtualSize, 1 << 30);
  deepEqual(layer.segments, []);
  layer.close();
});

Deno.test("reader: empty writable layers", { ignore }, () => {
  const sizes = { vs0: 0, vs1g: 1 << 30, "vs1g-parent": 1 << 30, drv1m: MiB };
  for (const [name, size] of Object.entries(sizes)) {
    const base = fixture(`01-rw-empty/${name}`);
    using disk = readDisk([], { data: `${base}.data`, index: `${base}.index` });
    equal(disk.size, size);
  }
});

Deno.test("reader: committed layers, plain and compressed", {
  ignore,
}, () => {
  const plain = [
    "04-commit/plain.lsmt",
    "04-commit/tagged.lsmt",
    "04-commit/tagged.lz4.zf",
    "05-sealed/commit-of-sealed.lsmt",
    "05-sealed/commit-of-sealed.lz4.zf",
    "08-tar/commit-lz4.tar",
    "08-tar/commit-zstd16k.tar",
    "07-commit-zfile/lz4-4k.mt2.zf",
  ];
  for (const algo of ["lz4", "zstd"]) {
    for (const kib of [4, 8, 16, 32, 64]) {
      plain.push(`07-commit-zfile/${algo}-${kib}k.zf`);
    }
  }
  for (const name of plain) {
    checkCommitted(fixture(name));
    expectDisk([fixture(name)], undefined, MiB, RW_HASH);
    if (name.endsWith(".zf")) checkZfile(fixture(name));
    if (name.endsWith(".tar")) checkTar(fixture(name));
  }
  for (const name of ["empty1g", "empty1m", "tag256"]) {
    const layer = checkCommitted(fixture(`04-commit/${name}.lsmt`));
    deepEqual(layer.segments, []);
    equal(layer.header?.userTag, name === "tag256" ? "x".repeat(256) : "");
  }
});

Deno.test("reader: sealed layers", { ignore }, async () => {
  expectDisk([fixture("05-sealed/sealed.lsmt")], undefined, MiB, RW_HASH);
  using dir = tempDir();
  await untar(dir, "05-sealed/sealed-sparse.tar");
  expectDisk([dir.file("sealed-sparse.lsmt")], undefined, MiB, SPARSE_HASH);
});

Deno.test("reader: every ZFile of plain.bin", { ignore }, () => {
  const plain = Deno.readFileSync(fixture("06-zfile/plain.bin"));
  const names = ["lz4-4k.hdr", "lz4-4k.hdr-mt2", "zstd-16k.hdr"];
  for (const algo of ["lz4", "zstd"]) {
    for (const kib of [4, 8, 16, 32, 64]) {
      names.push(`${algo}-${kib}k.crc`, `${algo}-${kib}k.nocrc`);
    }
  }
  const expect = (name: string, want: Uint8Array) => {
    const path = fixture(`06-zfile/${name}.zf`);
    const zfile = checkZfile(path);
    equal(zfile.size, want.length);
    const hash: Uint8Array[] = [];
    const raw = openZfileAt(path);
    for (let nr = 0; nr < raw.lengths.length; nr++) hash.push(raw.block(nr));
    raw.close();
    equal(sha256(new Uint8Array(hash.flatMap((b) => [...b]))), sha256(want));
  };
  for (const name of names) expect(name, plain);
  expect("empty.lz4", new Uint8Array());
  expect("empty.zstd", new Uint8Array());
  expect("one.lz4", plain.subarray(0, 1));
  expect("twoblk.lz4", plain.subarray(0, 8192));
  const noise = Deno.readFileSync(fixture("06-zfile/incompressible.bin"));
  expect("incompressible.lz4-32k", noise);
  // The original cannot read its own file: a block past 64 KiB.
  const bad = fixture(
    "06-zfile/incompressible.lz4-64k.UNREADABLE-BY-UPSTREAM.zf",
  );
  throws(() => checkZfile(bad), /cannot read/);
  const zfile = openZfileAt(bad);
  equal(sha256(zfile.read(0, zfile.size)), sha256(noise));
  zfile.close();
});

Deno.test("reader: a stack, its merges, and discards over lowers", {
  ignore,
}, () => {
  const base = fixture("09-stack/base.zf");
  const u1 = fixture("09-stack/u1.lsmt");
  const u2 = fixture("09-stack/u2.lsmt");
  const image = playOps(new Uint8Array(MiB), ops("09-stack/base.ops"));
  expectDisk([base], undefined, MiB, sha256(image));
  equal(
    sha256(image),
    "9b6666578293af52b2d9d069dc949a6587d5cd4e107039b2a97393fbe56a1b66",
  );
  playOps(image, ops("09-stack/u1.ops"));
  equal(
    sha256(image),
    "f9caa3a876fc748f528948c469599e3dcf37bacddd4855ce6109497d00547935",
  );
  const rw = (name: string) => ({
    data: fixture(`09-stack/${name}.data`),
    index: fixture(`09-stack/${name}.index`),
  });
  expectDisk([base, u1], undefined, MiB, sha256(image));
  expectDisk([base], rw("u1"), MiB, sha256(image));
  playOps(image, ops("09-stack/u2.ops"));
  const all =
    "98736c16c7678521445c82ce52f7a573a3f747d79a2587743c10bffa04cc6e46";
  equal(sha256(image), all);
  expectDisk([base, u1, u2], undefined, MiB, all);
  expectDisk([base, u1], rw("u2"), MiB, all);
  for (
    const name of [
      "merged.lsmt",
      "merged.drv.lsmt",
      "merged.zf",
      "merged-with-rw-upper.lsmt",
    ]
  ) {
    expectDisk([fixture(`10-merge/${name}`)], undefined, MiB, all);
  }
});

Deno.test("reader: long runs, and a disk of 16 TiB", { ignore }, () => {
  const big =
    "a6eb0a755b893f0ccd27794074ba86cd2a57e4e446bd80fe018beb6736ea7879";
  expectDisk([fixture("11-extents/big.lz4.zf")], undefined, 64 * MiB, big);
  using disk = readDisk([fixture("11-extents/huge.lsmt")]);
  equal(disk.size, 2 ** 44);
  const tail = Deno.readFileSync(fixture("11-extents/huge.tail.bin"));
  const mid = Deno.readFileSync(fixture("11-extents/huge.mid.bin"));
  deepEqual(disk.read(17592186040320, 4096), new Uint8Array(tail));
  deepEqual(disk.read(8796093018112, 8192), new Uint8Array(mid));
  using rw = readDisk([], {
    data: fixture("11-extents/huge.data"),
    index: fixture("11-extents/huge.index"),
  });
  for (const { kind, offset, length, pattern } of ops("11-extents/huge.ops")) {
    if (kind === "discard") continue;
    deepEqual(disk.read(offset, length), patternBytes(pattern, length));
    deepEqual(rw.read(offset, length), patternBytes(pattern, length));
  }
});

Deno.test("reader: real ext4 layers, resized ones, and warp layers", {
  ignore,
}, () => {
  const GiB = 1 << 30;
  const e1 = fixture("12-ext4-apply/e1.lz4.zf");
  const e2 = fixture("12-ext4-apply/e2.zstd16k.zf");
  expectDisk(
    [e1],
    undefined,
    GiB,
    "779c0719fc308df2c4a2d1aa2775c89ac379ef39d60ee10886665f5f2525e988",
  );
  expectDisk(
    [e1, e2],
    undefined,
    GiB,
    "b4534b1b01a59c0b803cc32a776b5c8fe04b2ee756708eb0389d5b2622751dc6",
  );
  expectDisk(
    [fixture("12-ext4-apply/mkfs1g.lz4.zf")],
    undefined,
    GiB,
    "6cb1141a495cf07a7677e644056c90e578252e53e64cd87977a89fc8c45b310a",
  );
  expectDisk(
    [fixture("14-resize/rs-1g.lz4.zf")],
    undefined,
    GiB,
    "b12880ffeaa034f258c710621ae4d686016bb4534340066d54d6fa7dd9de8321",
  );
  expectDisk(
    [fixture("14-resize/rs-2g.lz4.zf")],
    undefined,
    2 * GiB,
    "e9e4d9509e431b3b8cbeb6550d88002b661239aa85a9793108572257e9d85a1c",
  );
  const target = fixture("13-turbooci/t.tar");
  for (const name of ["ext4.fs.meta", "ext4.fs.meta.lz4.tar"]) {
    expectDisk(
      [{ meta: fixture(`13-turbooci/${name}`), target }],
      undefined,
      GiB,
      "4a3722a4ab292aab979451309445112a431c0d9de1e4155d25c2fd9271d5b541",
    );
  }
  expectDisk(
    [{ meta: fixture("13-turbooci/erofs.fs.meta"), target }],
    undefined,
    GiB,
    "7833ae908daa480597943feb03129f69d508e910b15cf6036b259474e789f2be",
  );
});

Deno.test("reader: a sparse upper shows what the original shows after reopen", {
  ignore,
}, async () => {
  using dir = tempDir();
  await untar(dir, "15-quirks/qs.tar");
  const upper = { data: dir.file("qs.data"), index: dir.file("qs.index") };
  expectDisk(
    [fixture("15-quirks/qbase.zf")],
    upper,
    MiB,
    "a5463719a396adbf771301702220e3590b9bea130835cda0b2227c88c60837ff",
  );
});

Deno.test("reader: the base layer of 2021 with garbage in reserved bytes", {
  ignore,
}, async () => {
  using dir = tempDir();
  await mustRun("tar", [
    "-xzf",
    fixture("16-baselayer/ext4_64.tar.gz"),
    "-C",
    dir.path,
  ]);
  const layer = openLayer(join(dir.path, "ext4_64"));
  equal(layer.virtualSize, 64 * 2 ** 30);
  equal(layer.segments.length, 8323);
  equal(layer.segments.filter((seg) => seg.zeroed).length, 8209);
  equal(layer.trailer?.records, 8448);
  equal(layer.trailer?.uuid, "C02FB491-B4D4-4904-8684-A014D032AF78");
  layer.close();
});
