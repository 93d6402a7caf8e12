// SPDX-License-Identifier: Apache-2.0
/**
 * Exports that are being taken away: the kernel waits for their commands
 * before it says anything of it.
 *
 * What can be seen is that configfs keeps a LUN's directory locked meanwhile.
 *
 * @module
 */
import { type KernelPaths, within } from "./kernel.ts";

/** Longer than any change takes that waits for nobody. */
const LOCKED_MS = 1000;

/** Not exports. */
const SKIPPED = new Set(["core", "dbroot", "version"]);

/** Directories of one, all of them where it has no pattern. */
async function list(dir: string, pattern = /./): Promise<string[]> {
  try {
    const entries = await Array.fromAsync(Deno.readDir(dir));
    return entries.filter((it) => it.isDirectory && pattern.test(it.name))
      .map((it) => `${dir}/${it.name}`);
  } catch {
    return []; // it has gone, or is none
  }
}

/**
 * Looks at the LUNs of every fabric.
 *
 * @param lists how a directory is listed; tests have their own
 * @returns tells whether one of them is locked; one look at a time, as one
 *   that meets a lock ends with it
 */
export function watchExports(
  { configfs }: Pick<KernelPaths, "configfs">,
  lists = list,
): () => Promise<boolean> {
  let blocked: Promise<unknown> | undefined;
  const isLocked = async (dir: string, depth: number): Promise<boolean> => {
    const listed = lists(dir, depth === 3 ? /^lun$/ : undefined);
    const found = await within(LOCKED_MS, listed, undefined);
    if (found === undefined) {
      blocked = listed.finally(() => blocked = undefined);
      return true;
    }
    if (depth === 5) return false;
    for (const each of found) {
      const name = each.slice(dir.length + 1);
      if (depth === 0 && SKIPPED.has(name)) continue;
      if (await isLocked(each, depth + 1)) return true;
    }
    return false;
  };
  return async () =>
    blocked !== undefined || await isLocked(`${configfs}/target`, 0);
}
