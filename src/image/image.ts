// SPDX-License-Identifier: Apache-2.0
/**
 * Opens an image: its lowers, its upper, and the device that shows them
 * (spec/image.md, section 3).
 *
 * @module
 */
import pLimit from "p-limit";
import {
  closeDevice,
  endWaiting,
  flushDevice,
  newDevice,
} from "../../ffi/device.ts";
import type { Device } from "../../ffi/handle.ts";
import type { IoEngine } from "../layer/engine.ts";
import type { OpenLayer } from "../layer/open.ts";
import { type OpenUpper, openUpper } from "../layer/upper.ts";
import {
  type Background,
  type BackgroundOptions,
  startBackground,
} from "./background.ts";
import { dataLowers, type ImageConfig } from "./config.ts";
import { ImageError } from "./error.ts";
import { reasonOf } from "./log.ts";
import { type LowerOptions, type OpenLower, openLowers } from "./lowers.ts";
import { buildView, type ShownView, trackView } from "./view.ts";

export { ImageError, type OpenLower };

const ESHUTDOWN = 108;
const HURRY_MS = 100;

/** The layers of an image, opened. */
export interface OpenStack extends Disposable {
  /** bottom first, as in the configuration; others may take their places */
  lowers: OpenLower[];
  /** how local lowers are read, those too that come later */
  readonly engine: IoEngine | undefined;
  upper: OpenUpper | undefined;
  /** under the upper: the one before it, whose snapshot could not be ended */
  frozen?: OpenUpper;
  /** bytes, a multiple of 512 */
  virtualSize: bigint;
  /** what opening mended, one sentence each */
  warnings: readonly string[];
  close(): void;
}

/** An image as a disk. */
export interface OpenImage extends AsyncDisposable {
  /** as it is now: a snapshot changes it */
  config: ImageConfig;
  stack: OpenStack;
  device: Device;
  /** what the device shows of the lowers */
  view: ShownView;
  readonly: boolean;
  /** how long changes waited for the last snapshot, in microseconds */
  snapshotPauseUs?: number;
  /** told when the disk has become larger */
  readonly grown: Set<(virtualSize: bigint) => void>;
  /**
   * Runs what changes the image's layers or size, one after the other.
   *
   * @throws {ImageError} the image is being closed
   */
  alone<T>(work: () => Promise<T>): Promise<T>;
  /** what it does on its own */
  background: Background;
  /** Flushes what was written, then lets everything go. */
  close(): Promise<void>;
}

/** How an image is opened. */
export interface OpenImageOptions extends BackgroundOptions, LowerOptions {
  /** no writing, even with an upper: shares it with other readers */
  readonly?: boolean;
  /** how long one request may wait for absent data */
  deadlineMs?: number;
}

/** Virtual size of a read-only stack: the topmost that has one. */
function stackSize(lowers: readonly OpenLayer[]): bigint {
  const sized = lowers.findLast((layer) => layer.virtualSize > 0n);
  return sized?.virtualSize ?? 0n;
}

/** True when the configuration has a complete upper. */
export function hasUpper(config: ImageConfig): boolean {
  const { upper } = config;
  return upper !== undefined && upper.data !== "" && upper.index !== "";
}

async function openConfiguredUpper(
  config: ImageConfig,
  inherited: bigint,
  readonly: boolean,
): Promise<OpenUpper | undefined> {
  const { upper } = config;
  if (upper === undefined || upper.data === "" || upper.index === "") {
    return undefined;
  }
  if (upper.target !== undefined && upper.target !== "") {
    throw new ImageError(
      "cannot open upper: it has a target (turboOCI), which this version " +
        "does not write",
    );
  }
  try {
    return await openUpper({
      data: upper.data,
      index: upper.index,
      readonly,
      inheritedSize: inherited,
    });
  } catch (cause) {
    throw new ImageError(`cannot open upper: ${reasonOf(cause)}`, undefined, {
      cause,
    });
  }
}

/**
 * Opens the layers that a configuration names.
 *
 * @param options `readonly`: the upper is shared, nothing is written
 * @throws {ImageError} which layer could not be opened, and why
 */
export async function openStack(
  config: ImageConfig,
  options: LowerOptions & { readonly?: boolean } = {},
): Promise<OpenStack> {
  if (config.accelerationLayer && config.recordTracePath !== "") {
    throw new ImageError(
      "cannot open an image with both accelerationLayer and recordTracePath",
    );
  }
  if (dataLowers(config).length === 0 && !hasUpper(config)) {
    throw new ImageError(
      "cannot open an image with neither lowers nor an upper",
      "failed to create overlaybd device",
    );
  }
  const lowers = await openLowers(config, options);
  const closeLowers = () => {
    for (const layer of lowers) layer.close();
  };
  try {
    const inherited = stackSize(lowers);
    const upper = await openConfiguredUpper(
      config,
      inherited,
      options.readonly ?? false,
    );
    const size = upper?.virtualSize ?? inherited;
    if (size === 0n) {
      upper?.close();
      throw new ImageError(
        "cannot open the image: no layer says how large the disk is " +
          "(every virtual size is 0)",
        "failed to create overlaybd device",
      );
    }
    const close = () => {
      stack.upper?.close();
      stack.frozen?.close();
      closeLowers();
    };
    const stack: OpenStack = {
      lowers,
      engine: options.engine,
      upper,
      virtualSize: size - size % 512n,
      warnings: upper?.warnings ?? [],
      close,
      [Symbol.dispose]: close,
    };
    return stack;
  } catch (error) {
    closeLowers();
    throw error;
  }
}

/** A device over a stack's lowers and upper. */
function stackDevice(stack: OpenStack, options: OpenImageOptions): ShownView {
  const view = buildView(stack.lowers, stack.virtualSize);
  try {
    const device = newDevice(view, stack.upper?.upper, stack.virtualSize, {
      readonly: options.readonly === true || stack.upper === undefined,
      ...(options.deadlineMs === undefined
        ? {}
        : { deadlineMs: options.deadlineMs }),
    });
    return trackView(device, view);
  } catch (error) {
    view.close();
    throw error;
  }
}

/**
 * Opens an image as a disk.
 *
 * @throws {ImageError} which layer could not be opened, and why
 */
export async function openImage(
  config: ImageConfig,
  options: OpenImageOptions = {},
): Promise<OpenImage> {
  const stack = await openStack(config, {
    readonly: options.readonly ?? false,
    sources: options.sources,
    engine: options.engine,
  });
  let view: ShownView;
  try {
    view = stackDevice(stack, options);
  } catch (cause) {
    stack.close();
    throw new ImageError(
      `cannot stack the layers: ${reasonOf(cause)}`,
      "failed to create overlaybd device",
      { cause },
    );
  }
  const { device } = view;
  const readonly = options.readonly === true || stack.upper === undefined;
  let closing: Promise<void> | undefined;
  const queue = pLimit(1);
  const alone = <T>(work: () => Promise<T>): Promise<T> =>
    closing === undefined
      ? queue(work)
      : Promise.reject(new ImageError("the image is being closed"));
  const background = await startBackground(
    { config, stack, view, alone },
    options,
  );
  let ending = false;
  const close = async () => {
    ending = true;
    await background.close();
    try {
      if (!readonly) await flushDevice(device);
    } finally {
      closeDevice(device, ESHUTDOWN);
      device.close();
      await view.close();
      stack.close();
    }
  };
  /** What has its turn before the end may wait for a source that is silent. */
  const hurry = async () => {
    while (!ending) {
      endWaiting(device, ESHUTDOWN);
      await new Promise((done) => setTimeout(done, HURRY_MS));
    }
  };
  const closeOnce = () => {
    if (closing !== undefined) return closing;
    const busy = queue.activeCount + queue.pendingCount > 0;
    closing = queue(close);
    if (busy) hurry();
    return closing;
  };
  return {
    config,
    stack,
    device,
    view,
    readonly,
    grown: new Set(),
    alone,
    background,
    close: closeOnce,
    [Symbol.asyncDispose]: closeOnce,
  };
}
