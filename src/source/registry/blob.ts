// SPDX-License-Identifier: Apache-2.0
/**
 * A blob in a registry: ranges that are checked to the byte, tried again when
 * that may help, and read on from where they were cut (spec/registry.md,
 * sections 4 and 5).
 *
 * @module
 */
import { type Blob, type RangeBody, readInto, SourceError } from "../source.ts";
import {
  type Attempt,
  backoff,
  newAttempt,
  pause,
  TRIES,
  tryAgain,
} from "./attempt.ts";
import { type BodyReader, bodyReader } from "./body.ts";
import { lastWords, publicUrl } from "./errors.ts";
import type { Peer } from "./peer.ts";
import { type Place, placeOf } from "./place.ts";
import type { Answer } from "./request.ts";
import { createRoute, type RouteParts } from "./route.ts";

/** An attempt that brought this much is none that failed. */
const PROGRESS = 64 << 10;
const NO_BYTES: Uint8Array = new Uint8Array(0);

/** What a blob is made of. */
export interface BlobParts extends RouteParts {
  log(line: string): void;
}

/** An answer, or a part of one. */
interface Part extends Place {
  answer: Answer;
  attempt: Attempt;
  reader: BodyReader;
  /** the peer that gave it */
  peer: Peer | undefined;
}

/** The turn and the time of a part are over. */
function end({ answer, attempt }: Part): void {
  answer[Symbol.dispose]();
  attempt[Symbol.dispose]();
}

/** Nobody wants more of it. */
function drop(part: Part): void {
  part.reader.cancel();
  end(part);
}

/** The blob behind a URL; contacts nobody yet. */
export function openRegistryBlob(
  parts: BlobParts,
  home: URL,
  peer: Peer | undefined,
): Blob {
  const name = publicUrl(home);
  const what = `read ${name}`;
  const route = createRoute(parts, home);
  let known: number | undefined;

  const bad = (why: string, retryable = false) =>
    new SourceError("EIO", `cannot ${what}: ${why}`, { retryable });

  const failPeer = (by: Peer, error: unknown) => {
    if (!by.failed()) return;
    const why = error instanceof Error ? error.message : String(error);
    parts.log(
      `WARNING the p2p proxy ${by.address} fails, ` +
        `asking the registry meanwhile: ${why}`,
    );
  };

  /** Looks whether an answer is the range, and takes it over. */
  const accept = async (
    answer: Answer,
    at: number,
    length: number,
    attempt: Attempt,
    by: Peer | undefined,
  ): Promise<Part> => {
    const { response } = answer;
    const place = placeOf(response, at, length);
    const changed = typeof place !== "string" && known !== undefined &&
      known !== place.total;
    if (typeof place === "string" || changed) {
      await response.body?.cancel().catch(() => {});
      answer[Symbol.dispose]();
      throw bad(
        typeof place === "string"
          ? place
          : `it had ${known} bytes, now ${place.total}`,
      );
    }
    known = place.total;
    if (response.status === 416) await response.body?.cancel().catch(() => {});
    // Who stops caring may not come to say so.
    attempt.signal.addEventListener("abort", () => answer[Symbol.dispose]());
    const reader = bodyReader(response.status === 416 ? null : response.body);
    return { ...place, answer, attempt, reader, peer: by };
  };

  /** Through the peer; undefined: it failed, the registry is to be asked. */
  const tryPeer = async (
    by: Peer,
    at: number,
    length: number,
    ms: number,
    signal: AbortSignal | undefined,
  ): Promise<Part | undefined> => {
    const attempt = newAttempt(ms, signal);
    let target: URL | undefined;
    try {
      target = await route.resolve(attempt);
      const answer = await route.through(by, target, at, length, attempt);
      return await accept(answer, at, length, attempt, by);
    } catch (error) {
      attempt[Symbol.dispose]();
      // The registry's own failure, or nobody wants it any more.
      if (target === undefined || signal?.aborted === true) throw error;
      failPeer(by, error);
      return undefined;
    }
  };

  /** One attempt, up to the first byte of the body. */
  const begin = async (
    at: number,
    length: number,
    ms: number,
    signal: AbortSignal | undefined,
  ): Promise<Part> => {
    const by = peer?.usable() === true
      ? await tryPeer(peer, at, length, ms, signal)
      : undefined;
    if (by !== undefined) return by;
    const attempt = newAttempt(ms, signal);
    try {
      const answer = await route.direct(at, length, attempt);
      return await accept(answer, at, length, attempt, undefined);
    } catch (error) {
      attempt[Symbol.dispose]();
      throw error;
    }
  };

  const insist = (
    at: number,
    length: number,
    signal: AbortSignal | undefined,
  ): Promise<Part> =>
    tryAgain(
      parts.attemptMs,
      signal,
      (ms) => begin(at, length, ms, signal),
      parts.onRetry,
    );

  /** What reading a part threw, or that it ended early. */
  const cut = (part: Part, at: number, cause: unknown): SourceError => {
    drop(part);
    route.forget();
    const why = cause === undefined ? "" : `: ${lastWords(cause)}`;
    const error = part.attempt.ended(what) ??
      bad(`the answer ends before byte ${at}${why}`, true);
    if (part.peer !== undefined) failPeer(part.peer, error);
    return error;
  };

  const bodyOf = (
    first: Part,
    start: number,
    signal: AbortSignal | undefined,
  ): RangeBody => {
    const stop = start + first.length;
    let part = first;
    let at = start;
    let partAt = start;
    let failures = 0;

    /** Goes on from where the last answer ended. */
    const resume = async (error: SourceError) => {
      failures = at - partAt >= PROGRESS ? 0 : failures + 1;
      if (!error.retryable || failures === TRIES) throw error;
      if (failures > 0) await pause(backoff(failures), signal);
      parts.onRetry?.();
      part = await insist(at, stop - at, signal);
      partAt = at;
    };

    /** All was read: the connection serves again once its end was seen. */
    const finish = async () => {
      if (part.more) return drop(part);
      const isOver = part.reader.isOver().catch(() => true);
      // Whoever wants the last bytes does not wait for what cannot be.
      if (part.sure) return void isOver.then(() => end(part));
      if (await isOver) return end(part);
      drop(part);
      throw bad(`the answer goes on behind byte ${stop - 1}`);
    };

    /** None of a part that has ended early. */
    const some = async (max: number): Promise<Uint8Array> => {
      let bytes = NO_BYTES;
      let cause: unknown;
      try {
        bytes = await part.reader.next(max);
      } catch (error) {
        cause = error;
      }
      if (bytes.length === 0) await resume(cut(part, at, cause));
      at += bytes.length;
      return bytes;
    };

    const body: RangeBody = {
      total: first.total,
      length: first.length,
      async next(max) {
        const most = Math.min(max, stop - at);
        let bytes = NO_BYTES;
        while (bytes.length < Math.min(1, most)) bytes = await some(most);
        if (bytes.length > 0 && at === stop) await finish();
        return bytes;
      },
      read: (into) => readInto(body, into),
      cancel: () => at === stop ? part.reader.release() : drop(part),
    };
    return body;
  };

  const range = async (at: number, length: number, signal?: AbortSignal) => {
    if (length <= 0) {
      throw new SourceError("EINVAL", `cannot ${what}: no bytes are asked for`);
    }
    const part = await insist(at, length, signal);
    const body = bodyOf(part, at, signal);
    if (part.length === 0) drop(part);
    return body;
  };

  return {
    name,
    range,
    async size(signal) {
      if (known !== undefined) return known;
      const body = await range(0, 1, signal);
      // One byte is sooner read than a connection opened.
      if (body.length > 0) await body.read(new Uint8Array(1));
      return body.total;
    },
  };
}
