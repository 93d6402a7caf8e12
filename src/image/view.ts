// SPDX-License-Identifier: Apache-2.0
/**
 * What an open image shows of its lowers: built at opening, and built anew
 * whenever one of them is read from somewhere else, while it is used.
 *
 * @module
 */
import { swapView } from "../../ffi/device.ts";
import type { Device, View } from "../../ffi/handle.ts";
import { mergeIndexes, mergeIndexesAsync, newIndex } from "../../ffi/index.ts";
import { newView, viewBusy } from "../../ffi/view.ts";
import type { OpenLayer } from "../layer/open.ts";
import { sleep } from "./pace.ts";

/** It is looked whether the last request has left a view after so long, and
 * less and less often: one may wait for days for what cannot be fetched. */
const POLL_MIN_MS = 20;
const POLL_MAX_MS = 1000;

/** A device and the view that it shows. */
export interface ShownView {
  readonly device: Device;
  /** Shows these lowers, bottom first, once they are merged. */
  show(lowers: readonly OpenLayer[], virtualSize: bigint): Promise<void>;
  /** The same for a view that is made already and that `showIt` shows. */
  replace(next: View, showIt: () => void): void;
  /**
   * Closes something as soon as no request can read through what was shown
   * before the last `show()`.
   */
  retire(unused: { close(): void }): void;
  /** Waits for what was retired; the device must be closed before. */
  close(): Promise<void>;
}

/** The view of a stack's lowers, given bottom first. */
export function buildView(
  lowers: readonly OpenLayer[],
  virtualSize: bigint,
): View {
  const topFirst = lowers.toReversed();
  using index = topFirst.length === 0
    ? newIndex(new Uint8Array(0))
    : mergeIndexes(topFirst.map((layer) => layer.index));
  return newView(index, topFirst.map((layer) => layer.source), virtualSize);
}

/** The same without holding up this thread. */
export async function buildViewAsync(
  lowers: readonly OpenLayer[],
  virtualSize: bigint,
): Promise<View> {
  const topFirst = lowers.toReversed();
  using index = await mergeIndexesAsync(topFirst.map((layer) => layer.index));
  return newView(index, topFirst.map((layer) => layer.source), virtualSize);
}

/** @param hurry requests end now: they are waited for */
async function unused(view: View, hurry: AbortSignal): Promise<void> {
  const never = new AbortController().signal;
  for (
    let ms = POLL_MIN_MS;
    viewBusy(view);
    ms = Math.min(2 * ms, POLL_MAX_MS)
  ) {
    if (hurry.aborted) await sleep(POLL_MIN_MS, never);
    else await sleep(ms, hurry).catch(() => {});
  }
}

/** Keeps track of what `device` shows; takes `first` over. */
export function trackView(device: Device, first: View): ShownView {
  let current = first;
  let previous: Promise<void> = Promise.resolve();
  const hurry = new AbortController();
  const retiring = new Set<Promise<void>>();
  const track = (work: Promise<void>) => {
    retiring.add(work);
    work.finally(() => retiring.delete(work));
  };
  const replace = (next: View, showIt: () => void) => {
    showIt();
    const old = current;
    current = next;
    const earlier = previous;
    previous = (async () => {
      await earlier;
      await unused(old, hurry.signal);
      old.close();
    })();
    track(previous);
  };
  return {
    device,
    async show(lowers, virtualSize) {
      const next = await buildViewAsync(lowers, virtualSize);
      try {
        replace(next, () => swapView(device, next));
      } catch (error) {
        next.close();
        throw error;
      }
    },
    replace,
    retire(item) {
      track(previous.then(() => item.close()));
    },
    async close() {
      hurry.abort();
      await Promise.all([...retiring]);
      current.close();
    },
  };
}
