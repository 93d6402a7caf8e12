// SPDX-License-Identifier: Apache-2.0
/**
 * A blob behind a plain URL: ranged GETs, every answer checked to the byte
 * (spec/registry.md, sections 4 and 5).
 *
 * @module
 */
import { rangeBody } from "./body.ts";
import { type Blob, type SourceCode, SourceError } from "./source.ts";

const ATTEMPT_MS = 30_000;

/** What a status means to who asked. */
function codeOf(status: number): SourceCode {
  if (status === 401 || status === 403) return "EACCES";
  if (status === 404) return "ENOENT";
  return status === 429 ? "EBUSY" : "EIO";
}

/** Ranged GETs over kept connections. */
export interface RangeClient extends Disposable {
  openBlob(url: string): Blob;
  close(): void;
}

/** Makes a client that sends no credentials. */
export function createRangeClient(
  options: { userAgent?: string } = {},
): RangeClient {
  // Over HTTP/2 Deno waits for more to send: 40 ms for many a request.
  const client = Deno.createHttpClient({
    http2: false,
    poolMaxIdlePerHost: 64,
  });

  const get = async (
    url: string,
    name: string,
    from: number,
    to: number,
    signal: AbortSignal,
  ): Promise<Response> => {
    let response: Response;
    try {
      response = await fetch(url, {
        client,
        signal,
        headers: {
          range: `bytes=${from}-${to}`,
          "accept-encoding": "identity",
          ...(options.userAgent === undefined
            ? {}
            : { "user-agent": options.userAgent }),
        },
      });
    } catch (cause) {
      throw failure(name, cause);
    }
    if (response.status === 206) return response;
    await response.body?.cancel();
    if (response.status === 200) {
      throw new SourceError(
        "EIO",
        `cannot read ${name}: the server ignores ranges`,
        { status: 200 },
      );
    }
    throw new SourceError(
      codeOf(response.status),
      `cannot read ${name}: HTTP status ${response.status}`,
      { status: response.status },
    );
  };

  const openBlob = (url: string): Blob => {
    const { origin, pathname } = new URL(url);
    const name = `${origin}${pathname}`;
    let known: number | undefined;
    const learn = (response: Response, from: number, to: number) => {
      const text = response.headers.get("content-range") ?? "";
      const [, a, b, total] = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(text) ?? [];
      const size = Number(total);
      const right = total !== undefined && Number(a) === from &&
        Number(b) === Math.min(to, size - 1) && Number.isSafeInteger(size);
      if (!right || (known !== undefined && known !== size)) {
        throw new SourceError(
          "EIO",
          `cannot read ${name}: asked for bytes ${from}-${to}` +
            `${known === undefined ? "" : ` of ${known}`}, got "${text}"`,
        );
      }
      known = size;
      return size;
    };
    const range = async (at: number, length: number, signal?: AbortSignal) => {
      const last = at + length - 1;
      const response = await get(url, name, at, last, attempt(signal));
      try {
        const total = learn(response, at, last);
        const there = Math.min(length, total - at);
        const { body } = response;
        return rangeBody(
          body,
          { total, length: there },
          (cause) => failure(name, cause),
        );
      } catch (cause) {
        await response.body?.cancel().catch(() => {});
        throw cause;
      }
    };
    return {
      name,
      async size(signal) {
        if (known === undefined) {
          const body = await range(0, 1, signal);
          body.cancel();
          return body.total;
        }
        return known;
      },
      range,
    };
  };
  const close = () => client.close();
  return { openBlob, close, [Symbol.dispose]: close };
}

function attempt(signal: AbortSignal | undefined): AbortSignal {
  const limit = AbortSignal.timeout(ATTEMPT_MS);
  return signal === undefined ? limit : AbortSignal.any([signal, limit]);
}

/** What fetch threw, as what it means. */
function failure(name: string, cause: unknown): SourceError {
  if (cause instanceof SourceError) return cause;
  const why = cause instanceof Error ? cause.message : String(cause);
  const code = cause instanceof DOMException && cause.name === "TimeoutError"
    ? "ETIMEDOUT"
    : cause instanceof TypeError
    ? "ENOTCONN"
    : "EIO";
  return new SourceError(code, `cannot read ${name}: ${why}`, { cause });
}
