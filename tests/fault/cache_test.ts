// SPDX-License-Identifier: Apache-2.0
/**
 * The cache against everything that can happen to it: every row of
 * spec/cache.md, section 6.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { linkSync } from "node:fs";
import {
  closeFd,
  faultIo,
  IO,
  O,
  openFd,
  pwriteFd,
  truncateFd,
} from "../../ffi/files.ts";
import type { Bytes } from "../../ffi/handle.ts";
import { readSource } from "../../ffi/sources.ts";
import { lib } from "../../ffi/library.ts";
import { createDisk } from "../../src/source/cache/disk.ts";
import { openStore, presentUnits } from "../../src/source/cache/file.ts";
import { hasBit } from "../../src/source/cache/units.ts";
import { SourceError } from "../../src/source/source.ts";
import type { SourceSet } from "../../src/source/sources.ts";
import { mustRun, sha256, tempDir } from "../lib/env.ts";
import { diskOf, makeOrigin, sourcesOf } from "../lib/origin.ts";
import { generator, noise } from "../lib/random.ts";

const UNIT = 65536;
const ENOSPC = 28;
const EIO = 5;

function urlOf(content: Bytes, registry = "https://r.example"): string {
  return `${registry}/v2/a/b/blobs/sha256:${sha256(content)}`;
}

/** `assert.deepEqual` of many MiB takes seconds. */
function sameBytes(a: Bytes, b: Bytes): boolean {
  return a.length === b.length && Buffer.compare(a, b) === 0;
}

/** All of a blob, past the device: tails of less than a sector, too. */
async function readBlob(sources: SourceSet, url: string): Promise<Bytes> {
  using blob = await sources.open(url);
  await blob.prefetch(0, blob.size);
  const bytes = new Uint8Array(blob.size);
  if (blob.size > 0) assert.equal(readSource(blob.source, bytes, 0), blob.size);
  return bytes;
}

for (
  const size of [
    0,
    1,
    4095,
    4096,
    4097,
    UNIT - 1,
    UNIT,
    UNIT + 1,
    5 * UNIT,
    5 * UNIT + 4096,
  ]
) {
  Deno.test(`a blob of ${size} bytes: read, and read again without its registry`, async () => {
    using dir = tempDir();
    const content = noise(size, size);
    const url = urlOf(content);
    const origin = makeOrigin(content);
    {
      await using sources = sourcesOf(origin, dir.file("cache"));
      assert.deepEqual(await readBlob(sources, url), content);
      assert.equal(origin.delivered, size);
    }
    // What the original does: a file of the blob's name and length.
    const path = `${dir.file("cache")}/sha256:${sha256(content)}`;
    assert.deepEqual(Deno.readFileSync(path), content);
    origin.failures = Infinity;
    const before = origin.requests.length;
    await using sources = sourcesOf(origin, dir.file("cache"));
    if (size === 0) return;
    assert.deepEqual(await readBlob(sources, url), content);
    assert.equal(origin.requests.length, before);
  });
}

/** Makes a file as the original leaves it: these pages, and no others. */
function writePages(
  path: string,
  content: Bytes,
  pages: Iterable<number>,
): void {
  const PAGE = 4096;
  const fd = openFd(path, O.RDWR | O.CREAT, 0o644);
  for (const page of pages) {
    pwriteFd(fd, content.slice(page * PAGE, (page + 1) * PAGE), page * PAGE);
  }
  truncateFd(fd, content.length);
  closeFd(fd);
}

Deno.test("a file of the original: its units count, holes are fetched, in any pattern", async () => {
  const PAGES = UNIT / 4096;
  const random = generator(6);
  const UNITS = 12;
  for (let round = 0; round < 12; round++) {
    using dir = tempDir();
    const content = noise(round, UNITS * UNIT - 1000);
    const url = urlOf(content);
    const origin = makeOrigin(content);
    const pages = new Set<number>();
    const whole = new Set<number>();
    for (let unit = 0; unit < UNITS; unit++) {
      const all = random() < 0.5;
      for (let page = 0; page < PAGES; page++) {
        if (all || random() < 0.7) pages.add(unit * PAGES + page);
      }
      const has = Array.from(
        { length: PAGES },
        (_, page) => pages.has(unit * PAGES + page),
      );
      if (has.every(Boolean)) whole.add(unit);
    }
    Deno.mkdirSync(dir.file("cache"));
    writePages(
      `${dir.file("cache")}/sha256:${sha256(content)}`,
      content,
      pages,
    );
    await using sources = sourcesOf(origin, dir.file("cache"));
    assert.deepEqual(await readBlob(sources, url), content);
    const fetched = new Set<number>();
    for (const { at, length } of origin.requests) {
      if (length === 1) continue; // the size
      for (let i = at; i < at + length; i += UNIT) {
        assert(!fetched.has(i / UNIT), "fetched twice");
        fetched.add(i / UNIT);
      }
    }
    for (let unit = 0; unit < UNITS; unit++) {
      assert.equal(fetched.has(unit), !whole.has(unit), `unit ${unit}`);
    }
  }
});

Deno.test("more than a thousand extents in one range are read right", async () => {
  using dir = tempDir();
  const content = noise(7, 2500 * 8192);
  const origin = makeOrigin(content);
  Deno.mkdirSync(dir.file("cache"));
  writePages(
    `${dir.file("cache")}/sha256:${sha256(content)}`,
    content,
    Array.from({ length: 2500 }, (_, i) => 2 * i),
  );
  await using sources = sourcesOf(origin, dir.file("cache"), {
    refillSize: 4096,
  });
  assert.deepEqual(await readBlob(sources, urlOf(content)), content);
  assert(origin.delivered <= content.length / 2 + 1);
});

Deno.test("allocated is not written: unwritten extents are holes", async () => {
  using dir = tempDir();
  const path = dir.file("file");
  const disk = createDisk();
  const { fd } = await openStore(disk, path);
  truncateFd(fd, 4 * UNIT);
  assert(lib.obd_io_allocate(fd, 0, 0n, BigInt(2 * UNIT)) >= 0);
  pwriteFd(fd, noise(1, UNIT), 2 * UNIT);
  const bits = await presentUnits(disk, fd, path, 4 * UNIT, UNIT);
  closeFd(fd);
  assert.deepEqual([0, 1, 2, 3].map((i) => hasBit(bits, i)), [
    false,
    false,
    true,
    false,
  ]);
});

Deno.test("a reflink is a file like any other, a hard link too", async () => {
  using dir = tempDir();
  const content = noise(8, 3 * UNIT);
  const origin = makeOrigin(content);
  Deno.mkdirSync(dir.file("cache"));
  const path = `${dir.file("cache")}/sha256:${sha256(content)}`;
  Deno.writeFileSync(dir.file("copy"), content);
  linkSync(dir.file("copy"), path);
  await using sources = sourcesOf(origin, dir.file("cache"));
  assert.deepEqual(await readBlob(sources, urlOf(content)), content);
  assert(origin.delivered <= 1);
});

Deno.test("100 readers of one cold unit cost one request", async () => {
  using dir = tempDir();
  const content = noise(9, 20 * UNIT);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"));
  using disk = diskOf(await sources.open(urlOf(content)));
  origin.delay = 20;
  const before = origin.requests.length;
  const reads = await Promise.all(
    Array.from({ length: 100 }, (_, i) => disk.read(9 * UNIT + i * 512, 512)),
  );
  reads.forEach((got, i) => {
    const at = 9 * UNIT + i * 512;
    assert.deepEqual(got, content.slice(at, at + 512));
  });
  assert.equal(origin.requests.length, before + 1);
});

Deno.test("100 readers of a unit that fails at first: each is served, none hangs", async () => {
  using dir = tempDir();
  const content = noise(10, 20 * UNIT);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"));
  using disk = diskOf(await sources.open(urlOf(content)));
  const before = origin.requests.length;
  origin.failures = 2;
  const reads = await Promise.all(
    Array.from({ length: 100 }, () => disk.read(9 * UNIT, 512)),
  );
  for (const got of reads) {
    assert.deepEqual(got, content.slice(9 * UNIT, 9 * UNIT + 512));
  }
  assert.equal(origin.requests.length, before + 3);
});

Deno.test("an answer that ends early leaves nothing but its whole units", async () => {
  using dir = tempDir();
  const content = noise(11, 8 * UNIT);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"));
  using blob = await sources.open(urlOf(content));
  await blob.need(0, 1);
  origin.cut = 5 * UNIT + 100;
  await assert.rejects(blob.prefetch(UNIT, 7 * UNIT), SourceError);
  const there = [1, 2, 3, 4, 5, 6, 7].filter((i) => blob.has(i * UNIT, UNIT));
  assert.deepEqual(there, [1, 2, 3, 4, 5]);
  origin.cut = undefined;
  await blob.prefetch(0, blob.size);
  assert.equal(origin.requests.at(-1)?.at, 6 * UNIT);
});

Deno.test("a full cache disk: what is there stays, the rest is read past it", async () => {
  using dir = tempDir();
  const content = noise(12, 40 * UNIT);
  const origin = makeOrigin(content);
  const lines: string[] = [];
  await using sources = sourcesOf(origin, dir.file("cache"), {
    log: (line) => lines.push(line),
  });
  using blob = await sources.open(urlOf(content));
  await blob.prefetch(0, 10 * UNIT);
  const before = origin.delivered;
  // The write, and once more after making room; then the other file.
  faultIo(IO.PWRITE, 1, ENOSPC, 2);
  for (let at = 0; at < blob.size; at += UNIT) await blob.prefetch(at, UNIT);
  faultIo(IO.PWRITE, 1, 0, 0);
  const got = new Uint8Array(blob.size);
  readSource(blob.source, got, 0);
  assert.deepEqual(got, content);
  assert.equal(origin.delivered - before, 30 * UNIT);
  const said = lines.filter((line) => /cannot keep .*no space/.test(line));
  assert.equal(said.length, 1);
});

Deno.test("a disk that is full amid an answer: what has come is taken along", async () => {
  using dir = tempDir();
  const content = noise(47, 4 << 20);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"), {
    refillSize: 1 << 20,
  });
  using blob = await sources.open(urlOf(content));
  await blob.need(0, 1);
  const before = origin.requests.length;
  // The third write of the answer and one more, maybe the same again.
  faultIo(IO.PWRITE, 3, ENOSPC, 2);
  await blob.prefetch(0, blob.size);
  faultIo(IO.PWRITE, 1, 0, 0);
  assert.equal(origin.requests.length, before + 1);
  const got = new Uint8Array(blob.size);
  readSource(blob.source, got, 0);
  assert(sameBytes(got, content));
});

Deno.test("units that no disk keeps are bounded, and right all the same", async () => {
  using dir = tempDir();
  const content = noise(13, 300 << 20);
  const origin = makeOrigin(content);
  // Not a directory: nothing can be kept.
  Deno.writeTextFileSync(dir.file("cache"), "");
  await using sources = sourcesOf(origin, dir.file("cache"), {
    refillSize: 1 << 20,
  });
  using disk = diskOf(await sources.open(urlOf(content)));
  const STEP = 8 << 20;
  for (let at = 0; at < content.length; at += STEP) {
    const n = Math.min(STEP, content.length - at);
    const got = await disk.read(at, n);
    assert(sameBytes(got, content.subarray(at, at + n)), `at ${at}`);
  }
  // The first is gone again, the last is not.
  const before = origin.requests.length;
  await disk.read(content.length - UNIT, UNIT);
  assert.equal(origin.requests.length, before);
  await disk.read(0, 512);
  assert(origin.requests.length > before);
});

Deno.test("a cache file that can only be read serves what it holds", async () => {
  using dir = tempDir();
  const content = noise(14, 10 * UNIT);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  {
    await using sources = sourcesOf(origin, dir.file("cache"));
    using blob = await sources.open(url);
    await blob.prefetch(0, 4 * UNIT);
  }
  const before = origin.delivered;
  await using sources = sourcesOf(origin, dir.file("cache"));
  assert(await sources.pool.hold());
  const EROFS = 30;
  faultIo(IO.OPEN, 1, EROFS, 1);
  assert.deepEqual(await readBlob(sources, url), content);
  assert.equal(origin.delivered - before, 6 * UNIT);
});

Deno.test("a disk that fails under the cache: read again from the source", async () => {
  using dir = tempDir();
  const content = noise(15, 10 * UNIT);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"));
  using disk = diskOf(await sources.open(urlOf(content)));
  assert.deepEqual(await disk.read(0, 10 * UNIT), content);
  // Whole, it is read once more to be checked.
  const [opened] = sources.blobs().values();
  while (opened?.verified() === false) {
    await new Promise((go) => setTimeout(go, 5));
  }
  const before = origin.requests.length;
  faultIo(IO.PREAD, 1, EIO, 1);
  assert.deepEqual(await disk.read(UNIT, 512), content.slice(UNIT, UNIT + 512));
  assert.equal(origin.requests.length, before + 1);
});

Deno.test("a cache directory that is removed: open blobs go on, the next begins anew", async () => {
  using dir = tempDir();
  const content = noise(16, 10 * UNIT);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"));
  {
    using disk = diskOf(await sources.open(url));
    await disk.read(0, UNIT);
    Deno.removeSync(dir.file("cache"), { recursive: true });
    assert.deepEqual(await disk.read(0, 10 * UNIT), content);
  }
  assert.deepEqual(await readBlob(sources, url), content);
  const path = `${dir.file("cache")}/sha256:${sha256(content)}`;
  assert.deepEqual(Deno.readFileSync(path), content);
});

Deno.test("a damaged unit that stays damaged is an error, once three times fetched", async () => {
  using dir = tempDir();
  const content = noise(17, 10 * UNIT);
  const origin = makeOrigin(content);
  const lines: string[] = [];
  await using sources = sourcesOf(origin, dir.file("cache"), {
    log: (line) => lines.push(line),
  });
  using disk = diskOf(await sources.open(urlOf(content)));
  await disk.read(0, 10 * UNIT);
  const before = origin.requests.length;
  faultIo(IO.PREAD, 1, EIO, 100);
  await assert.rejects(disk.read(UNIT, 512));
  faultIo(IO.PREAD, 1, 0, 0);
  assert.equal(origin.requests.length, before + 3);
  assert.match(lines.join("\n"), /ERROR cannot read .* are damaged/);
  // Not for ever.
  assert.deepEqual(await disk.read(UNIT, 512), content.slice(UNIT, UNIT + 512));
});

Deno.test("a raw blob that is damaged on disk is found when it is whole, and fetched again", async () => {
  using dir = tempDir();
  const content = noise(18, 10 * UNIT);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  const lines: string[] = [];
  await using sources = sourcesOf(origin, dir.file("cache"), {
    log: (line) => lines.push(line),
  });
  using blob = await sources.open(url);
  await blob.prefetch(0, 5 * UNIT);
  const name = `sha256:${sha256(content)}`;
  const fd = openFd(`${dir.file("cache")}/${name}`, O.RDWR);
  pwriteFd(fd, new Uint8Array([1, 2, 3]), 2 * UNIT + 77);
  closeFd(fd);
  await blob.prefetch(0, blob.size);
  const opened = sources.blobs().get(name);
  assert.equal(await opened?.digest(), undefined);
  assert.match(lines.join("\n"), /ERROR .* all of it is fetched again/);
  assert.deepEqual(await readBlob(sources, url), content);
  assert.equal(await opened?.digest(), name);
});

Deno.test("what is evicted from a raw blob and fetched again is checked as what came first", async () => {
  using dir = tempDir();
  const content = noise(18, 10 * UNIT);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  const lines: string[] = [];
  await using sources = sourcesOf(origin, dir.file("cache"), {
    cacheSize: 2 ** 40,
    diskFloor: 0,
    log: (line) => lines.push(line),
  });
  using blob = await sources.open(url);
  await blob.prefetch(0, blob.size);
  const name = `sha256:${sha256(content)}`;
  const opened = sources.blobs().get(name);
  assert.equal(await opened?.digest(), name);
  assert.equal(opened?.verified(), true);
  await sources.pool.prune(5 * UNIT);
  assert.equal(opened?.verified(), false);
  origin.damage = 1;
  await blob.prefetch(0, blob.size);
  assert.equal(await opened?.digest(), undefined);
  assert.match(lines.join("\n"), /ERROR .* all of it is fetched again/);
  assert(sameBytes(await readBlob(sources, url), content));
  assert.equal(await opened?.digest(), name);
});

Deno.test("a blob that is closed while it is looked at has no digest, never another file's", async () => {
  using dir = tempDir();
  const content = noise(19, 64 * UNIT);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  const cache = dir.file("cache");
  {
    await using sources = sourcesOf(origin, cache);
    await readBlob(sources, url);
  }
  // Whole, as its file says, and nobody has looked yet.
  Deno.removeSync(`${cache}.state`, { recursive: true });
  await using sources = sourcesOf(origin, cache);
  const blob = await sources.open(url);
  const name = `sha256:${sha256(content)}`;
  const looking = sources.blobs().get(name)?.digest();
  blob.close();
  Deno.writeFileSync(dir.file("other"), new Uint8Array(content.length));
  const others = new Set<number>();
  for (let i = 0; i < 50; i++) {
    others.add(openFd(dir.file("other"), O.RDONLY));
    await new Promise((go) => setTimeout(go));
  }
  assert.equal(await looking, undefined);
  for (const fd of others) closeFd(fd);
});

Deno.test("a blob replaced by one of another size is an error, never mixed", async () => {
  using dir = tempDir();
  const content = noise(19, 10 * UNIT);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"));
  using disk = diskOf(await sources.open(urlOf(content)));
  assert.deepEqual(await disk.read(0, 2 * UNIT), content.slice(0, 2 * UNIT));
  origin.content = noise(20, 10 * UNIT + 512);
  await assert.rejects(disk.read(5 * UNIT, 512));
  // What is here is still what it was.
  assert.deepEqual(await disk.read(0, 2 * UNIT), content.slice(0, 2 * UNIT));
});

Deno.test("one digest through two registries: one store, either serves", async () => {
  using dir = tempDir();
  const content = noise(21, 10 * UNIT);
  const first = makeOrigin(content);
  const second = makeOrigin(content);
  await using sources = sourcesOf(first, dir.file("cache"), {
    openBlob: (url) =>
      (url.includes("one.example") ? first : second).openBlob(url),
  });
  using a = await sources.open(urlOf(content, "https://one.example"));
  using b = await sources.open(urlOf(content, "https://two.example"));
  assert.equal(a.source, b.source);
  await a.prefetch(0, 3 * UNIT);
  await b.prefetch(0, 3 * UNIT);
  assert.equal(second.requests.length, 0);
  first.failures = Infinity;
  using disk = diskOf(b);
  assert.deepEqual(
    await disk.read(8 * UNIT, 512),
    content.slice(8 * UNIT, 8 * UNIT + 512),
  );
  assert(second.requests.length > 0);
});

Deno.test("what is foreign in the directory stays, a directory of a blob's name is no obstacle", async () => {
  using dir = tempDir();
  const content = noise(22, 3 * UNIT);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  const cache = dir.file("cache");
  Deno.mkdirSync(`${cache}/sha256:${sha256(content)}/inside`, {
    recursive: true,
  });
  Deno.writeFileSync(`${cache}/notes.txt`, noise(1, UNIT));
  Deno.writeFileSync(`${cache}/sha256:${sha256(content)}/x`, noise(1, UNIT));
  const lines: string[] = [];
  await using sources = sourcesOf(origin, cache, {
    log: (line) => lines.push(line),
    cacheSize: 2 ** 30,
  });
  assert.deepEqual(await readBlob(sources, url), content);
  assert.match(lines.join(), /cannot keep sha256:/);
  const report = await sources.pool.prune(0);
  assert.equal(report.actualEvict, 0);
  assert(report.totalUsed >= 2 * UNIT);
  assert(Deno.statSync(`${cache}/notes.txt`).isFile);
});

Deno.test("a directory that another process holds is read past, and said once", async () => {
  using dir = tempDir();
  const content = noise(23, 3 * UNIT);
  const origin = makeOrigin(content);
  const cache = dir.file("cache");
  await using holder = sourcesOf(origin, cache);
  assert(await holder.pool.hold());
  const lines: string[] = [];
  const log = (line: string) => lines.push(line);
  await using other = sourcesOf(origin, cache, { log });
  assert.deepEqual(await readBlob(other, urlOf(content)), content);
  assert.deepEqual(await readBlob(other, urlOf(content)), content);
  assert.equal(lines.filter((line) => /another process/.test(line)).length, 1);
  assert.deepEqual([...Deno.readDirSync(cache)], []);
  // It is free again when its holder is gone.
  await holder.close();
  assert.deepEqual(await readBlob(other, urlOf(content)), content);
  assert.equal([...Deno.readDirSync(cache)].length, 1);
});

Deno.test("cacheType download: the layer's own file, sparse, resumed", async () => {
  using dir = tempDir();
  const content = noise(24, 10 * UNIT + 100);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  const layer = dir.file("layer");
  Deno.mkdirSync(layer);
  const where = { dir: layer, size: content.length };
  const options = { cacheType: "download" };
  {
    await using sources = sourcesOf(origin, dir.file("cache"), options);
    using blob = await sources.open(url, where);
    // A second image with the same layer shares it.
    using again = await sources.open(url, where);
    assert.equal(again.source, blob.source);
    await blob.prefetch(0, 4 * UNIT);
    assert.equal(
      Deno.statSync(`${layer}/.download`).size,
      content.length,
    );
  }
  const before = origin.delivered;
  await using sources = sourcesOf(origin, dir.file("cache"), options);
  using blob = await sources.open(url, where);
  await blob.prefetch(0, blob.size);
  assert.equal(origin.delivered - before, content.length - 4 * UNIT);
  assert.deepEqual(Deno.readFileSync(`${layer}/.download`), content);
});

Deno.test("cacheType download without a place to go: read past it", async () => {
  using dir = tempDir();
  const content = noise(25, 3 * UNIT);
  const origin = makeOrigin(content);
  const lines: string[] = [];
  await using sources = sourcesOf(origin, dir.file("cache"), {
    cacheType: "download",
    log: (line) => lines.push(line),
  });
  for (const where of ["", dir.file("nowhere")]) {
    using blob = await sources.open(urlOf(content), { dir: where });
    await blob.prefetch(0, blob.size);
    assert.equal(lines.length, 1);
    lines.length = 0;
  }
});

Deno.test("cacheType download: a size that is not the blob's is found out", async () => {
  using dir = tempDir();
  const content = noise(48, 3 * UNIT + 5);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"), {
    cacheType: "download",
  });
  for (const [i, size] of [1, UNIT, content.length + 1, 9 * UNIT].entries()) {
    const layer = dir.file(`layer${i}`);
    Deno.mkdirSync(layer);
    // What another run left, of the size that the configuration says.
    const left = await Deno.create(`${layer}/.download`);
    await left.truncate(size);
    left.close();
    {
      using blob = await sources.open(urlOf(content), { dir: layer, size });
      assert.equal(blob.size, content.length);
      await blob.prefetch(0, blob.size);
    }
    while (sources.blobs().size > 0) {
      await new Promise((done) => setTimeout(done, 5));
    }
    assert.deepEqual(Deno.readFileSync(`${layer}/.download`), content);
  }
});

Deno.test("cacheType download: two blobs with one directory: the second is read past it", async () => {
  using dir = tempDir();
  const [first, second] = [noise(49, 3 * UNIT), noise(50, 2 * UNIT)];
  const origins = new Map(
    [first, second].map((content) => [urlOf(content), makeOrigin(content)]),
  );
  const lines: string[] = [];
  await using sources = sourcesOf(makeOrigin(first), dir.file("cache"), {
    cacheType: "download",
    openBlob: (url) => {
      const origin = origins.get(url);
      assert(origin !== undefined);
      return origin.openBlob(url);
    },
    log: (line) => lines.push(line),
  });
  const layer = dir.file("layer");
  Deno.mkdirSync(layer);
  const open = (content: Bytes) => sources.open(urlOf(content), { dir: layer });
  using one = await open(first);
  using two = await open(second);
  assert.match(lines.join("\n"), /cannot keep .*, reading past it/);
  for (const [blob, content] of [[one, first], [two, second]] as const) {
    await blob.prefetch(0, blob.size);
    const bytes = new Uint8Array(blob.size);
    readSource(blob.source, bytes, 0);
    assert(sameBytes(bytes, content));
  }
  assert(sameBytes(Deno.readFileSync(`${layer}/.download`), first));
});

Deno.test("cacheType ocf is accepted, with a warning", async () => {
  using dir = tempDir();
  const lines: string[] = [];
  await using sources = sourcesOf(
    makeOrigin(new Uint8Array(1)),
    dir.file("cache"),
    { cacheType: "ocf", log: (line) => lines.push(line) },
  );
  assert.match(lines.join(), /WARNING cacheType ocf/);
  await sources.close();
});

Deno.test("a file that was changed behind our back is not believed", async () => {
  using dir = tempDir();
  const content = noise(26, 10 * UNIT);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  const path = `${dir.file("cache")}/sha256:${sha256(content)}`;
  {
    await using sources = sourcesOf(origin, dir.file("cache"));
    await readBlob(sources, url);
  }
  // As the original evicts: what is left is what is allocated.
  await mustRun("fallocate", [
    "--punch-hole",
    "--offset",
    String(2 * UNIT),
    "--length",
    String(3 * UNIT),
    path,
  ]);
  const before = origin.delivered;
  {
    await using sources = sourcesOf(origin, dir.file("cache"));
    assert.deepEqual(await readBlob(sources, url), content);
    assert.equal(origin.delivered - before, 3 * UNIT);
  }
  // And its whole eviction: a length of 0.
  Deno.truncateSync(path, 0);
  await using sources = sourcesOf(origin, dir.file("cache"));
  assert.deepEqual(await readBlob(sources, url), content);
});

Deno.test("eviction: the least recently read units of open blobs, never headers, and readers are right", async () => {
  using dir = tempDir();
  const content = noise(27, 64 * UNIT);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  const reports: { actualEvict: number }[] = [];
  await using sources = sourcesOf(origin, dir.file("cache"), {
    cacheSize: 2 ** 40,
    diskFloor: 0,
    onEviction: (report) => reports.push(report),
  });
  const blob = await sources.open(url);
  using disk = diskOf(blob);
  await blob.need(0, UNIT);
  await blob.need(60 * UNIT, UNIT);
  await blob.prefetch(0, blob.size);
  let done = false;
  const readers = [1, 2, 3, 4].map(async (seed) => {
    const random = generator(seed);
    let reads = 0;
    while (!done) {
      const at = Math.floor(random() * 64 * UNIT / 512) * 512;
      const n = Math.min(content.length - at, 512 * (1 + seed * 40));
      const got = await disk.read(at, n);
      assert(
        got.every((byte, i) => byte === content[at + i]),
        `wrong bytes at ${at}`,
      );
      reads++;
    }
    return reads;
  });
  for (let round = 0; round < 12; round++) {
    const { totalUsed } = await sources.pool.prune(16 * UNIT);
    assert(totalUsed <= 64 * UNIT + (1 << 20));
    await new Promise((go) => setTimeout(go, 40));
  }
  done = true;
  const counts = await Promise.all(readers);
  assert(counts.every((n) => n > 0));
  // What was read ahead may be on its way still.
  for (let before = -1; before !== blob.stats.fetchedBytes;) {
    before = blob.stats.fetchedBytes;
    await new Promise((go) => setTimeout(go, 100));
  }
  await sources.pool.prune(0);
  const left = () =>
    Array.from({ length: 64 }, (_, i) => i)
      .filter((i) => blob.has(i * UNIT, UNIT));
  assert.deepEqual(left(), [0, 60]);
  // Times are kept in seconds.
  await blob.prefetch(0, blob.size);
  await new Promise((go) => setTimeout(go, 1100));
  await disk.read(20 * UNIT, 512);
  await disk.read(31 * UNIT, 512);
  await sources.pool.prune(4 * UNIT + 8192);
  assert.deepEqual(left(), [0, 20, 31, 60]);
  assert(reports.some(({ actualEvict }) => actualEvict > 0));
});

Deno.test("eviction: closed blobs go first when they were used longer ago, pinned ones stay", async () => {
  using dir = tempDir();
  const contents = [1, 2, 3].map((seed) => noise(seed + 30, 8 * UNIT));
  const names = contents.map((content) => `sha256:${sha256(content)}`);
  const cache = dir.file("cache");
  await using sources = sourcesOf(makeOrigin(new Uint8Array(0)), cache, {
    cacheSize: 2 ** 40,
    diskFloor: 0,
    openBlob: (url) =>
      makeOrigin(
        contents.find((content) => url === urlOf(content)) ??
          new Uint8Array(0),
      ).openBlob(url),
  });
  for (const [i, content] of contents.entries()) {
    await readBlob(sources, urlOf(content));
    do await new Promise((done) => setTimeout(done, 30)); while (
      sources.pool.isOpen(names[i] ?? "")
    );
  }
  const there = () =>
    names.map((name) =>
      [...Deno.readDirSync(cache)].some((entry) => entry.name === name)
    );
  await sources.pool.pin(names[0] ?? "", true);
  await sources.pool.prune(16 * UNIT + 8192);
  assert.deepEqual(there(), [true, false, true]);
  await sources.pool.pin(names[0] ?? "", false);
  await sources.pool.prune(0);
  assert.deepEqual(there(), [false, false, false]);
});

Deno.test("eviction: a blob that is being opened keeps its file", async () => {
  using dir = tempDir();
  const content = noise(48, 8 * UNIT);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  const path = `${dir.file("cache")}/sha256:${sha256(content)}`;
  Deno.mkdirSync(dir.file("cache"));
  Deno.writeFileSync(path, content);
  await using sources = sourcesOf(origin, dir.file("cache"), {
    cacheSize: 2 ** 40,
    diskFloor: 0,
  });
  // Its length is whole pages: the size has to be asked for.
  const asked = Promise.withResolvers<void>();
  const answer = Promise.withResolvers<void>();
  origin.before = () => {
    asked.resolve();
    return answer.promise;
  };
  const opening = sources.open(url);
  await asked.promise;
  await sources.pool.prune(0);
  answer.resolve();
  using disk = diskOf(await opening);
  assert.deepEqual(await disk.read(0, content.length), content);
  assert.equal(origin.delivered, 0);
  assert(Deno.statSync(path).isFile);
});

for (const capacity of [16 * UNIT, 0]) {
  Deno.test(`a directory over its capacity of ${capacity} is brought below it by itself`, async () => {
    using dir = tempDir();
    const content = noise(40, 48 * UNIT);
    const origin = makeOrigin(content);
    let evicted = 0;
    await using sources = sourcesOf(origin, dir.file("cache"), {
      cacheSize: capacity,
      diskFloor: 0,
      onEviction: ({ actualEvict }) => evicted += actualEvict,
    });
    using disk = diskOf(await sources.open(urlOf(content)));
    assert.deepEqual(await disk.read(0, content.length), content);
    const path = `${dir.file("cache")}/sha256:${sha256(content)}`;
    const held = () => (Deno.statSync(path).blocks ?? 0) * 512;
    for (let i = 0; i < 1000 && (held() > capacity || evicted === 0); i++) {
      await new Promise((done) => setTimeout(done, 10));
    }
    assert(held() <= capacity && evicted > 0, `${held()}, ${evicted}`);
    assert.deepEqual(await disk.read(0, content.length), content);
  });
}

Deno.test("a disk with less than the floor free is given back what can be", async () => {
  using dir = tempDir();
  const content = noise(41, 8 * UNIT);
  const origin = makeOrigin(content);
  const evicted = Promise.withResolvers<{ evictByDisk: number }>();
  await using sources = sourcesOf(origin, dir.file("cache"), {
    cacheSize: 2 ** 40,
    diskFloor: 2 ** 50,
    onEviction: (report) => {
      if (report.actualEvict > 0) evicted.resolve(report);
    },
  });
  using disk = diskOf(await sources.open(urlOf(content)));
  assert.deepEqual(await disk.read(0, content.length), content);
  assert((await evicted.promise).evictByDisk > 2 ** 49);
});

Deno.test("closing ends what waits at once, and aborts its fetches", async () => {
  using dir = tempDir();
  const content = noise(42, 10 * UNIT);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"));
  const disk = diskOf(await sources.open(urlOf(content)));
  origin.before = () => new Promise(() => {});
  const waits = disk.read(5 * UNIT, 512);
  await new Promise((done) => setTimeout(done, 20));
  disk.close();
  await assert.rejects(waits, /shut|transport endpoint|108/i);
  await sources.close();
});

Deno.test("who leaves a shared blob takes its fetches along, and nobody else's", async () => {
  using dir = tempDir();
  const content = noise(46, 40 * UNIT);
  const origin = makeOrigin(content);
  const fetches = new Map<number, AbortSignal>();
  await using sources = sourcesOf(origin, dir.file("cache"), {
    openBlob: (url) => {
      const blob = origin.openBlob(url);
      return {
        ...blob,
        range(at, length, signal) {
          if (signal !== undefined) fetches.set(at / UNIT, signal);
          return blob.range(at, length, signal);
        },
      };
    },
  });
  const opened = await sources.open(urlOf(content));
  const leaves = diskOf(opened);
  using stays = diskOf(await sources.open(urlOf(content)));
  const hang = Promise.withResolvers<void>();
  origin.before = () => hang.promise;
  const ended = [
    assert.rejects(leaves.read(5 * UNIT, 512), /shut|transport endpoint|108/i),
    assert.rejects(opened.prefetch(11 * UNIT, 512), /ended/),
    assert.rejects(opened.prefetch(17 * UNIT, 512), /ended/),
  ];
  const shared = stays.read(17 * UNIT, 512);
  const own = stays.read(23 * UNIT, 512);
  while (![5, 11, 17, 23].every((unit) => fetches.has(unit))) {
    await new Promise((done) => setTimeout(done, 5));
  }
  leaves.close();
  await Promise.all(ended);
  await new Promise((done) => setTimeout(done));
  const aborted = [5, 11, 17, 23].filter((unit) => fetches.get(unit)?.aborted);
  assert.deepEqual(aborted, [5, 11]);
  hang.resolve();
  for (const [read, unit] of [[shared, 17], [own, 23]] as const) {
    const at = unit * UNIT;
    assert.deepEqual(await read, content.slice(at, at + 512));
  }
  assert.deepEqual(
    await stays.read(5 * UNIT, 512),
    content.slice(5 * UNIT, 5 * UNIT + 512),
  );
});

Deno.test("what nobody waits for any more is not tried again", async () => {
  using dir = tempDir();
  const content = noise(47, 10 * UNIT);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"));
  const leaves = diskOf(await sources.open(urlOf(content)));
  using stays = diskOf(await sources.open(urlOf(content)));
  origin.failures = Infinity;
  const before = origin.requests.length;
  const ended = assert.rejects(leaves.read(5 * UNIT, 512));
  while (origin.requests.length < before + 3) {
    await new Promise((done) => setTimeout(done, 5));
  }
  leaves.close();
  await ended;
  const tried = origin.requests.length;
  await new Promise((done) => setTimeout(done, 500));
  assert.equal(origin.requests.length, tried);
  origin.failures = 0;
  assert.deepEqual(
    await stays.read(5 * UNIT, 512),
    content.slice(5 * UNIT, 5 * UNIT + 512),
  );
});

Deno.test("a blob that cannot be opened yet: the opening can be ended", async () => {
  using dir = tempDir();
  const content = noise(43, UNIT);
  const origin = makeOrigin(content);
  origin.before = () => new Promise(() => {});
  await using sources = sourcesOf(origin, dir.file("cache"));
  const stop = new AbortController();
  const opening = sources.open(urlOf(content), { signal: stop.signal });
  setTimeout(() => stop.abort(new Error("no more")), 10);
  await assert.rejects(opening, /it was ended/);
});

Deno.test("one blob that hangs does not hold up another", async () => {
  using dir = tempDir();
  const slow = noise(44, 200 * UNIT);
  const quick = noise(45, 20 * UNIT);
  const hangs = makeOrigin(slow);
  const serves = makeOrigin(quick);
  await using sources = sourcesOf(hangs, dir.file("cache"), {
    openBlob: (url) => (url === urlOf(slow) ? hangs : serves).openBlob(url),
    maxRequests: 32,
  });
  const waiting = await sources.open(urlOf(slow));
  hangs.before = () => new Promise(() => {});
  const waits = Array.from(
    { length: 90 },
    (_, i) => assert.rejects(waiting.prefetch((2 * i + 1) * UNIT, 512)),
  );
  using disk = diskOf(await sources.open(urlOf(quick)));
  assert.deepEqual(await disk.read(0, quick.length), quick);
  waiting.close();
  await Promise.all(waits);
});

Deno.test("what is read in order is read ahead, what is not is not", async () => {
  using dir = tempDir();
  const content = noise(46, 100 * UNIT);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"));
  using disk = diskOf(await sources.open(urlOf(content)));
  for (const unit of [90, 50, 70, 30, 10]) await disk.read(unit * UNIT, 512);
  assert.equal(origin.delivered, 6 * UNIT);
  const before = origin.requests.length;
  for (let unit = 31; unit < 60; unit++) {
    await disk.read(unit * UNIT, 512);
    // What is read ahead has come before the next one.
    const bytes = origin.requests.reduce((sum, { length }) => sum + length, 0);
    while (origin.delivered < bytes) {
      await new Promise((go) => setTimeout(go, 1));
    }
  }
  const asked = origin.requests.slice(before);
  assert(asked.length < 15, JSON.stringify(asked));
});
