// SPDX-License-Identifier: Apache-2.0
/**
 * What a live snapshot leaves on disk, so that it is done or undone whole.
 *
 * `CONFIG.snap` is the configuration that is to replace CONFIG, and is made
 * durable before the first change goes to the new upper.  The old upper is
 * sealed, and on disk, before the one is renamed to the other; so the name
 * goes away in the moment in which the snapshot is done.  Where a process
 * or a machine dies in between, the old upper's files still are what an upper
 * has to be (sealing only appends), and whoever opens the image next seals
 * them again and renames.
 *
 * No FLUSH is answered while the file is there, so that after power loss
 * nothing that was promised is in the new upper alone.  But where a snapshot
 * can be neither taken nor taken back, the device goes on with both uppers,
 * and FLUSH is answered; then the new one's files are kept from their owner.
 *
 * @module
 */
import {
  closeFd,
  flock,
  linkFd,
  LOCK,
  O,
  openFd,
  pwriteFd,
  renamePath,
  unlinkPath,
} from "../../ffi/files.ts";
import { sealUpper } from "../layer/commit.ts";
import {
  directoryOf,
  fileInfo,
  followLinks,
  linkInfo,
} from "../layer/files.ts";
import { createOutput, isMissing, syncDirectory } from "../layer/output.ts";
import { BusyError, openUpper } from "../layer/upper.ts";
import { decodeImageConfig, intentPath, readConfigBytes } from "./config.ts";
import {
  checkSuccessor,
  configuredUpper,
  isSameFile,
  SnapshotError,
  type UpperFiles,
} from "./successor.ts";

const PERMISSIONS = 0o777;

/** A snapshot that is under way, as it is on disk. */
export interface Intent {
  /** The snapshot is done: CONFIG is the new configuration. */
  commit(): Promise<void>;
  /** It is not to be. */
  drop(): Promise<void>;
}

/** The rights of the file that is to be replaced with the new one's. */
function copyRights(from: Deno.FileInfo, to: string): void {
  if (from.mode !== null) Deno.chmodSync(to, from.mode & PERMISSIONS);
  if (from.uid === null || from.uid === Deno.uid()) return;
  try {
    Deno.chownSync(to, from.uid, from.gid);
  } catch {
    // Only root can give files away.
  }
}

/**
 * Makes the intent durable.
 *
 * @param path of the image's configuration
 * @param newPath of the file that `bytes` are from
 * @throws {SnapshotError | EngineError} nothing is there
 */
export async function writeIntent(
  path: string,
  newPath: string,
  bytes: Uint8Array<ArrayBuffer>,
): Promise<Intent> {
  const [config, name] = [followLinks(path), intentPath(path)];
  if (linkInfo(name) !== undefined) {
    throw new SnapshotError(
      `${name} is there: it tells of another snapshot, which opening the ` +
        "image finishes",
    );
  }
  const file = createOutput(name);
  try {
    pwriteFd(file.fd, bytes, 0);
    await file.publish();
  } finally {
    file.abort();
  }
  const dir = directoryOf(name);
  const intent = {
    async commit() {
      renamePath(name, config);
      // Should this fail, the old name stays after power loss; opening then
      // goes the same way.
      await syncDirectory(dir).catch(() => {});
    },
    async drop() {
      unlinkPath(name);
      // Should this fail, the name may be back after power loss: then the
      // snapshot is taken, of the same bytes.
      await syncDirectory(dir).catch(() => {});
    },
  };
  try {
    const rights = fileInfo(newPath);
    if (rights !== undefined) copyRights(rights, name);
    return intent;
  } catch (error) {
    await intent.drop();
    throw error;
  }
}

/** The second name of a file that its owner may remove. */
function keptName(path: string): string {
  return `${path}.kept`;
}

/**
 * Keeps a new upper that changes go to although its snapshot could not be
 * taken, and so its owner may remove it: the files have second names from now
 * on, until opening the image finishes the snapshot.
 *
 * @throws {EngineError} one of them could not be kept
 */
export async function keepUpper({ data, index }: UpperFiles): Promise<void> {
  for (const path of [data, index]) {
    const fd = openFd(path, O.RDONLY);
    try {
      linkFd(fd, keptName(path));
    } finally {
      closeFd(fd);
    }
  }
  await syncNames({ data, index });
}

/** The files that were kept are where the configuration says. */
async function restoreUpper({ data, index }: UpperFiles): Promise<void> {
  const kept = [data, index].filter((path) =>
    linkInfo(keptName(path)) !== undefined
  );
  if (kept.length === 0) return;
  for (const path of kept) {
    // Whatever else has the name is not what was written to.
    if (isSameFile(path, keptName(path))) unlinkPath(keptName(path));
    else renamePath(keptName(path), path);
  }
  await syncNames({ data, index });
}

async function syncNames({ data, index }: UpperFiles): Promise<void> {
  for (const dir of new Set([data, index].map(directoryOf))) {
    await syncDirectory(dir);
  }
}

/** Whether the new upper is there, and can be opened. */
async function isThere(files: UpperFiles): Promise<boolean> {
  try {
    (await openUpper({ ...files, readonly: true })).close();
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

/**
 * Seals the old upper once more, and renames; or, where nobody has the new
 * upper any more, makes it as if the snapshot had never begun.
 */
async function settle(path: string, name: string): Promise<string> {
  const old = decodeImageConfig(await readConfigBytes(path), path);
  const next = decodeImageConfig(await readConfigBytes(name), name);
  checkSuccessor(old, next);
  const files = configuredUpper(next, name);
  using upper = await openUpper({
    ...configuredUpper(old, path),
    readonly: false,
    unseal: true,
  });
  await restoreUpper(files);
  const there = await isThere(files);
  if (there) {
    await sealUpper(upper);
    renamePath(name, followLinks(path));
  } else unlinkPath(name);
  await syncDirectory(directoryOf(name));
  return there
    ? `${path}: an interrupted snapshot was finished`
    : `${path}: an interrupted snapshot was undone: its new upper ` +
      `${files.data} does not exist`;
}

/**
 * Finishes or undoes a snapshot of the image that was interrupted: to be
 * called before the image's configuration is read to be written.
 *
 * @returns what was done, one sentence each
 * @throws {SnapshotError | BusyError} it cannot be; nothing was lost
 */
export async function finishSnapshot(path: string): Promise<string[]> {
  const name = intentPath(path);
  if (linkInfo(name) === undefined) return [];
  let fd: number;
  try {
    fd = openFd(name, O.RDONLY);
  } catch (error) {
    if (isMissing(error)) return [];
    throw error;
  }
  try {
    // Two who open the image at once: one does it.
    if (!flock(fd, LOCK.EX | LOCK.NB)) {
      throw new BusyError("another process is at it");
    }
    if (linkInfo(name) === undefined) return [];
    return [await settle(path, name)];
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new SnapshotError(
      `cannot finish the snapshot of ${path} that ${name} tells of: ${why}`,
      undefined,
      { cause },
    );
  } finally {
    closeFd(fd);
  }
}
