// SPDX-License-Identifier: Apache-2.0
/**
 * Anything that can be read as a disk: an image, one layer, a raw file.
 *
 * @module
 */
import {
  type Extent,
  extents,
  newDevice,
  readDeviceSync,
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
import { readImageConfig } from "./config.ts";
import { openImage } from "./image.ts";

/** A disk to be read; reads on the calling thread, local bytes only. */
export interface Disk {
  what: "image" | "layer" | "raw";
  /** bytes */
  size: bigint;
  /** Fills all of `into`, zeros past the end of a raw file's last sector. */
  read(into: Bytes, at: bigint): void;
  /** Runs from `at` on, in order; at least one while `at` < `size`. */
  runs(at: bigint, length: bigint): Extent[];
  close(): Promise<void>;
}

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

async function imageDisk(path: string): Promise<Disk> {
  const image = await openImage(await readImageConfig(path), {
    readonly: true,
  });
  return {
    what: "image",
    size: image.stack.virtualSize,
    read: (into, at) => readDeviceSync(image.device, into, at),
    runs: (at, length) => extents(image.device, at, length),
    close: () => image.close(),
  };
}

function layerDisk(layer: OpenLayer): Disk {
  const size = layer.virtualSize - layer.virtualSize % 512n;
  const view = newView(layer.index, [layer.source], size);
  const device = newDevice(view, undefined, size);
  return {
    what: "layer",
    size,
    read: (into, at) => readDeviceSync(device, into, at),
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
 * @throws {ImageError | FormatError} it is one of ours, and damaged
 */
export async function openDisk(path: string): Promise<Disk> {
  if (isImageConfig(path)) return await imageDisk(path);
  if (looksLikeLayer(path)) return layerDisk(await openLayer(path));
  return rawDisk(path);
}
