// SPDX-License-Identifier: Apache-2.0
/**
 * One GET to its end: a turn with each server, authorization, redirects
 * (spec/registry.md, sections 2 and 4).
 *
 * @module
 */
import { SourceError } from "../source.ts";
import type { Attempt } from "./attempt.ts";
import type { Auth } from "./auth.ts";
import { discard } from "./body.ts";
import { publicUrl, retryAfter, transportError } from "./errors.ts";
import type { Hosts, Slot } from "./hosts.ts";
import type { HttpRequest, Transport } from "./transport.ts";

const HOPS_MAX = 8;

/** What requests are made with. */
export interface RequestParts {
  transport: Transport;
  hosts: Hosts;
  auth: Auth;
  /** how long one attempt may take */
  attemptMs: number;
  /** told of every answer; undefined: there was none */
  onAnswer?: ((status: number | undefined) => void) | undefined;
  /** told when something is asked for again after a failure */
  onRetry?: (() => void) | undefined;
}

/** An answer whose body was not read. */
export interface Answer extends Disposable {
  response: Response;
  /** who gave it, behind all redirects */
  url: URL;
  /** The server may have the next request: the body was read, or is not. */
  [Symbol.dispose](): void;
}

/** What is asked, a GET by default. */
export interface Get {
  /** for errors: `"read https://…"` */
  what: string;
  headers: Readonly<Record<string, string>>;
  attempt: Attempt;
  /** where it is no GET */
  method?: HttpRequest["method"];
  body?: HttpRequest["body"];
}

/** True for an answer that sends one elsewhere. */
export function isRedirect({ status }: Response): boolean {
  return [301, 302, 303, 307, 308].includes(status);
}

function complain(slot: Slot, { status, headers }: Response): void {
  if (status === 429 || status === 503) slot.tooMany(retryAfter(headers));
}

/** One request to one server. */
export async function getOnce(
  parts: RequestParts,
  url: URL,
  get: Get,
  authorization?: string,
): Promise<Answer> {
  const { attempt, what } = get;
  try {
    const { attemptMs } = parts;
    const slot = await parts.hosts.enter(url.origin, attemptMs, attempt.signal);
    attempt.begin();
    try {
      const response = await parts.transport.send({
        url,
        ...(get.method === undefined ? {} : { method: get.method }),
        ...(get.body === undefined ? {} : { body: get.body }),
        headers: authorization === undefined
          ? get.headers
          : { ...get.headers, authorization },
        signal: attempt.signal,
      });
      complain(slot, response);
      parts.onAnswer?.(response.status);
      return { response, url, [Symbol.dispose]: () => slot.release() };
    } catch (cause) {
      slot.release();
      parts.onAnswer?.(undefined);
      throw cause;
    }
  } catch (cause) {
    throw attempt.ended(what) ?? transportError(what, url, cause);
  }
}

/**
 * Where a redirect leads.
 *
 * @throws {SourceError} nowhere
 */
export function redirectTarget(answer: Answer, what: string): URL {
  const location = answer.response.headers.get("location")?.trim() ?? "";
  const from = publicUrl(answer.url);
  let target: URL | undefined;
  try {
    if (location !== "") target = new URL(location, answer.url);
  } catch {
    // Told below.
  }
  if (
    target === undefined || !/^https?:$/.test(target.protocol) ||
    target.username !== "" || target.password !== ""
  ) {
    throw new SourceError(
      "EIO",
      `cannot ${what}: ${from} redirects to no URL`,
      { retryable: false },
    );
  }
  target.hash = "";
  return target;
}

/**
 * Sends a request and follows redirects.  Authorization goes to the server
 * that was named, and to no other.
 *
 * @param home the URL that was named
 * @param from where to begin: that one, or where it led before
 */
export async function getFollowing(
  parts: RequestParts,
  home: URL,
  get: Get,
  from = home,
): Promise<Answer> {
  let url = from;
  const seen = new Set<string>();
  for (;;) {
    if (seen.has(url.href) || seen.size > HOPS_MAX) {
      throw new SourceError(
        "EIO",
        `cannot ${get.what}: ${seen.size} redirects and no end`,
        { retryable: false },
      );
    }
    seen.add(url.href);
    const answer = url.origin === home.origin
      ? await authorized(parts, home, get, url)
      : await getOnce(parts, url, get);
    if (!isRedirect(answer.response)) return answer;
    using _ = answer;
    await discard(answer.response);
    url = redirectTarget(answer, get.what);
  }
}

/**
 * One request to the server that was named, as often as it takes to be let in.
 *
 * @param url another place of the same server
 */
export async function authorized(
  parts: RequestParts,
  home: URL,
  get: Get,
  url: URL,
): Promise<Answer> {
  let last: Answer | undefined;
  try {
    return await parts.auth.send(
      home,
      async (authorization) => {
        last?.[Symbol.dispose]();
        return last = await getOnce(parts, url, get, authorization);
      },
      get.attempt.signal,
      get.attempt.begin,
    );
  } catch (cause) {
    last?.[Symbol.dispose]();
    throw get.attempt.ended(get.what) ??
      transportError(get.what, url, cause);
  }
}
