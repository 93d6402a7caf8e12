// SPDX-License-Identifier: Apache-2.0
/**
 * Checks everything that an image config names.
 *
 * @module
 */
import type { JobOptions } from "../../ffi/pipelines.ts";
import { checkLayer, type Finding } from "../layer/check.ts";
import { dataLowers, type ImageConfig, type LowerConfig } from "./config.ts";
import { hasUpper, openStack } from "./image.ts";
import { localFile, MAX_LOWERS } from "./lowers.ts";

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

async function checkLower(
  lower: LowerConfig,
  where: string,
  options: JobOptions,
): Promise<Finding[]> {
  const path = localFile(lower);
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
  options: JobOptions = {},
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
    findings.push(...await checkLower(lower, `lowers[${i}]`, options));
  }
  if (findings.some((f) => f.severity === "error")) return findings;
  try {
    using stack = await openStack(config, { readonly: true });
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
