// SPDX-License-Identifier: Apache-2.0
/**
 * Images whose remote layers are brought into the cache by request, before
 * anybody opens them.
 *
 * @module
 */
import { whyOf } from "../../ffi/errors.ts";
import { readImageConfig } from "../image/config.ts";
import { remoteLayers } from "../image/remote.ts";
import { fullPath } from "../layer/files.ts";
import type { CacheManager, PullBlob } from "../source/cache/manage.ts";
import { type Logger, withoutSecrets } from "./log.ts";
import { RequestError } from "./refusal.ts";

/** How far an image is. */
export interface Pull {
  /** unlike any other of this process */
  readonly id: number;
  /** full path of its configuration */
  readonly config: string;
  /** that are not here as local files */
  readonly layers: number;
  /** of those layers whose size is known by now */
  bytes: number;
  /** of these, how many are here */
  done: number;
  /** that had to be fetched; undefined until it is done */
  fetched: number | undefined;
  state: "running" | "done" | "failed";
  /** why it failed; empty: it has not */
  error: string;
}

/** See the module's comment. */
export interface Pulls {
  /**
   * Begins one.
   *
   * @throws {ConfigError | ImageError} what the image is
   * @throws {RequestError} busy, ending
   */
  start(path: string): Promise<Pull>;
  /** those that run and those that have ended last, oldest first */
  list(): Pull[];
  /** @throws {RequestError} not-found */
  get(id: number): Pull;
  /** Ends and forgets it; what is here stays. @throws {RequestError} */
  end(id: number): Promise<void>;
  /** Ends all of them. */
  close(): Promise<void>;
}

/** More at once are refused. */
const RUNNING_MAX = 16;
/** So many are remembered; who has ended first is forgotten first. */
const KNOWN_MAX = 100;

interface Entry {
  pull: Pull;
  stop: AbortController;
  ended: Promise<void>;
}

/**
 * Makes the pulls of a service.
 *
 * @param cache what may be asked of it; throws {RequestError}
 */
export function createPulls(
  cache: () => Promise<CacheManager>,
  log: Logger,
): Pulls {
  const entries = new Map<number, Entry>();
  let nextId = 1;
  let closed = false;

  const run = async (
    pull: Pull,
    blobs: readonly PullBlob[],
    bring: CacheManager["pull"],
    signal: AbortSignal,
  ) => {
    try {
      const pulled = await bring(blobs, ({ total, done }) => {
        pull.bytes = total;
        pull.done = done;
      }, signal);
      pull.fetched = pulled.reduce((sum, { fetched }) => sum + fetched, 0);
      pull.state = "done";
      log.info(`pulled ${pull.config}: ${pull.fetched} bytes fetched`);
    } catch (error) {
      pull.error = withoutSecrets(whyOf(error));
      pull.state = "failed";
      if (!signal.aborted) log.error(`${pull.config}: ${pull.error}`);
    }
  };
  /** Forgets the oldest of those that have ended. */
  const trim = () => {
    const over = Math.max(0, entries.size - KNOWN_MAX);
    const old = [...entries].filter(([, { pull }]) => pull.state !== "running");
    for (const [id] of old.slice(0, over)) entries.delete(id);
  };
  const entryOf = (id: number): Entry => {
    const entry = entries.get(id);
    if (entry !== undefined) return entry;
    throw new RequestError("not-found", `there is no pull ${id}`);
  };
  const refuse = () => {
    if (closed) throw new RequestError("ending", "the service ends");
    const running = [...entries.values()].filter(({ pull }) =>
      pull.state === "running"
    );
    if (running.length < RUNNING_MAX) return;
    throw new RequestError("busy", `${RUNNING_MAX} images are being pulled`);
  };

  return {
    async start(path) {
      const blobs = remoteLayers(await readImageConfig(path));
      const bring = blobs.length === 0
        ? () => Promise.resolve([])
        : (await cache()).pull;
      refuse();
      const pull: Pull = {
        id: nextId++,
        config: fullPath(path),
        layers: blobs.length,
        bytes: 0,
        done: 0,
        fetched: undefined,
        state: "running",
        error: "",
      };
      const stop = new AbortController();
      const ended = run(pull, blobs, bring, stop.signal);
      entries.set(pull.id, { pull, stop, ended });
      trim();
      return pull;
    },
    list: () => [...entries.values()].map(({ pull }) => pull),
    get: (id) => entryOf(id).pull,
    async end(id) {
      const { stop, ended } = entryOf(id);
      stop.abort();
      await ended;
      entries.delete(id);
    },
    async close() {
      closed = true;
      for (const { stop } of entries.values()) stop.abort();
      await Promise.all([...entries.values()].map(({ ended }) => ended));
    },
  };
}
