// SPDX-License-Identifier: Apache-2.0
/**
 * Tests in a virtual machine: a guest script is one boot, each `check` in it
 * one test.
 *
 * @module
 */
import { equal, ok } from "node:assert/strict";
import { dirname, join, resolve } from "node:path";
import pLimit from "p-limit";
import { EXECUTABLE, have, mustRun, ROOT, run } from "./env.ts";

const VM_RUN = join(ROOT, "tests/vm/vm-run");
/** Whole counts are asked for. */
export const SOAK = Deno.env.has("OVERLAYBD_SOAK");

/** Debian's kernels that the tests run on. */
export const KERNELS = ["linux-image-amd64", "linux-image-6.12-amd64"] as const;

/** How a guest is to be booted. */
export interface GuestOptions {
  kernel?: (typeof KERNELS)[number];
  /** MiB */
  memory?: number;
  /** 1 if not said, 2 for whole counts: two cost a third more */
  cpus?: number;
  /** qemu's model, what emulates fast if not said */
  cpu?: string;
  /** scratch disk at /mnt/disk, `"4G"` */
  disk?: string;
  /** s, 600 if not said: guests are slow, and a machine may be busy */
  timeout?: number;
  /** kernel modules to load first */
  modules?: readonly string[];
  /** a program that the guest runs, of the host's */
  needs?: string;
  /** run only the checks whose name this matches */
  only?: string;
}

/** What a check came to. */
interface Outcome {
  passed: boolean;
  /** what was said while it ran */
  said: string;
}

/** Why no such guest can be booted here; undefined: it can. */
async function reasonAgainst(
  kernel: string,
  needs: string | undefined,
): Promise<string | undefined> {
  if (EXECUTABLE === undefined) return "no executable was built";
  if (needs !== undefined && !have(needs)) return `no ${needs}`;
  const { code, stderr } = await run(VM_RUN, ["--kernel", kernel, "--prepare"]);
  return code === 0 ? undefined : stderr.trim().split("\n").at(-1);
}

let installed: Promise<unknown> | undefined;

/** `make install` into build/vm, whose /opt guests see as theirs. */
function installProduct(): Promise<unknown> {
  const BUILD = dirname(resolve(EXECUTABLE ?? ""));
  return installed ??= mustRun("make", [
    "-s",
    "install",
    `BUILD=${BUILD}`,
    `DESTDIR=${join(ROOT, "build/vm")}`,
  ], { cwd: ROOT });
}

/** Results by the name of the check, from what the guest printed. */
function outcomes(stdout: string, stderr: string): Map<string, Outcome> {
  const said = new Map<string, string>();
  for (const part of stderr.split(/^-- (?!end$)/m).slice(1)) {
    const [name = "", ...lines] = part.split("\n");
    const end = lines.indexOf("-- end");
    said.set(name, lines.slice(0, end < 0 ? undefined : end).join("\n"));
  }
  const found = new Map<string, Outcome>();
  for (const [, not, name = ""] of stdout.matchAll(/^(not )?ok - (.*)$/mg)) {
    found.set(name, { passed: not === undefined, said: said.get(name) ?? "" });
  }
  return found;
}

/** A guest that has ended. */
interface Boot {
  found: Map<string, Outcome>;
  code: number;
}

async function boot(script: string, options: GuestOptions): Promise<Boot> {
  await installProduct();
  const { kernel = KERNELS[0], memory = 1024, timeout = 600 } = options;
  const { cpus = SOAK ? 2 : 1 } = options;
  const asked = Deno.env.get("VM_ONLY") ?? "";
  const times = SOAK ? 10 : 1;
  const start = performance.now();
  const { code, stdout, stderr } = await run(VM_RUN, [
    ...["--kernel", kernel, "--mem", `${memory}`, "--cpus", `${cpus}`],
    ...["--timeout", `${timeout * times}`],
    ...options.disk === undefined ? [] : ["--disk", options.disk],
    ...options.cpu === undefined ? [] : ["--cpu", options.cpu],
    ...(options.modules ?? []).flatMap((name) => ["--module", name]),
    ...["--env", `ROOT=${ROOT}`, "--env", `SOAK=${SOAK ? 1 : ""}`],
    ...["--env", `ONLY=${options.only || asked}`],
    ...["--", "bash", `/mnt/host${ROOT}/tests/vm/guest/${script}`],
  ]);
  if (Deno.env.has("VM_VERBOSE")) console.log(stdout + stderr);
  else if (code !== 0) console.log(stderr.split("\n").slice(-200).join("\n"));
  const seconds = Math.round((performance.now() - start) / 1000);
  console.log(`# ${script}, ${kernel}: ${seconds} s`);
  // What was measured.
  for (const line of stdout.match(/^# .*$/mg) ?? []) console.log(line);
  return { found: outcomes(stdout, stderr), code };
}

/** Names of the checks in a guest script: `check "name" command`. */
export function checksOf(script: string): string[] {
  const text = Deno.readTextFileSync(join(ROOT, "tests/vm/guest", script));
  return [...text.matchAll(/^check "([^"]*)"/mg)].map(([, name = ""]) => name);
}

/**
 * A guest keeps one CPU busy: two run at once.  `VM_ALONE` is for machines
 * that have no second one.
 */
const slots = pLimit(Deno.env.has("VM_ALONE") ? 1 : 2);
const boots: (() => Promise<Boot>)[] = [];

function bootOnce(script: string, options: GuestOptions): () => Promise<Boot> {
  let booted: Promise<Boot> | undefined;
  return () => booted ??= slots(() => boot(script, options));
}

/**
 * Registers a test for each check of a guest script.  The first test to run
 * boots all guests, in the order of their registration.  Ignored, with the
 * reason, where no guest can be booted.
 */
export async function guestTests(
  script: string,
  options: GuestOptions = {},
): Promise<void> {
  const { kernel = KERNELS[0], only = "" } = options;
  const asked = Deno.env.get("VM_ONLY") ?? "";
  const names = checksOf(script).filter((name) =>
    new RegExp(only).test(name) && new RegExp(asked).test(name)
  );
  if (names.length === 0) return;
  const why = await reasonAgainst(kernel, options.needs);
  const where = kernel === KERNELS[0] ? "" : ` (${kernel})`;
  const start = bootOnce(script, options);
  if (why === undefined) boots.push(start);
  for (const name of names) {
    Deno.test({
      name: `${name}${where}${why === undefined ? "" : ` (ignored: ${why})`}`,
      ignore: why !== undefined,
      // Guests outlive the test that boots them only in what they said.
      sanitizeOps: false,
      sanitizeResources: false,
      fn: async () => {
        for (const start of boots) start().catch(() => {});
        const { found, code } = await start();
        const outcome = found.get(name);
        ok(
          outcome !== undefined,
          `the guest ended (${code}) before the end of this check`,
        );
        equal(outcome.passed, true, outcome.said);
      },
    });
  }
}
