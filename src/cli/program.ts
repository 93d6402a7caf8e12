// SPDX-License-Identifier: Apache-2.0
/**
 * From a program name and its arguments to an exit code.  A command's code
 * is imported only when it runs: starting costs what that command needs.
 *
 * @module
 */
import { EXIT, ExitError, reason, UsageError } from "./exit.ts";
import { parseArgs } from "./parse.ts";
import {
  type Args,
  type CommandName,
  commandOfProgram,
  commandSpec,
  isCommandName,
} from "./table.ts";

/** How a command was called. */
export interface Call {
  /** what messages begin with: `overlaybd create`, `overlaybd-create` */
  program: string;
  /** by the original's name: its texts and exit codes hold */
  original: boolean;
}

/** What runs a command; returns its exit code. */
export type Run<Name extends CommandName> = (
  args: Args<Name>,
  call: Call,
) => number | Promise<number>;

type Runners = { [Name in CommandName]: () => Promise<{ run: Run<Name> }> };

const RUNNERS: Runners = {
  create: () => import("./create.ts"),
  commit: () => import("./commit.ts"),
  zfile: () => import("./zfile.ts"),
  merge: () => import("./merge.ts"),
  resize: () => import("./resize.ts"),
  image: () => import("./image.ts"),
  serve: () => import("./serve.ts"),
  ctl: () => import("./ctl.ts"),
  inspect: () => import("./inspect.ts"),
  map: () => import("./map.ts"),
  check: () => import("./check.ts"),
  diff: () => import("./diff.ts"),
  tcmu: () => import("./tcmu.ts"),
  attach: () => import("./attach.ts"),
  detach: () => import("./detach.ts"),
  ls: () => import("./ls.ts"),
  doctor: () => import("./doctor.ts"),
  config: () => import("./config.ts"),
  cache: () => import("./cache.ts"),
  pull: () => import("./pull.ts"),
  completion: () => import("./completion.ts"),
  version: () => import("./version.ts"),
  help: () => import("./help.ts"),
};

async function runCommand<Name extends CommandName>(
  name: Name,
  argv: readonly string[],
  call: Call,
): Promise<number> {
  const parsed = parseArgs(commandSpec(name), argv);
  if (parsed.help) {
    const { printHelp } = await import("./help.ts");
    return printHelp(name, call);
  }
  const { run } = await RUNNERS[name]();
  // The table's types say what parseArgs() makes of the table's rows.
  return await run(parsed.values as unknown as Args<Name>, call);
}

async function dispatch(
  program: string,
  argv: readonly string[],
): Promise<number> {
  const original = commandOfProgram(program);
  if (original !== undefined) {
    return await runCommand(original, argv, { program, original: true });
  }
  const [first, ...rest] = argv;
  const call = { program: `overlaybd ${first}`, original: false };
  if (first === undefined) {
    throw new UsageError(EXIT.required, "A subcommand is required");
  }
  if (isCommandName(first)) return await runCommand(first, rest, call);
  if (first === "-h" || first === "--help") {
    return await runCommand("help", rest, call);
  }
  if (first === "-V" || first === "--version") {
    return await runCommand("version", rest, call);
  }
  throw new UsageError(
    EXIT.unexpected,
    `The following argument was not expected: ${first}`,
  );
}

/** One line on stderr for whatever ended a command. */
function report(error: unknown, program: string): number {
  if (error instanceof Deno.errors.BrokenPipe) return EXIT.failure;
  if (error instanceof UsageError) {
    console.error(error.message);
    console.error("Run with --help for more information.");
    return error.exitCode;
  }
  if (error instanceof ExitError) {
    if (error.message !== "") console.error(error.message);
    return error.exitCode;
  }
  console.error(`${program}: ${reason(error)}`);
  return EXIT.failure;
}

/**
 * Runs a program of the project to its end.
 *
 * @param program the name it was called by
 * @param argv its arguments
 * @returns the exit code
 */
export async function runProgram(
  program: string,
  argv: readonly string[],
): Promise<number> {
  const called = commandOfProgram(program) !== undefined
    ? program
    : ["overlaybd", ...argv.slice(0, 1).filter(isCommandName)].join(" ");
  try {
    return await dispatch(program, argv);
  } catch (error) {
    return report(error, called);
  }
}
