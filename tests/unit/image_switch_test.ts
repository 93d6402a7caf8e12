// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { EngineError } from "../../ffi/errors.ts";
import { SnapshotError } from "../../src/image/successor.ts";
import { switchUpper } from "../../src/image/switch.ts";

const E2BIG = 7;
const EIO = 5;
const ETIMEDOUT = 110;

/** Fails with these errors first; keeps the limits that it was given. */
function failing(...errors: number[]) {
  const limits: number[] = [];
  const push = (limit: number) => {
    limits.push(limit);
    const errno = errors.shift();
    return errno === undefined
      ? Promise.resolve(7)
      : Promise.reject(new EngineError(errno, "cannot switch"));
  };
  return { limits, push };
}

const atOnce = () => Promise.resolve();

Deno.test("changes wait for a moment, and for longer only where they have to", async () => {
  const easy = failing();
  equal(await switchUpper(easy.push, atOnce), 7);
  deepEqual(easy.limits, [4]);
  const busy = failing(...new Array<number>(12).fill(ETIMEDOUT));
  equal(await switchUpper(busy.push, atOnce), 8000);
  deepEqual(busy.limits, [...new Array<number>(10).fill(4), 8, 8, 8]);
});

Deno.test("what never ends is given up; what cannot be is refused at once", async () => {
  const stuck = failing(...new Array<number>(1000).fill(ETIMEDOUT));
  await rejects(switchUpper(stuck.push, atOnce), /cannot switch/);
  const total = stuck.limits.reduce((sum, limit) => sum + limit, 0);
  ok(stuck.limits.length === 100 && total > 30_000 && total < 60_000);
  const large = failing(E2BIG);
  await rejects(switchUpper(large.push, atOnce), SnapshotError);
  equal(large.limits.length, 1);
  const broken = failing(ETIMEDOUT, EIO);
  await rejects(switchUpper(broken.push, atOnce), EngineError);
  equal(broken.limits.length, 2);
});
