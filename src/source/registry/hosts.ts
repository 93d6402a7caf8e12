// SPDX-License-Identifier: Apache-2.0
/**
 * How many requests each server gets at once, and when: fewer once it says
 * that they are too many, none while it asks to be left alone.
 *
 * @module
 */

import { SourceError } from "../source.ts";

/** Requests at once to a server that never complained. */
const LIMIT_MAX = 64;
/** Answers without a complaint until it gets one more. */
const GROW_AFTER = 16;
/** However long a server asks to wait, it is asked again after this. */
const PAUSE_MAX_MS = 60_000;

/** The right to have one request with a server. */
export interface Slot {
  /** The server had enough; `pauseMs`: what it asked for. */
  tooMany(pauseMs?: number): void;
  /** The request is over; may be repeated. */
  release(): void;
}

/** See the module's comment. */
export interface Hosts {
  /**
   * Waits for a turn.
   *
   * @param origin `https://host:port`
   * @param waitMs how long the server may have asked to be left alone
   * @throws {SourceError} EBUSY: it asked for more
   * @throws the signal's reason
   */
  enter(origin: string, waitMs: number, signal: AbortSignal): Promise<Slot>;
}

interface Host {
  limit: number;
  active: number;
  /** answers since the limit changed */
  good: number;
  /** ms of the clock: none before */
  pausedUntil: number;
  /** how often the limit was halved */
  halvings: number;
  queue: Set<() => void>;
  timer: ReturnType<typeof setTimeout> | undefined;
}

function newHost(limit: number): Host {
  return {
    limit,
    active: 0,
    good: 0,
    pausedUntil: 0,
    halvings: 0,
    queue: new Set(),
    timer: undefined,
  };
}

/** Lets in who may. */
function advance(host: Host): void {
  const pause = host.pausedUntil - performance.now();
  if (pause > 0) {
    if (host.queue.size === 0) return;
    host.timer ??= setTimeout(() => {
      host.timer = undefined;
      advance(host);
    }, pause);
    return;
  }
  for (const start of host.queue) {
    if (host.active >= host.limit) return;
    host.queue.delete(start);
    host.active++;
    start();
  }
}

/** @param before `halvings` when the request that was refused began */
function halve(host: Host, before: number, pauseMs: number): void {
  const until = performance.now() + Math.min(pauseMs, PAUSE_MAX_MS);
  host.pausedUntil = Math.max(host.pausedUntil, until);
  host.good = 0;
  // Refusals of what was sent at once are one complaint.
  if (before !== host.halvings) return;
  host.halvings++;
  host.limit = Math.max(1, Math.floor(Math.min(host.limit, host.active) / 2));
}

function slotOf(host: Host, max: number): Slot {
  const { halvings } = host;
  let complained = false;
  let over = false;
  return {
    tooMany(pauseMs = 0) {
      complained = true;
      halve(host, halvings, pauseMs);
    },
    release() {
      if (over) return;
      over = true;
      host.active--;
      if (!complained && ++host.good >= GROW_AFTER) {
        host.good = 0;
        host.limit = Math.min(max, host.limit + 1);
      }
      advance(host);
    },
  };
}

/** Makes the turnstiles of a client. */
export function createHosts(max = LIMIT_MAX): Hosts {
  const hosts = new Map<string, Host>();
  return {
    async enter(origin, waitMs, signal) {
      signal.throwIfAborted();
      let host = hosts.get(origin);
      if (host === undefined) hosts.set(origin, host = newHost(max));
      const paused = host.pausedUntil - performance.now();
      if (paused > waitMs) {
        throw new SourceError(
          "EBUSY",
          `cannot ask ${origin}: it wants no request for ` +
            `${Math.ceil(paused / 1000)} s`,
          { retryAfterMs: paused },
        );
      }
      const { queue } = host;
      if (queue.size === 0 && paused <= 0 && host.active < host.limit) {
        host.active++;
        return slotOf(host, max);
      }
      await new Promise<void>((resolve, reject) => {
        const start = () => {
          signal.removeEventListener("abort", give);
          resolve();
        };
        const give = () => {
          queue.delete(start);
          reject(signal.reason);
        };
        signal.addEventListener("abort", give, { once: true });
        queue.add(start);
        advance(host);
      });
      return slotOf(host, max);
    },
  };
}
