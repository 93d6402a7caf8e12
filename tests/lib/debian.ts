// SPDX-License-Identifier: Apache-2.0
/**
 * Bare Debians, and copies of them that a test may change.
 *
 * @module
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type Ended, mustRun, ROOT, run, type TempDir } from "./env.ts";

const CACHE = join(ROOT, "build", "cache");

/**
 * A bare Debian, made once and kept under build/cache.
 *
 * @returns its root; undefined where debootstrap cannot make it
 */
export async function bareDebian(suite: string): Promise<string | undefined> {
  const path = join(CACHE, `chroot-${suite}`);
  if (existsSync(join(path, "var/lib/dpkg/status"))) return path;
  Deno.mkdirSync(CACHE, { recursive: true });
  const { code } = await run("debootstrap", ["--variant=minbase", suite, path]);
  if (code === 0) return path;
  Deno.removeSync(path, { recursive: true });
  return undefined;
}

/** A Debian that a test changes as it likes. */
export interface Machine {
  root: string;
  /** runs a shell script in it, as root, with /proc */
  sh(script: string): Promise<Ended>;
  /** the same; it must succeed */
  must(script: string): Promise<string>;
  /** every file, link and directory, `/etc/passwd` */
  files(): Promise<string[]>;
}

/** A copy of a bare Debian. */
export async function machine(bare: string, dir: TempDir): Promise<Machine> {
  const root = dir.file("machine");
  await mustRun("cp", ["-a", bare, root]);
  // Other tests run things in the bare one.
  await mustRun("find", [`${root}/tmp`, "-mindepth", "1", "-delete"]);
  const inside = (script: string) => [
    "-m",
    "sh",
    "-c",
    `mount -t proc proc ${root}/proc && exec chroot ${root} ` +
    `env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root ` +
    `DEBIAN_FRONTEND=noninteractive sh -c "$0"`,
    script,
  ];
  return {
    root,
    sh: (script) => run("unshare", inside(script)),
    must: (script) => mustRun("unshare", inside(script)),
    async files() {
      const found = await mustRun("find", [root, "-xdev", "-printf", "/%P\n"]);
      return found.trimEnd().split("\n").toSorted();
    },
  };
}
