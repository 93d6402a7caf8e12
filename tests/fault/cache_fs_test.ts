// SPDX-License-Identifier: Apache-2.0
/**
 * The cache on file systems that differ in what they tell of a file: whatever
 * they say of holes, of compressed and of inline data, the bytes are right,
 * and what a file system does tell apart is not fetched again (spec/cache.md,
 * section 6, rows 1 and 12).
 *
 * @module
 */
import { equal, ok } from "node:assert/strict";
import type { Bytes } from "../../ffi/handle.ts";
import { mustRun, sha256, type TempDir, tempDir } from "../lib/env.ts";
import { canHang, mountHanging } from "../lib/hanging_mount.ts";
import { canMount, type LoopKind, mountLoop } from "../lib/loop_mount.ts";
import { makeOrigin, sourcesOf } from "../lib/origin.ts";
import { noise } from "../lib/random.ts";

const UNIT = 65536;

interface Kind extends Partial<LoopKind> {
  name: string;
  /** it tells data from holes */
  tells: boolean;
}

const KINDS: readonly Kind[] = [
  { name: "ext4", type: "ext4", tells: true },
  { name: "xfs", type: "xfs", tells: true },
  { name: "btrfs", type: "btrfs", tells: true },
  {
    name: "btrfs, compressing",
    type: "btrfs",
    options: "compress-force=zstd",
    tells: true,
  },
  { name: "bindfs, which knows no holes", tells: false },
];

async function mount(dir: TempDir, { type, options }: Kind) {
  if (type === undefined) return await mountHanging(dir);
  return await mountLoop(dir, {
    type,
    ...(options === undefined ? {} : { options }),
  });
}

function can({ type }: Kind): boolean {
  return type === undefined ? canHang : canMount({ type });
}

/** Half of it noise, half of it what compresses well. */
function contentOf(seed: number, size: number): Bytes {
  const bytes = noise(seed, size);
  for (let at = 0; at < size; at += 8192) bytes.fill(seed, at, at + 4096);
  return bytes;
}

/** Reads all of a blob and closes it. */
async function readAll(
  origin: ReturnType<typeof makeOrigin>,
  cache: string,
  ranges: readonly [at: number, length: number][],
): Promise<void> {
  const { content } = origin;
  const url = `https://r.example/v2/a/b/blobs/sha256:${sha256(content)}`;
  await using sources = sourcesOf(origin, cache);
  using blob = await sources.open(url);
  for (const [at, length] of ranges) {
    await blob.prefetch(at, length);
    const bytes = new Uint8Array(length);
    ok(await blob.peek(at, bytes));
    const wrong = bytes.findIndex((byte, i) => byte !== content[at + i]);
    equal(wrong, -1, `byte ${at + wrong} of ${content.length}`);
  }
}

const SIZES = [1, 100, 4095, 4096, 4097, UNIT, UNIT + 1, 16 * UNIT + 100];

for (const kind of KINDS) {
  Deno.test(
    `the cache on ${kind.name}: right after a crash, whatever was there`,
    {
      ignore: !can(kind),
    },
    async () => {
      using dir = tempDir();
      await using mounted = await mount(dir, kind);
      const cache = `${mounted.path}/cache`;
      for (const [seed, size] of SIZES.entries()) {
        const origin = makeOrigin(contentOf(seed + 1, size));
        const all: [number, number] = [0, size];
        const units = Math.ceil(size / UNIT);
        // All but the last unit, every other one, then all of them.
        const parts = Array.from(
          { length: units },
          (_, i): [number, number] => [
            i * UNIT,
            Math.min(UNIT, size - i * UNIT),
          ],
        );
        for (
          const some of [
            parts.slice(0, -1),
            parts.filter((_, i) => i % 2 === 0),
            [all],
          ]
        ) {
          await readAll(origin, cache, some);
          // As after a kill -9: nobody has left word of what is there.
          await mustRun("sync", ["-f", mounted.path]);
          Deno.removeSync(`${cache}.state`, { recursive: true });
          const { delivered } = origin;
          await readAll(origin, cache, some);
          if (kind.tells && some.length > 0) {
            equal(origin.delivered, delivered, `size ${size}`);
          }
          await readAll(origin, cache, [all]);
          Deno.removeSync(cache, { recursive: true });
        }
        // What was left in order is believed.
        await readAll(origin, cache, [all]);
        const { delivered } = origin;
        await readAll(origin, cache, [all]);
        equal(origin.delivered, delivered, `size ${size}`);
        Deno.removeSync(cache, { recursive: true });
      }
    },
  );
}
