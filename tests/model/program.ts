// SPDX-License-Identifier: Apache-2.0
/**
 * Random programs: what is done to an image, in units of sectors.
 *
 * @module
 */
import * as fc from "fast-check";

/** How a commit or merge writes its layer. */
export interface Format {
  algorithm: "lz4" | "zstd";
  /** KiB; 0: plain, no ZFile */
  blockKiB: 0 | 4 | 8 | 16 | 32 | 64;
  tar: boolean;
  threads: number;
}

/** A range of the disk as fractions, so that it fits after a resize. */
export interface Range {
  lba: number;
  sectors: number;
}

/** One operation. */
export type Op =
  | { kind: "write"; seed: number } & Range
  | { kind: "discard" | "zero" | "read" } & Range
  | { kind: "flush" | "reopen" | "recommit" }
  | { kind: "seal"; sparse: boolean }
  | { kind: "commit" | "merge"; sparse: boolean; format: Format }
  | { kind: "grow"; sectors: number; live: boolean };

/** A program and the disk that it begins with. */
export interface Program {
  /** sectors */
  size: number;
  /** a disk of more than 2 TiB, worked on in a few far places */
  huge: boolean;
  sparse: boolean;
  ops: Op[];
}

/** Sectors between the places of a huge disk where things happen. */
export const HUGE_PLACES = [
  0,
  2 ** 32 - 64,
  2 ** 32 + 2 ** 30,
  2 ** 33 - 32,
] as const;
/** Sectors of a huge disk: a little over 4 TiB. */
export const HUGE_SECTORS = 2 ** 33 + 64;

const LONGEST = 16384 + 64;
const lba = fc.nat({ max: 1 << 20 });
// Mostly a few sectors; sometimes more than fits one record (16383).
const sectors = fc.oneof(
  { weight: 12, arbitrary: fc.integer({ min: 1, max: 24 }) },
  { weight: 4, arbitrary: fc.integer({ min: 25, max: 400 }) },
  { weight: 1, arbitrary: fc.integer({ min: 401, max: LONGEST }) },
);
const format = fc.record({
  algorithm: fc.constantFrom("lz4" as const, "zstd" as const),
  blockKiB: fc.constantFrom(0 as const, 4, 4, 8, 16, 32, 64),
  tar: fc.boolean(),
  threads: fc.constantFrom(1, 1, 2, 5),
});
// Seed 0 writes zeros, which must stay data.
const seed = fc.nat({ max: 999 });

const op: fc.Arbitrary<Op> = fc.oneof(
  {
    weight: 36,
    arbitrary: fc.record({
      kind: fc.constant("write" as const),
      lba,
      sectors,
      seed,
    }),
  },
  {
    weight: 26,
    arbitrary: fc.record({
      kind: fc.constantFrom("discard" as const, "zero" as const),
      lba,
      sectors,
    }),
  },
  {
    weight: 14,
    arbitrary: fc.record({ kind: fc.constant("read" as const), lba, sectors }),
  },
  {
    weight: 10,
    arbitrary: fc.record({
      kind: fc.constantFrom(
        "flush" as const,
        "flush" as const,
        "reopen" as const,
        "recommit" as const,
      ),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant("seal" as const),
      sparse: fc.boolean(),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constantFrom(
        "commit" as const,
        "commit" as const,
        "merge" as const,
      ),
      sparse: fc.boolean(),
      format,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("grow" as const),
      sectors: fc.integer({ min: 1, max: 2048 }),
      live: fc.boolean(),
    }),
  },
);

/** All programs: small disks mostly, median 20 operations. */
export const program: fc.Arbitrary<Program> = fc.record({
  size: fc.oneof(
    { weight: 6, arbitrary: fc.integer({ min: 512, max: 2048 }) },
    { weight: 1, arbitrary: fc.integer({ min: 2048, max: 8192 }) },
    // Not a multiple of any host block.
    { weight: 1, arbitrary: fc.constantFrom(1, 7, 513, 1023) },
  ),
  huge: fc.integer({ min: 0, max: 19 }).map((n) => n === 19),
  sparse: fc.boolean(),
  ops: fc.array(op, { minLength: 0, maxLength: 40, size: "max" }),
});
