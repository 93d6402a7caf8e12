// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, match, ok, rejects } from "node:assert/strict";
import { traceIo } from "../../ffi/files.ts";
import { indexCount, indexRecords } from "../../ffi/index.ts";
import { snapshotUpper } from "../../ffi/upper.ts";
import { EngineError } from "../../ffi/errors.ts";
import { FormatError } from "../../src/format/error.ts";
import { encodeLsmtBlock, parseRecords } from "../../src/format/lsmt.ts";
import { createUpper } from "../../src/layer/create.ts";
import { BusyError, lockHolder, openUpper } from "../../src/layer/upper.ts";
import { fixture, haveFixtures, type TempDir, tempDir } from "../lib/env.ts";
import {
  BLOCK,
  concat,
  logBytes,
  PADDING,
  recordBytes,
} from "./layer_files.ts";

type Made = ReturnType<typeof logBytes>;

/** Writes a writable layer's two files. */
function put(dir: TempDir, made: Made) {
  const paths = { data: dir.file("data"), index: dir.file("index") };
  Deno.writeFileSync(paths.data, made.data);
  Deno.writeFileSync(paths.index, made.index);
  return paths;
}

async function open(made: Made, readonly = true): Promise<string[]> {
  using dir = tempDir();
  using upper = await openUpper({ ...put(dir, made), readonly });
  return [...upper.warnings];
}

Deno.test("each broken rule of a log layer is refused with its own text", async () => {
  const good = logBytes();
  const cases: [RegExp, Made][] = [
    [
      /data has 4095 bytes, a writable layer at least 4096/,
      { ...good, data: good.data.slice(0, 4095) },
    ],
    [
      /index has 100 bytes, a writable layer at least 4096/,
      { ...good, index: good.index.slice(0, 100) },
    ],
    [
      /header has no LSMT magic/,
      { ...good, data: new Uint8Array(8192) },
    ],
    [/header is marked as a trailer/, logBytes({ header: { flags: 2 } })],
    [
      /index header has no LSMT magic/,
      { ...good, index: new Uint8Array(8192) },
    ],
    [/index header is marked as a trailer/, logBytes({ index: { flags: 0 } })],
    [/index header is that of a data file/, logBytes({ index: { flags: 3 } })],
    [/index header is marked sealed/, logBytes({ index: { flags: 5 } })],
    [
      /begins at 8192, not at 4096/,
      logBytes({ index: { indexOffset: 8192 } }),
    ],
    [/virtual size is/, logBytes({ index: { virtualSize: 2n ** 60n } })],
    [
      /record 0 is mapped past the end of the data/,
      logBytes({ records: [{ lba: 0, n: 9, at: 8 }] }),
    ],
    [
      /record 1 is mapped past the end of the data/,
      logBytes({
        records: [{ lba: 0, n: 1, at: 8 }, {
          lba: 9,
          n: 1,
          at: 17,
          zeroed: true,
        }],
      }),
    ],
    [
      /record 0 is mapped before sector 8/,
      logBytes({ records: [{ lba: 0, n: 1, at: 7 }] }),
    ],
  ];
  for (const [text, made] of cases) {
    await rejects(open(made), (error) => {
      ok(error instanceof FormatError, String(error));
      ok(text.test(error.message), `${text}: ${error.message}`);
      match(error.message, /^cannot open writable layer \//);
      return true;
    });
  }
});

Deno.test("what the original accepts is accepted", async () => {
  deepEqual(await open(logBytes({ header: { flags: 0x07 } })), []);
  deepEqual(await open(logBytes({ header: { uuid: "x" } })), []);
  const records = [
    PADDING,
    { lba: 3, n: 0, at: 8 },
    { lba: 0, n: 8, at: 8, tag: 7 },
    PADDING,
    { lba: 2, n: 4, at: 16, zeroed: true },
  ];
  deepEqual(await open(logBytes({ records })), []);
});

Deno.test("a torn index tail of 1..15 bytes is dropped with a warning", async () => {
  for (const torn of [1, 15]) {
    const made = logBytes();
    made.index = concat(made.index, new Uint8Array(torn).fill(9));
    const [warning = ""] = await open(made);
    match(warning, new RegExp(`${torn} bytes of a torn record`));
  }
});

Deno.test("records behind a durable mark that lost their data are cut", async () => {
  const mark = new Uint8Array(
    BigUint64Array.of(BigInt(PADDING.lba), 16n).buffer,
  );
  const made = logBytes();
  made.index = concat(
    made.index,
    mark,
    recordBytes([{ lba: 8, n: 8, at: 16 }, { lba: 0, n: 1, at: 8 }]),
  );
  const [warning = ""] = await open(made);
  match(warning, /record 2 and all behind it/);
  // The same in front of the mark is damage.
  made.index = concat(
    logBytes({ records: [{ lba: 8, n: 8, at: 16 }] }).index,
    mark,
  );
  await rejects(open(made), FormatError);
});

Deno.test("newest wins, and the map has tag 0", async () => {
  using dir = tempDir();
  const records = [
    { lba: 0, n: 8, at: 8, tag: 3 },
    { lba: 2, n: 2, at: 12, zeroed: true },
  ];
  const paths = put(dir, logBytes({ records }));
  using upper = await openUpper({ ...paths, readonly: true });
  using index = snapshotUpper(upper.upper);
  const got = [...parseRecords(indexRecords(index, 0, indexCount(index)))];
  deepEqual(got, [
    { offset: 0, length: 2, moffset: 8, zeroed: false, tag: 0 },
    { offset: 2, length: 2, moffset: 12, zeroed: true, tag: 0 },
    { offset: 4, length: 4, moffset: 12, zeroed: false, tag: 0 },
  ]);
});

Deno.test("opening to read writes nothing", async () => {
  using dir = tempDir();
  const made = logBytes({ header: { virtualSize: 0 } });
  made.index = concat(made.index, new Uint8Array(7));
  const paths = put(dir, made);
  traceIo(dir.file("trace"));
  try {
    using upper = await openUpper({
      ...paths,
      readonly: true,
      inheritedSize: 1n << 30n,
    });
    ok(upper.report.tornBytes === 7);
  } finally {
    traceIo(null);
  }
  const ops = Deno.readTextFileSync(dir.file("trace")).trim().split("\n")
    .map((line) => line.split(" ")[1]);
  deepEqual(ops.filter((op) => op !== "open" && op !== "pread"), []);
  deepEqual(Deno.readFileSync(paths.data), made.data);
  deepEqual(Deno.readFileSync(paths.index), made.index);
});

Deno.test("size 0 is inherited, and written where the layer is written", async () => {
  for (const kind of ["log", "sparse"] as const) {
    using dir = tempDir();
    const paths = { data: dir.file("data"), index: dir.file("index") };
    await createUpper({ ...paths, virtualSize: 0n, kind });
    const size = 1n << 20n;
    {
      using shown = await openUpper({
        ...paths,
        readonly: true,
        inheritedSize: size,
      });
      equal(shown.virtualSize, size);
    }
    const stored = (path: string) =>
      new DataView(Deno.readFileSync(path).buffer).getBigUint64(48, true);
    equal(stored(paths.data), 0n);
    using upper = await openUpper({
      ...paths,
      readonly: false,
      inheritedSize: size,
    });
    equal(upper.virtualSize, size);
    equal(stored(paths.data), size);
    if (kind === "log") equal(stored(paths.index), size);
    else equal(Deno.statSync(paths.data).size, BLOCK + Number(size));
  }
});

Deno.test("a size of its own wins over the stack's", async () => {
  using dir = tempDir();
  const paths = put(dir, logBytes());
  using upper = await openUpper({
    ...paths,
    readonly: false,
    inheritedSize: 1n << 30n,
  });
  equal(upper.virtualSize, 1n << 20n);
});

Deno.test("one writer or many readers; a busy layer names the holder", async () => {
  using dir = tempDir();
  const paths = put(dir, logBytes());
  const busy = (error: unknown) =>
    error instanceof BusyError &&
    error.message === `cannot open ${paths.data}: it is in use by process ` +
        `${Deno.pid}`;
  {
    using _writer = await openUpper({ ...paths, readonly: false });
    equal(lockHolder(paths.data), Deno.pid);
    await rejects(openUpper({ ...paths, readonly: false }), busy);
    await rejects(openUpper({ ...paths, readonly: true }), busy);
  }
  {
    using _one = await openUpper({ ...paths, readonly: true });
    using _two = await openUpper({ ...paths, readonly: true });
    await rejects(openUpper({ ...paths, readonly: false }), busy);
  }
  using _again = await openUpper({ ...paths, readonly: false });
});

Deno.test("a sealed sparse layer is not opened to be written", async () => {
  using dir = tempDir();
  const paths = { data: dir.file("data"), index: dir.file("index") };
  const size = 8192;
  Deno.writeFileSync(
    paths.data,
    concat(
      encodeLsmtBlock({ flags: 0x13, virtualSize: size }),
      new Uint8Array(size),
      recordBytes([{ lba: 0, n: 16, at: 8 }]),
      new Uint8Array(496),
      encodeLsmtBlock({
        flags: 0x16,
        virtualSize: size,
        indexOffset: BLOCK + size,
        indexSize: 1,
      }),
    ),
  );
  Deno.writeFileSync(paths.index, new Uint8Array());
  const before = Deno.readFileSync(paths.data);
  await rejects(openUpper({ ...paths, readonly: false }), /it is sealed/);
  deepEqual(Deno.readFileSync(paths.data), before);
});

Deno.test("a missing file keeps its errno", async () => {
  using dir = tempDir();
  const paths = put(dir, logBytes());
  const missing = { ...paths, index: dir.file("none"), readonly: true };
  await rejects(
    openUpper(missing),
    (error) => error instanceof EngineError && error.code === "ENOENT",
  );
  // And the lock is gone with the failed attempt.
  using _ = await openUpper({ ...paths, readonly: false });
});

Deno.test("an index with group commits maps the same as one without", {
  ignore: !haveFixtures,
}, async () => {
  const dump = async (index: string) => {
    using upper = await openUpper({
      data: fixture("03-rw-data/rw.data"),
      index: fixture(`03-rw-data/${index}`),
      readonly: true,
    });
    using map = snapshotUpper(upper.upper);
    return indexRecords(map, 0, 10000).toHex();
  };
  equal(await dump("rw.index"), await dump("rwg.index"));
});
