// SPDX-License-Identifier: Apache-2.0
/**
 * Real file systems in a file, by loop devices.
 *
 * @module
 */
import { have, mustRun, run, type TempDir } from "./env.ts";

/** A file system to make. */
export interface LoopKind {
  /** as mount and /proc/filesystems call it */
  type: string;
  /** of mount */
  options?: string;
}

/** Mounts an empty one below a temporary directory. */
export async function mountLoop(
  dir: TempDir,
  { type, options = "" }: LoopKind,
): Promise<AsyncDisposable & { path: string }> {
  const [image, path] = [dir.file("image"), dir.file("mount")];
  const SIZE = 400 << 20; // what xfs has to have
  Deno.writeFileSync(image, new Uint8Array());
  Deno.truncateSync(image, SIZE);
  Deno.mkdirSync(path);
  await mustRun(`mkfs.${type}`, ["-q", image]);
  const how = ["loop", ...(options === "" ? [] : [options])].join(",");
  await mustRun("mount", ["-t", type, "-o", how, image, path]);
  return {
    path,
    [Symbol.asyncDispose]: async () => void await run("umount", ["-l", path]),
  };
}

/** True when this machine can make and mount it. */
export function canMount({ type }: LoopKind): boolean {
  return Deno.uid() === 0 && have(`mkfs.${type}`) && have("mount") &&
    Deno.readTextFileSync("/proc/filesystems").split(/\s+/).includes(type) &&
    hasLoop();
}

function hasLoop(): boolean {
  try {
    Deno.openSync("/dev/loop-control", { read: true, write: true }).close();
    return true;
  } catch {
    return false;
  }
}
