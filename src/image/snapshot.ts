// SPDX-License-Identifier: Apache-2.0
/**
 * A live snapshot: the upper of an image in use becomes its topmost lower,
 * and a fresh one takes its place (spec/api.md, section 1; durability: see
 * intent.ts).
 *
 * Order.  Everything that may fail without harm is checked; the upper's data
 * is synced, so that little is left for later; the intent is made durable.
 * Then changes are switched to the new upper, for which they wait a moment,
 * and only for that.  The old upper, which nothing changes any more, is
 * sealed, opened as the lower that it is now, and merged.  The intent is
 * renamed to the configuration: the snapshot is done.  What fails before
 * that is taken back, with all that was written meanwhile.
 *
 * @module
 */
import { resizeDevice } from "../../ffi/device.ts";
import { flock, LOCK, sizeOfFd, unlinkPath } from "../../ffi/files.ts";
import type { Source, View } from "../../ffi/handle.ts";
import { popUpper, pushUpper, settleDevice } from "../../ffi/push.ts";
import { syncUpper, upperBusy, upperSource } from "../../ffi/upper.ts";
import { MAX_RECORDS } from "../format/lsmt.ts";
import { sealUpper, unsealUpper } from "../layer/commit.ts";
import type { IoEngine } from "../layer/engine.ts";
import { openLayer } from "../layer/open.ts";
import { emptyUpper, type OpenUpper } from "../layer/upper.ts";
import type { ImageConfig } from "./config.ts";
import type { OpenImage } from "./image.ts";
import { keepUpper } from "./intent.ts";
import type { OpenLower } from "./lowers.ts";
import { prepare, type Prepared } from "./prepare.ts";
import { isSameFile, sealedFile, SnapshotError } from "./successor.ts";
import { switchUpper } from "./switch.ts";
import { buildViewAsync } from "./view.ts";

/** Going back has no second chance. */
const POP_LIMIT_MS = 30_000;

/** How long an upper that was taken back is waited for. */
const BUSY_POLL_MS = 10;
const BUSY_POLLS = 100;

/** How a snapshot went. */
export interface SnapshotReport {
  /** how long changes had to wait at a time, in microseconds */
  pauseUs: number;
  /** what could not be done and does no harm, one sentence each */
  warnings: string[];
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The old upper as the lower that a reopen would find. */
async function openSealed(
  old: OpenUpper,
  next: ImageConfig,
  engine: IoEngine | undefined,
): Promise<OpenLower> {
  const path = sealedFile(next);
  if (path === undefined || !isSameFile(path, old.paths.data)) {
    throw new SnapshotError(`${old.paths.data} has gone meanwhile`);
  }
  const layer = await openLayer(path, { engine });
  let lock: Source;
  try {
    // The open file of the upper, whose lock stays as long as it does.
    lock = upperSource(old.upper);
  } catch (error) {
    layer.close();
    throw error;
  }
  const close = () => {
    layer.close();
    lock.close();
  };
  return { ...layer, close, [Symbol.dispose]: close };
}

/**
 * The new upper as its client made it, so that the same can be tried again.
 * Requests that began before may still read from it.
 */
async function giveBack(upper: OpenUpper): Promise<void> {
  try {
    for (let left = BUSY_POLLS; upperBusy(upper.upper); left--) {
      if (left === 0) return;
      await new Promise((done) => setTimeout(done, BUSY_POLL_MS));
    }
    await emptyUpper(upper);
  } catch {
    // Then it is refused as not empty, which it is.
  } finally {
    upper.close();
  }
}

/**
 * Takes a switch back: what was written since goes to the old upper.  Where
 * that cannot be done, the device goes on with both, and the intent stays.
 *
 * @param before bytes of the old upper's data, once it may have been sealed
 * @returns false: it could not be done
 */
async function goBack(
  image: OpenImage,
  { old, upper, intent }: Prepared,
  before: number | undefined,
): Promise<boolean> {
  const { device, stack } = image;
  try {
    if (before !== undefined) await unsealUpper(old.dataFd, before);
    await popUpper(device, POP_LIMIT_MS);
    await intent.drop();
  } catch {
    // Then only whoever removes the new upper loses what is flushed now.
    await keepUpper(upper.paths).catch(() => {});
    settleDevice(device, { how: "kept" });
    stack.frozen = old;
    stack.upper = upper;
    return false;
  }
  settleDevice(device, { how: "popped" });
  await giveBack(upper);
  return true;
}

/** Seals, merges, renames; after this the snapshot is done. */
async function complete(
  image: OpenImage,
  prepared: Prepared,
): Promise<{ sealed: OpenLower; view: View }> {
  const { old, next, intent } = prepared;
  const { lowers, virtualSize } = image.stack;
  let before: number | undefined;
  let sealed: OpenLower | undefined;
  let view: View | undefined;
  try {
    await syncUpper(old.upper);
    before = sizeOfFd(old.dataFd);
    await sealUpper(old);
    sealed = await openSealed(old, next, image.stack.engine);
    view = await buildViewAsync([...lowers, sealed], virtualSize);
    await intent.commit();
    return { sealed, view };
  } catch (error) {
    view?.close();
    sealed?.close();
    if (await goBack(image, prepared, before)) throw error;
    throw new SnapshotError(
      `${reason(error)}; what was written since is in the new upper, too, ` +
        "and opening the image again finishes the snapshot",
      undefined,
      { cause: error },
    );
  }
}

/** What was done only says so from here on. */
function attempt(work: () => void): string[] {
  try {
    work();
    return [];
  } catch (error) {
    return [reason(error)];
  }
}

/** The disk is as large as its new upper. */
function growTo({ stack, device, grown }: OpenImage, size: bigint): void {
  if (size <= stack.virtualSize) return;
  resizeDevice(device, size);
  stack.virtualSize = size;
  for (const tell of grown) tell(size);
}

/** Shows what is on disk now; returns what could not be done. */
function adopt(
  image: OpenImage,
  { old, upper, next }: Prepared,
  { sealed, view }: { sealed: OpenLower; view: View },
): string[] {
  const { stack, device } = image;
  image.view.replace(view, () => settleDevice(device, { how: "sealed", view }));
  stack.lowers.push(sealed);
  stack.upper = upper;
  image.config = next;
  const size = upper.virtualSize - upper.virtualSize % 512n;
  return [
    ...attempt(() => flock(old.dataFd, LOCK.SH | LOCK.NB)),
    ...attempt(() => old.close()),
    ...attempt(() => growTo(image, size)),
  ];
}

async function take(
  image: OpenImage,
  path: string,
  newPath: string,
): Promise<SnapshotReport> {
  const prepared = await prepare(image, path, newPath);
  let pauseUs: number;
  try {
    pauseUs = await switchUpper((limitMs) =>
      pushUpper(image.device, prepared.upper.upper, MAX_RECORDS, limitMs)
    );
  } catch (error) {
    prepared.upper.close();
    await prepared.intent.drop();
    throw error;
  }
  image.snapshotPauseUs = pauseUs;
  const done = await complete(image, prepared);
  const warnings = [
    ...adopt(image, prepared, done),
    ...attempt(() => unlinkPath(newPath)),
  ];
  return { pauseUs, warnings };
}

/**
 * Takes a snapshot of an image in use.
 *
 * @param path of the image's configuration, which is replaced
 * @param newPath of the one that replaces it, and is gone then
 * @throws {SnapshotError} why not; the image is as it was, on disk, too
 */
export async function snapshotImage(
  image: OpenImage,
  path: string,
  newPath: string,
): Promise<SnapshotReport> {
  try {
    return await image.alone(() => take(image, path, newPath));
  } catch (cause) {
    throw new SnapshotError(
      `cannot take a snapshot of ${path} as ${newPath}: ${reason(cause)}`,
      undefined,
      { cause },
    );
  }
}
