// SPDX-License-Identifier: Apache-2.0
/**
 * Reading a blob through the process that holds the cache: what it has comes
 * from there, and what it fetches for one process is there for all.  The
 * answer is a line of JSON, then the bytes.
 *
 * @module
 */
import * as z from "zod/mini";
import type { Bytes } from "../../../ffi/handle.ts";
import { type Blob, type RangeBody, readInto, SourceError } from "../source.ts";
import type { SourceSet } from "../sources.ts";
import type { CachedBlob } from "./blob.ts";

/** Asks for bytes [at, at + length) of a blob. */
export const readRequest = z.object({
  op: z.literal("read"),
  url: z.string(),
  at: z.int().check(z.gte(0)),
  length: z.int().check(z.gte(1)),
});

/** What stands before the bytes. */
const answerSchema = z.object({
  result: z.optional(z.object({ total: z.number(), length: z.number() })),
  error: z.optional(z.string()),
});

/** A blob stays open for so long after it was read from. */
const LINGER_MS = 10_000;
/** Bytes that are fetched and sent at a time. */
const PIECE = 1 << 20;
/** Bytes that are taken from the holder at a time, at most. */
const LENT = 256 << 10;
/** What was fetched can be evicted before it is read: it is fetched again. */
const TRIES = 3;
/** Without a byte for so long an answer counts as lost. */
const SILENCE_MS = 30_000;

function why(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Bytes of an open blob, from its file. */
async function piece(
  blob: CachedBlob,
  at: number,
  length: number,
): Promise<Bytes> {
  const bytes = new Uint8Array(length);
  for (let left = TRIES; left > 0; left--) {
    await blob.prefetch(at, length);
    if (await blob.peek(at, bytes)) return bytes;
  }
  // No file keeps them.
  const body = await blob.origin.range(at, length);
  for (let done = 0; done < length;) {
    const got = await body.read(new Uint8Array(length - done));
    bytes.set(got, done);
    done += got.length;
  }
  return bytes;
}

/** What the holder of a cache lends; blobs stay open between reads. */
export function createLender(sources: SourceSet): {
  /**
   * Answers one request.
   *
   * @throws what reading the blob meets, and what `write` throws
   */
  lend(
    request: z.infer<typeof readRequest>,
    write: (bytes: Bytes) => Promise<void>,
  ): Promise<void>;
  close(): void;
} {
  interface Lent {
    opening: Promise<CachedBlob>;
    users: number;
    timer: ReturnType<typeof setTimeout> | undefined;
  }
  const all = new Map<string, Lent>();

  const drop = (url: string, lent: Lent) => {
    clearTimeout(lent.timer);
    if (all.get(url) === lent) all.delete(url);
    lent.opening.then((blob) => blob.close(), () => {});
  };
  const leave = (url: string, lent: Lent) => {
    if (--lent.users > 0) return;
    if (all.get(url) !== lent) return drop(url, lent);
    const timer = setTimeout(() => drop(url, lent), LINGER_MS);
    Deno.unrefTimer(timer);
    lent.timer = timer;
  };
  const enter = (url: string): Lent => {
    const lent = all.get(url) ??
      { opening: sources.open(url), users: 0, timer: undefined };
    all.set(url, lent);
    clearTimeout(lent.timer);
    lent.users++;
    // The next one asks anew.
    lent.opening.catch(() => all.get(url) === lent && all.delete(url));
    return lent;
  };
  return {
    async lend({ url, at, length }, write) {
      const lent = enter(url);
      try {
        const blob = await lent.opening;
        const end = Math.max(at, Math.min(blob.size, at + length));
        const result = { total: blob.size, length: end - at };
        if (end > at) blob.prefetch(at, end - at).catch(() => {});
        const bytesAt = (from: number) =>
          piece(blob, from, Math.min(PIECE, end - from));
        // An error of the first piece can still be told.
        const first = end > at ? await bytesAt(at) : new Uint8Array();
        await write(
          new TextEncoder().encode(`${JSON.stringify({ result })}\n`),
        );
        await write(first);
        for (let from = at + first.length; from < end; from += PIECE) {
          await write(await bytesAt(from));
        }
      } finally {
        leave(url, lent);
      }
    },
    close() {
      for (const [url, lent] of all) if (lent.users === 0) drop(url, lent);
      all.clear();
    },
  };
}

/** A connection whose bytes come in time, or which is closed. */
async function openStream(path: string, signal: AbortSignal | undefined) {
  const connection = await Deno.connect({ transport: "unix", path });
  let closed = false;
  const close = () => {
    if (closed) return;
    closed = true;
    signal?.removeEventListener("abort", close);
    connection.close();
  };
  if (signal?.aborted) close();
  signal?.addEventListener("abort", close, { once: true });
  return {
    connection,
    async read(into: Bytes): Promise<number> {
      const timer = setTimeout(close, SILENCE_MS);
      try {
        return await connection.read(into) ?? 0;
      } finally {
        clearTimeout(timer);
      }
    },
    close,
  };
}

/** The line before the bytes, and what of them has come with it. */
async function readAnswer(
  read: (into: Bytes) => Promise<number>,
): Promise<{ line: string; rest: Bytes }> {
  const memory = new Uint8Array(64 << 10);
  for (let n = 0; n < memory.length;) {
    const got = await read(memory.subarray(n));
    if (got === 0) break;
    const end = memory.subarray(0, n + got).indexOf(10);
    n += got;
    if (end < 0) continue;
    const line = new TextDecoder().decode(memory.subarray(0, end));
    return { line, rest: memory.slice(end + 1, n) };
  }
  throw new Error("no answer");
}

async function borrow(
  path: string,
  request: z.infer<typeof readRequest>,
  name: string,
  signal: AbortSignal | undefined,
): Promise<RangeBody> {
  const stream = await openStream(path, signal);
  const early = (cause?: unknown) =>
    new SourceError("EIO", `cannot read ${name}: the cache's answer ends`, {
      cause,
      retryable: true,
    });
  try {
    await stream.connection.write(
      new TextEncoder().encode(`${JSON.stringify(request)}\n`),
    );
    const { line, rest } = await readAnswer(stream.read);
    const { result, error } = z.parse(answerSchema, JSON.parse(line));
    if (result === undefined) throw new Error(error ?? "no answer");
    let left = rest;
    let toCome = result.length;
    const memory = new Uint8Array(Math.min(LENT, toCome));
    const body: RangeBody = {
      ...result,
      async next(max) {
        let bytes = left.subarray(0, Math.min(max, toCome));
        left = left.subarray(bytes.length);
        const want = Math.min(max, toCome, memory.length);
        if (bytes.length === 0 && want > 0) {
          const got = await stream.read(memory.subarray(0, want))
            .catch((cause) => {
              throw early(cause);
            });
          if (got === 0) throw early();
          bytes = memory.subarray(0, got);
        }
        toCome -= bytes.length;
        if (toCome === 0) stream.close();
        return bytes;
      },
      read: (into) => readInto(body, into),
      cancel: stream.close,
    };
    return body;
  } catch (error) {
    stream.close();
    throw error;
  }
}

/**
 * A blob as the process behind `path` has it; what that cannot give comes
 * from `origin`, which is said once.
 */
export function borrowedBlob(
  path: string,
  url: string,
  origin: Blob,
  log: (line: string) => void,
): Blob {
  let refused = false;
  const range: Blob["range"] = async (at, length, signal) => {
    if (refused) return await origin.range(at, length, signal);
    const request = { op: "read", url, at, length } as const;
    try {
      return await borrow(path, request, origin.name, signal);
    } catch (error) {
      if (signal?.aborted) throw error;
      if (!refused) {
        log(
          `WARNING another process uses the cache and gives no ${origin.name}, ` +
            `reading past it: ${why(error)}`,
        );
      }
      refused = true;
      return await origin.range(at, length, signal);
    }
  };
  return {
    name: origin.name,
    range,
    async size(signal) {
      const body = await range(0, 1, signal);
      body.cancel();
      return body.total;
    },
  };
}
