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
const COMPRESSED: Readonly<Record<string, string[]>> = {
  "erofs, compressed": ["-zlz4hc", "-C65536", "-Eztailpacking"],
  "erofs, compressed, legacy": ["-zlz4hc", "-Elegacy-compress"],
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

/** Files that compress well, not at all, in parts; ends of every kind. */
function makeTexts(root: string): string[] {
  makeTree(root);
  const text = (n: number) =>
    new TextEncoder().encode(
      Array.from({ length: n }, (_, i) => `line ${i * i % 997}\n`).join(""),
    );
  const mixed = new Uint8Array(900_000);
  for (let i = 0; i * 30_000 < mixed.length; i++) {
    const part = i % 3 === 0 ? bytesOf(i, 30_000) : text(30_000);
    mixed.set(part.subarray(0, 30_000), i * 30_000);
  }
  const made: Record<string, Uint8Array> = {
    text: text(100_000),
    short: text(1000),
    mixed,
    zeros: new Uint8Array(5_000_000),
    ...Object.fromEntries(
      Array.from({ length: 12 }, (_, i) => [`n${i}`, text(300 + i * 1777)]),
    ),
  };
  for (const [name, bytes] of Object.entries(made)) {
    Deno.writeFileSync(`${root}/${name}`, bytes);
  }
  return Object.keys(made);
}

/** Neighbours on the disk as one, in the order of the file. */
function joined(parts: readonly (readonly [number, number])[]) {
  const runs: [number, number][] = [];
  for (const [at, end] of parts) {
    const last = runs.at(-1);
    if (last?.[1] === at) last[1] = end;
    else runs.push([at, end]);
  }
  return runs;
}

/** Where dump.erofs says that a file lies. */
async function dumped(image: string, nid: number) {
  const dump = await mustRun("dump.erofs", ["-e", `--nid=${nid}`, image]);
  // "   0:        0..    4096 |    4096 :     8192..   12288 |  4096"
  const parts = [...dump.matchAll(/\|\s*\d+ :\s*(\d+)\.\.\s*(\d+) \|/g)]
    .map(([, from, to]) => [Number(from), Number(to)] as const);
  ok(parts.length > 0, dump);
  return joined(parts);
}

const placed = async (node: FsNode | undefined) =>
  (await node?.runs() ?? []).map(({ at, length }) => [at, at + length]);

Deno.test({
  name: `the clusters of a compressed EROFS file are found${needsErofs}`,
  ignore: !haveErofs,
  async fn(t) {
    using dir = tempDir();
    const root = dir.file("root");
    const files = makeTexts(root);
    for (
      const options of [
        ["-zlz4hc"],
        ["-zlz4hc", "-C65536"],
        ["-zlz4hc", "-Elegacy-compress"],
        ["-zlz4hc", "-C65536", "-Elegacy-compress"],
        ["-zlz4hc", "-Eztailpacking"],
        ["-zlz4hc", "-C65536", "-Eztailpacking"],
        ["-zlz4hc", "-Eztailpacking,legacy-compress"],
        ["-zlz4hc", "-Eforce-inode-extended", "--max-extent-bytes=65536"],
      ]
    ) {
      await t.step(options.join(" "), async () => {
        const image = dir.file("disk");
        const read = memoryDisk(await makeDisk("erofs", options, root, image));
        const tree = createTree(await open(read), read);
        for (const name of files) {
          const node = await tree.find(name);
          deepEqual(
            await placed(node),
            await dumped(image, node?.id ?? -1),
            name,
          );
        }
        Deno.removeSync(image);
      });
    }
  },
});

Deno.test({
  name: `fragments of EROFS files lie in the packed inode${needsErofs}`,
  ignore: !haveErofs,
  async fn() {
    using dir = tempDir();
    const root = dir.file("root");
    makeTexts(root);
    const SUPERBLOCK = 1024;
    const FRAGMENT_TAIL = 0x20;
    for (const legacy of [false, true]) {
      const disk = await makeDisk(
        "erofs",
        ["-zlz4hc", ...(legacy ? ["-Elegacy-compress"] : [])],
        root,
        dir.file("disk"),
      );
      const before = memoryDisk(disk.slice());
      const tree = createTree(await open(before), before);
      const find = async (name: string) => {
        const node = await tree.find(name);
        ok(node !== undefined);
        return node;
      };
      const [packed, whole, part] = [
        await find("mixed"),
        await find("short"),
        await find("text"),
      ];
      const v = new DataView(disk.buffer);
      v.setUint32(
        SUPERBLOCK + 80,
        v.getUint32(SUPERBLOCK + 80, true) | 0x20,
        true,
      );
      v.setBigUint64(SUPERBLOCK + 96, BigInt(packed.id), true);
      const meta = v.getUint32(SUPERBLOCK + 40, true) * 4096;
      /** The header of a file's index. */
      const header = ({ id }: FsNode) => {
        const at = meta + id * 32;
        const wide = (v.getUint16(at, true) & 1) !== 0;
        return at + (wide ? 64 : 32);
      };
      const OFFSET = 123_456;
      v.setBigUint64(header(whole), 1n << 63n | BigInt(OFFSET), true);
      v.setUint32(header(part), OFFSET, true);
      v.setUint16(
        header(part) + 4,
        v.getUint16(header(part) + 4, true) | FRAGMENT_TAIL,
        true,
      );
      const partRuns = await part.runs();
      if (legacy) {
        // There the address of the last head is the offset's high half.
        const index = header(part) + 16;
        for (let i = Math.ceil(part.size / 4096) - 1; i >= 0; i--) {
          const begins = i * 4096 + v.getUint16(index + i * 8 + 2, true);
          const inner = (v.getUint16(index + i * 8, true) & 3) === 2;
          if (inner || begins >= part.size) continue;
          v.setUint32(index + i * 8 + 4, 0, true);
          break;
        }
      }
      const after = memoryDisk(disk);
      const changed = createTree(await open(after), after);
      const packedRuns = await packed.runs();
      const inside = (at: number) =>
        packedRuns.some((run) => at >= run.at && at < run.at + run.length);
      const wholeRuns = await (await changed.find("short"))?.runs() ?? [];
      ok(wholeRuns.length > 0);
      ok(wholeRuns.every(({ at }) => inside(at)));
      const bytes = wholeRuns.reduce((sum, { length }) => sum + length, 0);
      ok(bytes < packedRuns.reduce((sum, run) => sum + run.length, 0) / 2);
      const tailRuns = await (await changed.find("text"))?.runs() ?? [];
      ok(inside(tailRuns.at(-1)?.at ?? -1));
      equal(tailRuns[0]?.at, partRuns[0]?.at);
      // Without a packed inode there is nothing to be had of them.
      v.setBigUint64(SUPERBLOCK + 96, 0n, true);
      const without = createTree(await open(after), after);
      deepEqual(await (await without.find("short"))?.runs(), []);
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
  const kind of [
    "ext2, blocks by number",
    "ext4",
    "erofs",
    "erofs in chunks",
    "erofs, compressed",
    "erofs, compressed, legacy",
  ]
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
        Deno.writeTextFileSync(
          `${root}/usr/lib/t${i}`,
          "text ".repeat(999 * i),
        );
      }
      Deno.writeFileSync(`${root}/usr/lib/block`, bytesOf(1, 4096));
      Deno.symlinkSync("usr/lib", `${root}/lib`);
      const options = { ...EXT4, ...EROFS, ...COMPRESSED }[kind] ?? [];
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
