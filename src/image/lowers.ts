// SPDX-License-Identifier: Apache-2.0
/**
 * Opens the lowers of an image, from local files or from a registry
 * (spec/image.md, sections 3.1 and 4).
 *
 * @module
 */
import pLimit from "p-limit";
import { EngineError } from "../../ffi/errors.ts";
import type { IoEngine } from "../layer/engine.ts";
import { fileInfo } from "../layer/files.ts";
import { type OpenLayer, openLayer, openRemoteLayer } from "../layer/open.ts";
import type { CachedBlob } from "../source/cache/blob.ts";
import { SourceError } from "../source/source.ts";
import type { SourceSet } from "../source/sources.ts";
import { dataLowers, type ImageConfig, type LowerConfig } from "./config.ts";
import { ImageError } from "./error.ts";
import { reasonOf } from "./log.ts";

/** Read-only layers in one image at most (spec/lsmt.md, section 12). */
export const MAX_LOWERS = 255;

/** Lowers that are opened at once. */
const OPEN_CONCURRENCY = 32;

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

/** Where a lower is in its registry. */
export function blobUrl(
  { repoBlobUrl }: ImageConfig,
  { digest }: LowerConfig,
): string {
  return `${repoBlobUrl.replace(/\/?$/, "/")}${digest}`;
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
  const url = blobUrl(config, lower);
  return new ImageError(
    `no local copy of ${lower.digest}, and no sources to fetch it from`,
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
  const url = blobUrl(config, lower);
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
        await held.forget();
      }
    }
  } catch (cause) {
    const text = cause instanceof SourceError
      ? `failed to open remote file as tar file /${url}: ${
        REMOTE_TEXT[cause.code] ?? cause.code
      }`
      : `failed to open switch file /${url}`;
    throw new ImageError(reasonOf(cause), text, { cause });
  }
}

/** How lowers are opened. */
export interface LowerOptions {
  /** where remote ones come from; undefined: there are none */
  sources?: SourceSet | undefined;
  /** how local ones are read */
  engine?: IoEngine | undefined;
}

async function openLower(
  lower: LowerConfig,
  position: number,
  config: ImageConfig,
  { sources, engine }: LowerOptions,
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
    return await openLayer(path, { engine });
  } catch (cause) {
    const local = new ImageError(
      `cannot open lowers[${position}]: ${reasonOf(cause)}`,
      `failed to open local file ${path}`,
      { cause },
    );
    if (remote === undefined) throw local;
    // The first failure is the one that is told.
    return await remote().catch(() => Promise.reject(local));
  }
}

/**
 * Opens every lower, 32 at a time; all or none.  After the first that cannot
 * be opened no other is begun.
 */
export async function openLowers(
  config: ImageConfig,
  options: LowerOptions,
): Promise<OpenLower[]> {
  const wanted = dataLowers(config);
  if (wanted.length > MAX_LOWERS) {
    throw new ImageError(
      `cannot stack ${wanted.length} lowers: at most ${MAX_LOWERS}`,
      "failed to create overlaybd device",
    );
  }
  const limit = pLimit(OPEN_CONCURRENCY);
  const stop = new AbortController();
  const results = await Promise.allSettled(
    wanted.map((lower, position) =>
      limit(async () => {
        stop.signal.throwIfAborted();
        try {
          return await openLower(lower, position, config, options);
        } catch (error) {
          stop.abort();
          throw error;
        }
      })
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
