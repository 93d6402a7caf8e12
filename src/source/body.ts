// SPDX-License-Identifier: Apache-2.0
/**
 * Reads the body of an answer into memory that is used again and again.
 *
 * @module
 */
import type { Bytes } from "../../ffi/engine.ts";
import type { RangeBody } from "./source.ts";

/** Fills a buffer from a stream; fewer bytes only at the stream's end. */
interface Filler {
  fill(into: Bytes): Promise<Bytes>;
  cancel(): Promise<void>;
}

/** Without a copy: the stream writes into the buffer itself. */
function byteFiller(reader: ReadableStreamBYOBReader): Filler {
  return {
    async fill(into) {
      const min = into.length;
      if (min === 0) return into;
      const { value } = await reader.read(into, { min });
      // Only who cancels gets nothing at all.
      return value ?? new Uint8Array(0);
    },
    cancel: () => reader.cancel(),
  };
}

/** For streams that bring their own chunks. */
function chunkFiller(
  reader: ReadableStreamDefaultReader<Uint8Array>,
): Filler {
  let rest = new Uint8Array(0) as Uint8Array;
  return {
    async fill(into) {
      let at = 0;
      while (at < into.length) {
        if (rest.length === 0) {
          const { value, done } = await reader.read();
          if (done) break;
          rest = value;
        }
        const n = Math.min(rest.length, into.length - at);
        into.set(rest.subarray(0, n), at);
        rest = rest.subarray(n);
        at += n;
      }
      return into.subarray(0, at);
    },
    cancel: () => reader.cancel(),
  };
}

function fillerOf(stream: ReadableStream<Uint8Array> | null): Filler {
  if (stream === null) {
    return {
      fill: (into) => Promise.resolve(into.subarray(0, 0)),
      cancel: () => Promise.resolve(),
    };
  }
  try {
    return byteFiller(stream.getReader({ mode: "byob" }));
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    return chunkFiller(stream.getReader());
  }
}

/**
 * A stream as a range that is checked to the byte: one that ends early or
 * late is an error.
 *
 * @param size bytes of the whole blob, and of this range
 * @param explain what the stream threw, as what it means
 */
export function rangeBody(
  stream: ReadableStream<Uint8Array> | null,
  size: { total: number; length: number },
  explain: (cause: unknown) => Error,
): RangeBody {
  const filler = fillerOf(stream);
  let left = size.length;
  const cancel = () => {
    filler.cancel().catch(() => {});
  };
  const next = async (into: Bytes) => {
    const wanted = Math.min(into.length, left);
    const got = await filler.fill(into.subarray(0, wanted));
    left -= got.length;
    if (got.length < wanted) {
      const had = size.length - left;
      throw new Error(`the answer ends after ${had} of ${size.length} bytes`);
    }
    // The connection serves again once its end was seen.
    if (left === 0 && wanted > 0) {
      const more = await filler.fill(new Uint8Array(1));
      if (more.length > 0) {
        throw new Error(`the answer is longer than ${size.length} bytes`);
      }
    }
    return got;
  };
  return {
    ...size,
    async read(into) {
      try {
        return await next(into);
      } catch (cause) {
        cancel();
        throw explain(cause);
      }
    },
    cancel,
  };
}
