// SPDX-License-Identifier: Apache-2.0
/**
 * Anything that can be read as a disk: an image, one layer, a raw file.
 *
 * @module
 */
import {
  closeDevice,
  type Extent,
  extents,
  newDevice,
  readDevice,
} from "../../ffi/device.ts";
import {
  closeFd,
  O,
  openFd,
  preadFd,
  seekFd,
  sizeOfFd,
} from "../../ffi/files.ts";
import type { Bytes } from "../../ffi/handle.ts";
import { newView } from "../../ffi/view.ts";
import { looksLikeLayer, type OpenLayer, openLayer } from "../layer/open.ts";
import type { SourceSet } from "../source/sources.ts";
import { type ImageConfig, readImageConfig } from "./config.ts";
import { type OpenStack, openStack } from "./image.ts";
import { unlessAborted } from "./lowers_disk.ts";
import { wholeIndex } from "./map.ts";
import { needRange } from "./plan.ts";
import { servingRanges } from "./serving.ts";
import { buildView } from "./view.ts";

/** A disk to be read. */
export interface Disk {
  what: "image" | "layer" | "raw";
  /** bytes */
  size: bigint;
  /**
   * Fills all of `into`, zeros past the end of a raw file's last sector.
   *
   * @throws {SourceError} it cannot be fetched
   * @throws the signal's reason
   */
  read(into: Bytes, at: bigint, signal?: AbortSignal): Promise<void>;
  /** Runs from `at` on, in order; at least one while `at` < `size`. */
  runs(at: bigint, length: bigint): Extent[];
  close(): Promise<void>;
}

/** Gives the sources of an image; undefined: it has nothing remote. */
export type SourcesOf = (config: ImageConfig) => Promise<SourceSet | undefined>;

/** A file no larger than this may be an image config. */
const MAX_CONFIG = 16 << 20;

/** True when a file is JSON text rather than a layer or a raw image. */
export function isImageConfig(path: string): boolean {
  const fd = openFd(path, O.RDONLY);
  try {
    const head = new Uint8Array(64);
    const text = new TextDecoder().decode(
      head.subarray(0, preadFd(fd, head, 0)),
    );
    return text.trimStart().startsWith("{") && sizeOfFd(fd) <= MAX_CONFIG;
  } finally {
    closeFd(fd);
  }
}

/** What is fetched at a time, in bytes of the disk. */
const AHEAD = 8n << 20n;
/** What was fetched can be evicted before it is read: rare, and no harm. */
const DEADLINE_MS = 60_000;
const ESHUTDOWN = 108;

/**
 * Makes what fetches a stack's remote bytes before they are read in order:
 * those behind them come along.
 */
function fetchAhead(stack: OpenStack): {
  to(end: bigint, signal: AbortSignal | undefined): Promise<void>;
  close(): void;
} {
  const { lowers, virtualSize } = stack;
  if (lowers.every(({ remote }) => remote === undefined)) {
    return { to: () => Promise.resolve(), close: () => {} };
  }
  const { index, layers } = wholeIndex(stack);
  const never = new AbortController().signal;
  let fetched = 0n;
  return {
    async to(end, signal = never) {
      while (fetched < end) {
        const next = fetched + AHEAD < virtualSize
          ? fetched + AHEAD
          : virtualSize;
        const ranges = servingRanges(index, Number(fetched), Number(next));
        const fetches = [...ranges].map(({ tag, offset, count }) => {
          const layer = layers[tag];
          return typeof layer === "number"
            ? needRange(lowers, { layer, offset, count })
            : undefined;
        });
        await unlessAborted(Promise.all(fetches), signal);
        fetched = next;
      }
    },
    close: () => index.close(),
  };
}

async function imageDisk(path: string, sourcesOf: SourcesOf): Promise<Disk> {
  const config = await readImageConfig(path);
  const stack = await openStack(config, {
    readonly: true,
    sources: await sourcesOf(config),
  });
  using opening = new DisposableStack();
  opening.use(stack);
  const { virtualSize: size } = stack;
  const view = buildView(stack.lowers, size);
  opening.defer(() => view.close());
  const device = newDevice(view, stack.upper?.upper, size, {
    readonly: true,
    deadlineMs: DEADLINE_MS,
  });
  opening.defer(() => device.close());
  const ahead = fetchAhead(stack);
  opening.defer(ahead.close);
  const opened = opening.move();
  const end = () => closeDevice(device, ESHUTDOWN);
  return {
    what: "image",
    size,
    async read(into, at, signal) {
      await ahead.to(at + BigInt(into.length), signal);
      signal?.throwIfAborted();
      signal?.addEventListener("abort", end, { once: true });
      try {
        await readDevice(device, into, at);
      } finally {
        signal?.removeEventListener("abort", end);
      }
    },
    runs: (at, length) => extents(device, at, length),
    close: () => {
      end();
      opened.dispose();
      return Promise.resolve();
    },
  };
}

function layerDisk(layer: OpenLayer): Disk {
  const size = layer.virtualSize - layer.virtualSize % 512n;
  const view = newView(layer.index, [layer.source], size);
  const device = newDevice(view, undefined, size);
  return {
    what: "layer",
    size,
    read: (into, at) => readDevice(device, into, at),
    runs: (at, length) => extents(device, at, length),
    close: () => {
      device.close();
      view.close();
      layer.close();
      return Promise.resolve();
    },
  };
}

function rawDisk(path: string): Disk {
  const fd = openFd(path, O.RDONLY);
  const size = BigInt(sizeOfFd(fd));
  return {
    what: "raw",
    size: (size + 511n) / 512n * 512n,
    read: (into, at) => {
      const got = preadFd(fd, into, at);
      into.fill(0, got);
      return Promise.resolve();
    },
    runs: (at, length) => {
      const end = at + length < size ? at + length : size;
      const data = BigInt(seekFd(fd, at, "data") ?? size);
      if (data > at) {
        const until = data < end ? data : end;
        return [{ length: Number(until - at), state: "hole" }];
      }
      const hole = BigInt(seekFd(fd, at, "hole") ?? size);
      const until = hole < end ? hole : end;
      return [{ length: Number(until - at), state: "data" }];
    },
    close: () => {
      closeFd(fd);
      return Promise.resolve();
    },
  };
}

/**
 * Opens a config, a layer file or a raw image, whichever it is.
 *
 * @param sourcesOf where an image's remote lowers come from
 * @throws {ImageError | FormatError} it is one of ours, and damaged
 */
export async function openDisk(
  path: string,
  sourcesOf: SourcesOf = () => Promise.resolve(undefined),
): Promise<Disk> {
  if (isImageConfig(path)) return await imageDisk(path, sourcesOf);
  if (looksLikeLayer(path)) return layerDisk(await openLayer(path));
  return rawDisk(path);
}
