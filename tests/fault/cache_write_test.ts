// SPDX-License-Identifier: Apache-2.0
/**
 * Writes of cache files while the disk under them does what it likes: they
 * are not waited for, and nothing counts that was not written.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import fc from "fast-check";
import { EngineError } from "../../ffi/errors.ts";
import { faultIo, HANG, IO } from "../../ffi/files.ts";
import type { Bytes } from "../../ffi/handle.ts";
import type { Media } from "../../src/source/cache/media.ts";
import type { Run } from "../../src/source/cache/units.ts";
import { createWrites } from "../../src/source/cache/writes.ts";
import { sha256, tempDir } from "../lib/env.ts";
import { diskOf, makeOrigin, sourcesOf } from "../lib/origin.ts";
import { noise } from "../lib/random.ts";

const UNIT = 65536;
const EIO = 5;

function urlOf(content: Bytes): string {
  return `https://r.example/v2/a/b/blobs/sha256:${sha256(content)}`;
}

function sameBytes(a: Bytes, b: Bytes): boolean {
  return a.length === b.length && Buffer.compare(a, b) === 0;
}

function sleep(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}

/** Media that take their time, and sometimes fail. */
function fakeMedia(content: Bytes, random: () => number, fails: boolean) {
  const size = content.length;
  const written = new Uint8Array(size);
  const state = { most: 0, running: 0, failed: false };
  const media: Pick<Media, "write"> = {
    async write(buffer, at, n, _wanted, onLand) {
      state.most = Math.max(state.most, ++state.running);
      await sleep(random() * 2);
      state.running--;
      if (fails && random() < 0.1) {
        state.failed = true;
        throw new EngineError(EIO, "told to fail");
      }
      written.set(buffer.bytes.subarray(0, n), at);
      onLand();
    },
  };
  return { media: media as Media, written, state };
}

Deno.test("whatever pieces an answer comes in, each unit lands once and whole, and few writes run at once", async () => {
  const KIB = 1024;
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(4 * KIB, 16 * KIB, 64 * KIB),
      fc.nat(6),
      fc.integer({ min: 1, max: 900 * KIB }),
      fc.array(fc.integer({ min: 1, max: 300 * KIB }), { minLength: 1 }),
      fc.boolean(),
      fc.infiniteStream(fc.double({ min: 0, max: 1, noNaN: true })),
      async (unit, before, length, pieces, fails, dice) => {
        const begin = before * unit;
        const content = noise(length, begin + length);
        const random = () => dice.next().value ?? 0;
        const { media, written, state } = fakeMedia(content, random, fails);
        const landed = new Set<number>();
        const writes = createWrites({
          media,
          unit,
          begin,
          end: begin + length,
          place: () => undefined,
          onLand({ first, count }: Run) {
            for (let i = first; i < first + count; i++) {
              assert(!landed.has(i), `unit ${i} twice`);
              landed.add(i);
              const to = Math.min(content.length, (i + 1) * unit);
              assert(
                sameBytes(
                  written.slice(i * unit, to),
                  content.slice(i * unit, to),
                ),
                `unit ${i}`,
              );
            }
          },
        });
        let refused = false;
        try {
          let i = 0;
          for (let at = begin; at < content.length;) {
            const n = pieces[i++ % pieces.length] ?? 1;
            // Lent: it may be something else a moment later.
            const chunk = content.slice(at, at + n);
            await writes.add(chunk);
            chunk.fill(0);
            at += n;
          }
        } catch {
          refused = true;
        }
        await writes.settle();
        assert.equal(state.running, 0);
        assert(state.most <= 4);
        if (state.failed) assert.throws(writes.check);
        else {
          assert(!refused);
          writes.check();
          assert.equal(landed.size, Math.ceil(length / unit));
        }
      },
    ),
    { numRuns: 60 },
  );
});

Deno.test("a cache disk that hangs: nothing waits for it, and it is used again when it is well", async () => {
  using dir = tempDir();
  const content = noise(50, 60 * UNIT);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  const lines: string[] = [];
  {
    await using sources = sourcesOf(origin, dir.file("cache"), {
      log: (line) => lines.push(line),
      writeMs: 100,
    });
    using disk = diskOf(await sources.open(url));
    assert(sameBytes(await disk.read(0, UNIT), content.slice(0, UNIT)));
    faultIo(IO.PWRITE, 1, HANG, 1);
    let ticks = 0;
    const ticking = setInterval(() => ticks++, 5);
    const got = await disk.read(0, content.length);
    clearInterval(ticking);
    assert(sameBytes(got, content));
    assert(ticks > 3, `${ticks} ticks while a write hung`);
    const said = lines.filter((line) => /cannot keep .*timed out/.test(line));
    assert.equal(said.length, 1, lines.join("\n"));
    // It hangs still: closing does not wait for it.
  }
  const began = performance.now();
  {
    // Nor does the next one, which finds by the file what it holds.
    await using sources = sourcesOf(origin, dir.file("cache"));
    using disk = diskOf(await sources.open(url));
    assert(sameBytes(await disk.read(0, content.length), content));
  }
  assert(performance.now() - began < 10_000);
  faultIo(IO.PWRITE, 1, 0, 0);
  await sleep(50);
  origin.failures = Infinity;
  await using sources = sourcesOf(origin, dir.file("cache"));
  using disk = diskOf(await sources.open(url));
  assert(sameBytes(await disk.read(0, content.length), content));
});

Deno.test("a blob whose last write hangs is closed in time, and its late write does no harm", async () => {
  using dir = tempDir();
  const content = noise(51, 8 * UNIT);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  const sources = sourcesOf(origin, dir.file("cache"), { writeMs: 50 });
  const blob = await sources.open(url);
  await blob.need(0, 1);
  faultIo(IO.PWRITE, 1, HANG, 1);
  const { delivered } = origin;
  const waits = blob.prefetch(4 * UNIT, UNIT).catch(() => {});
  while (origin.delivered === delivered) await sleep(1);
  await sleep(10);
  blob.close();
  await sources.close();
  await waits;
  faultIo(IO.PWRITE, 1, 0, 0);
  await sleep(50);
  await using again = sourcesOf(origin, dir.file("cache"));
  using disk = diskOf(await again.open(url));
  assert(sameBytes(await disk.read(0, content.length), content));
});

Deno.test("writes that fail while others run: what they had is read past the cache, and asked for once", async () => {
  using dir = tempDir();
  const content = noise(52, 8 << 20);
  const url = urlOf(content);
  const origin = makeOrigin(content);
  const lines: string[] = [];
  await using sources = sourcesOf(origin, dir.file("cache"), {
    log: (line) => lines.push(line),
  });
  using disk = diskOf(await sources.open(url));
  await disk.read(0, 512);
  // None, one and several of those that run at once.
  faultIo(IO.PWRITE, 2, EIO, 1);
  assert(sameBytes(await disk.read(0, content.length), content));
  faultIo(IO.PWRITE, 1, 0, 0);
  assert.equal(origin.delivered, content.length);
  assert.equal(lines.filter((line) => /cannot keep/.test(line)).length, 1);
});

Deno.test("what is evicted while writes run comes again, and is right", async () => {
  using dir = tempDir();
  const content = noise(53, 96 * UNIT);
  const origin = makeOrigin(content);
  await using sources = sourcesOf(origin, dir.file("cache"), {
    cacheSize: 2 ** 40,
    diskFloor: 0,
    refillSize: 262144,
  });
  using disk = diskOf(await sources.open(urlOf(content)));
  let over = false;
  const evicts = (async () => {
    while (!over) {
      await sources.pool.prune(8 * UNIT);
      await sleep(1);
    }
  })();
  for (let round = 0; round < 4; round++) {
    for (let at = 0; at < content.length; at += 5 * UNIT) {
      const n = Math.min(5 * UNIT, content.length - at);
      const got = await disk.read(at, n);
      assert(sameBytes(got, content.slice(at, at + n)), `at ${at}`);
    }
  }
  over = true;
  await evicts;
});
