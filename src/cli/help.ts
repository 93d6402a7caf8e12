// SPDX-License-Identifier: Apache-2.0
/**
 * `help` and `--help`, from the table.
 *
 * @module
 */
import { EXIT, UsageError } from "./exit.ts";
import type { Call } from "./program.ts";
import {
  type Args,
  type CommandName,
  commandNames,
  commandSpec,
  isCommandName,
  type OptionSpec,
  type PositionalSpec,
} from "./table.ts";

const WIDTH = 80;
const COLUMN = 28;

/** Words in lines of at most `width`, the first after `used` columns. */
function wrap(text: string, indent: number): string {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && indent + line.length + 1 + word.length > WIDTH) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  lines.push(line);
  return lines.join(`\n${" ".repeat(indent)}`);
}

/** A term, and what it means in the second column. */
function entry(term: string, means: string): string {
  const left = `  ${term}`;
  const gap = left.length + 2 > COLUMN
    ? `\n${" ".repeat(COLUMN)}`
    : " ".repeat(COLUMN - left.length);
  return `${left}${gap}${wrap(means, COLUMN)}`;
}

/** An argument as usage lines show it. */
export function positionalTerm(name: string, spec: PositionalSpec): string {
  const term = spec.many === true ? `${name}...` : name;
  return spec.required === true ? term : `[${term}]`;
}

/** An option with its names and value. */
export function optionTerm(option: OptionSpec): string {
  const names = option.names.join(", ");
  return option.kind === "flag" ? names : `${names} ${option.value}`;
}

/** What an option does, with its choices. */
export function optionHelp(option: OptionSpec): string {
  if (option.kind === "flag") return option.help;
  const choices = option.choices === undefined
    ? ""
    : ` (${option.choices.join(", ")})`;
  return `${option.help}${choices}${
    option.required === true ? " (required)" : ""
  }`;
}

function section(title: string, lines: readonly string[]): string[] {
  return lines.length === 0 ? [] : ["", `${title}:`, ...lines];
}

/** The text of a command's `--help`. */
export function helpText(name: CommandName, call: Call): string {
  const spec = commandSpec(name);
  const program = call.original ? spec.original : `overlaybd ${name}`;
  const positionals = Object.entries(spec.positionals);
  const usage = [
    `Usage: ${program} [OPTIONS]`,
    ...Object.values(spec.options).flatMap((option) =>
      option.kind !== "flag" && option.required === true
        ? [optionTerm(option)]
        : []
    ),
    ...positionals.map(([key, p]) => positionalTerm(key, p)),
  ].join(" ");
  const example = (line: string) =>
    call.original
      ? line.replace(/^\S+/, spec.original ?? "")
      : `overlaybd ${line}`;
  return [
    `${program}: ${spec.summary}`,
    usage,
    ...spec.details === undefined ? [] : ["", wrap(spec.details, 0)],
    ...section(
      "Arguments",
      positionals.map(([key, p]) => entry(positionalTerm(key, p), p.help)),
    ),
    ...section("Options", [
      entry("-h, --help", "print this and exit"),
      ...Object.values(spec.options)
        .map((o) => entry(optionTerm(o), optionHelp(o))),
    ]),
    ...section(
      "Examples",
      spec.examples.flatMap((
        [line, says],
      ) => [`  # ${says}`, `  ${example(line)}`]),
    ),
  ].join("\n");
}

/** What `overlaybd help` says. */
export function overviewText(): string {
  return [
    "overlaybd: block-device images from stacked layers",
    "Usage: overlaybd COMMAND [OPTIONS] ARGUMENTS",
    ...section(
      "Commands",
      commandNames().map((name) => entry(name, commandSpec(name).summary)),
    ),
    "",
    wrap(
      "Every command has --help, with examples. Called by one of the " +
        "original's names (overlaybd-create, ...) it is that program.",
      0,
    ),
  ].join("\n");
}

/** Prints a command's help on stdout. */
export function printHelp(name: CommandName, call: Call): number {
  console.log(helpText(name, call));
  return EXIT.ok;
}

/** `overlaybd help [command]` */
export function run(args: Args<"help">): number {
  if (args.command === undefined) console.log(overviewText());
  else if (isCommandName(args.command)) {
    printHelp(args.command, { program: "overlaybd", original: false });
  } else {
    throw new UsageError(
      EXIT.unexpected,
      `command: there is no command ${args.command}`,
    );
  }
  return EXIT.ok;
}
