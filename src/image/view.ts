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

/** How often it is looked whether the last request has left a view. */
const BUSY_POLL_MS = 20;

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

async function unused(view: View): Promise<void> {
  while (viewBusy(view)) {
    await new Promise((done) => setTimeout(done, BUSY_POLL_MS));
  }
}

/** Keeps track of what `device` shows; takes `first` over. */
export function trackView(device: Device, first: View): ShownView {
  let current = first;
  let previous: Promise<void> = Promise.resolve();
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
      await unused(old);
      old.close();
    })();
    track(previous);
  };
  return {
    device,
    async show(lowers, virtualSize) {
      const next = await buildViewAsync(lowers, virtualSize);
      replace(next, () => swapView(device, next));
    },
    replace,
    retire(item) {
      track(previous.then(() => item.close()));
    },
    async close() {
      await Promise.all([...retiring]);
      current.close();
    },
  };
}
