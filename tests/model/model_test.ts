// SPDX-License-Identifier: Apache-2.0
/**
 * Random programs against a plain array of bytes.  `SEED=n` replays a run,
 * `PROGRAMS=n` sets its length; a failure is shrunk and prints its program.
 */
import { deepEqual, equal, ok } from "node:assert/strict";
import * as fc from "fast-check";
import { tempDir } from "../lib/env.ts";
import { chooseSeed, numberFromEnv } from "../lib/random.ts";
import { runProgram } from "./machine.ts";
import { program } from "./program.ts";

const PROGRAMS = numberFromEnv("PROGRAMS", 10_000);
/** Sparse uppers on a real disk, whose blocks differ from tmpfs's. */
const ON_DISK = Math.ceil(PROGRAMS / 50);

async function check(
  runs: number,
  where: "disk" | "memory",
  seed: number,
): Promise<void> {
  using dir = tempDir(where);
  let nr = 0;
  let ops = 0;
  const lengths: number[] = [];
  await fc.assert(
    fc.asyncProperty(program, async (it) => {
      ops += it.ops.length;
      lengths.push(it.ops.length);
      const path = dir.file(`p${nr++}`);
      Deno.mkdirSync(path);
      try {
        await runProgram(it, path, { independent: nr % 8 === 0 });
      } finally {
        Deno.removeSync(path, { recursive: true });
      }
    }),
    { numRuns: runs, seed, verbose: 1, endOnFailure: false },
  );
  lengths.sort((a, b) => a - b);
  const median = lengths[Math.floor(lengths.length / 2)] ?? 0;
  console.log(`${runs} programs, ${ops} operations, median ${median}`);
  if (runs >= 1000) ok(median >= 15 && median <= 25, `median ${median}`);
}

Deno.test(`${PROGRAMS} random programs read what a plain array holds`, async () => {
  const seed = chooseSeed();
  console.log(`SEED=${seed} PROGRAMS=${PROGRAMS}`);
  await check(PROGRAMS - ON_DISK, "memory", seed);
});

Deno.test(`${ON_DISK} random programs on a real disk do, too`, async () => {
  const seed = chooseSeed();
  console.log(`SEED=${seed} PROGRAMS=${PROGRAMS}`);
  await check(ON_DISK, "disk", seed);
});

Deno.test("the model itself notices a wrong byte", async () => {
  using dir = tempDir("memory");
  const it = {
    size: 64,
    huge: false,
    sparse: false,
    ops: [{ kind: "write" as const, lba: 3, sectors: 2, seed: 5 }],
  };
  await runProgram(it, dir.path, { independent: true });
  let failed = false;
  try {
    await runProgram(it, dir.path, {
      independent: true,
      lie: (bytes) => bytes[3 * 512] = (bytes[3 * 512] ?? 0) ^ 1,
    });
  } catch {
    failed = true;
  }
  equal(failed, true);
  deepEqual([...Deno.readDirSync(dir.path)].length > 0, true);
});
