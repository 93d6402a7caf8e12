// SPDX-License-Identifier: Apache-2.0
/**
 * One-line mutations of the engine, each with the test that must catch it.
 * `mutations.md` is this list for reading; `make soak` applies each to a copy
 * of the tree, builds it, and runs the test there.
 *
 * @module
 */
import { cpSync, mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { fixture, ROOT, run, type TempDir } from "../lib/env.ts";

/** A change of one file, and who notices. */
export interface Mutation {
  says: string;
  file: string;
  /** stands in the file exactly once */
  find: string;
  replace: string;
  /** test file and name that fails */
  test: string;
  name: string;
}

/** The list. */
export const MUTATIONS: readonly Mutation[] = [
  {
    says: "a record that is cut on its left keeps its mapped sector",
    file: "c/internal.h",
    find: "\t\tat += from - rec_lba(r);",
    replace: "\t\tat += 0;",
    test: "tests/model/model_test.ts",
    name: "random programs read what a plain array holds",
  },
  {
    says: "the newest write is cut off where an older one goes on",
    file: "c/map.c",
    find: "right = rec_cut(r, to, rec_end(r));",
    replace: "right = rec_cut(r, to, rec_end(r) - 1);",
    test: "tests/model/model_test.ts",
    name: "random programs read what a plain array holds",
  },
  {
    says: "all layers but the topmost read from the second one's file",
    file: "c/merge.c",
    find: "(uint64_t)layer << 56;",
    replace: "(uint64_t)(layer != 0) << 56;",
    test: "tests/interop/fixtures_test.ts",
    name: "stacks of read-only layers and of an upper read right",
  },
  {
    says: "look-up keeps 32 bits of the sector, as the original does",
    file: "c/lookup.c",
    find: "return fn(index, lba, lba + sectors, out, max);",
    replace:
      "return fn(index, (uint32_t)lba, (uint32_t)lba + sectors, out, max);",
    test: "tests/interop/fixtures_test.ts",
    name: "a disk of 16 TiB reads right past 2 TiB",
  },
  {
    says: "a block's crc is not looked at",
    file: "c/zfile.c",
    find: "return obd_crc32c(CRC_START, stored, n) == obd_le32(stored + n);",
    replace: "return obd_le32(stored + n) != 0 || n != 0;",
    test: "tests/fault/faults_test.ts",
    name: "a damaged block is an error there, and nowhere else",
  },
  {
    says: "a flush makes the index durable, but not the data",
    file: "c/upper_log.c",
    find: "&mark.w1, &covered);\n\n\tif (!err)\n\t\terr = sync_file(upper, " +
      "upper->data_fd);",
    replace: "&mark.w1, &covered);\n",
    test: "tests/fault/crash_test.ts",
    name: "power loss, log upper",
  },
  {
    says: "a record after the last mark that points into a hole is believed",
    file: "c/upper_log.c",
    find: "\t\treturn OBD_BAD_HOLE;",
    replace: "\t\treturn OBD_BAD_NONE;",
    test: "tests/fault/crash_test.ts",
    name: "power loss, log upper",
  },
  {
    says: "a write to a part of an absent host block leaves zeros around it",
    file: "c/upper_sparse.c",
    find:
      "\tif (all_mapped(upper, from, to))\n\t\treturn 0;\n\terr = ask->read",
    replace: "\tif (from <= to)\n\t\treturn 0;\n\terr = ask->read",
    test: "tests/interop/fixtures_test.ts",
    name: "a sparse upper keeps discards and unaligned writes over lowers",
  },
  {
    says: "zeros over lower data are forgotten by a sparse upper",
    file: "c/upper_sparse.c",
    find: "if (!err && must && from < to)",
    replace: "if (!err && must && from < to && lba > end)",
    test: "tests/model/model_test.ts",
    name: "random programs read what a plain array holds",
  },
  {
    says: "commit copies in chunks of 128 sectors",
    file: "c/plan.c",
    find: "#define CHUNK 64u ",
    replace: "#define CHUNK 128u ",
    test: "tests/interop/fixtures_test.ts",
    name: "commit reproduces stacks' layers, long runs and 16 TiB disks",
  },
  {
    says: "an output gets its name before it is durable",
    file: "src/layer/output.ts",
    find: "        await syncFd(fd);\n        nameFile",
    replace: "        nameFile",
    test: "tests/fault/crash_test.ts",
    name: "a commit is durable before it has a name, in every form",
  },
  {
    says: "a seal's trailer may reach the disk before its index",
    file: "src/layer/commit.ts",
    find: "    await syncFd(fd, true);\n    const trailer",
    replace: "    const trailer",
    test: "tests/fault/crash_test.ts",
    name: "a seal cut short anywhere leaves the upper as it was, or sealed",
  },
  {
    says: "an interrupted snapshot is finished without its layer's seal",
    file: "src/image/intent.ts",
    find: "    await sealUpper(upper);\n    renamePath",
    replace: "    renamePath",
    test: "tests/fault/snapshot_crash_test.ts",
    name: "a snapshot from log to log, cut short anywhere",
  },
  {
    says: "what was written since a failed snapshot's switch is forgotten",
    file: "c/push.c",
    find: "\t\tif (!err)\n\t\t\terr = copy_change(",
    replace: "\t\tif (err)\n\t\t\terr = copy_change(",
    test: "tests/fault/snapshot_faults_test.ts",
    name: "a log upper, rename fails at any point of a snapshot",
  },
  {
    says: "the layer under a new upper is not read until it is sealed",
    file: "c/request.c",
    find: "if (nr == LEVEL_FROZEN && !w->view->frozen)",
    replace: "if (nr == LEVEL_FROZEN)",
    test: "tests/fault/snapshot_faults_test.ts",
    name: "what can go neither on nor back goes on with both uppers",
  },
];

const COPIED = [
  "Makefile",
  "c",
  "deno.json",
  "deno.lock",
  "ffi",
  "main.ts",
  "scripts",
  "src",
  "tests",
];

/** A copy of the tree; what was downloaded is shared with the original. */
export function copyTree(dir: TempDir): string {
  const root = dir.file("tree");
  mkdirSync(join(root, "build"), { recursive: true });
  for (const name of COPIED) {
    cpSync(join(ROOT, name), join(root, name), { recursive: true });
  }
  for (const name of ["deno_dir", "tools"]) {
    symlinkSync(join(ROOT, "build", name), join(root, "build", name));
  }
  return root;
}

async function build(root: string): Promise<void> {
  const made = await run("make", ["-s", "-C", root, "lib"]);
  if (made.code !== 0) {
    throw new Error(`cannot build: ${made.stdout}${made.stderr}`);
  }
}

/** Runs one test of a tree; true when it passes. */
async function passes(
  root: string,
  { test, name }: Pick<Mutation, "test" | "name">,
): Promise<{ passed: boolean; output: string }> {
  const ended = await run(Deno.execPath(), [
    "test",
    "-A",
    "--no-check",
    "--filter",
    name,
    test,
  ], {
    cwd: root,
    env: {
      PROGRAMS: "2000",
      OVERLAYBD_FIXTURES: fixture("."),
      OVERLAYBD_LIB: join(root, "build", "liboverlaybd.so"),
      // The copy's own main.ts, not the executable under test.
      OVERLAYBD_BIN: "",
      NO_COLOR: "1",
    },
  });
  const output = ended.stdout + ended.stderr;
  if (/\b0 passed \| 0 failed/.test(output)) {
    throw new Error(`no test "${name}" in ${test}`);
  }
  return { passed: ended.code === 0, output };
}

/** Builds a copy and makes sure that every named test passes there. */
export async function checkUnchanged(root: string): Promise<void> {
  await build(root);
  const done = new Set<string>();
  for (const mutation of MUTATIONS) {
    const key = `${mutation.test} ${mutation.name}`;
    if (done.has(key)) continue;
    done.add(key);
    const { passed, output } = await passes(root, mutation);
    if (!passed) throw new Error(`fails unchanged: ${key}\n${output}`);
  }
}

/** Applies a mutation to a copy, runs its test, takes it back. */
export async function isCaught(
  root: string,
  mutation: Mutation,
): Promise<boolean> {
  const path = join(root, mutation.file);
  const original = Deno.readTextFileSync(path);
  if (original.split(mutation.find).length !== 2) {
    throw new Error(
      `${mutation.file} has ${JSON.stringify(mutation.find)} ` +
        `${original.split(mutation.find).length - 1} times: bring the list ` +
        "of mutations up to date",
    );
  }
  Deno.writeTextFileSync(
    path,
    original.replace(mutation.find, () => mutation.replace),
  );
  try {
    await build(root);
    return !(await passes(root, mutation)).passed;
  } finally {
    Deno.writeTextFileSync(path, original);
  }
}
