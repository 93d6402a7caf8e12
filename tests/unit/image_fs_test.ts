// SPDX-License-Identifier: Apache-2.0
/**
 * Finding files on disks that mke2fs and mkfs.erofs made.
 *
 * @module
 */
import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { Buffer } from "node:buffer";
import { existsSync } from "node:fs";
import fc from "fast-check";
import { FormatError } from "../../src/format/error.ts";
import { openFileSystem as open } from "../../src/image/file_list.ts";
import { openErofs } from "../../src/image/fs/erofs.ts";
import { openExt4 } from "../../src/image/fs/ext4.ts";
import {
  createTree,
  type FsNode,
  type ReadDisk,
} from "../../src/image/fs/tree.ts";
import { mustRun, tempDir } from "../lib/env.ts";

const haveErofs = existsSync("/usr/bin/mkfs.erofs");
const needsErofs = haveErofs ? "" : " (needs mkfs.erofs)";

/** A disk in memory; `left` bounds how much of it is looked at. */
function memoryDisk(bytes: Uint8Array, left = Infinity): ReadDisk {
  return (at, length) => {
    if (left-- <= 0) throw new FormatError("that is enough");
    if (!(at >= 0 && at + length <= bytes.length)) {
      return Promise.reject(new FormatError("outside the disk"));
    }
    return Promise.resolve(bytes.slice(at, at + length));
  };
}

/** Bytes are the same; quicker than deepEqual. */
function same(got: Uint8Array, expected: Uint8Array, what?: string): void {
  equal(Buffer.compare(got, expected), 0, what);
}

/** What a file holds by its runs; holes are zeros. */
async function contentOf(read: ReadDisk, node: FsNode): Promise<Uint8Array> {
  const bytes = new Uint8Array(node.size);
  for (const { from, at, length } of await node.runs()) {
    bytes.set(await read(at, Math.min(length, node.size - from)), from);
  }
  return bytes;
}

function bytesOf(seed: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let x = seed * 7919 + 1;
  for (let i = 0; i < length; i++) {
    x = (x * 1103515245 + 12345) & 0x7fffffff;
    bytes[i] = x >> 16;
  }
  return bytes;
}

const FILES: Readonly<Record<string, Uint8Array>> = {
  "empty": new Uint8Array(0),
  "one": Uint8Array.of(7),
  "usr/lib/block": bytesOf(1, 4096),
  "usr/lib/tail": bytesOf(2, 4097),
  "usr/lib/two blocks, a space": bytesOf(3, 8192),
  "usr/bin/c++@2.0": bytesOf(4, 100_000),
  "größe/données": bytesOf(5, 3000),
  "long/large": bytesOf(6, 1_500_000),
  "many/end": bytesOf(7, 10),
};
const SPARSE = { name: "sparse", size: 3_000_000, at: 1_000_000, bytes: 5000 };
const MANY = 1500;

/** A tree with all of it, and links. */
function makeTree(root: string): void {
  for (const [name, bytes] of Object.entries(FILES)) {
    const path = `${root}/${name}`;
    Deno.mkdirSync(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    Deno.writeFileSync(path, bytes);
  }
  for (let i = 0; i < MANY; i++) {
    Deno.writeTextFileSync(`${root}/many/file-number-${i}`, `${i}`);
  }
  using sparse = Deno.openSync(`${root}/${SPARSE.name}`, {
    write: true,
    create: true,
  });
  sparse.truncateSync(SPARSE.size);
  sparse.seekSync(SPARSE.at, Deno.SeekMode.Start);
  sparse.writeSync(bytesOf(8, SPARSE.bytes));
  Deno.symlinkSync("usr/lib", `${root}/lib`);
  Deno.symlinkSync("/usr/bin/../lib/block", `${root}/absolute`);
  Deno.symlinkSync("x/".repeat(200), `${root}/nowhere`);
  Deno.symlinkSync("loop", `${root}/loop`);
  Deno.linkSync(`${root}/usr/lib/tail`, `${root}/hard`);
}

const names = (text: string) =>
  [...new TextEncoder().encode(text)].map((b) => String.fromCharCode(b))
    .join("");

async function checkTree(read: ReadDisk): Promise<void> {
  const fs = await open(read);
  const tree = createTree(fs, read);
  for (const [name, bytes] of Object.entries(FILES)) {
    const node = await tree.find(`/${names(name)}`);
    equal(node?.kind, "file", name);
    if (node !== undefined) same(await contentOf(read, node), bytes, name);
  }
  const sparse = await tree.find("sparse");
  ok(sparse !== undefined);
  const expected = new Uint8Array(SPARSE.size);
  expected.set(bytesOf(8, SPARSE.bytes), SPARSE.at);
  same(await contentOf(read, sparse), expected);
  if (fs.type === "ext4") {
    const held = (await sparse.runs()).reduce(
      (sum, run) => sum + run.length,
      0,
    );
    ok(held < 20_000, `holes are left out: ${held}`);
  }
  for (
    const path of ["lib/tail", "/lib//./tail", "usr/bin/../lib/tail", "hard"]
  ) {
    equal((await tree.find(path))?.size, 4097, path);
  }
  equal((await tree.find("../absolute"))?.size, 4096);
  for (const path of ["nowhere", "loop", "one/x", "usr/lib/tail2", "many/x"]) {
    equal(await tree.find(path), undefined, path);
  }
  equal((await tree.find(`many/file-number-${MANY - 1}`))?.size, 4);
  const all: FsNode[] = [];
  const root = await tree.find("/");
  ok(root?.kind === "directory");
  for await (const node of tree.files(root)) all.push(node);
  // The hard link is the same file; lost+found is no file.
  equal(all.length, Object.keys(FILES).length + MANY + 1);
}

const EXT4: Readonly<Record<string, string[]>> = {
  "ext4": ["-t", "ext4"],
  "ext4 of 1 KiB blocks": ["-t", "ext4", "-b", "1024"],
  "ext4 as the baselayers are": [
    ...["-t", "ext4", "-O", "^has_journal,sparse_super,flex_bg", "-G", "1"],
  ],
  "ext4 with meta_bg, 64bit, small groups": [
    ...["-t", "ext4", "-O", "meta_bg,64bit,^resize_inode", "-b", "1024"],
    ...["-g", "1024"],
  ],
  "ext4 without checksums, 32 bit": [
    ...["-t", "ext4", "-O", "^metadata_csum,^64bit", "-I", "128"],
  ],
  "ext2, blocks by number": ["-t", "ext2", "-b", "1024"],
  "ext3": ["-t", "ext3"],
};
const EROFS: Readonly<Record<string, string[]>> = {
  "erofs": [],
  "erofs without inline tails": ["-Enoinline_data"],
  "erofs in chunks": ["--chunksize=4096"],
  "erofs with wide inodes": ["-Eforce-inode-extended"],
};

async function makeDisk(
  kind: string,
  options: readonly string[],
  root: string,
  image: string,
): Promise<Uint8Array> {
  if (kind.startsWith("erofs")) {
    await mustRun("mkfs.erofs", ["--quiet", ...options, image, root]);
  } else {
    await mustRun("mke2fs", [
      ...["-q", "-F", "-N", "4096", ...options, "-d", root, image, "24M"],
    ]);
  }
  return Deno.readFileSync(image);
}

for (const [family, kinds] of Object.entries({ ext4: EXT4, erofs: EROFS })) {
  const erofs = family === "erofs";
  Deno.test({
    name: `every file of ${family} is found, byte for byte${
      erofs ? needsErofs : ""
    }`,
    ignore: erofs && !haveErofs,
    async fn(t) {
      using dir = tempDir();
      makeTree(dir.file("root"));
      for (const [kind, options] of Object.entries(kinds)) {
        await t.step(kind, async () => {
          const image = dir.file("disk");
          const bytes = await makeDisk(kind, options, dir.file("root"), image);
          await checkTree(memoryDisk(bytes));
          Deno.removeSync(image);
        });
      }
    },
  });
}

Deno.test({
  name: `the blocks of a compressed EROFS file are found${needsErofs}`,
  ignore: !haveErofs,
  async fn() {
    using dir = tempDir();
    const root = dir.file("root");
    makeTree(root);
    Deno.writeTextFileSync(`${root}/text`, "some text. ".repeat(100_000));
    Deno.writeTextFileSync(`${root}/short`, "some text. ".repeat(1000));
    for (
      const options of [
        ["-zlz4hc"],
        ["-zlz4hc", "-C65536"],
        ["-zlz4hc", "-Elegacy-compress"],
      ]
    ) {
      const image = dir.file(`disk${options.length}`);
      const read = memoryDisk(await makeDisk("erofs", options, root, image));
      const tree = createTree(await open(read), read);
      for (const name of ["text", "short"]) {
        const node = await tree.find(name);
        ok(node !== undefined);
        const dump = await mustRun("dump.erofs", [
          ...["-e", `--nid=${node.id}`, image],
        ]);
        // "   0:        0..    4096 |    4096 :     8192..   12288 |  4096"
        const parts = [
          ...dump.matchAll(/\|\s*\d+ :\s*(\d+)\.\.\s*(\d+) \|/g),
        ].map(([, from, to]) => [Number(from), Number(to)] as const);
        ok(parts.length > 0, dump);
        const [run, ...more] = await node.runs();
        equal(more.length, 0);
        deepEqual(
          [run?.at, (run?.at ?? 0) + (run?.length ?? 0)],
          [parts[0]?.[0], parts.at(-1)?.[1]],
          `${options} ${name}`,
        );
      }
    }
  },
});

Deno.test("a file of more than 8192 extents is found whole", async () => {
  using dir = tempDir();
  const root = dir.file("root");
  Deno.mkdirSync(root);
  const BLOCK = 4096;
  const EXTENTS = 8300;
  const expected = new Uint8Array(2 * BLOCK * EXTENTS);
  {
    using file = Deno.createSync(`${root}/holes`);
    for (let i = 0; i < EXTENTS; i++) {
      const at = 2 * i * BLOCK;
      expected.fill(1 + i % 255, at, at + BLOCK);
      file.seekSync(at, Deno.SeekMode.Start);
      file.writeSync(expected.subarray(at, at + BLOCK));
    }
    file.truncateSync(expected.length);
  }
  const image = dir.file("disk");
  await mustRun("mke2fs", [
    ...["-q", "-F", "-t", "ext4", "-d", root, image, "48M"],
  ]);
  const read = memoryDisk(Deno.readFileSync(image));
  const node = await createTree(await open(read), read).find("holes");
  ok(node !== undefined);
  ok((await node.runs()).length >= EXTENTS);
  same(await contentOf(read, node), expected);
});

Deno.test("a disk without a file system that is known is told", async () => {
  const read = memoryDisk(new Uint8Array(65536));
  await rejects(openErofs(read), FormatError);
  await rejects(openExt4(read), FormatError);
});

/** Walks everything there is; damage ends it, and nothing else may. */
async function walkAll(bytes: Uint8Array): Promise<void> {
  const read = memoryDisk(bytes, 3000);
  try {
    const fs = await open(read);
    const tree = createTree(fs, read);
    await tree.find("usr/lib/block");
    const root = await fs.node(fs.root);
    for await (const file of tree.files(root)) {
      for (const { at, length } of await file.runs()) {
        ok(Number.isInteger(at) && at >= 0 && Number.isInteger(length));
      }
    }
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
  }
}

for (
  const kind of ["ext2, blocks by number", "ext4", "erofs", "erofs in chunks"]
) {
  const erofs = kind.startsWith("erofs");
  Deno.test({
    name: `property: a hostile ${kind} disk ends in an error or in answers${
      erofs ? needsErofs : ""
    }`,
    ignore: erofs && !haveErofs,
    async fn() {
      using dir = tempDir();
      const root = dir.file("root");
      Deno.mkdirSync(`${root}/usr/lib`, { recursive: true });
      for (let i = 0; i < 20; i++) {
        Deno.writeFileSync(`${root}/usr/lib/${i}`, bytesOf(i, 3000 * i));
      }
      Deno.writeFileSync(`${root}/usr/lib/block`, bytesOf(1, 4096));
      Deno.symlinkSync("usr/lib", `${root}/lib`);
      const options = { ...EXT4, ...EROFS }[kind] ?? [];
      const image = dir.file("disk");
      if (erofs) await makeDisk(kind, options, root, image);
      else {
        await mustRun("mke2fs", [
          ...["-q", "-F", ...options, "-d", root, image, "1M"],
        ]).catch(() =>
          mustRun("mke2fs", ["-q", "-F", ...options, "-d", root, image, "4M"])
        );
      }
      const good = Deno.readFileSync(image);
      const byte = fc.oneof(
        fc.integer({ min: 1024, max: 4096 }),
        fc.nat(Math.min(good.length, 300_000) - 1),
      );
      const change = fc.tuple(
        byte,
        fc.oneof(fc.constantFrom(0, 0xff, 0x7f, 0x80), fc.nat(255)),
      );
      await fc.assert(
        fc.asyncProperty(
          fc.array(change, { minLength: 1, maxLength: 60 }),
          async (changes) => {
            const bytes = good.slice();
            for (const [at, value] of changes) bytes[at] = value;
            await walkAll(bytes);
          },
        ),
        { numRuns: Deno.env.has("OVERLAYBD_SOAK") ? 5000 : 150 },
      );
    },
  });
}
