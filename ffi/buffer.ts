// SPDX-License-Identifier: Apache-2.0
/**
 * Bytes on their way into a cache's file: memory of the C library, written on
 * its threads, so that no disk is waited for here.
 *
 * @module
 */
import { check, EngineError } from "./errors.ts";
import { type Bytes, handle, slot, type Source } from "./handle.ts";
import { lib } from "./library.ts";

/** Bytes of a buffer. */
export const BUFFER_BYTES = 512 << 10;

/** A buffer of {@linkcode BUFFER_BYTES}. */
export interface WriteBuffer {
  /** not to be used any more once it was given to {@linkcode giveBuffer} */
  readonly bytes: Bytes;
}

interface Entry extends WriteBuffer {
  tag: number;
  pointer: Deno.PointerObject;
  free(): void;
  /** the library has it, and tells so when it has not any more */
  onEnd: OnEnd | undefined;
  /** when the write began, and when it is given up, in ms of the clock */
  began: number;
  until: number;
  onLate: (() => void) | undefined;
  /** the write was given up, but the library has it still */
  late: boolean;
  /** nobody wants it any more */
  given: boolean;
}

/** How a write has ended, and how long it took in us. */
type OnEnd = (error: EngineError | undefined, us: number) => void;

/** More than these are given back to the system. */
const SPARE_MAX = 8;
const ETIMEDOUT = 110;

const spare: Entry[] = [];
const entries = new Map<number, Entry>();
let nextTag = 1;

function newEntry(): Entry {
  const tag = nextTag++;
  const out = slot();
  check(
    lib.obd_buffer_new(BigInt(BUFFER_BYTES), BigInt(tag), out),
    "cannot get a buffer",
  );
  const { pointer, close } = handle("buffer", out, lib.obd_buffer_unref);
  const memory = lib.obd_buffer_bytes(pointer);
  if (memory === null) throw new TypeError("a buffer without memory");
  const bytes = new Uint8Array(
    Deno.UnsafePointerView.getArrayBuffer(memory, BUFFER_BYTES),
  );
  const entry: Entry = {
    tag,
    pointer,
    bytes,
    free: close,
    onEnd: undefined,
    began: 0,
    until: 0,
    onLate: undefined,
    late: false,
    given: false,
  };
  entries.set(tag, entry);
  return entry;
}

/** A buffer to fill; end with {@linkcode giveBuffer}. */
export function takeBuffer(): WriteBuffer {
  return spare.pop() ?? newEntry();
}

function drop(entry: Entry): void {
  entry.given = entry.late = false;
  if (spare.length < SPARE_MAX) spare.push(entry);
  else {
    entries.delete(entry.tag);
    entry.free();
  }
}

/** Nobody uses it any more; one that is still being written comes later. */
export function giveBuffer(buffer: WriteBuffer): void {
  const entry = buffer as Entry;
  if (entry.late) entry.given = true;
  else drop(entry);
}

/** True for one whose write was given up and has not ended yet. */
export function isLate(buffer: WriteBuffer): boolean {
  return (buffer as Entry).late;
}

/** What a write is told with. */
export interface WriteOptions {
  /** ms until it is given up */
  limitMs: number;
  /**
   * Called once, from {@linkcode drainWritten} or a timer.  An error: nothing
   * counts as written; ETIMEDOUT: it was given up.
   */
  onEnd: OnEnd;
  /** It was given up and runs still: called when it has ended at last. */
  onLate: () => void;
}

/**
 * Writes the first `n` bytes to the file of `cache` at `at`, whole units or
 * up to the blob's end; then what waits for them goes on.
 *
 * @throws {EngineError} it cannot begin
 */
export function writeBuffer(
  buffer: WriteBuffer,
  cache: Source,
  at: number,
  n: number,
  { limitMs, onEnd, onLate }: WriteOptions,
): void {
  const entry = buffer as Entry;
  check(
    lib.obd_buffer_write(entry.pointer, cache.pointer, BigInt(at), BigInt(n)),
    `cannot write ${n} bytes at ${at}`,
  );
  entry.began = performance.now();
  entry.until = entry.began + limitMs;
  entry.onEnd = onEnd;
  entry.onLate = onLate;
  watch(entry.until);
}

/** One timer for all writes: most end long before it rings. */
let alarm: { id: ReturnType<typeof setTimeout>; at: number } | undefined;

function watch(at: number): void {
  if (alarm !== undefined && alarm.at <= at) return;
  clearTimeout(alarm?.id);
  const id = setTimeout(ring, Math.max(1, at - performance.now()));
  Deno.unrefTimer(id);
  alarm = { id, at };
}

function ring(): void {
  alarm = undefined;
  const now = performance.now();
  let next = Infinity;
  for (const entry of [...entries.values()]) {
    if (entry.onEnd === undefined || entry.late) continue;
    if (entry.until > now) next = Math.min(next, entry.until);
    else giveUp(entry);
  }
  if (next < Infinity) watch(next);
}

function giveUp(entry: Entry): void {
  const taken = lib.obd_buffer_take_back(entry.pointer);
  // It has ended just now.
  if (taken < 0) return;
  const { onEnd, onLate } = entry;
  entry.late = taken === 0;
  entry.onEnd = entry.late ? onLate : undefined;
  const us = (performance.now() - entry.began) * 1000;
  onEnd?.(new EngineError(ETIMEDOUT, "cannot write"), us);
}

const WRITTEN_SIZE = 24;
const MAX = 64;
const raw = new Uint8Array(MAX * WRITTEN_SIZE);
const fields = new DataView(raw.buffer);

/** The library has given a buffer back. */
function returned(entry: Entry, us: number, rc: number): void {
  const { onEnd, given } = entry;
  entry.onEnd = undefined;
  entry.late = false;
  if (given) drop(entry);
  onEnd?.(rc < 0 ? new EngineError(-rc, "cannot write") : undefined, us);
}

/** Tells whoever waits for writes that have ended. */
export function drainWritten(): void {
  for (;;) {
    const got = check(
      lib.obd_written_drain(raw, MAX),
      "cannot take ended writes",
    );
    for (let i = 0; i < got * WRITTEN_SIZE; i += WRITTEN_SIZE) {
      const entry = entries.get(Number(fields.getBigUint64(i, true)));
      if (entry === undefined) continue;
      const us = Number(fields.getBigUint64(i + 8, true)) / 1000;
      returned(entry, us, fields.getInt32(i + 16, true));
    }
    if (got < MAX) return;
  }
}
