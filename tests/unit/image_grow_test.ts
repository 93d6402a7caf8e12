// SPDX-License-Identifier: Apache-2.0
// A disk that grows, used or not, over layers that are larger than it is.
import { deepEqual, equal, fail, rejects } from "node:assert/strict";
import * as fc from "fast-check";
import { faultIo, IO } from "../../ffi/files.ts";
import { ImageError } from "../../src/image/image.ts";
import { type TempDir, tempDir } from "../lib/env.ts";
import { growClosed, newUpper, openDisk } from "../lib/product.ts";
import { noise } from "../lib/random.ts";
import type { UpperPaths } from "../lib/spec_reader.ts";
import { encodeFullLayer } from "../lib/spec_writer.ts";

const SECTOR = 512;
const LOWER = noise(5, 96 * SECTOR);

/** The first sector that differs. */
function same(got: Uint8Array, want: Uint8Array, what: string): void {
  equal(got.length, want.length, what);
  const at = got.findIndex((byte, i) => byte !== want[i]);
  if (at >= 0) fail(`${what}: sector ${Math.floor(at / SECTOR)} is wrong`);
}

const step = fc.record({
  lba: fc.nat({ max: 95 }),
  sectors: fc.integer({ min: 1, max: 9 }),
  kind: fc.constantFrom("write", "zero", "grow", "grow closed", "reopen"),
});

/** A disk of 13 sectors over a larger lower. */
async function overLower(dir: TempDir, sparse: boolean) {
  const lower = dir.file("lower");
  Deno.writeFileSync(lower, encodeFullLayer(LOWER));
  const size = 13 * SECTOR;
  const upper = await newUpper(dir.file("u"), { size, sparse });
  return { lowers: [lower], upper };
}

/** Sizes and first bytes of an upper's files. */
function state({ data, index }: UpperPaths) {
  return [data, index].map((path) => {
    using file = Deno.openSync(path);
    const head = new Uint8Array(4096);
    file.readSync(head);
    return [Deno.statSync(path).size, head.toHex()];
  });
}

for (const sparse of [false, true]) {
  const kind = sparse ? "sparse" : "log";

  Deno.test(`a growing disk shows what it was written and else the layers below, ${kind}`, async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 40 }),
        fc.array(step, { minLength: 2, maxLength: 14 }),
        async (sectors, steps) => {
          using dir = tempDir("memory");
          const lowers = [dir.file("lower")];
          Deno.writeFileSync(dir.file("lower"), encodeFullLayer(LOWER));
          let size = sectors * SECTOR;
          const upper = await newUpper(dir.file("u"), { size, sparse });
          const plain = LOWER.slice();
          let disk = await openDisk({ lowers, upper });
          try {
            for (const [nr, { kind, lba, sectors }] of steps.entries()) {
              const at = lba % (size / SECTOR) * SECTOR;
              const n = Math.min(sectors * SECTOR, size - at);
              if (kind === "grow") {
                size = Math.min(size + sectors * SECTOR, LOWER.length);
                await disk.grow(size);
              } else if (kind === "reopen" || kind === "grow closed") {
                await disk.close();
                if (kind === "grow closed") {
                  size = Math.min(size + sectors * SECTOR, LOWER.length);
                  await growClosed({ lowers, upper }, size);
                }
                disk = await openDisk({ lowers, upper });
              } else if (kind === "write") {
                disk.write(at, noise(nr, n));
                plain.set(noise(nr, n), at);
              } else {
                disk.zero(at, n);
                plain.fill(0, at, at + n);
              }
              equal(disk.size, size);
              same(disk.read(0, size), plain.slice(0, size), `${nr}, ${kind}`);
            }
          } finally {
            await disk.close();
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  Deno.test(`a growth that fails changes nothing, and can be tried again, ${kind}`, async () => {
    const EIO = 5;
    let failures = 0;
    for (const op of [IO.PWRITE, IO.SYNC, IO.TRUNCATE]) {
      for (let nth = 1; nth <= 5; nth++) {
        using dir = tempDir("memory");
        const stack = await overLower(dir, sparse);
        const plain = LOWER.slice();
        plain.set(noise(1, SECTOR), 12 * SECTOR);
        const what = `${op} ${nth}`;
        const disk = await openDisk(stack);
        disk.write(12 * SECTOR, noise(1, SECTOR));
        await disk.flush();
        faultIo(op, nth, EIO);
        const failed = await disk.grow(30 * SECTOR)
          .then(() => false, () => true);
        faultIo(op, 1, EIO, 0);
        if (failed) {
          failures++;
          equal(disk.size, 13 * SECTOR, what);
          // A sync of the layer that failed once is never called a success.
          if (op !== IO.SYNC) await disk.grow(22 * SECTOR);
        }
        const { size } = disk;
        same(disk.read(0, size), plain.slice(0, size), what);
        // Nor is its close.
        await disk.close().catch((error) => {
          if (op !== IO.SYNC) throw error;
        });
        await using again = await openDisk(stack);
        equal(again.size, size, what);
        same(again.read(0, size), plain.slice(0, size), `${what}, reopened`);
        await again.grow(30 * SECTOR);
        same(again.read(0, again.size), plain.slice(0, again.size), what);
      }
    }
    equal(failures >= 3, true, "faults were met");
  });

  Deno.test(`growing a closed disk changes the size in every header, and nothing else, ${kind}`, async () => {
    const GIB = 2 ** 30;
    using dir = tempDir();
    const upper = await newUpper(dir.file("u"), { size: GIB, sparse });
    const before = state(upper);
    await growClosed({ lowers: [], upper }, 3 * GIB);
    for (const [i, [size, head]] of state(upper).entries()) {
      if (i === 1 && sparse) continue;
      const old = String(before[i]?.[1]);
      equal(head, `${old.slice(0, 96)}000000c000000000${old.slice(112)}`);
      equal(size, sparse ? 4096 + 3 * GIB : before[i]?.[0]);
    }
    await using disk = await openDisk({ lowers: [], upper });
    equal(disk.size, 3 * GIB);
    await rejects(growClosed({ lowers: [], upper }, 4 * GIB), ImageError);
  });

  Deno.test(`whatever fails, a closed disk has its old size, ${kind}`, async () => {
    const EIO = 5;
    let failures = 0;
    for (const op of [IO.PWRITE, IO.SYNC, IO.TRUNCATE]) {
      for (let nth = 1; nth <= 4; nth++) {
        using dir = tempDir("memory");
        const stack = await overLower(dir, sparse);
        const { upper } = stack;
        {
          await using disk = await openDisk(stack);
          disk.write(12 * SECTOR, noise(1, SECTOR));
        }
        const plain = LOWER.slice();
        plain.set(noise(1, SECTOR), 12 * SECTOR);
        const before = state(upper);
        faultIo(op, nth, EIO);
        const failed = await growClosed(stack, 30 * SECTOR)
          .then(() => false, () => true);
        faultIo(op, 1, EIO, 0);
        const what = `${op} ${nth}`;
        if (failed) {
          failures++;
          deepEqual(state(upper), before, what);
        }
        await using disk = await openDisk(stack);
        equal(disk.size, (failed ? 13 : 30) * SECTOR, what);
        same(disk.read(0, disk.size), plain.slice(0, disk.size), what);
      }
    }
    equal(failures >= 3, true, "faults were met");
  });
}
