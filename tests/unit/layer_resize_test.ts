// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, rejects } from "node:assert/strict";
import { faultIo, IO } from "../../ffi/files.ts";
import { createUpper } from "../../src/layer/create.ts";
import { resizeUpper } from "../../src/layer/resize.ts";
import { BusyError, openUpper } from "../../src/layer/upper.ts";
import { LayerError } from "../../src/layer/write.ts";
import { type TempDir, tempDir } from "../lib/env.ts";

const GIB = 1n << 30n;

async function layer(dir: TempDir, kind: "log" | "sparse", virtualSize = GIB) {
  const paths = { data: dir.file("data"), index: dir.file("index") };
  await createUpper({ ...paths, virtualSize, kind });
  return paths;
}

/** Sizes and first bytes of both files. */
function state({ data, index }: { data: string; index: string }) {
  return [data, index].map((path) => {
    using file = Deno.openSync(path);
    const head = new Uint8Array(4096);
    file.readSync(head);
    return [Deno.statSync(path).size, head.toHex()];
  });
}

Deno.test("growing changes the size in every header, and nothing else", async () => {
  for (const kind of ["log", "sparse"] as const) {
    using dir = tempDir();
    const paths = await layer(dir, kind);
    const before = state(paths);
    deepEqual(
      await resizeUpper(
        paths.data,
        paths.index,
        3n * GIB,
        () => Promise.resolve(0n),
      ),
      { from: GIB, to: 3n * GIB },
    );
    const grown = state(paths);
    for (const [i, [, head]] of grown.entries()) {
      if (i === 1 && kind === "sparse") continue;
      const old = String(before[i]?.[1]);
      equal(head, `${old.slice(0, 96)}000000c000000000${old.slice(112)}`);
    }
    if (kind === "sparse") equal(grown[0]?.[0], 4096 + 3 * Number(GIB));
    using upper = await openUpper({ ...paths, readonly: true });
    equal(upper.virtualSize, 3n * GIB);
  }
});

Deno.test("a shrink is refused and touches nothing", async () => {
  using dir = tempDir();
  const paths = await layer(dir, "log");
  const before = state(paths);
  await rejects(
    resizeUpper(paths.data, paths.index, GIB - 512n, () => Promise.resolve(0n)),
    LayerError,
  );
  deepEqual(state(paths), before);
  const inherits = tempDir();
  using _ = inherits;
  const zero = await layer(inherits, "log", 0n);
  await rejects(
    resizeUpper(zero.data, zero.index, GIB, () => Promise.resolve(2n * GIB)),
    LayerError,
  );
});

Deno.test("a layer in use is refused", async () => {
  using dir = tempDir();
  const paths = await layer(dir, "log");
  using _ = await openUpper({ ...paths, readonly: true });
  await rejects(
    resizeUpper(paths.data, paths.index, 2n * GIB, () => Promise.resolve(0n)),
    BusyError,
  );
});

Deno.test("whatever fails, the old size is back", async () => {
  const EIO = 5;
  for (const kind of ["log", "sparse"] as const) {
    for (const op of [IO.PWRITE, IO.SYNC, IO.TRUNCATE]) {
      for (let nth = 1; nth <= 3; nth++) {
        using dir = tempDir();
        const paths = await layer(dir, kind);
        const before = state(paths);
        faultIo(op, nth, EIO);
        const failed = await resizeUpper(
          paths.data,
          paths.index,
          2n * GIB,
          () => Promise.resolve(0n),
        ).then(() => false, () => true);
        faultIo(op, 1, EIO, 0);
        if (failed) deepEqual(state(paths), before, `${kind} ${op} ${nth}`);
      }
    }
  }
});
