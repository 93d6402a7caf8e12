// SPDX-License-Identifier: Apache-2.0
import { equal, ok, rejects } from "node:assert/strict";
import fc from "fast-check";
import { createPace } from "../../src/image/pace.ts";

const never = new AbortController().signal;

/** A clock that only sleeping moves. */
function fakeTime() {
  let now = 1000;
  return {
    now: () => now,
    wait: (ms: number) => {
      now += ms;
      return Promise.resolve();
    },
  };
}

Deno.test("property: a flow is never ahead of its rate, and never behind by itself", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 1, max: 1 << 20 }), { minLength: 2 }),
      fc.integer({ min: 1000, max: 1 << 30 }),
      async (parts, rate) => {
        const time = fakeTime();
        const pace = createPace(time.now, time.wait);
        const began = time.now();
        let before = 0;
        for (const part of parts) {
          await pace.take(part, rate, never);
          // What has flowed before this part took as long as it should.
          const due = before / rate * 1000;
          ok(Math.abs(time.now() - began - due) < 1e-3);
          before += part;
        }
      },
    ),
  );
});

Deno.test("without a limit nothing waits; a flow that paused saves nothing up", async () => {
  const time = fakeTime();
  const pace = createPace(time.now, time.wait);
  const began = time.now();
  await pace.take(1 << 30, 0, never);
  await pace.take(1 << 30, -1, never);
  equal(time.now(), began);
  await pace.take(1000, 1000, never);
  await time.wait(60_000);
  const later = time.now();
  await pace.take(1000, 1000, never);
  await pace.take(1000, 1000, never);
  equal(time.now(), later + 1000);
});

Deno.test("a wait ends with its signal", async () => {
  const pace = createPace();
  const stop = new AbortController();
  await pace.take(1000, 1, stop.signal);
  const waiting = pace.take(1, 1, stop.signal);
  stop.abort(new Error("enough"));
  await rejects(waiting, /enough/);
  await rejects(pace.take(1, 0, stop.signal), /enough/);
});
