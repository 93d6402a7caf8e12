// SPDX-License-Identifier: Apache-2.0
/**
 * The cache's pure parts against plain models (spec/cache.md, sections 1.3
 * and 1.5).
 *
 * @module
 */
import assert from "node:assert/strict";
import fc from "fast-check";
import {
  evictionNeed,
  evictOldest,
  limitsOf,
} from "../../src/source/cache/evict.ts";
import { createReadAhead } from "../../src/source/cache/readahead.ts";
import { createScheduler } from "../../src/source/cache/schedule.ts";
import { createSpillBudget } from "../../src/source/cache/spill.ts";
import { encodeSaved, parseSaved } from "../../src/source/cache/state.ts";
import {
  countBits,
  hasBit,
  newBits,
  putBit,
  runsOf,
  unitsUnder,
  widened,
} from "../../src/source/cache/units.ts";

const GIB = 2 ** 30;

Deno.test("units under a range are those that share a byte with it", () => {
  fc.assert(fc.property(
    fc.integer({ min: 0, max: 200 }),
    fc.integer({ min: 0, max: 200 }),
    fc.integer({ min: 0, max: 150 }),
    fc.constantFrom(1, 2, 8, 16),
    (at, length, size, unit) => {
      const { first, count } = unitsUnder(at, length, size, unit);
      const expected = new Set<number>();
      for (let byte = at; byte < Math.min(size, at + length); byte++) {
        expected.add(Math.floor(byte / unit));
      }
      const got = Array.from({ length: count }, (_, i) => first + i);
      assert.deepEqual(got, [...expected]);
    },
  ));
});

Deno.test("a widened run is the whole groups around it, cut at the end", () => {
  fc.assert(fc.property(
    fc.integer({ min: 0, max: 60 }),
    fc.integer({ min: 1, max: 20 }),
    fc.constantFrom(1, 2, 4, 8),
    fc.integer({ min: 0, max: 20 }),
    (first, count, per, rest) => {
      const end = first + count + rest;
      const groups = new Set<number>();
      for (let i = first; i < first + count; i++) {
        groups.add(Math.floor(i / per));
      }
      const got = widened({ first, count }, per, end);
      assert.deepEqual(
        Array.from({ length: got.count }, (_, i) => got.first + i),
        Array.from({ length: end }, (_, i) => i)
          .filter((i) => groups.has(Math.floor(i / per))),
      );
    },
  ));
});

Deno.test("runs are what is wanted, in order, as long as allowed", () => {
  fc.assert(fc.property(
    fc.array(fc.boolean(), { maxLength: 60 }),
    fc.integer({ min: 0, max: 30 }),
    fc.integer({ min: 1, max: 9 }),
    (wanted, first, max) => {
      const run = { first, count: wanted.length };
      const is = (i: number) => wanted[i - first] ?? false;
      const runs = [...runsOf(run, max, is)];
      const covered = runs.flatMap(({ first, count }) =>
        Array.from({ length: count }, (_, i) => first + i)
      );
      const expected = wanted.flatMap((on, i) => on ? [first + i] : []);
      assert.deepEqual(covered, expected);
      runs.forEach(({ first, count }, i) => {
        assert(count >= 1 && count <= max);
        const next = runs[i + 1];
        // Cut only where it had to be.
        if (next?.first === first + count) assert.equal(count, max);
      });
    },
  ));
});

Deno.test("bits are a set of numbers", () => {
  fc.assert(fc.property(
    fc.array(fc.tuple(fc.integer({ min: 0, max: 70 }), fc.boolean())),
    (changes) => {
      const bits = newBits(71);
      const model = new Set<number>();
      for (const [i, on] of changes) {
        putBit(bits, i, on);
        if (on) model.add(i);
        else model.delete(i);
      }
      assert.equal(countBits(bits), model.size);
      for (let i = 0; i < 71; i++) assert.equal(hasBit(bits, i), model.has(i));
    },
  ));
});

Deno.test("what is saved comes back, and nothing else does", () => {
  const stamp = fc.record({
    inode: fc.maxSafeNat(),
    length: fc.maxSafeNat(),
    blocks: fc.maxSafeNat(),
    mtimeMs: fc.maxSafeNat(),
    ctimeMs: fc.maxSafeNat(),
  }, { noNullPrototype: true });
  fc.assert(fc.property(
    fc.integer({ min: 0, max: 1 << 20 }),
    fc.constantFrom(4096, 65536, 262144),
    fc.boolean(),
    fc.option(stamp, { nil: undefined }),
    fc.nat(),
    (size, unit, verified, stamp, flip) => {
      const bits = newBits(Math.ceil(size / unit)).fill(0x5a);
      const presence = stamp === undefined
        ? undefined
        : { stamp, unit, verified, bits };
      const bytes = encodeSaved({ size, presence });
      assert.deepEqual(parseSaved(bytes), { size, presence });
      assert.equal(parseSaved(bytes.subarray(0, bytes.length - 1)), undefined);
      const at = flip % bytes.length;
      bytes[at] = (bytes[at] ?? 0) ^ 1;
      assert.equal(parseSaved(bytes), undefined);
    },
  ));
});

Deno.test("the limits of the cache's size are the original's", () => {
  for (
    const [gib, water, risk] of [
      [0, 0, 0],
      [1, 0.9, 0.95],
      [4, 3.6, 3.8],
      [100, 90, 95],
      [1000, 950, 995],
    ] as const
  ) {
    const limits = limitsOf(gib * GIB);
    assert.equal(Math.round(limits.water / GIB * 100) / 100, water);
    assert.equal(Math.round(limits.risk / GIB * 100) / 100, risk);
  }
});

Deno.test("what has to go: the more of what the disk and the cache ask", () => {
  const used = 4 * GIB;
  const need = (free: number, capacity: number) =>
    evictionNeed({ used, free }, capacity, GIB);
  assert.equal(need(5 * GIB, 10 * GIB).bytes, 0);
  assert.equal(need(0.25 * GIB, 10 * GIB).bytes, 0.75 * GIB);
  assert.equal(
    need(5 * GIB, 4 * GIB).bytes,
    used - Math.floor(0.9 * 4 * GIB),
  );
  // Never more than there is.
  assert.equal(
    evictionNeed({ used: 100, free: 0 }, 10 * GIB, GIB).bytes,
    100,
  );
});

/** As they may be in one cache: of now, of years ago, in one second. */
const someTime = fc.oneof(
  fc.nat(3),
  fc.nat(2 ** 32 - 1),
  fc.constantFrom(65535, 65536, 65537, 2 ** 32 - 1),
);

Deno.test("eviction takes the oldest, and no more than it must", async () => {
  interface Item {
    lastUsed: number;
    bytes: number;
    fails?: boolean;
  }
  await fc.assert(fc.asyncProperty(
    fc.array(fc.record({
      lastUsed: someTime.map((s) => s * 1000),
      bytes: fc.integer({ min: 1, max: 50 }),
      fails: fc.boolean(),
    })),
    fc.array(fc.array(fc.option(someTime, { nil: undefined })), {
      maxLength: 3,
    }),
    fc.nat(500),
    async (files, blobs, bytes) => {
      const gone: Item[] = [];
      const UNIT = 7;
      const units = blobs.map((times) =>
        times.map((time): Item | undefined =>
          time === undefined
            ? undefined
            : { lastUsed: time * 1000, bytes: UNIT }
        )
      );
      const items: Item[] = [
        ...files,
        ...units.flat().filter((item) => item !== undefined),
      ];
      const freed = await evictOldest(
        files.map((item) => ({
          ...item,
          evict() {
            if (item.fails) throw new Error("stays");
            gone.push(item);
          },
        })),
        units.map((blob) => ({
          count: blob.length,
          lastUsed(i) {
            const item = blob[i];
            return item === undefined || gone.includes(item)
              ? undefined
              : item.lastUsed / 1000;
          },
          bytes: () => UNIT,
          evict(i) {
            const item = blob[i];
            assert(item !== undefined && !gone.includes(item));
            gone.push(item);
          },
        })),
        bytes,
      );
      assert.equal(freed, gone.reduce((sum, item) => sum + item.bytes, 0));
      const last = gone.at(-1);
      if (last !== undefined) assert(freed - last.bytes < bytes);
      const all = items.filter((item) => !item.fails);
      if (freed < bytes) assert.equal(gone.length, all.length);
      const newest = Math.max(-1, ...gone.map((item) => item.lastUsed));
      for (const item of all.filter((item) => !gone.includes(item))) {
        assert(item.lastUsed >= newest);
      }
    },
  ));
});

Deno.test("read-ahead doubles while reads go on, and is nothing when not", () => {
  const next = createReadAhead(16);
  assert.equal(next({ first: 0, count: 1 }).count, 0);
  assert.deepEqual(next({ first: 1, count: 1 }), { first: 2, count: 1 });
  assert.deepEqual(next({ first: 3, count: 1 }), { first: 4, count: 2 });
  // Inside what is on its way already: only what lies behind that.
  assert.deepEqual(next({ first: 5, count: 1 }), { first: 6, count: 4 });
  assert.deepEqual(next({ first: 9, count: 1 }), { first: 10, count: 8 });
  assert.deepEqual(next({ first: 18, count: 1 }), { first: 19, count: 16 });
  assert.deepEqual(next({ first: 35, count: 1 }), { first: 36, count: 16 });
  assert.equal(next({ first: 1000, count: 1 }).count, 0);
  // Two files read at once are two streams.
  assert.equal(next({ first: 2000, count: 1 }).count, 0);
  assert.equal(next({ first: 1001, count: 1 }).count, 1);
  assert.equal(next({ first: 2001, count: 1 }).count, 1);
  assert.equal(next({ first: 1003, count: 1 }).count, 2);
});

Deno.test("reads go on in order behind what was here already, if that is not far", () => {
  const next = createReadAhead(16, 1, (unit) => unit >= 10);
  for (const first of [0, 1, 3, 6]) next({ first, count: 1 });
  // [7, 10] was fetched, [11, 14] was there.
  assert.deepEqual(next({ first: 15, count: 1 }), { first: 16, count: 8 });
  // Not so where something between is absent, or for what lies far away.
  assert.equal(next({ first: 100, count: 1 }).count, 0);
  const gap = createReadAhead(16, 1, (unit) => unit !== 12);
  for (const first of [0, 1, 3, 6]) gap({ first, count: 1 });
  assert.equal(gap({ first: 15, count: 1 }).count, 0);
});

Deno.test("read-ahead never asks for what was asked, nor far beyond", () => {
  fc.assert(fc.property(
    fc.array(
      fc.record({
        first: fc.nat(300),
        count: fc.integer({ min: 1, max: 8 }),
      }),
      { maxLength: 100 },
    ),
    (misses) => {
      const next = createReadAhead(16);
      for (const miss of misses) {
        const more = next(miss);
        assert(more.count >= 0 && more.count <= 16 + 8);
        if (more.count > 0) assert(more.first >= miss.first + miss.count);
        assert(more.first + more.count <= miss.first + miss.count + 16 + 16);
      }
    },
  ));
});

Deno.test("requests: so many at once, a share of each blob, everyone in turn", async () => {
  const signal = new AbortController().signal;
  const MOST = 4;
  const SHARE = 2;
  const scheduler = createScheduler(MOST, SHARE);
  const slow = {};
  const quick = {};
  const never = Promise.withResolvers<void>();
  let running = 0;
  let top = 0;
  const hang = Array.from(
    { length: 10 },
    () =>
      scheduler.run(slow, signal, async () => {
        running++;
        await never.promise;
      }),
  );
  // The slow one has its share, the other goes on.
  for (let i = 0; i < 20; i++) {
    await scheduler.run(quick, signal, async () => {
      top = Math.max(top, ++running);
      await Promise.resolve();
      running--;
    });
  }
  assert.equal(running, SHARE);
  assert(top <= MOST);
  never.resolve();
  await Promise.all(hang);
  await assert.rejects(
    scheduler.run(quick, signal, () => Promise.reject(new Error("told"))),
    /told/,
  );
  assert(scheduler.idle(quick));
});

Deno.test("who waits for a turn leaves when it is told to", async () => {
  const scheduler = createScheduler(1, 1);
  const hold = Promise.withResolvers<void>();
  const never = new AbortController();
  const first = scheduler.run({}, never.signal, () => hold.promise);
  const stop = new AbortController();
  const waits = scheduler.run({}, stop.signal, () => Promise.resolve(1));
  stop.abort(new Error("leave"));
  await assert.rejects(waits, /leave/);
  hold.resolve();
  await first;
  assert.equal(
    await scheduler.run({}, never.signal, () => Promise.resolve(2)),
    2,
  );
});

Deno.test("spilled units are bounded over all blobs, the oldest go", () => {
  fc.assert(fc.property(
    fc.array(fc.tuple(fc.nat(2), fc.nat(9), fc.boolean()), { maxLength: 200 }),
    (steps) => {
      const MOST = 5;
      const budget = createSpillBudget(MOST);
      const owners = [{}, {}, {}] as const;
      let model: string[] = [];
      for (const [who, unit, on] of steps) {
        const owner = owners[who] ?? owners[0];
        const key = `${who}:${unit}`;
        model = model.filter((other) => other !== key);
        if (on) {
          model.push(key);
          const dropped: string[] = [];
          budget.add(owner, unit, 1, () => dropped.push(key));
          model = model.slice(-MOST);
        } else budget.remove(owner, unit);
        assert.equal(budget.used(), model.length);
      }
    },
  ));
});
