// SPDX-License-Identifier: Apache-2.0
/**
 * The loops of cache_loops.ts in the length of `make test`.
 *
 * @module
 */
import { chooseSeed, numberFromEnv } from "../lib/random.ts";
import { cacheKillLoop, networkLoop } from "./cache_loops.ts";

for (const zfile of [true, false]) {
  const what = zfile ? "with checksums" : "without";
  Deno.test(`a network that misbehaves at random, ${what}: the bytes are right, memory and attempts bounded`, async () => {
    const seed = chooseSeed();
    console.log(`SEED=${seed}`);
    const ms = numberFromEnv("LOOP_MS", 9_000);
    const done = await networkLoop({ ms, seed, zfile });
    console.log(
      `${done.reads} reads, ${done.refused} refused, ${done.requests} requests`,
    );
  });
}

Deno.test("kill -9 amid fills and evictions, 20 times: nothing wrong, nothing fetched twice", async () => {
  const seed = chooseSeed();
  console.log(`SEED=${seed}`);
  await cacheKillLoop({ rounds: numberFromEnv("ROUNDS", 20), seed });
});
