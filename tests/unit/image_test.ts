// SPDX-License-Identifier: Apache-2.0
import {
  deepStrictEqual as equal,
  ok,
  rejects,
  throws,
} from "node:assert/strict";
import { existsSync } from "node:fs";
import { readDeviceSync, writeDevice } from "../../ffi/device.ts";
import { checkImage } from "../../src/image/check.ts";
import {
  ConfigError,
  decodeImageConfig,
  parseImageConfig,
  readImageConfig,
} from "../../src/image/config.ts";
import { diffDisks } from "../../src/image/diff.ts";
import { openDisk } from "../../src/image/disk.ts";
import { ImageError } from "../../src/image/error.ts";
import { openImage, openStack } from "../../src/image/image.ts";
import { mapStack } from "../../src/image/map.ts";
import { createUpper } from "../../src/layer/create.ts";
import { sha256, type TempDir, tempDir } from "../lib/env.ts";
import { layerBytes } from "./layer_files.ts";

const MiB = 1 << 20;

/** A config as openStack takes it. */
function config(value: unknown) {
  return parseImageConfig(value, "test.json");
}

/** Writes a hand-made layer of 1 MiB and returns its path. */
function layer(
  dir: TempDir,
  name: string,
  parts: Parameters<typeof layerBytes>[0] = {},
): string {
  const path = dir.file(name);
  Deno.writeFileSync(path, layerBytes(parts));
  return path;
}

async function upper(dir: TempDir, size: number) {
  const files = { data: dir.file("u.data"), index: dir.file("u.index") };
  await createUpper({ ...files, virtualSize: BigInt(size), kind: "log" });
  return files;
}

Deno.test("a wrong type names the key, its value and what was expected", () => {
  const cases: [unknown, RegExp][] = [
    [[], /test\.json: the file: expected object, got \[\]/],
    [{ lowers: {} }, /lowers: expected array, got \{\}/],
    [
      { lowers: [{}, { file: 7 }] },
      /lowers\[1\]\.file: expected string, got 7/,
    ],
    [{ lowers: [{ size: "12" }] }, /lowers\[0\]\.size: expected .*, got "12"/],
    [{ lowers: [{ size: -1 }] }, /size: expected a number of at least 0/],
    [{ upper: [] }, /upper: expected object/],
    [{ download: { enable: 1 } }, /download\.enable: expected boolean, got 1/],
  ];
  for (const [value, text] of cases) {
    throws(() => config(value), (error) => {
      ok(error instanceof ConfigError);
      ok(text.test(error.message), error.message);
      return true;
    });
  }
});

Deno.test("absent and null lists, empty uppers and unknown keys are legal", () => {
  equal(config({}).lowers, []);
  equal(config({ lowers: null }).lowers, []);
  const kept = config({ upper: { vsize: 64 }, mine: { a: 1 } });
  equal(kept["mine"], { a: 1 });
  equal(kept.upper?.["vsize"], 64);
  equal(config({ download: {} }).download?.delay, 300);
});

Deno.test("of a key that is there twice the first counts", () => {
  const text = '{"lowers":[{"file":"/a","file":"/b"}],"lowers":[]}';
  const { lowers } = decodeImageConfig(new TextEncoder().encode(text), "c");
  equal(lowers.map(({ file }) => file), ["/a"]);
});

Deno.test("an unreadable config says why", async () => {
  using dir = tempDir();
  const path = dir.file("c.json");
  await rejects(readImageConfig(path), /no such file/);
  const bad: [Uint8Array | string, RegExp][] = [
    ["", /the file is empty/],
    ["{", /cannot parse image config/],
    ['{"a": 1,}', /cannot parse image config/],
    [Uint8Array.of(0x7b, 0xff), /not UTF-8/],
  ];
  for (const [bytes, text] of bad) {
    if (typeof bytes === "string") Deno.writeTextFileSync(path, bytes);
    else Deno.writeFileSync(path, bytes);
    await rejects(readImageConfig(path), text);
  }
});

Deno.test("a lower is its file, else what its directory has, in order", async () => {
  using dir = tempDir();
  const sub = dir.file("l");
  Deno.mkdirSync(sub);
  const uuid = (n: number) => `0000000${n}-0000-4000-8000-000000000000`;
  const at = (path: string, n: number) =>
    Deno.writeFileSync(path, layerBytes({ trailer: { uuid: uuid(n) } }));
  const opened = async () => {
    using stack = await openStack(
      config({ lowers: [{ file: dir.file("f"), dir: sub }] }),
    );
    return stack.lowers[0]?.trailer.uuid;
  };
  await rejects(opened(), /lowers\[0\]: nothing at/);
  for (
    const [i, name] of [
      "l/overlaybd.sealed",
      "l/.commit",
      "l/overlaybd.commit",
      "f",
    ].entries()
  ) {
    at(dir.file(name), i);
    equal(await opened(), uuid(i));
  }
});

const AT_ROOT = "/overlaybd.commit";

Deno.test({
  name: "an empty dir is not the root directory (needs root)",
  ignore: Deno.uid() !== 0 || existsSync(AT_ROOT),
  async fn() {
    using dir = tempDir();
    Deno.copyFileSync(layer(dir, "l"), AT_ROOT);
    try {
      await rejects(openStack(config({ lowers: [{ dir: "" }] })), (error) => {
        ok(error instanceof ImageError);
        equal(error.resultText, "empty repoBlobUrl");
        return true;
      });
    } finally {
      Deno.removeSync(AT_ROOT);
    }
  },
});

Deno.test("neither lowers nor a complete upper is an error", async () => {
  for (
    const upper of [undefined, {}, { data: "/x" }, { index: "/x" }] as const
  ) {
    const value = upper === undefined ? {} : { upper };
    await rejects(openStack(config(value)), /neither lowers nor an upper/);
  }
});

Deno.test("an upper with only one of its files leaves the image read-only", async () => {
  using dir = tempDir();
  const lowers = [{ file: layer(dir, "l") }];
  for (const upper of [{ data: "/x" }, { index: "/x" }]) {
    await using image = await openImage(config({ lowers, upper }));
    ok(image.readonly);
  }
});

Deno.test("a layer with a target is refused, never read without it", async () => {
  using dir = tempDir();
  const file = layer(dir, "l");
  for (
    const target of [{ targetFile: file }, { targetDigest: "sha256:00" }]
  ) {
    const lowers = [{ file }, { file, ...target, gzipIndex: file }];
    await rejects(openStack(config({ lowers })), (error) => {
      ok(error instanceof ImageError);
      ok(/^cannot open lowers\[1\]: .*turboOCI/.test(error.message));
      equal(error.resultText, "failed to open layer 1");
      return true;
    });
  }
  const files = await upper(dir, MiB);
  await rejects(
    openStack(config({ upper: { ...files, target: file } })),
    /cannot open upper: it has a target \(turboOCI\)/,
  );
});

Deno.test("a pipe for a file is refused: whoever opens it may wait for ever", async () => {
  using dir = tempDir();
  const pipe = dir.file("pipe");
  new Deno.Command("mkfifo", { args: [pipe] }).outputSync();
  const files = await upper(dir, MiB);
  for (
    const value of [
      { lowers: [{ file: pipe }] },
      { upper: { ...files, data: pipe } },
      { upper: { ...files, index: pipe } },
    ]
  ) {
    for (const readonly of [false, true]) {
      await rejects(openStack(config(value), { readonly }), /illegal seek/);
    }
  }
  await rejects(readImageConfig(pipe), ConfigError);
});

Deno.test("a damaged lower is named with its place and its file", async () => {
  using dir = tempDir();
  const good = layer(dir, "good");
  const bad = dir.file("bad");
  Deno.writeTextFileSync(bad, "x".repeat(9000));
  await rejects(
    openStack(config({ lowers: [{ file: good }, { file: bad }] })),
    (error) => {
      ok(error instanceof ImageError);
      ok(error.message.startsWith("cannot open lowers[1]: "), error.message);
      equal(error.resultText, `failed to open local file ${bad}`);
      return true;
    },
  );
});

Deno.test("what cannot be opened is named among any number of lowers", async () => {
  using dir = tempDir();
  const good = { file: layer(dir, "l") };
  for (const count of [1, 32, 33, 100]) {
    for (const at of new Set([0, count - 1])) {
      const lowers = Array.from({ length: count }, () => good);
      (await openStack(config({ lowers }))).close();
      lowers[at] = { file: dir.file("none") };
      await rejects(
        openStack(config({ lowers })),
        new RegExp(`^ImageError: cannot open lowers\\[${at}\\]: `),
      );
    }
  }
});

Deno.test("255 lowers stack, 256 are refused", async () => {
  using dir = tempDir();
  const file = layer(dir, "l");
  const lowers = Array.from({ length: 255 }, () => ({ file }));
  (await openStack(config({ lowers }))).close();
  await rejects(
    openStack(config({ lowers: [...lowers, { file }] })),
    /cannot stack 256 lowers: at most 255/,
  );
});

Deno.test("the size is that of the topmost layer that has one", async () => {
  using dir = tempDir();
  const sized = (name: string, virtualSize: number) => ({
    file: layer(dir, name, { trailer: { virtualSize } }),
  });
  const odd = [sized("odd", MiB + 1023)];
  using whole = await openStack(config({ lowers: odd }));
  equal(whole.virtualSize, BigInt(MiB + 512), "a last sector in part");
  const lowers = [sized("a", 4 * MiB), sized("b", 2 * MiB), sized("c", 0)];
  using stack = await openStack(config({ lowers }));
  equal(stack.virtualSize, BigInt(2 * MiB));
  await rejects(
    openStack(config({ lowers: [sized("d", 0)] })),
    /every virtual size is 0/,
  );
  const inheriting = await upper(dir, 0);
  using above = await openStack(config({ lowers, upper: inheriting }));
  equal(above.virtualSize, BigInt(2 * MiB));
});

Deno.test("an upper hides lowers, in reading, in the map and in the diff", async () => {
  using dir = tempDir();
  const lower = layer(dir, "l", {
    records: [{ lba: 0, n: 8, at: 8 }, { lba: 100, n: 4, at: 16 }],
    sectors: 12,
  });
  const value = { lowers: [{ file: lower }], upper: await upper(dir, MiB) };
  const image = await openImage(config(value));
  writeDevice(image.device, new Uint8Array(1024).fill(0xaa), 512);
  const read = new Uint8Array(2048);
  readDeviceSync(image.device, read, 0);
  equal([read[0], read[512], read[1535], read[1536]], [1, 0xaa, 0xaa, 4]);
  const map = [...mapStack(image.stack)];
  equal(
    map.map(({ offset, length, layer, kind }) => [
      Number(offset),
      Number(length),
      layer,
      kind,
    ]),
    [
      [0, 512, 0, "data"],
      [512, 1024, "upper", "data"],
      [1536, 2560, 0, "data"],
      [4096, 47104, null, "hole"],
      [51200, 2048, 0, "data"],
      [53248, MiB - 53248, null, "hole"],
    ],
  );
  await image.close();
  const path = dir.file("i.json");
  Deno.writeTextFileSync(path, JSON.stringify(value));
  const a = await openDisk(lower);
  const b = await openDisk(path);
  equal([a.what, b.what], ["layer", "image"]);
  const found = await Array.fromAsync(diffDisks(a, b));
  equal(found, [{ offset: 512n, length: 1024n }]);
  equal(await Array.fromAsync(diffDisks(a, a)), []);
  await a.close();
  await b.close();
});

Deno.test("a raw file of odd length is a disk with zeros behind it", async () => {
  using dir = tempDir();
  const short = dir.file("short");
  const long = dir.file("long");
  Deno.writeFileSync(short, new Uint8Array(700).fill(5));
  const bytes = new Uint8Array(4096);
  bytes.fill(5, 0, 700);
  Deno.writeFileSync(long, bytes);
  const a = await openDisk(short);
  const b = await openDisk(long);
  equal(await Array.fromAsync(diffDisks(a, b)), []);
  await b.close();
  Deno.writeFileSync(long, bytes.fill(1, 3000, 3001));
  const c = await openDisk(long);
  equal(await Array.fromAsync(diffDisks(a, c)), [
    { offset: 2560n, length: 512n },
  ]);
  await a.close();
  await c.close();
});

Deno.test("a check compares size and digest of what lies in dir", async () => {
  using dir = tempDir();
  const sub = dir.file("l");
  Deno.mkdirSync(sub);
  const bytes = layerBytes();
  Deno.writeFileSync(`${sub}/overlaybd.commit`, bytes);
  const errors = async (lower: Record<string, unknown>) =>
    (await checkImage(config({ lowers: [{ dir: sub, ...lower }] })))
      .filter((f) => f.severity === "error").map((f) => f.code);
  const digest = `sha256:${sha256(bytes)}`;
  equal(await errors({ digest, size: bytes.length }), []);
  equal(await errors({ digest, size: 1 }), ["size"]);
  equal(await errors({ digest: `sha256:${"0".repeat(64)}` }), ["digest"]);
  equal(await errors({ dir: dir.file("none") }), ["missing"]);
});
