// SPDX-License-Identifier: Apache-2.0
/**
 * Where the bytes of one blob are asked for: at its registry, where that sent
 * us before, or at a proxy of peers (spec/registry.md, sections 2, 3 and 7).
 *
 * @module
 */
import type { Attempt } from "./attempt.ts";
import { discard } from "./body.ts";
import { publicUrl, statusError } from "./errors.ts";
import type { Peer } from "./peer.ts";
import {
  type Answer,
  authorized,
  getFollowing,
  getOnce,
  isRedirect,
  redirectTarget,
  type RequestParts,
} from "./request.ts";

/** Where a redirect led is used again for this long. */
const LOCATION_MS = 300_000;

/** See the module's comment; every answer is 200, 206 or 416. */
export interface Route {
  /**
   * From the registry, or from where it sent us before.
   *
   * @throws {SourceError} another status, or no answer
   */
  direct(at: number, length: number, attempt: Attempt): Promise<Answer>;
  /**
   * Where a peer is to get it from: the registry is asked, wants no bytes.
   *
   * @throws {SourceError} it does not say
   */
  resolve(attempt: Attempt): Promise<URL>;
  /**
   * Through a peer.
   *
   * @param target what `resolve` gave
   * @throws {SourceError} anything but the range
   */
  through(
    peer: Peer,
    target: URL,
    at: number,
    length: number,
    attempt: Attempt,
  ): Promise<Answer>;
  /** Where we were sent does not do any more. */
  forget(): void;
}

/** What a route is made of. */
export interface RouteParts extends RequestParts {
  /** Why the server let nobody in, in words for the user. */
  explainRefusal(url: URL): Promise<string>;
}

const IN_PLACE = [200, 206, 416];

/** The route to the blob behind a URL. */
export function createRoute(parts: RouteParts, home: URL): Route {
  const what = `read ${publicUrl(home)}`;
  let location: { url: URL; until: number } | undefined;

  const remember = (url: URL) => {
    location = { url, until: performance.now() + LOCATION_MS };
  };
  const remembered = (): URL | undefined =>
    location !== undefined && performance.now() < location.until
      ? location.url
      : undefined;

  const rangeGet = (at: number, length: number, attempt: Attempt) => ({
    what,
    attempt,
    headers: { range: `bytes=${at}-${at + length - 1}` },
  });

  const drop = async (answer: Answer) => {
    await discard(answer.response);
    answer[Symbol.dispose]();
  };

  /** Says why, where an answer is none that was hoped for. */
  const refuse = async (answer: Answer): Promise<never> => {
    const { response, url } = answer;
    await drop(answer);
    const { status } = response;
    const from = url.href === home.href ? "" : ` from ${publicUrl(url)}`;
    const asked = url.origin === home.origin &&
      (status === 401 || status === 403);
    const why = asked ? `: ${await parts.explainRefusal(home)}` : "";
    throw statusError(what, response, `HTTP status ${status}${from}${why}`);
  };

  /** Where we were sent before; undefined: nowhere, or that is over. */
  const again = async (
    at: number,
    length: number,
    attempt: Attempt,
  ): Promise<Answer | undefined> => {
    const elsewhere = remembered();
    if (elsewhere === undefined || elsewhere.href === home.href) {
      return undefined;
    }
    const get = rangeGet(at, length, attempt);
    const answer = await getFollowing(parts, home, get, elsewhere)
      .catch((error) => {
        location = undefined;
        throw error;
      });
    if (IN_PLACE.includes(answer.response.status)) return answer;
    // A signed URL that has expired: the registry makes another.
    location = undefined;
    await drop(answer);
    return undefined;
  };

  return {
    async direct(at, length, attempt) {
      const known = await again(at, length, attempt);
      if (known !== undefined) return known;
      const get = rangeGet(at, length, attempt);
      const answer = await getFollowing(parts, home, get);
      if (!IN_PLACE.includes(answer.response.status)) await refuse(answer);
      remember(answer.url);
      return answer;
    },
    async resolve(attempt) {
      const known = remembered();
      if (known !== undefined) return known;
      const get = rangeGet(0, 1, attempt);
      const answer = await authorized(parts, home, get, home);
      const redirect = isRedirect(answer.response);
      if (!redirect && !IN_PLACE.includes(answer.response.status)) {
        await refuse(answer);
      }
      await drop(answer);
      const url = redirect ? redirectTarget(answer, what) : home;
      remember(url);
      return url;
    },
    async through(peer, target, at, length, attempt) {
      const url = new URL(`${peer.address}/${target.href}`);
      const authorization = target.href === home.href
        ? await parts.auth.authorization(home, attempt.signal)
        : undefined;
      const get = rangeGet(at, length, attempt);
      const answer = await getOnce(parts, url, get, authorization);
      if (answer.response.status === 206) return answer;
      location = undefined;
      await drop(answer);
      throw statusError(what, answer.response);
    },
    forget() {
      location = undefined;
    },
  };
}
