// SPDX-License-Identifier: Apache-2.0
/**
 * Checks everything that an image config names.
 *
 * @module
 */
import type { JobOptions } from "../../ffi/pipelines.ts";
import { checkLayer, type Finding } from "../layer/check.ts";
import { DigestError } from "../source/cache/digest.ts";
import { SourceError } from "../source/source.ts";
import type { SourceSet } from "../source/sources.ts";
import { dataLowers, type ImageConfig, type LowerConfig } from "./config.ts";
import { hasUpper, openStack } from "./image.ts";
import { blobUrl, localFile, MAX_LOWERS } from "./lowers.ts";

/** How an image is checked. */
export interface CheckOptions extends JobOptions {
  /** where remote lowers come from; undefined: there are none */
  sources?: SourceSet | undefined;
}

function error(code: string, where: string, text: string): Finding {
  return { severity: "error", code, where, text };
}

async function sha256(path: string, signal?: AbortSignal): Promise<string> {
  // Only digests need it, and it takes long to load.
  const { createHash } = await import("node:crypto");
  const hash = createHash("sha256");
  using file = await Deno.open(path);
  const chunk = new Uint8Array(1 << 20);
  for (let got = await file.read(chunk); got !== null;) {
    signal?.throwIfAborted();
    hash.update(chunk.subarray(0, got));
    got = await file.read(chunk);
  }
  return hash.digest("hex");
}

/** Size and digest of a local copy against what the config says. */
async function checkBlob(
  lower: LowerConfig,
  path: string,
  where: string,
  options: JobOptions,
): Promise<Finding[]> {
  // `file` may be any layer; only what lies in `dir` is the blob itself.
  if (path === lower.file) return [];
  const findings: Finding[] = [];
  const { size } = await Deno.stat(path);
  if (lower.size !== 0 && lower.size !== size) {
    findings.push(error(
      "size",
      where,
      `${path} has ${size} bytes, the config says ${lower.size}`,
    ));
  }
  const [, want] = /^sha256:([0-9a-f]{64})$/i.exec(lower.digest) ?? [];
  if (want !== undefined) {
    const got = await sha256(path, options.signal);
    if (got !== want.toLowerCase()) {
      findings.push(error(
        "digest",
        where,
        `${path} is sha256:${got}, the config says ${lower.digest}`,
      ));
    }
  }
  return findings;
}

/** The same for a lower in a registry, which is fetched to its end. */
async function checkRemote(
  lower: LowerConfig,
  url: string,
  where: string,
  { sources, ...options }: CheckOptions & { sources: SourceSet },
): Promise<Finding[]> {
  const { openWholeFile } = await import("../source/cache/whole.ts");
  const { dir, size, digest } = lower;
  let done = 0;
  try {
    using file = await openWholeFile(sources, url, {
      dir,
      size,
      signal: options.signal ?? new AbortController().signal,
      onBytes(bytes) {
        done += bytes;
        options.onProgress?.({ total: size, done, written: 0 });
      },
    });
    const findings = (await checkLayer(file.path, options)).map((f) => ({
      ...f,
      where: `${where}: ${f.where.replaceAll(file.path, digest)}`,
      text: f.text.replaceAll(file.path, digest),
    }));
    const got = (await Deno.stat(file.path)).size;
    if (size !== 0 && size !== got) {
      const text = `${digest} has ${got} bytes, the config says ${size}`;
      findings.push(error("size", where, text));
    }
    return findings;
  } catch (cause) {
    if (cause instanceof DigestError) {
      return [error("digest", where, `${url}: ${cause.message}`)];
    }
    if (cause instanceof SourceError && cause.code === "ENOENT") {
      return [error("missing", where, cause.message)];
    }
    throw cause;
  }
}

async function checkLower(
  lower: LowerConfig,
  config: ImageConfig,
  where: string,
  options: CheckOptions,
): Promise<Finding[]> {
  const path = localFile(lower);
  const { sources } = options;
  if (path === undefined && sources !== undefined && lower.digest !== "") {
    const url = blobUrl(config, lower);
    return await checkRemote(lower, url, where, { ...options, sources });
  }
  if (path === undefined) {
    const named = [lower.file, lower.dir].filter((name) => name !== "");
    return [error(
      "missing",
      where,
      `no local file${
        named.length > 0 ? `: nothing at ${named.join(", ")}` : ""
      }`,
    )];
  }
  const findings = await checkLayer(path, options);
  return [
    ...findings.map((f) => ({ ...f, where: `${where}: ${f.where}` })),
    ...await checkBlob(lower, path, where, options),
  ];
}

/**
 * Checks every layer of an image, every checksum, and that they stack.
 *
 * @returns what was found; sound when none has severity `error`
 */
export async function checkImage(
  config: ImageConfig,
  options: CheckOptions = {},
): Promise<Finding[]> {
  const findings: Finding[] = [];
  if (config.lowers.length > MAX_LOWERS) {
    findings.push(error(
      "count",
      "lowers",
      `${config.lowers.length} layers, at most ${MAX_LOWERS}`,
    ));
  }
  for (const [i, lower] of dataLowers(config).entries()) {
    findings.push(
      ...await checkLower(lower, config, `lowers[${i}]`, options),
    );
  }
  if (findings.some((f) => f.severity === "error")) return findings;
  try {
    using stack = await openStack(config, {
      readonly: true,
      sources: options.sources,
    });
    const where = hasUpper(config) ? "upper" : "image";
    for (const text of stack.warnings) {
      findings.push({ severity: "warning", code: "mended", where, text });
    }
  } catch (cause) {
    const text = cause instanceof Error ? cause.message : String(cause);
    findings.push(error("open", "image", text));
  }
  return findings;
}
