// SPDX-License-Identifier: Apache-2.0
/**
 * What a live snapshot checks, opens and writes before anything changes.
 *
 * @module
 */
import { syncUpper } from "../../ffi/upper.ts";
import { fileInfo } from "../layer/files.ts";
import { type OpenUpper, openUpper } from "../layer/upper.ts";
import {
  decodeImageConfig,
  type ImageConfig,
  intentPath,
  readConfigBytes,
} from "./config.ts";
import type { OpenImage } from "./image.ts";
import { type Intent, writeIntent } from "./intent.ts";
import {
  checkSuccessor,
  configuredUpper,
  isSameFile,
  SnapshotError,
} from "./successor.ts";

/** A snapshot before the switch. */
export interface Prepared {
  old: OpenUpper;
  upper: OpenUpper;
  next: ImageConfig;
  intent: Intent;
}

/**
 * The upper of which a snapshot can be taken.
 *
 * @throws {SnapshotError} there is none
 */
function currentUpper({ stack, readonly }: OpenImage): OpenUpper {
  const { upper, lowers, frozen } = stack;
  if (readonly || upper === undefined) {
    throw new SnapshotError("the device is read-only");
  }
  if (lowers.length === 0) throw new SnapshotError("the image has no lowers");
  if (frozen !== undefined) {
    throw new SnapshotError(
      "an earlier snapshot could not be ended: opening the image again " +
        "finishes it",
    );
  }
  return upper;
}

/** No file may serve twice. */
function checkFiles(old: OpenUpper, next: ImageConfig): void {
  const { data, index } = configuredUpper(next, "the new config");
  if (fileInfo(index) === undefined) {
    throw new SnapshotError(`the new upper's index ${index} does not exist`);
  }
  const taken = [old.paths.data, old.paths.index];
  for (const path of [data, index]) {
    const same = taken.find((other) => isSameFile(path, other));
    if (same !== undefined) {
      throw new SnapshotError(`the new upper's ${path} is in use as ${same}`);
    }
    taken.push(path);
  }
}

async function openFresh(
  next: ImageConfig,
  virtualSize: bigint,
): Promise<OpenUpper> {
  const files = configuredUpper(next, "the new config");
  const upper = await openUpper({
    ...files,
    readonly: false,
    inheritedSize: virtualSize,
  });
  if (upper.report.records > 0) {
    upper.close();
    throw new SnapshotError(`the new upper ${files.data} is not empty`);
  }
  if (upper.virtualSize < virtualSize) {
    upper.close();
    throw new SnapshotError(
      `the new upper has a disk of ${upper.virtualSize} bytes, less than the ` +
        `device's ${virtualSize}`,
    );
  }
  return upper;
}

/**
 * Everything that can fail without a trace.
 *
 * @throws {SnapshotError | ConfigError | EngineError} nothing has changed
 */
export async function prepare(
  image: OpenImage,
  path: string,
  newPath: string,
): Promise<Prepared> {
  const old = currentUpper(image);
  if (newPath === path || newPath === intentPath(path)) {
    throw new SnapshotError(`${newPath} cannot be the new config's name`);
  }
  const info = fileInfo(newPath);
  if (info !== undefined && !info.isFile) {
    throw new SnapshotError(`${newPath} is no regular file`);
  }
  const bytes = await readConfigBytes(newPath);
  const next = decodeImageConfig(bytes, newPath);
  checkSuccessor(image.config, next);
  checkFiles(old, next);
  const upper = await openFresh(next, image.stack.virtualSize);
  try {
    await syncUpper(old.upper);
    const intent = await writeIntent(path, newPath, bytes);
    return { old, upper, next, intent };
  } catch (error) {
    upper.close();
    throw error;
  }
}
