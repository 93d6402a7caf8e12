// SPDX-License-Identifier: Apache-2.0
/**
 * The operations files of the fixtures, and the bytes they stand for:
 * `OP OFFSET LENGTH PATTERN`, one a line (fixtures/README.md).
 *
 * @module
 */

/** One write (`data`) or discard (no data), in bytes. */
export interface Op {
  kind: "write" | "discard";
  offset: number;
  length: number;
  pattern: string;
}

const MASK = (1n << 64n) - 1n;

/** The splitmix64 stream, one 64-bit number a call. */
export function splitmix64(seed: bigint): () => bigint {
  let state = seed & MASK;
  return () => {
    state = (state + 0x9E3779B97F4A7C15n) & MASK;
    let z = state;
    z = ((z ^ (z >> 30n)) * 0xBF58476D1CE4E5B9n) & MASK;
    z = ((z ^ (z >> 27n)) * 0x94D049BB133111EBn) & MASK;
    return z ^ (z >> 31n);
  };
}

/** The bytes of a pattern: `z`, `c:N`, `r:SEED`, `t:SEED`. */
export function patternBytes(
  pattern: string,
  length: number,
): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(length);
  const [kind = "", arg = "0"] = pattern.split(":");
  if (kind === "z") return out;
  if (kind === "c") return out.fill(Number(arg));
  const next = splitmix64(BigInt(arg));
  if (kind === "r") {
    const padded = new Uint8Array(Math.ceil(length / 8) * 8);
    const v = new DataView(padded.buffer);
    for (let at = 0; at < length; at += 8) v.setBigUint64(at, next(), true);
    out.set(padded.subarray(0, length));
    return out;
  }
  if (kind !== "t") throw new Error(`unknown pattern ${pattern}`);
  const encoder = new TextEncoder();
  for (let at = 0; at < length;) {
    const number = `${next() % 1000000n}`.padStart(6, "0");
    const line = encoder.encode(`line ${number} of seed ${arg}\n`);
    out.set(line.subarray(0, length - at), at);
    at += line.length;
  }
  return out;
}

/** Parses an operations file. */
export function parseOps(text: string): Op[] {
  return text.trim().split("\n").filter((line) => line !== "").map((line) => {
    const [op, offset, length, pattern = "z"] = line.trim().split(/\s+/);
    if (op !== "W" && op !== "T") throw new Error(`unknown op: ${line}`);
    return {
      kind: op === "W" ? "write" : "discard",
      offset: Number(offset),
      length: Number(length),
      pattern,
    };
  });
}

/** Plays operations on a plain image, in place; a discard reads as zeros. */
export function playOps(image: Uint8Array, ops: readonly Op[]): Uint8Array {
  for (const { kind, offset, length, pattern } of ops) {
    if (kind === "discard") image.fill(0, offset, offset + length);
    else image.set(patternBytes(pattern, length), offset);
  }
  return image;
}
