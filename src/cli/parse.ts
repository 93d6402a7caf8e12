// SPDX-License-Identifier: Apache-2.0
/**
 * The argument rules of the original's parser, CLI11 2.2.0, over the table
 * (spec/tools.md, section 1).
 *
 * @module
 */
import { isUuid } from "../format/uuid.ts";
import { fileInfo } from "../layer/files.ts";
import { EXIT, UsageError } from "./exit.ts";
import type {
  CommandSpec,
  FlagSpec,
  OptionSpec,
  PositionalSpec,
  ValueOptionSpec,
} from "./table.ts";

/** What was given, before any conversion. */
interface Collected {
  /** texts by key of the table, in order */
  given: Map<string, string[]>;
  unexpected: string[];
  help: boolean;
}

/** The name of an option in messages: the first long one. */
export function optionName(option: OptionSpec): string {
  return option.names.find((name) => name.startsWith("--")) ??
    option.names[0] ?? "";
}

/** The type of a value as CLI11 spells it in messages. */
function typeName(spec: ValueOptionSpec): string {
  return spec.kind === "int" ? "INT" : spec.kind === "file" ? "FILE" : "TEXT";
}

function findOption(
  spec: CommandSpec,
  name: string,
): [key: string, option: OptionSpec] | undefined {
  return Object.entries(spec.options)
    .find(([, option]) => option.names.includes(name));
}

/** An argument that starts like an option; `-5` is a number, `-` a file. */
function looksLikeOption(arg: string): boolean {
  return /^--[^-! \n]/.test(arg) || /^-[^-! \n\d]/.test(arg);
}

/** Sorts the words into options and positionals, converting nothing. */
function collect(spec: CommandSpec, argv: readonly string[]): Collected {
  const given = new Map<string, string[]>();
  const unexpected: string[] = [];
  const queue = [...argv];
  let help = false;
  let onlyPositionals = false;
  const add = (key: string, text: string) => {
    const list = given.get(key);
    if (list === undefined) given.set(key, [text]);
    else list.push(text);
  };
  const takePositional = (text: string) => {
    const free = Object.entries(spec.positionals)
      .find(([key, p]) => p.many === true || !given.has(key));
    if (free === undefined) unexpected.push(text);
    else add(free[0], text);
  };
  const takeValue = (key: string, option: ValueOptionSpec, inline: string) => {
    const text = inline === "" ? queue.shift() : inline;
    if (text === undefined) {
      throw new UsageError(
        EXIT.mismatch,
        `${optionName(option)}: 1 required ${typeName(option)} missing`,
      );
    }
    add(key, text);
  };

  for (let arg = queue.shift(); arg !== undefined; arg = queue.shift()) {
    if (onlyPositionals || (arg !== "--" && !looksLikeOption(arg))) {
      takePositional(arg);
      continue;
    }
    if (arg === "--") {
      onlyPositionals = true;
      continue;
    }
    // `--name=value`, or `-n` with what stands directly behind it.
    const long = arg.startsWith("--");
    const cut = long && arg.includes("=") ? arg.indexOf("=") : undefined;
    const name = long ? arg.slice(0, cut) : arg.slice(0, 2);
    const rest = long
      ? cut === undefined ? "" : arg.slice(cut + 1)
      : arg.slice(2);
    const found = findOption(spec, name);
    const isHelp = found === undefined && (name === "--help" || name === "-h");
    if (isHelp) help = true;
    else if (found === undefined) {
      unexpected.push(arg);
      continue;
    } else if (found[1].kind === "flag") {
      add(found[0], long && rest !== "" ? rest : "true");
    } else {
      takeValue(found[0], found[1], rest);
      continue;
    }
    // A short flag may be followed by others: `-zt`.
    if (!long && rest !== "") queue.unshift(`-${rest}`);
  }
  return { given, unexpected, help };
}

function flagValue(spec: FlagSpec, text: string): boolean {
  const lower = text.toLowerCase();
  if (/^(true|on|yes|enable|t|y|\+|0*[1-9]\d*)$/.test(lower)) return true;
  if (/^(false|off|no|disable|f|n|-|0+|-\d+)$/.test(lower)) return false;
  throw new UsageError(
    EXIT.conversion,
    `Could not convert: ${optionName(spec)} = ${text}`,
  );
}

/** strtoll(3) with base 0, whole text or nothing. */
function integer(text: string): number | undefined {
  const [, sign, digits] = /^\s*([+-]?)(0x[0-9a-f]+|\d+)$/i.exec(text) ?? [];
  if (digits === undefined) return undefined;
  const value = /^0[0-7]+$/.test(digits)
    ? parseInt(digits, 8)
    : /^0\d/.test(digits)
    ? NaN
    : Number(digits);
  if (!Number.isSafeInteger(value)) return undefined;
  return sign === "-" ? -value : value;
}

/** The largest double as C++ prints it: "no upper bound". */
const NO_BOUND = "1.79769e+308";

function integerValue(
  name: string,
  spec: PositionalSpec | ValueOptionSpec,
  text: string,
): number {
  const { min, max } = spec;
  const plain = text.trim() === "" ? NaN : Number(text);
  if (min !== undefined && !(plain >= min)) {
    throw new UsageError(
      EXIT.validation,
      `${name}: Value ${text} not in range [${min} - ${NO_BOUND}]`,
    );
  }
  if (max !== undefined && plain > max) {
    throw new UsageError(
      EXIT.validation,
      `${name}: Value ${text} not in range [${min ?? 0} - ${max}]`,
    );
  }
  const value = integer(text);
  if (value === undefined) {
    throw new UsageError(
      EXIT.conversion,
      `Could not convert: ${name} = ${text}`,
    );
  }
  return value;
}

/** A file that exists and is no directory; a FIFO will do. */
function existingFile(name: string, path: string): string {
  const found = fileInfo(path);
  if (found === undefined) {
    throw new UsageError(
      EXIT.validation,
      `${name}: File does not exist: ${path}`,
    );
  }
  if (found.isDirectory) {
    throw new UsageError(
      EXIT.validation,
      `${name}: File is actually a directory: ${path}`,
    );
  }
  return path;
}

/** One text as what the table says it is. */
function convert(
  name: string,
  spec: PositionalSpec | ValueOptionSpec,
  text: string,
): string | number | undefined {
  switch (spec.kind) {
    case "int":
      return integerValue(name, spec, text);
    case "file":
      return existingFile(name, text);
    case "uuid":
      if (text === "") return undefined;
      if (isUuid(text)) return text;
      throw new UsageError(EXIT.validation, `${name}: not a uuid: ${text}`);
    case "text":
    case "path":
      return text;
  }
}

function singleValue(
  name: string,
  spec: PositionalSpec | ValueOptionSpec,
  texts: readonly string[],
): string | number | undefined {
  const [first] = texts;
  if (texts.length > 1) {
    throw new UsageError(
      EXIT.mismatch,
      `${name}: At Most 1 required but received ${texts.length}`,
    );
  }
  return first === undefined ? undefined : convert(name, spec, first);
}

/** A command line, converted. */
export type Parsed = { help: true } | {
  help: false;
  /** values by key of the table; flags are always there */
  values: Record<string, string | number | boolean | readonly string[]>;
};

/**
 * Parses the words behind a command's name.
 *
 * `--help` wins over everything but an option without its value.
 *
 * @throws {UsageError} with CLI11's code and text: first what cannot be
 *   converted (104, 105, 114), then what is missing (106), then what nobody
 *   expects (109)
 */
export function parseArgs(spec: CommandSpec, argv: readonly string[]): Parsed {
  const { given, unexpected, help } = collect(spec, argv);
  if (help) return { help: true };
  const values: Record<
    string,
    string | number | boolean | readonly string[]
  > = {};
  const missing: string[] = [];
  const put = (
    key: string,
    name: string,
    one: PositionalSpec | ValueOptionSpec,
  ) => {
    const value = singleValue(name, one, given.get(key) ?? []);
    if (value !== undefined) values[key] = value;
    else if (one.required === true) missing.push(name);
  };
  for (const [key, option] of Object.entries(spec.options)) {
    if (option.kind === "flag") {
      const last = given.get(key)?.at(-1);
      values[key] = last === undefined
        ? option.initially === true
        : flagValue(option, last);
    } else put(key, optionName(option), option);
  }
  for (const [key, positional] of Object.entries(spec.positionals)) {
    if (positional.many !== true) put(key, key, positional);
    else {
      values[key] = given.get(key) ?? [];
      if (positional.required === true && !given.has(key)) missing.push(key);
    }
  }
  if (missing[0] !== undefined) {
    throw new UsageError(EXIT.required, `${missing[0]} is required`);
  }
  if (unexpected.length > 0 && spec.ignoresUnknown !== true) {
    throw new UsageError(
      EXIT.unexpected,
      `The following argument${
        unexpected.length > 1 ? "s were" : " was"
      } not expected: ${unexpected.join(" ")}`,
    );
  }
  return { help: false, values };
}
