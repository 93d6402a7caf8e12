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
  type Device,
  flushDevice,
  newDevice,
} from "../../ffi/engine.ts";
import { EngineError } from "../../ffi/errors.ts";
import { fileInfo } from "../layer/files.ts";
import { type OpenLayer, openLayer, openRemoteLayer } from "../layer/open.ts";
import { type OpenUpper, openUpper } from "../layer/upper.ts";
import { SourceError } from "../source/source.ts";
import type { CachedBlob } from "../source/cache/blob.ts";
import type { SourceSet } from "../source/sources.ts";
import {
  type Background,
  type BackgroundOptions,
  startBackground,
} from "./background.ts";
import { dataLowers, type ImageConfig, type LowerConfig } from "./config.ts";
import { buildView, type ShownView, trackView } from "./view.ts";

/** Read-only layers in one image at most (spec/lsmt.md, section 12). */
export const MAX_LOWERS = 255;

/** Lowers that are opened at once. */
const OPEN_CONCURRENCY = 32;

const ESHUTDOWN = 108;

/**
 * An image cannot be opened.  `resultText` is what the result file says
 * behind `failed:` (spec/image.md, section 4).
 */
export class ImageError extends Error {
  override readonly name = "ImageError";
  readonly resultText: string;

  constructor(message: string, resultText = message, options?: ErrorOptions) {
    super(message, options);
    this.resultText = resultText;
  }
}

/** A lower, and the blob behind it while it is read from a registry. */
export interface OpenLower extends OpenLayer {
  remote?: {
    url: string;
    blob: CachedBlob;
    digest: string;
    /** where it may be brought to; empty: nowhere */
    dir: string;
    /** in the order in which lowers were opened */
    nr: number;
  };
}

/** The layers of an image, opened. */
export interface OpenStack extends Disposable {
  /** bottom first, as in the configuration; others may take their places */
  lowers: OpenLower[];
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
export interface OpenImageOptions extends BackgroundOptions {
  /** no writing, even with an upper: shares it with other readers */
  readonly?: boolean;
  /** how long one request may wait for absent data */
  deadlineMs?: number;
  /** where remote lowers come from; without it there are none */
  sources?: SourceSet | undefined;
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** A name that cannot be looked up is there: opening it gives the reason. */
function mayExist(path: string): boolean {
  try {
    return fileInfo(path) !== undefined;
  } catch (error) {
    return !(error instanceof EngineError && error.code === "ENOTDIR");
  }
}

/** The first local file of a lower that exists; undefined: none. */
export function localFile(lower: LowerConfig): string | undefined {
  const { file, dir } = lower;
  const candidates = file === "" ? [] : [file];
  if (dir !== "") {
    for (const name of ["overlaybd.commit", ".commit", "overlaybd.sealed"]) {
      candidates.push(`${dir}/${name}`);
    }
  }
  return candidates.find(mayExist);
}

/** What a lower without any local file is missing. */
function missingLocal(lower: LowerConfig, config: ImageConfig): ImageError {
  const named = [lower.file, lower.dir].filter((name) => name !== "");
  if (lower.digest === "" || config.repoBlobUrl === "") {
    const where = named.length === 0
      ? "neither `file` nor `dir` is set"
      : `nothing at ${named.join(" or in ")}`;
    return new ImageError(
      `${where}, and ${
        config.repoBlobUrl === "" ? "`repoBlobUrl`" : "`digest`"
      } is empty`,
      "empty repoBlobUrl",
    );
  }
  const url = `${config.repoBlobUrl.replace(/\/?$/, "/")}${lower.digest}`;
  return new ImageError(
    `no local copy of ${lower.digest}, and this version reads local layers only`,
    `failed to open remote file /${url}: Operation not supported`,
  );
}

/** The message that the result file has for each cause. */
const REMOTE_TEXT: Readonly<Record<string, string>> = {
  EACCES: "Authentication failed",
  ENOTCONN: "Connection failed",
  ETIMEDOUT: "Get meta timedout",
  ENOENT: "No such file or directory",
  EBUSY: "Too many requests",
  EIO: "Unexpected response",
};

/** A blob whose head or indexes are wrong is fetched again this often. */
const REMOTE_TRIES = 3;

/** Remote lowers that have been opened. */
let opened = 0;

/** Opens a lower from its registry, through the cache. */
async function openRemote(
  lower: LowerConfig,
  config: ImageConfig,
  sources: SourceSet,
): Promise<OpenLower> {
  const url = `${config.repoBlobUrl.replace(/\/?$/, "/")}${lower.digest}`;
  try {
    const { dir, size } = lower;
    const about = { dir, size };
    using held = await sources.open(url, about);
    for (let left = REMOTE_TRIES;;) {
      try {
        const blob = await sources.open(url, about);
        const layer = await openRemoteLayer(blob);
        const { digest } = lower;
        return { ...layer, remote: { url, blob, digest, dir, nr: opened++ } };
      } catch (cause) {
        if (cause instanceof SourceError || --left === 0) throw cause;
        held.forget();
      }
    }
  } catch (cause) {
    const text = cause instanceof SourceError
      ? `failed to open remote file as tar file /${url}: ${
        REMOTE_TEXT[cause.code] ?? cause.code
      }`
      : `failed to open switch file /${url}`;
    throw new ImageError(reason(cause), text, { cause });
  }
}

async function openLower(
  lower: LowerConfig,
  position: number,
  config: ImageConfig,
  sources: SourceSet | undefined,
): Promise<OpenLower> {
  const fail = (error: ImageError) =>
    new ImageError(
      `cannot open lowers[${position}]: ${error.message}`,
      error.resultText,
      { cause: error },
    );
  if (
    lower.targetFile !== "" || lower.targetDigest !== ""
  ) {
    throw fail(
      new ImageError(
        "it has a target (turboOCI), which this version does not read",
        `failed to open layer ${position}`,
      ),
    );
  }
  const remote = sources !== undefined && lower.digest !== "" &&
      config.repoBlobUrl !== ""
    ? async () => {
      try {
        return await openRemote(lower, config, sources);
      } catch (error) {
        throw error instanceof ImageError ? fail(error) : error;
      }
    }
    : undefined;
  const path = localFile(lower);
  if (path === undefined) {
    if (remote !== undefined) return await remote();
    throw fail(missingLocal(lower, config));
  }
  try {
    return await openLayer(path);
  } catch (cause) {
    const local = new ImageError(
      `cannot open lowers[${position}]: ${reason(cause)}`,
      `failed to open local file ${path}`,
      { cause },
    );
    if (remote === undefined) throw local;
    // The first failure is the one that is told.
    return await remote().catch(() => Promise.reject(local));
  }
}

/** Opens every lower, 32 at a time; all or none. */
async function openLowers(
  config: ImageConfig,
  sources: SourceSet | undefined,
): Promise<OpenLower[]> {
  const wanted = dataLowers(config);
  if (wanted.length > MAX_LOWERS) {
    throw new ImageError(
      `cannot stack ${wanted.length} lowers: at most ${MAX_LOWERS}`,
      "failed to create overlaybd device",
    );
  }
  const limit = pLimit(OPEN_CONCURRENCY);
  const results = await Promise.allSettled(
    wanted.map((lower, position) =>
      limit(() => openLower(lower, position, config, sources))
    ),
  );
  const layers: OpenLower[] = [];
  let failure: unknown;
  for (const result of results) {
    if (result.status === "fulfilled") layers.push(result.value);
    else failure ??= result.reason;
  }
  if (failure !== undefined) {
    for (const layer of layers) layer.close();
    throw failure;
  }
  return layers;
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
    throw new ImageError(`cannot open upper: ${reason(cause)}`, undefined, {
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
  options: { readonly?: boolean; sources?: SourceSet | undefined } = {},
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
  const lowers = await openLowers(config, options.sources);
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
  });
  let view: ShownView;
  try {
    view = stackDevice(stack, options);
  } catch (cause) {
    stack.close();
    throw new ImageError(
      `cannot stack the layers: ${reason(cause)}`,
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
  const close = async () => {
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
  const closeOnce = () => closing ??= queue(close);
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
