// SPDX-License-Identifier: Apache-2.0
/**
 * Layers made by hand for unit tests, right or wrong in one chosen place.
 *
 * @module
 */
import type { TempDir } from "../lib/env.ts";
import { encodeLsmtBlock, FLAGS } from "../../src/format/lsmt.ts";

export const BLOCK = 4096;

/** One index record; the rest is 0. */
export interface Rec {
  lba: number;
  n: number;
  at?: number;
  zeroed?: boolean;
  tag?: number;
}

/** What every reader drops. */
export const PADDING: Rec = { lba: 2 ** 50 - 1, n: 0 };

/** Records as they lie in an index. */
export function recordBytes(records: readonly Rec[]): Uint8Array<ArrayBuffer> {
  const words = records.flatMap(({ lba, n, at = 0, zeroed, tag = 0 }) => [
    BigInt(lba) | BigInt(n) << 50n,
    BigInt(at) | (zeroed === true ? 1n << 55n : 0n) | BigInt(tag) << 56n,
  ]);
  return new Uint8Array(BigUint64Array.from(words).buffer);
}

/** Joins bytes. */
export function concat(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** What a hand-made layer is to be. */
export interface LayerParts {
  records?: readonly Rec[];
  /** sectors of data; sector i is filled with i + 1 */
  sectors?: number;
  /** bytes between index and trailer */
  gap?: number;
  header?: Partial<Parameters<typeof encodeLsmtBlock>[0]>;
  trailer?: Partial<Parameters<typeof encodeLsmtBlock>[0]>;
}

/** A committed layer of 1 MiB: header, data, index, trailer. */
export function layerBytes(parts: LayerParts = {}): Uint8Array<ArrayBuffer> {
  const { records = [{ lba: 0, n: 8, at: 8 }], sectors = 8, gap = 0 } = parts;
  const data = new Uint8Array(sectors * 512);
  for (let i = 0; i < sectors; i++) data.fill(i + 1, i * 512, i * 512 + 512);
  const common = { virtualSize: 1 << 20 };
  return concat(
    encodeLsmtBlock({
      ...common,
      flags: FLAGS.committedHeader,
      ...parts.header,
    }),
    data,
    recordBytes(records),
    new Uint8Array(gap),
    encodeLsmtBlock({
      ...common,
      flags: FLAGS.trailer,
      indexOffset: BLOCK + data.length,
      indexSize: records.length,
      ...parts.trailer,
    }),
  );
}

/** A writable log layer of 1 MiB: its two files' bytes. */
export function logBytes(
  parts: LayerParts & { index?: LayerParts["header"] } = {},
): { data: Uint8Array<ArrayBuffer>; index: Uint8Array<ArrayBuffer> } {
  const { records = [{ lba: 0, n: 8, at: 8 }], sectors = 8 } = parts;
  const data = new Uint8Array(sectors * 512);
  for (let i = 0; i < sectors; i++) data.fill(i + 1, i * 512, i * 512 + 512);
  const common = { virtualSize: 1 << 20 };
  return {
    data: concat(
      encodeLsmtBlock({ ...common, flags: FLAGS.logData, ...parts.header }),
      data,
    ),
    index: concat(
      encodeLsmtBlock({
        ...common,
        flags: FLAGS.index,
        indexOffset: BLOCK,
        ...parts.index,
      }),
      recordBytes(records),
    ),
  };
}

/** Writes a writable layer's files. */
export function putUpper(
  dir: TempDir,
  made: ReturnType<typeof logBytes>,
  name = "rw",
) {
  const paths = {
    data: dir.file(`${name}.data`),
    index: dir.file(`${name}.index`),
  };
  Deno.writeFileSync(paths.data, made.data);
  Deno.writeFileSync(paths.index, made.index);
  return paths;
}

/** A log layer of n records of one sector each, `step` sectors apart. */
export function scatteredUpper(
  dir: TempDir,
  n: number,
  step: number,
  name = "rw",
) {
  const words = new BigUint64Array(2 * n);
  for (let i = 0; i < n; i++) {
    words[2 * i] = BigInt(i * step) | 1n << 50n;
    words[2 * i + 1] = BigInt(8 + i % 8);
  }
  const size = { virtualSize: n * step * 512 };
  const made = logBytes({ records: [], header: size, index: size });
  made.index = concat(made.index, new Uint8Array(words.buffer));
  return putUpper(dir, made, name);
}
