// SPDX-License-Identifier: Apache-2.0
/**
 * What each repository wants to see of who asks, learned from its first
 * answer and shown from then on (spec/registry.md, section 2).
 *
 * @module
 */
import type { Credentials } from "../credential/credential.ts";
import { untilAborted } from "./attempt.ts";
import { discard } from "./body.ts";
import { type Challenge, parseChallenges } from "./challenge.ts";
import { createTokens, type TokenScope } from "./token.ts";
import type { Transport } from "./transport.ts";

/** What a repository wants. */
type Way =
  | { kind: "none" }
  | { kind: "basic" }
  | { kind: "bearer"; scope: TokenScope };

/** Where a registry sends who wants a token. */
export interface Realm {
  realm: string;
  service: string | undefined;
}

/** What registries were found to want, by origin; kept however long. */
export interface Realms {
  get(origin: string): Realm | undefined;
  /** may be waited for */
  set(origin: string, realm: Realm): unknown;
  /** before it is asked for the first time */
  ready?(): Promise<void>;
}

/** What is known of a repository. */
interface Repository {
  way: Way | undefined;
  /** what others of this registry want: shown until its own way is known */
  guess: Way | undefined;
  /** somebody asks for it: resolved when it is known, or cannot be */
  learning: PromiseWithResolvers<void> | undefined;
}

const REPOSITORIES_MAX = 1024;

/** An answer, and whatever the sender has to say of it. */
interface Answer {
  response: Response;
}

/** See the module's comment. */
export interface Auth {
  /**
   * Sends a request, as often as it takes to be let in: twice at most.
   *
   * @param send sends it with this Authorization
   * @param onWait another request asks what is wanted: called before waiting
   * @returns the last answer, 401 and 403 included
   * @throws {SourceError} no token can be had
   */
  send<A extends Answer>(
    url: URL,
    send: (authorization: string | undefined) => Promise<A>,
    signal: AbortSignal,
    onWait: () => void,
  ): Promise<A>;
  /** What a request would be sent with now; undefined: with nothing. */
  authorization(url: URL, signal: AbortSignal): Promise<string | undefined>;
}

/** What clients ask for who read a repository, `https://host/v2/a/b`. */
function usualScope(repository: string): string | undefined {
  const [, name] = /^https?:\/\/[^/]+\/v2\/(.+)$/.exec(repository) ?? [];
  return name === undefined ? undefined : `repository:${name}:pull`;
}

/** `https://host/v2/a/b` of a blob's, manifest's or upload's URL. */
function repositoryOf(url: URL): string {
  const end = url.pathname.search(/\/(blobs|manifests|referrers)\//);
  return url.origin + (end < 0 ? url.pathname : url.pathname.slice(0, end));
}

/** The best way that a server accepts; undefined: none of ours. */
function choose(challenges: Challenge[], origin: string): Way | undefined {
  for (const { scheme, params } of challenges) {
    const realm = params.get("realm");
    if (scheme !== "bearer" || realm === undefined) continue;
    const service = params.get("service");
    const scope = params.get("scope");
    return { kind: "bearer", scope: { origin, realm, service, scope } };
  }
  const basic = challenges.some(({ scheme }) => scheme === "basic");
  return basic ? { kind: "basic" } : undefined;
}

/** Makes the memory of a client. */
export function createAuth(
  transport: Transport,
  credentials: Credentials,
  attemptMs: number,
  realms: Realms = new Map(),
): Auth {
  const tokens = createTokens(transport, attemptMs);
  const repositories = new Map<string, Repository>();

  /** As the registry's other repositories have it: saves a refusal. */
  const guess = (name: string, url: URL): Way | undefined => {
    const { origin, pathname } = url;
    // Who writes asks for more.
    const scope = pathname.includes("/blobs/uploads")
      ? undefined
      : usualScope(name);
    const known = scope === undefined ? undefined : realms.get(origin);
    return known === undefined
      ? undefined
      : { kind: "bearer", scope: { origin, ...known, scope } };
  };
  const learn = async (url: URL, way: Way): Promise<void> => {
    if (way.kind !== "bearer") return;
    const { origin, realm, service, scope } = way.scope;
    if (scope !== usualScope(repositoryOf(url))) return;
    const known = realms.get(origin);
    if (known?.realm === realm && known.service === service) return;
    await realms.set(origin, { realm, service });
  };

  const repositoryFor = (url: URL): Repository => {
    const name = repositoryOf(url);
    let repository = repositories.get(name);
    if (repository === undefined) {
      repository = {
        way: undefined,
        guess: guess(name, url),
        learning: undefined,
      };
      repositories.set(name, repository);
      const [oldest] = repositories.keys();
      if (repositories.size > REPOSITORIES_MAX && oldest !== undefined) {
        repositories.delete(oldest);
      }
    }
    return repository;
  };

  const show = async (
    way: Way | undefined,
    url: URL,
    signal: AbortSignal,
    fresh = false,
  ): Promise<string | undefined> => {
    if (way === undefined || way.kind === "none") return undefined;
    const find = (options: { fresh: boolean }) =>
      credentials.find(url.href, options);
    if (way.kind === "basic") {
      const found = await untilAborted(find({ fresh }), signal);
      return found === undefined ? undefined : `Basic ${found.basic}`;
    }
    const { scope } = way;
    return `Bearer ${await tokens.get(scope, () => find({ fresh }), signal)}`;
  };

  /** After a 401: what to show instead; undefined: there is nothing else. */
  const other = async (
    repository: Repository,
    url: URL,
    { response }: Answer,
    shown: string | undefined,
    signal: AbortSignal,
  ): Promise<string | undefined> => {
    const header = response.headers.get("www-authenticate") ?? "";
    const way = choose(parseChallenges(header), url.origin);
    if (way === undefined) return undefined;
    repository.way = way;
    repository.learning?.resolve();
    await learn(url, way);
    if (way.kind === "bearer" && shown?.startsWith("Bearer ") === true) {
      tokens.forget(way.scope, shown.slice("Bearer ".length));
    }
    const next = await show(way, url, signal, shown !== undefined);
    return next === shown ? undefined : next;
  };

  /** What may be right; nothing where that cannot be had. */
  const tryGuess = async (
    repository: Repository,
    url: URL,
    signal: AbortSignal,
  ): Promise<string | undefined> => {
    try {
      return await show(repository.guess, url, signal);
    } catch {
      repository.guess = undefined;
      signal.throwIfAborted();
      return undefined;
    }
  };

  const sendKnown = async <A extends Answer>(
    repository: Repository,
    url: URL,
    send: (authorization: string | undefined) => Promise<A>,
    signal: AbortSignal,
  ): Promise<A> => {
    const guessed = repository.way === undefined;
    const shown = guessed
      ? await tryGuess(repository, url, signal)
      : await show(repository.way, url, signal);
    const answer = await send(shown);
    const { status, headers } = answer.response;
    const told = status === 401 && headers.has("www-authenticate");
    if (
      guessed && shown !== undefined && !told &&
      (status === 401 || status === 403)
    ) {
      // Refused for good, for what nobody asked us to show.
      repository.guess = undefined;
      await discard(answer.response);
      return await sendKnown(repository, url, send, signal);
    }
    const challenged = status === 401 ||
      (status === 403 && shown === undefined &&
        headers.has("www-authenticate"));
    if (!challenged) {
      const right = shown === undefined ? undefined : repository.guess;
      repository.way ??= right ?? { kind: "none" };
      return answer;
    }
    const next = await other(repository, url, answer, shown, signal)
      .catch(async (error) => {
        await discard(answer.response);
        throw error;
      });
    if (next === undefined) return answer;
    await discard(answer.response);
    return await send(next);
  };

  return {
    async send(url, send, signal, onWait) {
      await realms.ready?.();
      const repository = repositoryFor(url);
      // One asks what is wanted; who comes meanwhile waits for the answer,
      // in place of a refusal each.
      while (repository.way === undefined && repository.learning) {
        onWait();
        await untilAborted(repository.learning.promise, signal);
      }
      const learning = repository.way === undefined
        ? Promise.withResolvers<void>()
        : undefined;
      repository.learning ??= learning;
      try {
        return await sendKnown(repository, url, send, signal);
      } finally {
        if (learning !== undefined) {
          learning.resolve();
          repository.learning = undefined;
        }
      }
    },
    authorization: (url, signal) => show(repositoryFor(url).way, url, signal),
  };
}
