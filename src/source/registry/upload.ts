// SPDX-License-Identifier: Apache-2.0
/**
 * Puts a file into a registry, a chunk at a time, and goes on from where the
 * registry has it when something breaks (spec/registry.md, section 10).
 *
 * @module
 */
import { preadFd } from "../../../ffi/files.ts";
import { sha256Of } from "../cache/digest.ts";
import { SourceError } from "../source.ts";
import { type Attempt, newAttempt, tryAgain } from "./attempt.ts";
import { discard } from "./body.ts";
import { parseHttpUrl, type RegistryClient } from "./client.ts";
import { publicUrl, statusError } from "./errors.ts";
import { type Answer, authorized, getOnce } from "./request.ts";
import type { HttpBody, HttpRequest } from "./transport.ts";

/** What is uploaded, and where to. */
export interface UploadOptions {
  /** `https://reg.io/v2/ns/repo/blobs/uploads/` */
  url: string;
  /** open for reading */
  fd: number;
  /** bytes */
  size: number;
  /** bytes of a chunk, at least 1 */
  chunk: number;
  signal?: AbortSignal | undefined;
  onProgress?: ((done: number) => void) | undefined;
}

/** Uploads begun anew at most. */
const RESTARTS = 3;
const PIECE = 1 << 20;

/** Where an upload goes on: the place, and how much of it is there. */
interface Place {
  url: URL;
  at: number;
}

/** The registry does not know the upload any more. */
class LostError extends Error {}

/** Where an answer says that the upload goes on. */
function placeOf(answer: Answer, from: Place, at: number): Place {
  const { headers } = answer.response;
  const location = headers.get("location") ?? "";
  const url = URL.parse(location, answer.url);
  const right = location !== "" && url !== null &&
    /^https?:$/.test(url.protocol) && url.username === "";
  const [, end] = /^(?:bytes=)?0-(\d+)$/.exec(headers.get("range") ?? "") ?? [];
  return {
    url: right ? url : from.url,
    at: end === undefined ? at : Number(end) + 1,
  };
}

/** The bytes [at, at + length) of a file. */
function fileBody(
  fd: number,
  at: number,
  length: number,
  onPiece: (done: number) => void,
): HttpBody {
  return {
    length,
    async *chunks() {
      for (let done = 0; done < length;) {
        const piece = new Uint8Array(Math.min(PIECE, length - done));
        const got = preadFd(fd, piece, at + done);
        if (got !== piece.length) throw new Error("the file became shorter");
        yield await Promise.resolve(piece);
        done += got;
        onPiece(at + done);
      }
    },
  };
}

const NO_BODY: HttpBody = { length: 0, async *chunks() {} };

/**
 * Uploads a file as a blob.
 *
 * @returns its digest, `sha256:<hex>`
 * @throws {SourceError} it is not there
 */
export async function uploadBlob(
  { parts }: RegistryClient,
  options: UploadOptions,
): Promise<string> {
  const { fd, size, chunk, signal } = options;
  const home = parseHttpUrl(options.url);
  const what = `upload to ${publicUrl(home)}`;
  const digest = await sha256Of(fd, size, signal);

  /** One request; its answer is read to the end. */
  const send = async (
    url: URL,
    method: HttpRequest["method"],
    attempt: Attempt,
    headers: Readonly<Record<string, string>> = {},
    body?: HttpBody,
  ): Promise<Answer> => {
    const get = { what, headers, attempt, method, body };
    using answer = url.origin === home.origin
      ? await authorized(parts, home, get, url)
      : await getOnce(parts, url, get);
    await discard(answer.response);
    return answer;
  };

  const refuse = async ({ response, url }: Answer): Promise<never> => {
    const { status } = response;
    const denied = (status === 401 || status === 403) &&
      url.origin === home.origin;
    const why = denied ? `: ${await parts.explainRefusal(home)}` : "";
    throw statusError(what, response, `HTTP status ${status}${why}`);
  };

  const start = (): Promise<Place> =>
    tryAgain(parts.attemptMs, signal, async (ms) => {
      using attempt = newAttempt(ms, signal);
      const answer = await send(home, "POST", attempt, {}, NO_BODY);
      const { status, headers } = answer.response;
      if (status !== 202 && status !== 201) return await refuse(answer);
      if (!headers.has("location")) {
        throw new SourceError("EIO", `cannot ${what}: it names no place`, {
          retryable: false,
        });
      }
      // Some name a range already, of nothing.
      return { ...placeOf(answer, { url: home, at: 0 }, 0), at: 0 };
    });

  /** Asks how much of it is there. */
  const look = (place: Place): Promise<Place> =>
    tryAgain(parts.attemptMs, signal, async (ms) => {
      using attempt = newAttempt(ms, signal);
      const answer = await send(place.url, "GET", attempt);
      const { status, headers } = answer.response;
      if (status !== 204 && status !== 202) throw new LostError();
      return placeOf(answer, place, headers.has("range") ? 0 : place.at);
    });

  const sendChunk = async (place: Place): Promise<Place> => {
    const { url, at } = place;
    const length = Math.min(chunk, size - at);
    using attempt = newAttempt(parts.attemptMs, signal);
    const body = fileBody(fd, at, length, (done) => {
      attempt.progress();
      options.onProgress?.(done);
    });
    const answer = await send(url, "PATCH", attempt, {
      "content-type": "application/octet-stream",
      "content-range": `${at}-${at + length - 1}`,
    }, body);
    const { status } = answer.response;
    if (status === 404) throw new LostError();
    if (status === 416) return placeOf(answer, place, at);
    if (status !== 202 && status !== 201) return await refuse(answer);
    return placeOf(answer, place, at + length);
  };

  /** A chunk; after a failure on from where the registry has it. */
  const sendNext = (place: Place): Promise<Place> => {
    let from = place;
    let broken = false;
    return tryAgain(Infinity, signal, async () => {
      if (broken) from = await look(from);
      if (from.at >= size) return from;
      broken = true;
      return await sendChunk(from);
    });
  };

  const finish = ({ url }: Place): Promise<void> =>
    tryAgain(parts.attemptMs, signal, async (ms) => {
      using attempt = newAttempt(ms, signal);
      // Not by searchParams, which would write what is there in another way.
      const joint = url.search === "" ? "?" : "&";
      const target = new URL(`${url.href}${joint}digest=${digest}`);
      const answer = await send(target, "PUT", attempt, {}, NO_BODY);
      const { status } = answer.response;
      if (status === 404) throw new LostError();
      if (status !== 201 && status !== 204) await refuse(answer);
    });

  for (let restarts = 0;; restarts++) {
    try {
      let place = await start();
      for (let idle = 0; place.at < size;) {
        const next = await sendNext(place);
        if (next.at > size) throw new LostError();
        idle = next.at > place.at ? 0 : idle + 1;
        if (idle > RESTARTS) throw new LostError();
        place = next;
      }
      await finish(place);
      return digest;
    } catch (error) {
      if (!(error instanceof LostError)) throw error;
      if (restarts === RESTARTS) {
        throw new SourceError(
          "EIO",
          `cannot ${what}: it lost the upload ${restarts + 1} times`,
        );
      }
    }
  }
}
