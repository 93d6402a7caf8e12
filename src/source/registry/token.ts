// SPDX-License-Identifier: Apache-2.0
/**
 * Bearer tokens: asked for once for all who need one, kept until shortly
 * before they expire (spec/registry.md, sections 2 and 3).
 *
 * @module
 */
import type { Credential } from "../credential/credential.ts";
import { SourceError } from "../source.ts";
import { newAttempt, untilAborted } from "./attempt.ts";
import { discard, smallBody } from "./body.ts";
import { publicUrl, statusError, transportError } from "./errors.ts";
import type { Transport } from "./transport.ts";

const BODY_MAX = 1 << 20;
/** What a token server means that does not say. */
const EXPIRES_S = 60;
/** Renewed this long before its end, but not in the first half of its life. */
const MARGIN_MS = 30_000;
const TOKENS_MAX = 1024;
const REDIRECTS_MAX = 4;

/** What a token is for. */
export interface TokenScope {
  /** who wants to see it: a token goes to nobody else */
  origin: string;
  realm: string;
  service: string | undefined;
  scope: string | undefined;
}

/** The tokens of a client. */
export interface Tokens {
  /**
   * A token that is still good.
   *
   * @param find whose it is to be; asked only when a new one is needed
   * @throws {SourceError} it is refused, or cannot be had
   */
  get(
    scope: TokenScope,
    find: () => Promise<Credential | undefined>,
    signal: AbortSignal,
  ): Promise<string>;
  /** This one is refused: the next is asked for anew. */
  forget(scope: TokenScope, token: string): void;
}

interface Token {
  value: string;
  /** ms of the clock */
  renewAt: number;
}

/**
 * Whether secrets may go to a token server: over TLS, or where the user's own
 * plain registry is.
 */
function mayTell(realm: URL, origin: string): boolean {
  const registry = new URL(origin);
  return realm.protocol === "https:" ||
    (registry.protocol === "http:" && registry.hostname === realm.hostname);
}

function parseToken(bytes: Uint8Array, what: string): Token {
  let answer: unknown;
  try {
    answer = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new SourceError("EIO", `cannot ${what}: the answer is no JSON`);
  }
  const member = (name: string): unknown =>
    typeof answer === "object" && answer !== null
      ? Reflect.get(answer, name)
      : undefined;
  const value = [member("token"), member("access_token")]
    .find((text) => typeof text === "string" && text !== "");
  if (typeof value !== "string" || !/^[\x21-\x7e]+$/.test(value)) {
    throw new SourceError("EIO", `cannot ${what}: the answer has no token`);
  }
  const seconds = Number(member("expires_in") ?? EXPIRES_S);
  const life = (seconds > 0 ? seconds : EXPIRES_S) * 1000;
  const margin = Math.min(MARGIN_MS, life / 2);
  return { value, renewAt: performance.now() + life - margin };
}

/** A form for an identity token, a query for a password or nobody. */
function tokenRequest(
  realm: URL,
  { service, scope }: TokenScope,
  credential: Credential | undefined,
) {
  const values: [string, string][] = [];
  if (service !== undefined) values.push(["service", service]);
  if (scope !== undefined) values.push(["scope", scope]);
  if (credential?.identityToken !== undefined) {
    const form = new URLSearchParams([
      ["grant_type", "refresh_token"],
      ["client_id", "overlaybd"],
      ["refresh_token", credential.identityToken],
      ...values,
    ]).toString();
    const bytes = new TextEncoder().encode(form);
    return {
      url: realm,
      method: "POST",
      headers: { "content-type": "application/x-www-form-urlencoded" },
      body: {
        length: bytes.length,
        async *chunks() {
          yield await Promise.resolve(bytes);
        },
      },
    } as const;
  }
  const url = new URL(realm);
  for (const [name, value] of values) url.searchParams.append(name, value);
  const headers: Record<string, string> = credential === undefined
    ? {}
    : { authorization: `Basic ${credential.basic}` };
  return { url, method: "GET", headers } as const;
}

/** Makes the tokens of a client. */
export function createTokens(
  transport: Transport,
  attemptMs: number,
): Tokens {
  const known = new Map<string, Token>();
  const asking = new Map<string, Promise<Token>>();
  const keyOf = ({ origin, realm, service, scope }: TokenScope) =>
    JSON.stringify([origin, realm, service, scope]);

  const realmOf = (scope: TokenScope): URL => {
    const what = `use the token server of ${scope.origin}`;
    let realm: URL;
    try {
      realm = new URL(scope.realm, scope.origin);
    } catch {
      throw new SourceError("EACCES", `cannot ${what}: its URL is bad`);
    }
    if (!/^https?:$/.test(realm.protocol) || realm.username !== "") {
      throw new SourceError("EACCES", `cannot ${what}: its URL is bad`);
    }
    return realm;
  };

  const ask = async (
    scope: TokenScope,
    find: () => Promise<Credential | undefined>,
  ): Promise<Token> => {
    const realm = realmOf(scope);
    const what = `get a token from ${publicUrl(realm)}`;
    const found = await find();
    const told = mayTell(realm, scope.origin) ? found : undefined;
    using attempt = newAttempt(attemptMs, undefined);
    attempt.begin();
    let request = tokenRequest(realm, scope, told);
    let response: Response;
    for (let hops = 0;; hops++) {
      try {
        response = await transport.send({ ...request, signal: attempt.signal });
      } catch (cause) {
        throw attempt.ended(what) ?? transportError(what, realm, cause);
      }
      const to = response.headers.get("location");
      if (response.status < 300 || response.status > 399 || to === null) break;
      await discard(response);
      const next = new URL(to, request.url);
      if (hops === REDIRECTS_MAX || request.method === "POST") {
        throw new SourceError("EIO", `cannot ${what}: it redirects`);
      }
      const same = next.origin === request.url.origin;
      request = { ...request, url: next, headers: same ? request.headers : {} };
    }
    if (response.status !== 200) {
      await discard(response);
      const refused = response.status >= 400 && response.status < 500 &&
        response.status !== 429 && response.status !== 408;
      const why = found !== undefined && told === undefined
        ? `HTTP status ${response.status}: the credentials of ` +
          `${found.username} were not sent, since it is not https`
        : `HTTP status ${response.status}${
          told === undefined ? "" : ` for user ${told.username}`
        }`;
      if (refused) {
        throw new SourceError("EACCES", `cannot ${what}: ${why}`, {
          status: response.status,
        });
      }
      throw statusError(what, response);
    }
    let bytes: Uint8Array;
    try {
      bytes = await smallBody(response, BODY_MAX);
    } catch (cause) {
      if (cause instanceof RangeError) {
        throw new SourceError("EIO", `cannot ${what}: ${cause.message}`);
      }
      throw attempt.ended(what) ?? transportError(what, realm, cause);
    }
    return parseToken(bytes, what);
  };

  return {
    async get(scope, find, signal) {
      const key = keyOf(scope);
      const token = known.get(key);
      if (token !== undefined && performance.now() < token.renewAt) {
        return token.value;
      }
      let asked = asking.get(key);
      if (asked === undefined) {
        asked = ask(scope, find).then((fresh) => {
          known.delete(key);
          known.set(key, fresh);
          const [oldest] = known.keys();
          if (known.size > TOKENS_MAX && oldest !== undefined) {
            known.delete(oldest);
          }
          return fresh;
        }).finally(() => asking.delete(key));
        asking.set(key, asked);
      }
      return (await untilAborted(asked, signal)).value;
    },
    forget(scope, token) {
      const key = keyOf(scope);
      if (known.get(key)?.value === token) known.delete(key);
    },
  };
}
