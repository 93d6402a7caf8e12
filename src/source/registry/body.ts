// SPDX-License-Identifier: Apache-2.0
/**
 * Reads bodies as they come, through memory that is used again and again.
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
   * The next bytes, at most `max`; none: the body is over.  They are lent:
   * good until the next call.
   *
   * @throws what the stream throws
   */
  next(max: number): Promise<Uint8Array>;
  /** True when nothing more comes; what was lent last stays good. */
  isOver(): Promise<boolean>;
  /** What was lent last is not used any more, and nothing more is read. */
  release(): void;
  /** The same, and the server may stop sending. */
  cancel(): void;
}

const NO_BYTES = new Uint8Array(0);

const NOTHING: BodyReader = {
  next: () => Promise.resolve(NO_BYTES),
  isOver: () => Promise.resolve(true),
  release: () => {},
  cancel: () => {},
};

/**
 * The stream fills a buffer that is lent to it: one of ours, never one of the
 * engine's, since it may still be written when the stream has failed.
 */
function byteReader(reader: ReadableStreamBYOBReader): BodyReader {
  /** what was lent last lies in it */
  let lent: ArrayBuffer | undefined;
  const release = () => {
    if (lent !== undefined && spare.length < SCRATCH_MAX) spare.push(lent);
    lent = undefined;
  };
  return {
    async next(max) {
      const memory = lent ?? spare.pop() ?? new ArrayBuffer(SCRATCH);
      lent = undefined;
      const room = new Uint8Array(memory, 0, Math.min(SCRATCH, max));
      const { value } = await reader.read(room);
      if (value === undefined) return NO_BYTES;
      lent = value.buffer;
      return value;
    },
    async isOver() {
      return (await reader.read(new Uint8Array(1))).done;
    },
    release,
    cancel() {
      release();
      reader.cancel().catch(() => {});
    },
  };
}

/** For streams that bring their own chunks. */
function chunkReader(
  reader: ReadableStreamDefaultReader<Uint8Array>,
): BodyReader {
  let rest: Uint8Array = NO_BYTES;
  const fetchMore = async () => {
    while (rest.length === 0) {
      const { value, done } = await reader.read();
      if (done) return;
      rest = value;
    }
  };
  return {
    async next(max) {
      await fetchMore();
      const bytes = rest.subarray(0, max);
      rest = rest.subarray(bytes.length);
      return bytes;
    },
    async isOver() {
      await fetchMore();
      return rest.length === 0;
    },
    release: () => {},
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
  const chunks: Uint8Array[] = [];
  let size = 0;
  for (;;) {
    const chunk = await reader.next(16 << 10);
    if (chunk.length === 0) break;
    size += chunk.length;
    if (size > max) {
      reader.cancel();
      throw new RangeError(`the answer is longer than ${max} bytes`);
    }
    chunks.push(chunk.slice());
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
