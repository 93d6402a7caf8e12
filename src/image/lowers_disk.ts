// SPDX-License-Identifier: Apache-2.0
/**
 * The lowers of an image as one disk to be looked into: what prefetching a
 * list of files needs.
 *
 * @module
 */
import {
  closeDevice,
  newDevice,
  readDevice,
  swapView,
} from "../../ffi/device.ts";
import { EngineError } from "../../ffi/errors.ts";
import { mergeIndexes } from "../../ffi/index.ts";
import type { Bytes } from "../../ffi/handle.ts";
import { newView } from "../../ffi/view.ts";
import { FormatError } from "../format/error.ts";
import type { OpenStack } from "./image.ts";
import { type LayerRange, needRange } from "./plan.ts";
import { servingRanges } from "./serving.ts";

/** See the module's comment; all numbers are bytes. */
export interface LowersDisk {
  /** The parts of layers that serve a range, in order. */
  serving(at: number, length: number): LayerRange[];
  /**
   * Reads a range, which is fetched first where it has to be.
   *
   * @throws {FormatError} it leaves the disk
   */
  read(at: number, length: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** Read and kept at once; what is asked for is mostly near the last. */
const PAGE = 16384;
const MAX_PAGES = 256;
/** Pages that are looked at before the disk counts as a trap. */
const MAX_READS = 100_000;
/**
 * What was fetched can be evicted before it is read, and its layer can be
 * another one by then: it is asked for again, so often.
 */
const DEADLINE_MS = 1000;
const READ_TRIES = 30;
const ESHUTDOWN = 108;

/** The same as `work`, or the signal's reason as soon as that is given. */
export function unlessAborted<T>(
  work: Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort, { once: true });
    work.then(resolve, reject).finally(() =>
      signal.removeEventListener("abort", abort)
    );
  });
}

/**
 * Opens a stack's lowers.  Another layer with the same content may take the
 * place of one of them meanwhile, and others may come on top.
 *
 * @param signal ends reads that wait
 */
export function openLowersDisk(
  stack: OpenStack,
  signal: AbortSignal,
): LowersDisk {
  const { virtualSize, lowers: { length: layers } } = stack;
  const topFirst = () => stack.lowers.slice(0, layers).reverse();
  const index = mergeIndexes(topFirst().map((layer) => layer.index));
  const sourcesNow = () => topFirst().map((layer) => layer.source);
  let sources = sourcesNow();
  let view = newView(index, sources, virtualSize);
  const device = newDevice(view, undefined, virtualSize, {
    deadlineMs: DEADLINE_MS,
  });
  const size = Number(virtualSize);
  const pages = new Map<number, Promise<Uint8Array>>();
  // Not to be freed under a call that has not begun on its thread.
  const running = new Set<Promise<void>>();
  const end = () => closeDevice(device, ESHUTDOWN);
  signal.addEventListener("abort", end, { once: true });
  let reads = 0;

  function* serving(at: number, length: number): Generator<LayerRange> {
    const end = Math.min(size, at + length);
    for (const { tag, offset, count } of servingRanges(index, at, end)) {
      yield { layer: layers - 1 - tag, offset, count };
    }
  }

  /** Reads the layers that have taken others' places. */
  const follow = () => {
    const now = sourcesNow();
    if (now.every((source, i) => source === sources[i])) return;
    const next = newView(index, now, virtualSize);
    swapView(device, next);
    view.close();
    [view, sources] = [next, now];
  };
  const fetchAndRead = async (into: Bytes, at: number): Promise<void> => {
    for (const range of serving(at, into.length)) {
      await unlessAborted(needRange(stack.lowers, range), signal);
    }
    signal.throwIfAborted();
    follow();
    const reading = readDevice(device, into, at);
    running.add(reading);
    await reading.finally(() => running.delete(reading));
  };
  const readPage = async (page: number): Promise<Uint8Array> => {
    const at = page * PAGE;
    const into = new Uint8Array(Math.min(PAGE, size - at));
    for (let left = READ_TRIES;;) {
      const before = sources;
      try {
        await fetchAndRead(into, at);
        return into;
      } catch (error) {
        if (signal.aborted || --left === 0) throw error;
        const gone = error instanceof EngineError && error.code === "ETIMEDOUT";
        follow();
        if (sources === before && !gone) throw error;
      }
    }
  };

  const pageAt = (page: number): Promise<Uint8Array> => {
    if (++reads > MAX_READS) {
      throw new FormatError(`the file system takes more than ${reads} reads`);
    }
    const known = pages.get(page) ?? readPage(page);
    pages.delete(page);
    pages.set(page, known);
    const [oldest] = pages.keys();
    if (pages.size > MAX_PAGES && oldest !== undefined) pages.delete(oldest);
    return known;
  };

  return {
    serving: (at, length) => [...serving(at, length)],
    async read(at, length) {
      if (at < 0 || !(at + length <= size)) {
        throw new FormatError(`bytes ${at}+${length} are not on the disk`);
      }
      const into = new Uint8Array(length);
      for (let done = 0; done < length;) {
        const page = Math.floor((at + done) / PAGE);
        const from = at + done - page * PAGE;
        const part = (await pageAt(page)).subarray(from, from + length - done);
        into.set(part, done);
        done += part.length;
      }
      return into;
    },
    async close() {
      signal.removeEventListener("abort", end);
      end();
      await Promise.allSettled(running);
      device.close();
      view.close();
      index.close();
    },
  };
}
