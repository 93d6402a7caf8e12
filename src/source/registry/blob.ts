// SPDX-License-Identifier: Apache-2.0
/**
 * A blob in a registry: ranged GETs, every answer checked to the byte
 * (spec/registry.md, sections 4 and 5).
 *
 * @module
 */
import type { Bytes } from "../../../ffi/engine.ts";
import { type Blob, type RangeBody, SourceError } from "../source.ts";
import { type Attempt, backoff, newAttempt, pause, TRIES } from "./attempt.ts";
import { type BodyReader, bodyReader, discard } from "./body.ts";
import { lastWords, publicUrl, statusError } from "./errors.ts";
import type { Peer } from "./peer.ts";
import {
  type Answer,
  getFollowing,
  getOnce,
  isRedirect,
  redirectTarget,
  type RequestParts,
} from "./request.ts";

/** Where a redirect led is used again for this long. */
const LOCATION_MS = 300_000;
/** An attempt that brought this much is none that failed. */
const PROGRESS = 64 << 10;

/** What a blob is made of. */
export interface BlobParts extends RequestParts {
  /** Why the server let nobody in, in words for the user. */
  explainRefusal(url: URL): Promise<string>;
  log(line: string): void;
}

/** A part of an answer's body. */
interface Part {
  answer: Answer;
  attempt: Attempt;
  reader: BodyReader;
  total: number;
  /** bytes that this part has: fewer than asked for only at the end */
  length: number;
  /** more follow that nobody wants */
  more: boolean;
  /** the peer that gave it */
  peer: Peer | undefined;
}

function brief(text: string): string {
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/** What an answer says of where its bytes lie. */
function placeOf(
  { status, headers }: Response,
  at: number,
  length: number,
  bad: (why: string) => SourceError,
): { total: number; length: number; more: boolean } {
  const text = headers.get("content-range") ?? "";
  if (status === 416) {
    const [, size] = /^bytes \*\/(\d+)$/i.exec(text) ?? [];
    // An empty blob has no byte that a range could begin with.
    if (at === 0 && size === "0") return { total: 0, length: 0, more: false };
    throw bad(`it has no byte ${at}${size === undefined ? "" : ` of ${size}`}`);
  }
  const encoding = headers.get("content-encoding") ?? "identity";
  if (!/^(identity)?$/i.test(encoding.trim())) {
    throw bad(`the answer is ${encoding} encoded`);
  }
  const announced = headers.get("content-length");
  const bytes = announced === null ? undefined : Number(announced);
  if (status === 200) {
    if (at > 0) throw bad("the server ignores ranges");
    if (bytes === undefined || !Number.isSafeInteger(bytes)) {
      throw bad("the server ignores ranges and does not tell the size");
    }
    const wanted = Math.min(length, bytes);
    return { total: bytes, length: wanted, more: wanted < bytes };
  }
  const [, a, b, size] = /^bytes (\d+)-(\d+)\/(\d+)$/i.exec(text.trim()) ?? [];
  const total = Number(size);
  const there = Math.min(length, total - at);
  if (
    size === undefined || !Number.isSafeInteger(total) || there <= 0 ||
    Number(a) !== at || Number(b) !== at + there - 1
  ) {
    throw bad(
      `asked for bytes ${at}-${at + length - 1}, got "${brief(text)}"`,
    );
  }
  if (bytes !== undefined && bytes !== there) {
    throw bad(`${bytes} bytes were announced in place of ${there}`);
  }
  return { total, length: there, more: false };
}

/** The blob behind a URL; contacts nobody yet. */
export function openRegistryBlob(
  parts: BlobParts,
  home: URL,
  peer: Peer | undefined,
): Blob {
  const name = publicUrl(home);
  const what = `read ${name}`;
  let known: number | undefined;
  // Where the registry sent us; where the bytes are when nobody knows better.
  let location: { url: URL; until: number } | undefined;

  const remember = (url: URL) => {
    location = url.href === home.href
      ? undefined
      : { url, until: performance.now() + LOCATION_MS };
  };

  const rangeGet = (at: number, length: number, attempt: Attempt) => ({
    what,
    attempt,
    headers: { range: `bytes=${at}-${at + length - 1}` },
  });

  /** From the registry, or from where it sent us before. */
  const direct = async (
    at: number,
    length: number,
    attempt: Attempt,
  ): Promise<Answer> => {
    const get = rangeGet(at, length, attempt);
    if (location !== undefined && performance.now() < location.until) {
      const answer = await getFollowing(parts, home, get, location.url)
        .catch((error) => {
          location = undefined;
          throw error;
        });
      const { status } = answer.response;
      if (status === 206 || status === 200) return answer;
      // A signed URL that has expired: the registry makes another.
      location = undefined;
      await discard(answer.response);
      answer[Symbol.dispose]();
    }
    const answer = await getFollowing(parts, home, get);
    const { status } = answer.response;
    if (status === 206 || status === 200) remember(answer.url);
    return answer;
  };

  /** Where a peer is to get it from: asks the registry, wants no bytes. */
  const resolve = async (attempt: Attempt): Promise<URL> => {
    if (location !== undefined && performance.now() < location.until) {
      return location.url;
    }
    const get = rangeGet(0, 1, attempt);
    const answer = await parts.auth.send(
      home,
      async (authorization) => {
        const next = await getOnce(parts, home, get, authorization);
        next[Symbol.dispose]();
        return next;
      },
      attempt.signal,
    );
    await discard(answer.response);
    if (!isRedirect(answer.response)) return home;
    const url = redirectTarget(answer, what);
    remember(url);
    return url;
  };

  /** Through the peer; anything but the bytes is a failure. */
  const through = async (
    by: Peer,
    at: number,
    length: number,
    attempt: Attempt,
  ): Promise<Answer> => {
    const target = await resolve(attempt);
    const url = new URL(`${by.address}/${target.href}`);
    const authorization = target.href === home.href
      ? await parts.auth.authorization(home, attempt.signal)
      : undefined;
    const get = rangeGet(at, length, attempt);
    const answer = await getOnce(parts, url, get, authorization);
    if (answer.response.status === 206) return answer;
    location = undefined;
    await discard(answer.response);
    answer[Symbol.dispose]();
    throw statusError(what, answer.response);
  };

  const failPeer = (by: Peer, error: unknown) => {
    if (!by.failed()) return;
    const why = error instanceof Error ? error.message : String(error);
    parts.log(
      `WARNING the p2p proxy ${by.address} fails, ` +
        `asking the registry meanwhile: ${why}`,
    );
  };

  const refusal = async (answer: Answer): Promise<SourceError> => {
    const { response, url } = answer;
    await discard(response);
    const from = url.href === home.href ? "" : ` from ${publicUrl(url)}`;
    const status = `HTTP status ${response.status}${from}`;
    if (response.status !== 401 && response.status !== 403) {
      return statusError(what, response, status);
    }
    const why = url.origin === home.origin
      ? `${status}: ${await parts.explainRefusal(home)}`
      : status;
    return statusError(what, response, why);
  };

  /** One attempt, up to the first byte of the body. */
  const begin = async (
    at: number,
    length: number,
    attempt: Attempt,
    by: Peer | undefined,
  ): Promise<Part> => {
    const answer = by === undefined
      ? await direct(at, length, attempt)
      : await through(by, at, length, attempt);
    try {
      const { response } = answer;
      if (![200, 206, 416].includes(response.status)) {
        throw await refusal(answer);
      }
      const place = placeOf(response, at, length, (why) => {
        const options = { retryable: false, status: response.status };
        return new SourceError("EIO", `cannot ${what}: ${why}`, options);
      });
      if (known !== undefined && known !== place.total) {
        throw new SourceError(
          "EIO",
          `cannot ${what}: it had ${known} bytes, now ${place.total}`,
          { retryable: false },
        );
      }
      known = place.total;
      if (response.status === 416) await discard(response);
      // Who stops caring may not come to say so.
      attempt.signal.addEventListener("abort", () => answer[Symbol.dispose]());
      const reader = bodyReader(response.status === 416 ? null : response.body);
      return { ...place, answer, attempt, reader, peer: by };
    } catch (error) {
      if (!answer.response.bodyUsed) {
        await answer.response.body?.cancel().catch(() => {});
      }
      answer[Symbol.dispose]();
      throw error;
    }
  };

  const beginAttempt = async (
    at: number,
    length: number,
    ms: number,
    signal: AbortSignal | undefined,
  ): Promise<Part> => {
    const by = peer?.usable() === true ? peer : undefined;
    if (by !== undefined) {
      const attempt = newAttempt(ms, signal);
      try {
        return await begin(at, length, attempt, by);
      } catch (error) {
        attempt[Symbol.dispose]();
        if (signal?.aborted === true) throw error;
        failPeer(by, error);
      }
    }
    const attempt = newAttempt(ms, signal);
    try {
      return await begin(at, length, attempt, undefined);
    } catch (error) {
      attempt[Symbol.dispose]();
      throw error;
    }
  };

  /** Attempts until one has an answer, for as long as one may take. */
  const insist = async (
    at: number,
    length: number,
    signal: AbortSignal | undefined,
  ): Promise<Part> => {
    const until = performance.now() + parts.attemptMs;
    for (let n = 1;; n++) {
      const left = Math.max(1, until - performance.now());
      try {
        return await beginAttempt(at, length, left, signal);
      } catch (error) {
        if (!(error instanceof SourceError)) throw error;
        const wait = backoff(n, error.retryAfterMs);
        const over = performance.now() + wait >= until;
        if (!error.retryable || n === TRIES || over) throw error;
        await pause(wait, signal);
      }
    }
  };

  const end = ({ answer, attempt }: Part) => {
    answer[Symbol.dispose]();
    attempt[Symbol.dispose]();
  };

  const drop = (part: Part) => {
    part.reader.cancel();
    end(part);
  };

  /** What reading a part threw, or that it ended early. */
  const cut = (part: Part, at: number, cause: unknown): SourceError => {
    drop(part);
    location = undefined;
    const why = cause === undefined ? "" : `: ${lastWords(cause)}`;
    const error = part.attempt.ended(what) ?? new SourceError(
      "EIO",
      `cannot ${what}: the answer ends before byte ${at}${why}`,
    );
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
      part = await insist(at, stop - at, signal);
      partAt = at;
    };

    /** All was read: the connection serves again once its end was seen. */
    const finish = async () => {
      if (part.more) return drop(part);
      const extra = await part.reader.some(new Uint8Array(1)).catch(() => 0);
      if (extra === 0) return end(part);
      drop(part);
      throw new SourceError(
        "EIO",
        `cannot ${what}: the answer goes on behind byte ${stop - 1}`,
        { retryable: false },
      );
    };

    const fill = async (into: Bytes) => {
      for (let n = 0; n < into.length;) {
        const got = await part.reader.some(into.subarray(n)).catch(
          (cause) => resume(cut(part, at, cause)),
        );
        if (got === undefined) continue;
        if (got === 0) await resume(cut(part, at, undefined));
        n += got;
        at += got;
      }
      if (at === stop) await finish();
    };

    return {
      total: first.total,
      length: first.length,
      async read(into) {
        const room = into.subarray(0, Math.min(into.length, stop - at));
        if (room.length > 0) await fill(room);
        return room;
      },
      cancel: () => drop(part),
    };
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
