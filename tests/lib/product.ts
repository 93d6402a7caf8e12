// SPDX-License-Identifier: Apache-2.0
/**
 * The product in process: an image as a disk, and its configuration files.
 *
 * @module
 */
import {
  discardDevice,
  type Extent,
  extents,
  flushDevice,
  readDeviceSync,
  writeDevice,
  zeroDevice,
} from "../../ffi/device.ts";
import type { Bytes } from "../../ffi/handle.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { growClosedImage, growImage } from "../../src/image/grow.ts";
import { openImage } from "../../src/image/image.ts";
import { createUpper } from "../../src/layer/create.ts";
import { type Op, patternBytes } from "./ops.ts";
import type { TempDir } from "./env.ts";
import type { UpperPaths } from "./spec_reader.ts";

/** What `config.v1.json` says of local layers, bottom first. */
export interface Stack {
  lowers: readonly string[];
  upper?: UpperPaths | undefined;
}

/** An open disk of the product; offsets and lengths in bytes. */
export interface OpenDisk extends AsyncDisposable {
  readonly size: number;
  readonly warnings: readonly string[];
  read(at: number, n: number): Bytes;
  write(at: number, from: Bytes): void;
  discard(at: number, n: number): void;
  zero(at: number, n: number): void;
  flush(): Promise<void>;
  /** Makes it larger while it is open. */
  grow(size: number): Promise<void>;
  extents(at: number, n: number, max?: number): Extent[];
  close(): Promise<void>;
}

/** How a writable layer is made. */
export interface NewUpper {
  /** bytes; 0: taken from the layers below */
  size: number;
  sparse?: boolean;
  uuid?: string;
  parentUuid?: string;
}

/** Creates a writable layer `<base>.data`, `<base>.index`. */
export async function newUpper(
  base: string,
  { size, sparse, ...uuids }: NewUpper,
): Promise<UpperPaths> {
  const upper = { data: `${base}.data`, index: `${base}.index` };
  await createUpper({
    ...upper,
    ...uuids,
    virtualSize: BigInt(size),
    kind: sparse === true ? "sparse" : "log",
  });
  return upper;
}

function configOf({ lowers, upper }: Stack) {
  return parseImageConfig({
    lowers: lowers.map((file) => ({ file })),
    ...(upper === undefined ? {} : { upper }),
  }, "test");
}

/** Makes a stack's disk larger that nobody has open; size in bytes. */
export async function growClosed(stack: Stack, size: number): Promise<void> {
  await growClosedImage(configOf(stack), BigInt(size));
}

/** Opens a stack through `src/image`. */
export async function openDisk(
  stack: Stack,
  options: { readonly?: boolean } = {},
): Promise<OpenDisk> {
  const image = await openImage(configOf(stack), options);
  const { device } = image;
  const close = () => image.close();
  return {
    get size() {
      return Number(image.stack.virtualSize);
    },
    warnings: image.stack.warnings,
    read(at, n) {
      const into = new Uint8Array(n);
      readDeviceSync(device, into, at);
      return into;
    },
    write: (at, from) => writeDevice(device, from, at),
    discard: (at, n) => discardDevice(device, at, n),
    zero: (at, n) => zeroDevice(device, at, n),
    flush: () => flushDevice(device),
    grow: (size) => growImage(image, BigInt(size)),
    extents: (at, n, max) => extents(device, at, n, max),
    close,
    [Symbol.asyncDispose]: close,
  };
}

/** Plays operations on a disk. */
export function playOnDisk(disk: OpenDisk, ops: readonly Op[]): void {
  for (const { kind, offset, length, pattern } of ops) {
    if (kind === "discard") disk.discard(offset, length);
    else disk.write(offset, patternBytes(pattern, length));
  }
}

/** Writes a `config.v1.json` for a stack; returns its path. */
export function writeConfig(
  dir: TempDir,
  { lowers, upper }: Stack,
  name = "config.v1.json",
): string {
  const path = dir.file(name);
  Deno.writeTextFileSync(
    path,
    JSON.stringify({
      repoBlobUrl: "",
      lowers: lowers.map((file) => ({ file })),
      ...(upper === undefined ? {} : { upper }),
      resultFile: dir.file("result"),
    }),
  );
  return path;
}
