// SPDX-License-Identifier: Apache-2.0
/**
 * Checks a layer file against every rule of the formats and every checksum.
 *
 * @module
 */
import {
  type Bytes,
  type JobOptions,
  readSource,
  sourceSize,
  verify,
  zfileBlock,
} from "../../ffi/engine.ts";
import { EngineError } from "../../ffi/errors.ts";
import { FormatError } from "../format/error.ts";
import {
  BLOCK_SIZE,
  INVALID_LBA,
  isLsmt,
  parseRecords,
  RECORD_SIZE,
} from "../format/lsmt.ts";
import { isUuid } from "../format/uuid.ts";
import { ZFLAG } from "../format/zfile.ts";
import { inspectFile } from "./inspect.ts";
import {
  type OpenLayer,
  openLayer,
  unwrapFile,
  type Unwrapped,
} from "./open.ts";

/** Something that a check found. */
export interface Finding {
  /** `error`: damaged; `warning`: readable, but not as it should be;
   * `note`: unusual, allowed */
  severity: "error" | "warning" | "note";
  /** short and stable, for programs */
  code: string;
  /** file, and where in it */
  where: string;
  text: string;
}

const ENOENT_LIKE = new Set(["ENOENT", "EACCES", "EPERM", "ENOTDIR", "EISDIR"]);

/** Passes on what says that nothing could be checked, keeps what is damage. */
function asFinding(error: unknown, code: string, where: string): Finding {
  if (error instanceof EngineError && ENOENT_LIKE.has(error.code)) throw error;
  if (error instanceof FormatError || error instanceof EngineError) {
    return { severity: "error", code, where, text: error.message };
  }
  throw error;
}

/** Every block of a ZFile decoded, every checksum compared. */
async function checkBlocks(
  file: Unwrapped,
  options: JobOptions,
): Promise<Finding[]> {
  if (file.zfile === undefined) return [];
  const { header, trailer, final } = file.zfile;
  const findings: Finding[] = [];
  const where = file.path;
  if ((final.flags & ZFLAG.digest) === 0n) {
    findings.push({
      severity: "note",
      code: "no-digest",
      where,
      text: "header and jump table carry no checksum (an old file)",
    });
  }
  if (final.verify !== 1) {
    findings.push({
      severity: "note",
      code: "no-block-crc",
      where,
      text: "blocks carry no checksum: damage shows only where it breaks them",
    });
  }
  if (trailer !== undefined && header.blockSize !== trailer.blockSize) {
    findings.push({
      severity: "note",
      code: "header-differs",
      where,
      text: `the header says block size ${header.blockSize}, ` +
        `the trailer ${trailer.blockSize}`,
    });
  }
  const { bad, first } = await verify(file.source, 2, options);
  for (const block of first) {
    const { at, length } = zfileBlock(file.source, block);
    findings.push({
      severity: "error",
      code: "block",
      where: `${where}, byte ${at + (file.tar?.at ?? 0)}`,
      text: `block ${block} (${length} bytes stored, original offset ${
        block * final.blockSize
      }) fails its checksum or does not decode`,
    });
  }
  if (bad > first.length) {
    findings.push({
      severity: "error",
      code: "block",
      where,
      text: `${bad - first.length} more bad blocks`,
    });
  }
  return findings;
}

function readRaw(layer: OpenLayer): Bytes {
  const bytes = new Uint8Array(Number(layer.trailer.indexSize) * RECORD_SIZE);
  readSource(layer.source, bytes, layer.trailer.indexOffset);
  return bytes;
}

/** What readers forgive: tags, padding in odd places, odd uuids. */
function checkFields(layer: OpenLayer): Finding[] {
  const findings: Finding[] = [];
  const where = layer.path;
  const note = (code: string, text: string) =>
    findings.push({ severity: "note", code, where, text });
  let padding = 0;
  let inside = 0;
  let tagged = 0;
  for (const record of parseRecords(readRaw(layer))) {
    if (record.offset === INVALID_LBA) padding++;
    else {
      if (padding > inside) inside = padding;
      if (record.tag !== 0) tagged++;
    }
  }
  if (inside > 0) note("padding", `${inside} padding records between others`);
  if (tagged > 0) note("tags", `${tagged} records carry a tag, ignored`);
  for (
    const [name, uuid] of [
      ["uuid", layer.trailer.uuid],
      ["parent uuid", layer.trailer.parentUuid],
    ] as const
  ) {
    if (!isUuid(uuid)) {
      findings.push({
        severity: "warning",
        code: "uuid",
        where,
        text: `the ${name} is ${JSON.stringify(uuid)}, no uuid`,
      });
    }
  }
  if (layer.header.virtualSize !== layer.trailer.virtualSize) {
    note(
      "size-differs",
      `the header says a virtual size of ${layer.header.virtualSize}, ` +
        `the trailer, which counts, ${layer.trailer.virtualSize}`,
    );
  }
  if (layer.kind !== "committed") {
    note("sealed", "sealed in place: it may hold overwritten data");
  }
  return findings;
}

/** The bytes of a layer that no checksum covers are read at least. */
function checkReadable(layer: OpenLayer): Finding[] {
  if (layer.zfile !== undefined) return [];
  const chunk = new Uint8Array(1 << 20);
  const size = sourceSize(layer.source);
  for (let at = 0; at < size; at += chunk.length) {
    try {
      readSource(
        layer.source,
        chunk.subarray(0, Math.min(chunk.length, size - at)),
        at,
      );
    } catch (error) {
      return [asFinding(error, "read", `${layer.path}, byte ${at}`)];
    }
  }
  return [];
}

async function checkOpened(
  path: string,
  options: JobOptions,
): Promise<Finding[]> {
  const file = await unwrapFile(path);
  try {
    const findings = await checkBlocks(file, options);
    if (findings.some((f) => f.severity === "error")) return findings;
    const head = new Uint8Array(BLOCK_SIZE);
    const got = readSource(file.source, head, 0);
    if (!isLsmt(head.subarray(0, got)) && file.zfile !== undefined) {
      return findings;
    }
    const { kind } = await inspectFile(path);
    if (kind.startsWith("writable")) {
      findings.push({
        severity: "note",
        code: "writable",
        where: path,
        text: "a writable layer's file: check a config to check its records",
      });
      return findings;
    }
    using layer = await openLayer(path);
    return [...findings, ...checkFields(layer), ...checkReadable(layer)];
  } finally {
    file.close();
  }
}

/**
 * Checks a read-only layer, a writable layer's file or a ZFile.
 *
 * @returns what was found; sound when none has severity `error`
 * @throws {EngineError} it is not there or cannot be read: nothing is known
 */
export async function checkLayer(
  path: string,
  options: JobOptions = {},
): Promise<Finding[]> {
  try {
    return await checkOpened(path, options);
  } catch (error) {
    return [asFinding(error, "format", path)];
  }
}
