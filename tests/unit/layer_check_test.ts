// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, match, ok, rejects } from "node:assert/strict";
import { EngineError } from "../../ffi/errors.ts";
import { encodeLsmtBlock } from "../../src/format/lsmt.ts";
import { tarHead, tarTail } from "../../src/format/tar.ts";
import { checkLayer } from "../../src/layer/check.ts";
import { inspectFile } from "../../src/layer/inspect.ts";
import { fixture, haveFixtures, tempDir } from "../lib/env.ts";
import { BLOCK, concat, layerBytes, logBytes, PADDING } from "./layer_files.ts";

const ignore = !haveFixtures;

/** `severity code` of what is found in bytes. */
async function check(bytes: Uint8Array): Promise<string[]> {
  using dir = tempDir("memory");
  Deno.writeFileSync(dir.file("f"), bytes);
  return (await checkLayer(dir.file("f")))
    .map(({ severity, code }) => `${severity} ${code}`);
}

function patched(bytes: Uint8Array, at: number, value: number): Uint8Array {
  const copy = bytes.slice();
  copy[at < 0 ? copy.length + at : at] = value;
  return copy;
}

Deno.test("a sound layer has no findings", async () => {
  deepEqual(await check(layerBytes()), []);
  const bytes = layerBytes();
  const { length } = bytes;
  deepEqual(
    await check(concat(tarHead(length, 0o100644), bytes, tarTail(length))),
    [],
  );
});

Deno.test("every rule that makes a layer unreadable is an error", async () => {
  for (
    const bytes of [
      new Uint8Array(0),
      new Uint8Array(8192),
      layerBytes().slice(0, -1),
      layerBytes({ trailer: { indexOffset: 8704 } }),
      layerBytes({ records: [{ lba: 0, n: 9, at: 8 }] }),
    ]
  ) deepEqual(await check(bytes), ["error format"]);
});

Deno.test("what readers forgive is said, and no error", async () => {
  const tagged = [{ lba: 5, n: 8, at: 8, tag: 2 }];
  const cases: [string[], Uint8Array][] = [
    [["note tags"], layerBytes({ records: tagged })],
    [
      ["note padding"],
      layerBytes({ records: [PADDING, { lba: 5, n: 8, at: 8 }] }),
    ],
    [["warning uuid"], layerBytes({ trailer: { uuid: "nonsense" } })],
    [["note size-differs"], layerBytes({ header: { virtualSize: 0 } })],
    [["note sealed"], layerBytes({ header: { flags: 3 } })],
    [["note reserved"], patched(layerBytes(), 400, 1)],
    [["note reserved"], patched(layerBytes(), -1, 1)],
    [["note gap"], patched(layerBytes({ gap: 496 }), -BLOCK - 1, 1)],
    [
      ["warning tar-end"],
      concat(tarHead(layerBytes().length, 0o100644), layerBytes()),
    ],
  ];
  for (const [wanted, bytes] of cases) deepEqual(await check(bytes), wanted);
});

Deno.test("files of a writable layer are told apart and looked at", async () => {
  const { data, index } = logBytes();
  deepEqual(await check(data), ["note writable"]);
  deepEqual(await check(index), ["note writable"]);
  deepEqual(await check(concat(index, new Uint8Array(3))), [
    "note writable",
    "warning torn",
  ]);
  const sparse = encodeLsmtBlock({ flags: 0x13, virtualSize: 4096 });
  deepEqual(await check(concat(sparse, new Uint8Array(4096))), [
    "note writable",
  ]);
  deepEqual(await check(concat(sparse, new Uint8Array(9000))), [
    "note writable",
    "warning sparse-size",
  ]);
});

Deno.test("what cannot be read is no verdict", async () => {
  using dir = tempDir();
  const code = (wanted: string) => (error: unknown) =>
    error instanceof EngineError && error.code === wanted;
  await rejects(checkLayer(dir.file("none")), code("ENOENT"));
  await rejects(checkLayer(dir.path), (error) => error instanceof EngineError);
  if (!haveFixtures) return;
  const stopped = { signal: AbortSignal.abort() };
  await rejects(
    checkLayer(fixture("04-commit/tagged.lz4.zf"), stopped),
    code("ECANCELED"),
  );
});

Deno.test("every file of the original is sound", { ignore }, async () => {
  for (
    const [name, ...wanted] of [
      ["04-commit/plain.lsmt"],
      ["04-commit/tagged.lz4.zf"],
      ["05-sealed/sealed.lsmt", "sealed"],
      ["06-zfile/lz4-4k.nocrc.zf", "no-block-crc"],
      ["06-zfile/zstd-64k.crc.zf"],
      [
        "06-zfile/incompressible.lz4-64k.UNREADABLE-BY-UPSTREAM.zf",
        "block-too-long",
      ],
      ["08-tar/commit-zstd16k.tar"],
      ["09-stack/u1.lsmt"],
      ["10-merge/merged.lsmt", "tags"],
      ["11-extents/huge.lsmt"],
      ["12-ext4-apply/e2.zstd16k.zf"],
    ] as const
  ) {
    const found = await checkLayer(fixture(name));
    ok(found.every((f) => f.severity !== "error"), name);
    deepEqual(found.map((f) => f.code).sort(), wanted, name);
  }
});

Deno.test(
  "one flipped bit anywhere in a ZFile is found",
  { ignore },
  async () => {
    const whole = Deno.readFileSync(fixture("04-commit/tagged.lz4.zf"));
    const size = whole.length;
    const jump = size - 512 - 4 * 167;
    for (const at of [40, 200, 600, 5000, size >> 1, jump - 9, jump + 3]) {
      const found = await check(patched(whole, at, (whole[at] ?? 0) ^ 4));
      ok(found.some((f) => f.startsWith("error")), `byte ${at}: ${found}`);
    }
    // The header counts here: a bad trailer is only worth a warning.
    const found = await check(patched(whole, -512 + 60, 1));
    deepEqual(found, ["warning trailer"]);
  },
);

Deno.test(
  "a bad block is named with its place in the file",
  { ignore },
  async () => {
    using dir = tempDir();
    const bytes = Deno.readFileSync(fixture("08-tar/commit-lz4.tar"));
    bytes[1536 + 512 + 5] = (bytes[1536 + 512 + 5] ?? 0) ^ 1;
    Deno.writeFileSync(dir.file("f"), bytes);
    const [first] = await checkLayer(dir.file("f"));
    equal(first?.code, "block");
    match(first?.where ?? "", /, byte 2048$/);
    match(first?.text ?? "", /^block 0 \(/);
  },
);

Deno.test("inspect tells each kind, and every field", { ignore }, async () => {
  const kinds = {
    "01-rw-empty/vs1g.data": "writable-log",
    "01-rw-empty/vs1g.index": "writable-index",
    "03-rw-data/rwg.index": "writable-index",
    "04-commit/plain.lsmt": "committed",
    "05-sealed/sealed.lsmt": "sealed",
    "06-zfile/lz4-4k.crc.zf": "zfile",
    "08-tar/commit-lz4.tar": "committed",
  };
  for (const [name, kind] of Object.entries(kinds)) {
    const report = await inspectFile(fixture(name));
    equal(report.kind, kind, name);
    equal(report.fileSize, Deno.statSync(fixture(name)).size);
  }
  const report = await inspectFile(fixture("04-commit/tagged.lz4.zf"));
  equal(report.userTag, "user tag: build 42");
  equal(report.uuid, "33333333-3333-4333-8333-333333333333");
  equal(report.parentUuid, "22222222-2222-4222-8222-222222222222");
  equal(report.virtualSize, 1n << 20n);
  equal(report.zfile?.originalBytes, 683008);
  equal(report.zfile?.storedBytes, 428418);
  const lines = Deno.readTextFileSync(fixture("04-commit/plain.segs.txt"))
    .trim().split("\n").map((line) => line.split(" ").map(Number));
  const sum = (zeroed: number) =>
    lines.filter((l) => l[3] === zeroed)
      .reduce((n, l) => n + 512 * (l[1] ?? 0), 0);
  deepEqual(report.index, {
    records: lines.length,
    padding: 256 - lines.length,
    dataRecords: lines.filter((l) => l[3] === 0).length,
    zeroedRecords: lines.filter((l) => l[3] === 1).length,
    dataBytes: sum(0),
    zeroedBytes: sum(1),
    extent: lines.map((l) => 512 * ((l[0] ?? 0) + (l[1] ?? 0))).at(-1),
  });
});
