// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, match, ok, rejects } from "node:assert/strict";
import { faultIo, IO, traceIo } from "../../ffi/files.ts";
import { EngineError } from "../../ffi/errors.ts";
import { MAX_VIRTUAL_SIZE, parseLsmtHeader } from "../../src/format/lsmt.ts";
import { createUpper } from "../../src/layer/create.ts";
import { openUpper } from "../../src/layer/upper.ts";
import { LayerError } from "../../src/layer/write.ts";
import { type TempDir, tempDir } from "../lib/env.ts";

const GIB = 1n << 30n;
const PARENT = "00112233-4455-4677-8899-aabbccddeeff";

const pathsIn = (dir: TempDir) => ({
  data: dir.file("data"),
  index: dir.file("index"),
});
const names = (dir: TempDir) =>
  [...Deno.readDirSync(dir.path)].map((entry) => entry.name).sort();
const isErrno = (code: string) => (error: unknown) =>
  error instanceof EngineError && error.code === code;

Deno.test("each kind has the files that the spec gives it", async () => {
  const sizes = {
    log: [4096, 4096],
    sparse: [4096 + Number(GIB), 0],
    raw: [Number(GIB), 0],
  } as const;
  for (const kind of ["log", "sparse", "raw"] as const) {
    using dir = tempDir();
    const paths = pathsIn(dir);
    await createUpper({ ...paths, virtualSize: GIB, kind });
    deepEqual(
      [Deno.statSync(paths.data).size, Deno.statSync(paths.index).size],
      sizes[kind],
    );
    ok((Deno.statSync(paths.data).blocks ?? 0) < 64, "holes stay holes");
    if (kind === "raw") continue;
    using upper = await openUpper({ ...paths, readonly: false });
    equal(upper.kind, kind);
    equal(upper.virtualSize, GIB);
    deepEqual(upper.warnings, []);
  }
});

Deno.test("both headers carry one random uuid and the parent upper-case", async () => {
  using dir = tempDir();
  const paths = pathsIn(dir);
  await createUpper({
    ...paths,
    virtualSize: 0n,
    kind: "log",
    parentUuid: PARENT,
  });
  const data = parseLsmtHeader(Deno.readFileSync(paths.data));
  const index = Deno.readFileSync(paths.index);
  match(data.uuid, /^[0-9A-F]{8}-[0-9A-F]{4}-4[0-9A-F]{3}-[89AB]/);
  equal(data.parentUuid, PARENT.toUpperCase());
  equal(new TextDecoder().decode(index.subarray(56, 92)), data.uuid);
});

Deno.test("an impossible size or parent uuid makes nothing", async () => {
  using dir = tempDir();
  const common = { ...pathsIn(dir), kind: "log" as const };
  for (const virtualSize of [-1n, MAX_VIRTUAL_SIZE + 1n, 1n << 70n]) {
    await rejects(createUpper({ ...common, virtualSize }), LayerError);
  }
  await rejects(
    createUpper({ ...common, virtualSize: 0n, parentUuid: "nonsense" }),
    /parent uuid "nonsense"/,
  );
  deepEqual(names(dir), []);
  await createUpper({ ...common, virtualSize: MAX_VIRTUAL_SIZE });
  using upper = await openUpper({ ...common, readonly: true });
  equal(upper.virtualSize, MAX_VIRTUAL_SIZE);
});

Deno.test("existing files are refused and stay as they are", async () => {
  using dir = tempDir();
  const paths = pathsIn(dir);
  const create = () => createUpper({ ...paths, virtualSize: GIB, kind: "log" });
  Deno.writeTextFileSync(paths.data, "mine");
  await rejects(create(), isErrno("EEXIST"));
  deepEqual(names(dir), ["data"]);
  Deno.removeSync(paths.data);
  Deno.writeTextFileSync(paths.index, "mine");
  await rejects(create(), isErrno("EEXIST"));
  equal(Deno.readTextFileSync(paths.index), "mine");
  Deno.removeSync(paths.index);
  await create();
  const before = Deno.readFileSync(paths.data);
  await rejects(create(), isErrno("EEXIST"));
  deepEqual(Deno.readFileSync(paths.data), before);
  Deno.symlinkSync("nowhere", dir.file("dangling"));
  await rejects(
    createUpper({
      data: dir.file("dangling"),
      index: dir.file("i"),
      virtualSize: 0n,
      kind: "log",
    }),
    isErrno("EEXIST"),
  );
});

Deno.test("a pristine index without data is replaced, one with records not", async () => {
  for (const kind of ["log", "sparse"] as const) {
    using dir = tempDir();
    const paths = pathsIn(dir);
    await createUpper({ ...paths, virtualSize: 0n, kind });
    Deno.removeSync(paths.data);
    await createUpper({ ...paths, virtualSize: GIB, kind: "log" });
    using upper = await openUpper({ ...paths, readonly: true });
    equal(upper.virtualSize, GIB);
    Deno.removeSync(paths.data);
    Deno.writeFileSync(paths.index, new Uint8Array(16), { append: true });
    await rejects(
      createUpper({ ...paths, virtualSize: GIB, kind: "log" }),
      isErrno("EEXIST"),
    );
  }
});

Deno.test("the index is named first, both after their bytes are on disk", async () => {
  using dir = tempDir();
  const paths = pathsIn(dir);
  const trace = dir.file("trace");
  traceIo(trace);
  try {
    await createUpper({ ...paths, virtualSize: GIB, kind: "log" });
  } finally {
    traceIo(null);
  }
  const ops = Deno.readTextFileSync(trace).trim().split("\n")
    .map((line) => line.split(" "));
  const inode = (path: string) => String(Deno.statSync(path).ino);
  const order = ops.filter(([, op]) => op === "link").map(([, , ino]) => ino);
  deepEqual(order, [inode(paths.index), inode(paths.data)]);
  for (const path of [paths.index, paths.data]) {
    const mine = ops.filter(([, , ino]) => ino === inode(path))
      .map(([, op]) => op)
      .filter((op) => op !== "open");
    deepEqual(mine, ["pwrite", "sync", "link"]);
  }
});

Deno.test("whatever fails, both files are absent afterwards", async () => {
  const EIO = 5;
  const count = {
    [IO.OPEN]: 2,
    [IO.PWRITE]: 2,
    [IO.SYNC]: 2,
    [IO.LINK]: 2,
  };
  for (const [op, times] of Object.entries(count)) {
    for (let nth = 1; nth <= times; nth++) {
      using dir = tempDir();
      faultIo(Number(op), nth, EIO);
      await rejects(
        createUpper({ ...pathsIn(dir), virtualSize: GIB, kind: "log" }),
        isErrno("EIO"),
        `operation ${op}, call ${nth}`,
      );
      faultIo(Number(op), 1, EIO, 0);
      deepEqual(names(dir), [], `operation ${op}, call ${nth}`);
    }
  }
});
