// SPDX-License-Identifier: Apache-2.0
/**
 * What tests share: the fixtures, temporary directories, running the tool.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";

/** The source tree. */
export const ROOT = resolve(import.meta.dirname ?? ".", "..", "..");

const FIXTURES = Deno.env.get("OVERLAYBD_FIXTURES") ??
  join(ROOT, "..", "shared", "fixtures");

/** Path of a fixture, `fixture("04-commit/plain.lsmt")`. */
export function fixture(name: string): string {
  return join(FIXTURES, name);
}

/** False where the fixtures are not; tests that need them say so. */
export const haveFixtures = existsSync(join(FIXTURES, "README.md"));
if (!haveFixtures) {
  console.log(
    `skipping fixtures: none at ${FIXTURES}; ` +
      "set OVERLAYBD_FIXTURES",
  );
}

/** A temporary directory that is removed when the scope ends. */
export interface TempDir extends Disposable {
  readonly path: string;
  /** path of a name inside */
  file(name: string): string;
}

/**
 * Makes a temporary directory.
 *
 * @param where `"disk"` for the file system of TMPDIR, `"memory"` for tmpfs
 *   (where there is one): fast, holes of one page
 */
export function tempDir(where: "disk" | "memory" = "disk"): TempDir {
  const path = Deno.makeTempDirSync({
    prefix: "obd-test-",
    ...(where === "memory" && existsSync("/dev/shm")
      ? { dir: "/dev/shm" }
      : {}),
  });
  return {
    path,
    file: (name) => join(path, name),
    [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }),
  };
}

/** sha256 of bytes, in hex. */
export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** sha256 of a file, in hex. */
export function sha256File(path: string): string {
  return sha256(Deno.readFileSync(path));
}

/** sha256 of a disk of `size` bytes, read piece by piece. */
export function sha256Disk(
  size: number,
  read: (offset: number, length: number) => Uint8Array,
): string {
  const PIECE = 1 << 20;
  const hash = createHash("sha256");
  for (let at = 0; at < size; at += PIECE) {
    hash.update(read(at, Math.min(PIECE, size - at)));
  }
  return hash.digest("hex");
}

/** How a program ended. */
export interface Ended {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a program to its end; never throws for its exit code. */
export async function run(
  command: string,
  args: readonly string[],
  options: {
    env?: Record<string, string>;
    cwd?: string;
    stdin?: Uint8Array;
    uid?: number;
    gid?: number;
  } = {},
): Promise<Ended> {
  const { stdin, ...rest } = options;
  const child = new Deno.Command(command, {
    args: [...args],
    stdin: stdin === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
    ...rest,
  }).spawn();
  if (stdin !== undefined) {
    const writer = child.stdin.getWriter();
    // A child that ends early closes its end: its exit code tells why.
    await writer.write(stdin).catch(() => {});
    await writer.close().catch(() => {});
  }
  const { code, stdout, stderr } = await child.output();
  const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: decode(stdout), stderr: decode(stderr) };
}

/** Runs a program that must succeed; returns its stdout. */
export async function mustRun(
  command: string,
  args: readonly string[],
  options: Parameters<typeof run>[2] = {},
): Promise<string> {
  const ended = await run(command, args, options);
  if (ended.code !== 0) {
    throw new Error(
      `${command} ${args.join(" ")}: exit ${ended.code}\n` +
        ended.stdout + ended.stderr,
    );
  }
  return ended.stdout;
}

/** True when a program is in PATH. */
export function have(program: string): boolean {
  const path = Deno.env.get("PATH") ?? "";
  return [...path.split(":"), "/usr/sbin", "/sbin"]
    .some((dir) => existsSync(join(dir, program)));
}

/** The executable under test; undefined: `main.ts` through deno. */
export const EXECUTABLE = Deno.env.get("OVERLAYBD_BIN") || undefined;

/**
 * How to call the tool.
 *
 * @param name what argv[0] is: `"overlaybd"` for subcommands, or one of the
 *   original's names
 */
export function toolCommand(
  name: string,
  args: readonly string[],
): { command: string; args: string[]; env: Record<string, string> } {
  if (EXECUTABLE === undefined) {
    return {
      command: Deno.execPath(),
      args: ["run", "-A", "-q", join(ROOT, "main.ts"), ...args],
      env: { OVERLAYBD_ARGV0: name },
    };
  }
  return {
    command: name === "overlaybd" ? EXECUTABLE : linkedName(name),
    args: [...args],
    env: {},
  };
}

let linkDir: string | undefined;

/** A symbolic link of the original's name to the executable under test. */
function linkedName(name: string): string {
  if (linkDir === undefined) {
    const dir = Deno.makeTempDirSync({ prefix: "obd-names-" });
    // Tests of rights run it as another user.
    Deno.chmodSync(dir, 0o755);
    linkDir = dir;
    globalThis.addEventListener(
      "unload",
      () => Deno.removeSync(dir, { recursive: true }),
    );
  }
  const link = join(linkDir, name);
  if (!existsSync(link)) Deno.symlinkSync(resolve(EXECUTABLE ?? ""), link);
  return link;
}

/** Runs the tool to its end. */
export function tool(
  name: string,
  args: readonly string[],
  options: Parameters<typeof run>[2] = {},
): Promise<Ended> {
  const call = toolCommand(name, args);
  return run(call.command, call.args, {
    ...options,
    env: { ...call.env, ...options.env },
  });
}

/** Runs the tool, which must succeed. */
export async function mustTool(
  name: string,
  args: readonly string[],
  options: Parameters<typeof run>[2] = {},
): Promise<string> {
  const ended = await tool(name, args, options);
  if (ended.code !== 0) {
    throw new Error(
      `${name} ${args.join(" ")}: exit ${ended.code}\n` +
        ended.stdout + ended.stderr,
    );
  }
  return ended.stdout;
}
