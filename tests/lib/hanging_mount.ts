// SPDX-License-Identifier: Apache-2.0
/**
 * A real file system that can be made to hang: bindfs, stopped.
 *
 * @module
 */
import { existsSync } from "node:fs";
import { have, run, type TempDir } from "./env.ts";

/** What it needs; the reason why a test is ignored. */
export const canHang = have("bindfs") && existsSync("/dev/fuse") &&
  Deno.uid() === 0;

/** A mounted directory. */
export interface HangingMount extends AsyncDisposable {
  readonly path: string;
  /** Every call on it hangs from now on. */
  hang(): void;
  /** Those go on. */
  resume(): void;
}

/** Mounts one below a temporary directory. */
export async function mountHanging(dir: TempDir): Promise<HangingMount> {
  const [from, path] = [dir.file("below"), dir.file("mount")];
  Deno.mkdirSync(from);
  Deno.mkdirSync(path);
  const { dev } = Deno.statSync(path);
  const child = new Deno.Command("bindfs", {
    args: ["-f", from, path],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  let ended = false;
  child.status.then(() => ended = true);
  while (Deno.statSync(path).dev === dev) {
    if (ended) throw new Error("bindfs cannot mount");
    await new Promise((done) => setTimeout(done, 10));
  }
  return {
    path,
    hang: () => child.kill("SIGSTOP"),
    resume: () => child.kill("SIGCONT"),
    async [Symbol.asyncDispose]() {
      if (!ended) child.kill("SIGCONT");
      await run("umount", ["-l", path]);
      if (!ended) child.kill("SIGTERM");
      await child.status;
    },
  };
}
