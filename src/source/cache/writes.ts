// SPDX-License-Identifier: Apache-2.0
/**
 * What one request brings, on its way into a blob's media: gathered in
 * buffers of the engine, several of which are written at once.
 *
 * @module
 */
import {
  BUFFER_BYTES,
  giveBuffer,
  takeBuffer,
  type WriteBuffer,
} from "../../../ffi/buffer.ts";
import type { Media, Place } from "./media.ts";
import type { Run } from "./units.ts";

/** Buffers of one request that are written at once. */
const WRITES = 2;

/** What writes are made of. */
export interface WritesOptions {
  media: Media;
  /** bytes, a power of two of at most {@linkcode BUFFER_BYTES} */
  unit: number;
  /** of the blob: whole units, or up to its end */
  begin: number;
  end: number;
  /** where units have to go, where that matters */
  place: (run: Run) => Place | undefined;
  /** these are there */
  onLand: (run: Run) => void;
}

/** See the module's comment. */
export interface Writes {
  /**
   * Takes the next bytes; waits while too many are being written.
   *
   * @throws {EngineError} some could not be written
   */
  add(chunk: Uint8Array): Promise<void>;
  /**
   * What has come is written, as far as units are whole: resolves when nothing
   * runs any more.
   */
  settle(): Promise<void>;
  /** @throws {EngineError} some could not be written */
  check(): void;
}

/** Makes the way of one request's bytes. */
export function createWrites(options: WritesOptions): Writes {
  const { media, unit, end } = options;
  const running = new Set<Promise<void>>();
  let failure: { error: unknown } | undefined;
  // [from, at) lies in the buffer.
  let from = options.begin;
  let at = from;
  let buffer: WriteBuffer | undefined;

  const write = async (full: WriteBuffer, begin: number, bytes: number) => {
    const run = { first: begin / unit, count: Math.ceil(bytes / unit) };
    try {
      await media.write(
        full,
        begin,
        bytes,
        options.place(run),
        () => options.onLand(run),
      );
    } catch (error) {
      failure ??= { error };
    } finally {
      giveBuffer(full);
    }
  };
  const begin = (full: WriteBuffer) => {
    const done = write(full, from, at - from);
    running.add(done);
    done.then(() => running.delete(done));
    buffer = undefined;
    from = at;
  };
  const check = () => {
    if (failure !== undefined) throw failure.error;
  };
  /** How many of `n` bytes may go into the buffer, and whether it is due. */
  const portion = (n: number): { n: number; due: boolean } => {
    const room = Math.min(n, BUFFER_BYTES - (at - from));
    const to = at + room;
    const whole = to === end ? to : to - to % unit;
    // Whole units go at once when none are on their way, else when the buffer
    // is full of them.
    const due = whole > from && whole >= at &&
      (running.size === 0 || to === end || to - from === BUFFER_BYTES);
    return { n: due ? whole - at : room, due };
  };

  return {
    async add(chunk) {
      for (let used = 0; used < chunk.length;) {
        const { n, due } = portion(chunk.length - used);
        buffer ??= takeBuffer();
        buffer.bytes.set(chunk.subarray(used, used + n), at - from);
        used += n;
        at += n;
        if (!due) continue;
        begin(buffer);
        while (running.size >= WRITES) await Promise.race(running);
        check();
      }
    },
    async settle() {
      if (buffer !== undefined) {
        // Nothing more comes: whole units are kept, the rest is not.
        at -= at === end ? 0 : at % unit;
        if (at > from) begin(buffer);
        else giveBuffer(buffer);
      }
      buffer = undefined;
      while (running.size > 0) await Promise.all(running);
    },
    check,
  };
}
