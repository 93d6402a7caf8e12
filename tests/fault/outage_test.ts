// SPDX-License-Identifier: Apache-2.0
/**
 * A registry that is down for long: reads wait, ask again and again with
 * longer pauses, go on by themselves, and are errors only after the deadline
 * (spec/registry.md, section 11, row 5; spec/service-config.md).  Time is the
 * test's: an outage of an hour takes a moment.
 *
 * @module
 */
import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { EngineError } from "../../ffi/errors.ts";
import type { Bytes } from "../../ffi/handle.ts";
import { SourceError } from "../../src/source/source.ts";
import { sha256, tempDir } from "../lib/env.ts";
import { diskOf, makeOrigin, sourcesOf } from "../lib/origin.ts";
import { noise } from "../lib/random.ts";

const UNIT = 65536;
const SECOND = 1000;

function urlOf(content: Bytes): string {
  return `https://r.example/v2/a/b/blobs/sha256:${sha256(content)}`;
}

/** A clock that runs only while somebody waits between attempts. */
function createClock() {
  const pauses: number[] = [];
  let now = 0;
  return {
    pauses,
    now: () => now,
    async sleep(ms: number): Promise<void> {
      pauses.push(ms);
      const due = now + ms;
      await new Promise((done) => setTimeout(done));
      now = Math.max(now, due);
    },
  };
}

/** A set of sources whose registry is down from `from` on, for `ms`. */
function outage(dir: string, content: Bytes, retryAfterMs?: number) {
  const origin = makeOrigin(content);
  const clock = createClock();
  const down = { until: 0 };
  /** of the requests that were refused */
  const times: number[] = [];
  origin.before = () => {
    if (clock.now() >= down.until) return Promise.resolve();
    times.push(clock.now());
    return Promise.reject(
      new SourceError("ETIMEDOUT", "cannot connect: told so", {
        retryable: true,
        ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
      }),
    );
  };
  const sources = sourcesOf(origin, dir, { sleep: clock.sleep });
  return { origin, clock, down, times, sources };
}

for (const [what, seconds] of [["a minute", 60], ["an hour", 3600]] as const) {
  Deno.test(`a registry down for ${what}: a read asks again with longer pauses, of 30 s at most, and goes on by itself`, async () => {
    using dir = tempDir();
    const content = noise(70, 8 * UNIT);
    const { origin, clock, down, times, sources } = outage(
      dir.file("cache"),
      content,
    );
    await using _ = sources;
    using disk = diskOf(await sources.open(urlOf(content)));
    deepEqual(await disk.read(0, UNIT), content.slice(0, UNIT));
    down.until = seconds * SECOND;
    deepEqual(
      await disk.read(4 * UNIT, UNIT),
      content.slice(4 * UNIT, 5 * UNIT),
    );
    // Never given up, never in a hurry, and soon back.
    const doubling = Array.from(
      clock.pauses,
      (_, i) => Math.min(30 * SECOND, 20 * 2 ** i),
    );
    deepEqual(clock.pauses, doubling);
    ok(times.length <= 12 + seconds / 30, `${times.length} requests`);
    ok(clock.now() >= down.until);
    ok(clock.now() <= down.until + 30 * SECOND, `${clock.now()}`);
    // Once is enough.
    equal(origin.delivered, 2 * UNIT);
  });
}

Deno.test("a registry that says when to come back is not asked before", async () => {
  using dir = tempDir();
  const content = noise(71, 8 * UNIT);
  const { clock, down, times, sources } = outage(
    dir.file("cache"),
    content,
    25 * SECOND,
  );
  await using _ = sources;
  using disk = diskOf(await sources.open(urlOf(content)));
  await disk.read(0, UNIT);
  down.until = 60 * SECOND;
  deepEqual(
    await disk.read(4 * UNIT, UNIT),
    content.slice(4 * UNIT, 5 * UNIT),
  );
  deepEqual(times, [0, 25 * SECOND, 50 * SECOND]);
  equal(clock.now(), 75 * SECOND);
});

Deno.test("a read whose deadline is over is an error, and nothing is asked for it any more; the next one goes on", async () => {
  using dir = tempDir();
  const content = noise(72, 8 * UNIT);
  const { clock, down, times, sources } = outage(dir.file("cache"), content);
  await using _ = sources;
  const url = urlOf(content);
  using hasty = diskOf(await sources.open(url), 300);
  using patient = diskOf(await sources.open(url));
  await hasty.read(0, UNIT);
  down.until = Infinity;
  await rejects(
    hasty.read(4 * UNIT, UNIT),
    (error) => error instanceof EngineError && error.code === "ETIMEDOUT",
  );
  ok(clock.now() > 60 * SECOND, "it tried for so long");
  await new Promise((done) => setTimeout(done, 50));
  const asked = times.length;
  await new Promise((done) => setTimeout(done, 50));
  equal(times.length, asked);
  // Who waits longer is not given up with it.
  const waits = patient.read(4 * UNIT, UNIT);
  await rejects(hasty.read(4 * UNIT, UNIT), EngineError);
  down.until = 0;
  deepEqual(await waits, content.slice(4 * UNIT, 5 * UNIT));
  deepEqual(
    await hasty.read(4 * UNIT, 2 * UNIT),
    content.slice(4 * UNIT, 6 * UNIT),
  );
});
