// SPDX-License-Identifier: Apache-2.0
/**
 * Reproducible randomness for tests that choose among many states.
 *
 * @module
 */

/** A small fast generator (mulberry32): numbers in [0, 1). */
export function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6D2B79F5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Fills bytes with noise that names its seed: no two seeds look alike. */
export function noise(seed: number, n: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(Math.ceil(n / 4));
  let x = (seed * 2654435761 + 1) >>> 0 || 1;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x >>>= 0;
    x ^= x >>> 17;
    x ^= x << 5;
    x >>>= 0;
    words[i] = x;
  }
  return new Uint8Array(words.buffer, 0, n);
}

/** The number of a variable, or the default; used for SEED and PROGRAMS. */
export function numberFromEnv(name: string, otherwise: number): number {
  const text = Deno.env.get(name);
  if (text === undefined || text === "") return otherwise;
  const value = Number(text);
  if (!Number.isSafeInteger(value)) {
    throw new Error(`${name}=${text} is no whole number`);
  }
  return value;
}

/** SEED, or a new one. */
export function chooseSeed(): number {
  return numberFromEnv("SEED", Math.floor(Math.random() * 2 ** 31));
}
