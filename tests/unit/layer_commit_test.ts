// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, match, ok, rejects } from "node:assert/strict";
import { faultIo, IO, O, openFd } from "../../ffi/files.ts";
import { indexRecords, newIndex } from "../../ffi/index.ts";
import { fileSource } from "../../ffi/sources.ts";
import { EngineError } from "../../ffi/errors.ts";
import { encodeLsmtBlock, parseRecords } from "../../src/format/lsmt.ts";
import { commitLayer, sealLayer } from "../../src/layer/commit.ts";
import { fillGaps } from "../../src/layer/fill.ts";
import { mergeLayers } from "../../src/layer/merge.ts";
import { openLayer } from "../../src/layer/open.ts";
import { BusyError, openUpper } from "../../src/layer/upper.ts";
import { LayerError } from "../../src/layer/write.ts";
import {
  fixture,
  haveFixtures,
  sha256File,
  type TempDir,
  tempDir,
} from "../lib/env.ts";
import { checkCommitted, checkTar, readDisk } from "../lib/spec_reader.ts";
import {
  BLOCK,
  concat,
  layerBytes,
  logBytes,
  putUpper,
  type Rec,
  recordBytes,
  scatteredUpper,
} from "./layer_files.ts";

const UUID = "01234567-89ab-4cde-8f01-23456789abcd";
const PARENT = "00112233-4455-4677-8899-aabbccddeeff";

const names = (dir: TempDir) =>
  [...Deno.readDirSync(dir.path)].map((entry) => entry.name).sort();

Deno.test("the spec's worked example commits to its sha256", async () => {
  using dir = tempDir();
  const size = { virtualSize: 1 << 30 };
  const made = logBytes({
    records: [
      { lba: 16, n: 8, at: 8 },
      { lba: 100, n: 4, at: 16, zeroed: true },
    ],
    header: size,
    index: size,
  });
  made.data.fill(0x41, BLOCK);
  const output = dir.file("out");
  const written = await commitLayer({
    ...putUpper(dir, made),
    output,
    userTag: new TextEncoder().encode("hi"),
    uuid: UUID,
    parentUuid: PARENT,
  });
  equal(written.size, 16384);
  equal(
    sha256File(output),
    "998ebaa3fb40b1c90cbed7804fee1eb2242370075928e6825852c29feeed8296",
  );
  checkCommitted(output);
});

Deno.test("sealing the worked example appends index and trailer", async () => {
  using dir = tempDir();
  const size = {
    virtualSize: 1 << 30,
    uuid: UUID.toUpperCase(),
    parentUuid: PARENT.toUpperCase(),
  };
  const records: Rec[] = [
    { lba: 16, n: 8, at: 8 },
    { lba: 100, n: 4, at: 16, zeroed: true },
  ];
  const made = logBytes({ records, header: size, index: size });
  const paths = putUpper(dir, made);
  await sealLayer(paths.data, paths.index);
  deepEqual(
    Deno.readFileSync(paths.data),
    concat(
      made.data,
      recordBytes(records),
      new Uint8Array(512 - 32),
      encodeLsmtBlock({
        ...size,
        flags: 6,
        indexOffset: 0x2000,
        indexSize: 2,
      }),
    ),
  );
  deepEqual(Deno.readFileSync(paths.index), made.index);
  // Twice is allowed: the second index and trailer count.
  await sealLayer(paths.data, paths.index);
  using layer = await openLayer(paths.data);
  equal(layer.kind, "sealed");
  equal(layer.trailer.indexOffset, 12800n);
});

Deno.test("a seal that fails cuts the file back", async () => {
  for (const [op, count] of [[IO.PWRITE, 2], [IO.SYNC, 2]] as const) {
    for (let nth = 1; nth <= count; nth++) {
      using dir = tempDir();
      const made = logBytes();
      const paths = putUpper(dir, made);
      faultIo(op, nth, 28);
      await rejects(
        sealLayer(paths.data, paths.index),
        (error) => error instanceof EngineError && error.code === "ENOSPC",
      );
      faultIo(op, 1, 28, 0);
      deepEqual(Deno.readFileSync(paths.data), made.data);
    }
  }
});

Deno.test("a layer that is being written is neither committed nor sealed", async () => {
  using dir = tempDir();
  const paths = putUpper(dir, logBytes());
  using _ = await openUpper({ ...paths, readonly: false });
  const output = dir.file("out");
  await rejects(commitLayer({ ...paths, output }), BusyError);
  await rejects(sealLayer(paths.data, paths.index), BusyError);
  deepEqual(names(dir), ["rw.data", "rw.index"]);
});

Deno.test("an existing output is refused before the input is read", async () => {
  using dir = tempDir();
  Deno.writeTextFileSync(dir.file("out"), "mine");
  await rejects(
    commitLayer({ data: dir.file("none"), output: dir.file("out") }),
    (error) => error instanceof EngineError && error.code === "EEXIST",
  );
  equal(Deno.readTextFileSync(dir.file("out")), "mine");
});

Deno.test("a commit that fails or is stopped leaves no output", async () => {
  using dir = tempDir();
  const paths = putUpper(dir, logBytes());
  const output = dir.file("out");
  faultIo(IO.PWRITE, 1, 28);
  await rejects(commitLayer({ ...paths, output }), /no space left/);
  faultIo(IO.PWRITE, 1, 28, 0);
  const stopped = AbortSignal.abort();
  await rejects(
    commitLayer({ ...paths, output, signal: stopped }),
    (error) => error instanceof EngineError && error.code === "ECANCELED",
  );
  deepEqual(names(dir), ["rw.data", "rw.index"]);
});

Deno.test("commit takes size and parent from the header, the rest is nil", async () => {
  using dir = tempDir();
  const made = logBytes({
    header: { virtualSize: 1 << 21, uuid: UUID, parentUuid: PARENT },
  });
  const output = dir.file("out");
  await commitLayer({ ...putUpper(dir, made), output });
  using layer = await openLayer(output);
  for (const block of [layer.header, layer.trailer]) {
    equal(block.virtualSize, 1n << 21n);
    equal(block.uuid, "00000000-0000-0000-0000-000000000000");
    equal(block.parentUuid, PARENT.toUpperCase());
    equal(block.userTag.length, 0);
  }
});

Deno.test("64 KiB blocks of noise are written with 32 KiB", async () => {
  using dir = tempDir();
  const sectors = 256;
  const made = logBytes({ records: [{ lba: 0, n: sectors, at: 8 }], sectors });
  for (let at = BLOCK; at < made.data.length; at += 65536) {
    crypto.getRandomValues(made.data.subarray(at, at + 65536));
  }
  const paths = putUpper(dir, made);
  for (const tar of [false, true]) {
    const output = dir.file(`out-${tar}`);
    const written = await commitLayer({
      ...paths,
      output,
      tar,
      zfile: { algorithm: "lz4", blockSize: 65536 },
    });
    equal(written.blockSize, 32768);
    equal(written.size, Deno.statSync(output).size);
    using layer = await openLayer(output);
    equal(layer.zfile?.final.blockSize, 32768);
    checkCommitted(output);
    if (tar) checkTar(output);
  }
});

Deno.test("more than 1,000,000 records: commit and seal refuse, fill helps", async () => {
  using dir = tempDir("memory");
  const paths = scatteredUpper(dir, 1_000_200, 3);
  const output = dir.file("out");
  await rejects(commitLayer({ ...paths, output }), (error) => {
    ok(error instanceof LayerError);
    match(error.message, /would have 1000448 records.*commit --fill CONFIG/);
    return true;
  });
  await rejects(sealLayer(paths.data, paths.index), /1000200 records/);
  deepEqual(names(dir), ["rw.data", "rw.index"]);

  // A lower that has data in the first gaps, and zeroes later ones.
  Deno.writeFileSync(
    dir.file("lower"),
    layerBytes({
      records: [
        { lba: 0, n: 8, at: 8 },
        { lba: 8, n: 4000, at: 16, zeroed: true },
      ],
      header: { virtualSize: 3 * 1_000_200 * 512 },
      trailer: { virtualSize: 3 * 1_000_200 * 512 },
    }),
  );
  using lower = await openLayer(dir.file("lower"));
  const written = await commitLayer({
    ...paths,
    output,
    fill: () => Promise.resolve([lower]),
  });
  equal(written.warnings.length, 0);
  using layer = await openLayer(output);
  ok(layer.trailer.indexSize <= 1_000_000n);
  using wanted = readDisk([dir.file("lower")], paths);
  using got = readDisk([dir.file("lower"), output]);
  for (const at of [0, 1 << 20, 100 << 20]) {
    deepEqual(got.read(at, 1 << 20), wanted.read(at, 1 << 20));
  }
});

Deno.test("filling closes zeroed and unmapped gaps with what is read there", () => {
  using dir = tempDir();
  const data = new Uint8Array(4096 + 64 * 512);
  Deno.writeFileSync(dir.file("data"), data);
  const source = () =>
    fileSource(openFd(dir.file("data"), O.RDONLY), 0, data.length);
  // Data, a gap of 1, data, zeroed 1 + gap 1 + zeroed 1, data; 600,000 times
  // nothing more: too few records to need filling.
  using few = newIndex(recordBytes([{ lba: 0, n: 1, at: 8 }]));
  using src = source();
  using same = fillGaps(few, src, []);
  deepEqual(indexRecords(same.index, 0, 10).length, 16);

  const records: Rec[] = [];
  for (let i = 0; i < 260_000; i++) {
    const lba = i * 8;
    records.push(
      { lba, n: 1, at: 8 },
      { lba: lba + 2, n: 1, at: 9 },
      { lba: lba + 3, n: 1, at: 9, zeroed: true },
      { lba: lba + 5, n: 1, at: 9, zeroed: true },
      { lba: lba + 6, n: 1, at: 10 },
    );
  }
  using upper = newIndex(recordBytes(records));
  using below = newIndex(recordBytes([
    { lba: 0, n: 6, at: 20 },
    { lba: 6, n: 3, at: 50, zeroed: true },
  ]));
  using lowerSource = source();
  using filled = fillGaps(upper, src, [{ index: below, source: lowerSource }]);
  const first = [...parseRecords(indexRecords(filled.index, 0, 7))]
    .map((r) => [r.offset, r.length, r.moffset, r.zeroed, r.tag]);
  deepEqual(first, [
    [0, 1, 8, false, 1],
    [1, 1, 21, false, 2],
    [2, 1, 9, false, 1],
    [3, 1, 8, false, 0],
    [4, 1, 24, false, 2],
    [5, 1, 8, false, 0],
    [6, 1, 10, false, 1],
  ]);
});

Deno.test("merge keeps levels apart, and folds them when they are too many", async () => {
  using dir = tempDir("memory");
  // Two levels that take turns, sector by sector, contiguous together.
  const n = 500_200;
  const open = async (name: string, from: number) => {
    const words = new BigUint64Array(2 * n);
    for (let i = 0; i < n; i++) {
      words[2 * i] = BigInt(2 * i + from) | 1n << 50n;
      words[2 * i + 1] = 8n;
    }
    const size = { virtualSize: 2 * n * 512 };
    const made = logBytes({ records: [], header: size, index: size });
    made.index = concat(made.index, new Uint8Array(words.buffer));
    made.data.fill(from + 1, BLOCK);
    const paths = putUpper(dir, made, name);
    const output = dir.file(`${name}.lsmt`);
    await commitLayer({ ...paths, output });
    return await openLayer(output);
  };
  using even = await open("even", 0);
  using odd = await open("odd", 1);
  const output = dir.file("merged");
  await mergeLayers({
    layers: [odd, even],
    virtualSize: even.virtualSize,
    parentUuid: "",
    output,
    replace: true,
  });
  using merged = await openLayer(output);
  ok(merged.trailer.indexSize < 1000n, `${merged.trailer.indexSize}`);
  using disk = readDisk([output]);
  const bytes = disk.read(0, 4096);
  for (let i = 0; i < 8; i++) equal(bytes[i * 512], i % 2 + 1);
});

Deno.test("merge writes the stack's real size, not a header's", async () => {
  using dir = tempDir();
  Deno.writeFileSync(
    dir.file("layer"),
    layerBytes({ header: { virtualSize: 0 } }),
  );
  using layer = await openLayer(dir.file("layer"));
  const output = dir.file("merged");
  await mergeLayers({
    layers: [layer],
    virtualSize: layer.virtualSize,
    parentUuid: layer.header.parentUuid,
    output,
  });
  using merged = await openLayer(output);
  equal(merged.header.virtualSize, 1n << 20n);
});

Deno.test("a user tag of 256 bytes is stored, one of 257 makes nothing", async () => {
  using dir = tempDir();
  const paths = putUpper(dir, logBytes());
  await commitLayer({
    ...paths,
    output: dir.file("a"),
    userTag: new Uint8Array(256).fill(120),
  });
  await rejects(
    commitLayer({
      ...paths,
      output: dir.file("b"),
      userTag: new Uint8Array(257).fill(120),
    }),
    /257 bytes: at most 256/,
  );
  deepEqual(names(dir), ["a", "rw.data", "rw.index"]);
});

Deno.test("commit to a pipe writes the same bytes, header not rewritten", {
  ignore: !haveFixtures,
}, async () => {
  using dir = tempDir();
  const fifo = dir.file("fifo");
  await new Deno.Command("mkfifo", { args: [fifo] }).output();
  const reader = new Deno.Command("cat", { args: [fifo] }).output();
  await commitLayer({
    data: fixture("03-rw-data/rw.data"),
    index: fixture("03-rw-data/rw.index"),
    output: fifo,
  });
  const { stdout } = await reader;
  deepEqual(stdout, Deno.readFileSync(fixture("04-commit/plain.lsmt")));
});
