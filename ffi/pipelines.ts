// SPDX-License-Identifier: Apache-2.0
/**
 * Pipelines that write whole layers and ZFiles on many threads.
 *
 * @module
 */
import { check } from "./errors.ts";
import {
  type Bytes,
  handle,
  type Index,
  type Plan,
  pointers,
  slot,
  type Source,
  type U64,
  u64,
  view,
} from "./handle.ts";
import { lib } from "./library.ts";

/** How far a pipeline is, in bytes. */
export interface Progress {
  total: number;
  done: number;
  written: number;
}

/** What every long call takes. */
export interface JobOptions {
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: Progress) => void) | undefined;
}

const PROGRESS_INTERVAL_MS = 100;

/** Runs a pipeline with its `struct obd_job`, watched and cancellable. */
async function run<T>(
  options: JobOptions,
  call: (job: Bytes) => Promise<T>,
): Promise<{ result: T; progress: Progress }> {
  const job = new Uint8Array(32);
  const v = view(job);
  const progress = (): Progress => ({
    total: Number(v.getBigUint64(0, true)),
    done: Number(v.getBigUint64(8, true)),
    written: Number(v.getBigUint64(16, true)),
  });
  const cancel = () => v.setUint32(24, 1, true);
  if (options.signal?.aborted) cancel();
  options.signal?.addEventListener("abort", cancel);
  const { onProgress } = options;
  const timer = onProgress === undefined
    ? undefined
    : setInterval(() => onProgress(progress()), PROGRESS_INTERVAL_MS);
  try {
    const result = await call(job);
    const last = progress();
    onProgress?.(last);
    return { result, progress: last };
  } finally {
    // Deno loads node:timers for any of them, 6 ms: where one is needed only.
    if (timer !== undefined) clearInterval(timer);
    options.signal?.removeEventListener("abort", cancel);
  }
}

/** The layout that compaction will give, known before anything is written. */
export interface PlanInfo {
  records: number;
  paddedRecords: number;
  indexOffset: number;
  size: number;
}

/** Works out the compaction of spec/lsmt.md, section 4. */
export function newPlan(
  index: Index,
  sources: readonly Source[],
  options: { foldLevels?: boolean } = {},
): { plan: Plan; info: PlanInfo } {
  const raw = new BigUint64Array(4);
  const out = slot();
  check(
    lib.obd_plan_new(
      index.pointer,
      pointers(sources),
      sources.length,
      options.foldLevels === true ? 1 : 0,
      raw,
      out,
    ),
    "cannot plan the layer",
  );
  return {
    plan: handle("plan", out, lib.obd_plan_unref),
    info: {
      records: Number(raw[0]),
      paddedRecords: Number(raw[1]),
      indexOffset: Number(raw[2]),
      size: Number(raw[3]),
    },
  };
}

/** How a ZFile is to be written. */
export interface ZfileParams {
  algo: number;
  blockSize: number;
  verify: boolean;
  rewriteHeader: boolean;
  threads: number;
}

/** What was written. */
export interface ZfileResult {
  input: number;
  indexOffset: number;
  blocks: number;
  size: number;
  indexCrc: number;
}

function zfileParams(params: ZfileParams): Bytes {
  const raw = new Uint32Array([
    params.algo,
    params.blockSize,
    params.verify ? 1 : 0,
    params.rewriteHeader ? 1 : 0,
    params.threads,
    0,
  ]);
  return new Uint8Array(raw.buffer);
}

function zfileResult(raw: Bytes): ZfileResult {
  const v = view(raw);
  return {
    input: Number(v.getBigUint64(0, true)),
    indexOffset: Number(v.getBigUint64(8, true)),
    blocks: Number(v.getBigUint64(16, true)),
    size: Number(v.getBigUint64(24, true)),
    indexCrc: v.getUint32(32, true),
  };
}

/** Where a pipeline writes: `stream` for what cannot seek. */
export interface Output {
  fd: number;
  at?: number;
  stream?: boolean;
}

/**
 * Writes a planned layer, as it is or (with `zfile`) compressed.
 *
 * @returns the layout of the ZFile; undefined without `zfile`
 * @throws {EngineError} E2BIG a 64 KiB block grew too large, ECANCELED, EIO
 */
export async function writePlan(
  plan: Plan,
  blocks: { header: Bytes; trailer: Bytes },
  output: Output,
  options: JobOptions & { zfile?: ZfileParams | undefined; threads?: number },
): Promise<ZfileResult | undefined> {
  const { zfile } = options;
  const params = zfile === undefined ? null : zfileParams(zfile);
  const raw = new Uint8Array(40);
  const { result } = await run(options, (job) =>
    lib.obd_plan_write_async(
      plan.pointer,
      blocks.header,
      blocks.trailer,
      params,
      zfile?.threads ?? options.threads ?? 1,
      output.fd,
      BigInt(output.at ?? 0),
      output.stream === true ? 1 : 0,
      job,
      raw,
    ));
  check(result, "cannot write the layer");
  return zfile === undefined ? undefined : zfileResult(raw);
}

/** Compresses a file or pipe, read in order to its end. */
export async function compress(
  inFd: number,
  params: ZfileParams,
  output: Output,
  options: JobOptions = {},
): Promise<ZfileResult> {
  const raw = new Uint8Array(40);
  const { result } = await run(options, (job) =>
    lib.obd_zfile_compress_async(
      inFd,
      zfileParams(params),
      output.fd,
      BigInt(output.at ?? 0),
      output.stream === true ? 1 : 0,
      job,
      raw,
    ));
  check(result, "cannot compress");
  return zfileResult(raw);
}

/** Decodes all of a ZFile to a file. */
export async function extract(
  zfile: Source,
  output: Output,
  threads: number,
  options: JobOptions = {},
): Promise<void> {
  const { result, progress } = await run(
    options,
    (job) =>
      lib.obd_zfile_extract_async(
        zfile.pointer,
        output.fd,
        threads,
        output.stream === true ? 1 : 0,
        job,
      ),
  );
  check(result, `cannot decompress at ${progress.done}`);
}

/** Decodes all of a ZFile; @returns the numbers of the first bad blocks */
export async function verify(
  zfile: Source,
  threads: number,
  options: JobOptions = {},
): Promise<{ bad: number; first: number[] }> {
  const first = new BigUint64Array(64);
  const { result } = await run(options, (job) =>
    lib.obd_zfile_verify_async(
      zfile.pointer,
      threads,
      job,
      first,
      BigInt(first.length),
    ));
  const bad = check(result, "cannot verify");
  return {
    bad,
    first: Array.from(first.subarray(0, Math.min(bad, first.length)), Number),
  };
}

/** Appends an index as it is, zero-padded to 512; @returns bytes written */
export async function writeIndex(
  index: Index,
  fd: number,
  at: U64,
): Promise<number> {
  return check(
    await lib.obd_index_write_async(index.pointer, fd, u64(at)),
    "cannot write the index",
  );
}
