// SPDX-License-Identifier: Apache-2.0
/**
 * Reads bodies: exactly as many bytes as there should be, through memory
 * that is used again and again.
 *
 * @module
 */
import type { Bytes } from "../../../ffi/handle.ts";

const SCRATCH = 256 << 10;
const SCRATCH_MAX = 64;
const spare: ArrayBuffer[] = [];

/** A body that is read as far as it is needed. */
export interface BodyReader {
  /**
   * Puts the next bytes into `into`; 0: the body is over.
   *
   * @throws what the stream throws
   */
  some(into: Bytes): Promise<number>;
  /** Wants no more of it. */
  cancel(): void;
}

const NOTHING: BodyReader = {
  some: () => Promise.resolve(0),
  cancel: () => {},
};

/**
 * The stream fills a buffer that is lent to it: one of ours, since a buffer
 * that is lent when the stream fails is lost.  The copy costs nothing that
 * can be measured beside the stream itself.
 */
function byteReader(reader: ReadableStreamBYOBReader): BodyReader {
  return {
    async some(into) {
      const lent = spare.pop() ?? new ArrayBuffer(SCRATCH);
      const room = new Uint8Array(lent, 0, Math.min(SCRATCH, into.length));
      const { value } = await reader.read(room);
      if (value === undefined) return 0;
      into.set(value);
      if (spare.length < SCRATCH_MAX) spare.push(value.buffer);
      return value.length;
    },
    cancel: () => void reader.cancel().catch(() => {}),
  };
}

/** For streams that bring their own chunks. */
function chunkReader(
  reader: ReadableStreamDefaultReader<Uint8Array>,
): BodyReader {
  let rest: Uint8Array = new Uint8Array(0);
  return {
    async some(into) {
      while (rest.length === 0) {
        const { value, done } = await reader.read();
        if (done) return 0;
        rest = value;
      }
      const n = Math.min(rest.length, into.length);
      into.set(rest.subarray(0, n));
      rest = rest.subarray(n);
      return n;
    },
    cancel: () => void reader.cancel().catch(() => {}),
  };
}

/** The reader of a stream; null: of an empty one. */
export function bodyReader(
  stream: ReadableStream<Uint8Array> | null,
): BodyReader {
  if (stream === null) return NOTHING;
  try {
    return byteReader(stream.getReader({ mode: "byob" }));
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    return chunkReader(stream.getReader());
  }
}

/**
 * All of a small body.
 *
 * @throws {RangeError} it is longer than `max` bytes
 */
export async function smallBody(
  response: Response,
  max: number,
): Promise<Bytes> {
  const reader = bodyReader(response.body);
  const chunks: Bytes[] = [];
  let size = 0;
  for (;;) {
    const chunk = new Uint8Array(16 << 10);
    const n = await reader.some(chunk);
    if (n === 0) break;
    size += n;
    if (size > max) {
      reader.cancel();
      throw new RangeError(`the answer is longer than ${max} bytes`);
    }
    chunks.push(chunk.subarray(0, n));
  }
  const whole = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk, at);
    at += chunk.length;
  }
  return whole;
}

const DRAIN_MAX = 64 << 10;

/** Lets an answer go so that its connection serves again, if that is cheap. */
export async function discard(response: Response): Promise<void> {
  const { body } = response;
  if (body === null) return;
  const length = Number(response.headers.get("content-length") ?? Infinity);
  try {
    if (length <= DRAIN_MAX) await smallBody(response, DRAIN_MAX);
    else await body.cancel();
  } catch {
    // It is over either way.
  }
}
