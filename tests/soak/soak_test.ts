// SPDX-License-Identifier: Apache-2.0
/**
 * The long forms of tests that `make test` runs short: more kills, more
 * states after power loss, more programs.
 */
import { cacheKillLoop, networkLoop } from "../fault/cache_loops.ts";
import { killDuringDownload } from "../fault/download_loop.ts";
import { minuteOutage } from "../fault/outage_minute.ts";
import { killLoop, snapshotKillLoop } from "../fault/kill_loop.ts";
import { mustRun, ROOT } from "../lib/env.ts";
import { chooseSeed, numberFromEnv } from "../lib/random.ts";

/** How much longer than in `make test`. */
const TIMES = numberFromEnv("SOAK", 10);

Deno.test("kill -9 of serve under NBD writes, many times", async () => {
  const seed = chooseSeed();
  console.log(`SEED=${seed}`);
  await killLoop({ rounds: 10 * TIMES, seed });
});

Deno.test("kill -9 amid snapshots under NBD writes, many times", async () => {
  const seed = chooseSeed();
  console.log(`SEED=${seed}`);
  await snapshotKillLoop({ rounds: 20 * TIMES, seed });
});

for (const zfile of [true, false]) {
  const what = zfile ? "with checksums" : "without";
  Deno.test(`a network that misbehaves at random, ${what}, for long`, async () => {
    const seed = chooseSeed();
    console.log(`SEED=${seed}`);
    await networkLoop({ ms: 30_000 * TIMES, seed, zfile });
  });
}

Deno.test("kill -9 amid fills and evictions of the cache, many times", async () => {
  const seed = chooseSeed();
  console.log(`SEED=${seed}`);
  await cacheKillLoop({ rounds: 20 * TIMES, seed });
});

Deno.test("a registry that is really down for a minute", async () => {
  await minuteOutage();
});

async function again(
  file: string,
  filter: string,
  env: Record<string, string>,
): Promise<void> {
  const seed = chooseSeed();
  console.log(`SEED=${seed}`);
  await mustRun(Deno.execPath(), [
    "test",
    "-A",
    "--no-check",
    "--filter",
    filter,
    file,
  ], { cwd: ROOT, env: { ...env, SEED: `${seed}`, NO_COLOR: "1" } });
}

Deno.test("power loss in many random runs", async () => {
  await again("tests/fault/crash_test.ts", "power loss, random runs", {
    RUNS: `${40 * TIMES}`,
    STATES: "200",
  });
});

Deno.test("power loss in many random runs with snapshots", async () => {
  await again(
    "tests/fault/snapshot_crash_test.ts",
    "random runs with snapshots",
    { RUNS: `${10 * TIMES}`, STATES: "60" },
  );
});

Deno.test("many snapshots of which two system calls fail", async () => {
  await again("tests/fault/snapshot_faults_test.ts", "any two system calls", {
    PAIRS: `${1000 * TIMES}`,
  });
});

Deno.test("many random programs against a plain array", async () => {
  await again("tests/model/model_test.ts", "random programs", {
    PROGRAMS: `${4000 * TIMES}`,
  });
});

Deno.test("kill -9 amid a background download, many times", async () => {
  await killDuringDownload(6 * TIMES);
});
