// SPDX-License-Identifier: Apache-2.0
// The original's argument rules (spec/tools.md, section 1).
import { deepStrictEqual as equal, throws } from "node:assert/strict";
import { UsageError } from "../../src/cli/exit.ts";
import { parseArgs } from "../../src/cli/parse.ts";
import { type CommandName, commandSpec } from "../../src/cli/table.ts";
import { tempDir } from "../lib/env.ts";

function values(command: CommandName, ...argv: string[]) {
  const parsed = parseArgs(commandSpec(command), argv);
  if (parsed.help) throw new Error("help was asked for");
  return parsed.values;
}

function refuses(
  command: CommandName,
  argv: string[],
  code: number,
  text: string,
) {
  throws(
    () => parseArgs(commandSpec(command), argv),
    (error: unknown) => {
      equal(error instanceof UsageError && error.message, text);
      equal(error instanceof UsageError && error.exitCode, code);
      return true;
    },
  );
}

const NIL = "00000000-0000-0000-0000-000000000000";

Deno.test("options and positionals mix in any order", () => {
  const expected = values("create", "d", "i", "8", "-s", "-u", NIL);
  equal(expected["vsize"], 8);
  equal(expected["sparse"], true);
  equal(expected["parent"], NIL);
  const orders = [
    ["-s", "-u", NIL, "d", "i", "8"],
    ["d", "-s", "i", "-u", NIL, "8"],
    ["d", "-u", NIL, "i", "8", "-s"],
    ["d", `-u${NIL}`, "i", "8", "-s"],
    ["-s", `-u${NIL}`, "--", "d", "i", "8"],
  ];
  for (const argv of orders) equal(values("create", ...argv), expected);
});

Deno.test("-- ends options", () => {
  const got = values("zfile", "--", "-x", "--verify");
  equal(got["source_file"], "-x");
  equal(got["target_file"], "--verify");
  equal(got["extract"], false);
});

Deno.test("a lone - is a positional, and so is a negative number", () => {
  equal(values("zfile", "-", "t")["source_file"], "-");
  refuses(
    "create",
    ["d", "i", "-1"],
    105,
    "vsize: Value -1 not in range [0 - 1.79769e+308]",
  );
});

Deno.test("values are given behind =, directly, or in the next word", () => {
  const spec: [string[], unknown][] = [
    [["--bs=16"], 16],
    [["--bs", "16"], 16],
    [["--bs=", "16"], 16],
  ];
  for (const [argv, want] of spec) {
    equal(values("zfile", "a", "b", ...argv)["blockSize"], want);
  }
  equal(values("commit", "/dev/null", "-mhello")["message"], "hello");
  equal(values("commit", "/dev/null", "-m=x")["message"], "=x");
  equal(values("commit", "/dev/null", "-m", "--seal")["message"], "--seal");
});

Deno.test("short flags combine, the last may take a value", () => {
  const got = values("commit", "/dev/null", "-ztfm", "text");
  equal(
    [got["compress"], got["tar"], got["force"], got["message"]],
    [true, true, true, "text"],
  );
  equal(values("commit", "/dev/null", "-zmtext")["message"], "text");
});

Deno.test("flags take true, false, 1, 0 and their like", () => {
  const flag = (text: string) =>
    values("merge", "/dev/null", `--compress=${text}`)["compress"];
  for (const yes of ["true", "1", "on", "yes", "TRUE", "y", "t", "2"]) {
    equal(flag(yes), true, yes);
  }
  for (const no of ["false", "0", "off", "no", "False", "n", "f", "-1"]) {
    equal(flag(no), false, no);
  }
  equal(values("merge", "/dev/null")["compress"], true);
  refuses(
    "merge",
    ["/dev/null", "--compress=perhaps"],
    104,
    "Could not convert: --compress = perhaps",
  );
});

Deno.test("a repeated flag is fine, the last one counts", () => {
  equal(values("merge", "/dev/null", "-t", "-t")["tar"], true);
  equal(
    values("merge", "/dev/null", "--compress=0", "--compress")["compress"],
    true,
  );
});

Deno.test("a repeated value is refused (114)", () => {
  refuses(
    "zfile",
    ["a", "--bs", "4", "--bs", "8"],
    114,
    "--bs: At Most 1 required but received 2",
  );
});

Deno.test("an option without its value is refused (114)", () => {
  refuses("zfile", ["a", "--bs"], 114, "--bs: 1 required INT missing");
  refuses("commit", ["/dev/null", "-zm"], 114, "-m: 1 required TEXT missing");
});

Deno.test("what is no integer is refused (104)", () => {
  refuses("create", ["d", "i", "1.5"], 104, "Could not convert: vsize = 1.5");
  refuses("zfile", ["a", "--bs=x"], 104, "Could not convert: --bs = x");
  refuses("zfile", ["a", "--bs=4k"], 104, "Could not convert: --bs = 4k");
});

Deno.test("integers are read as strtoll with base 0 reads them", () => {
  equal(values("create", "d", "i", "0x10")["vsize"], 16);
  equal(values("create", "d", "i", "010")["vsize"], 8);
  equal(values("create", "d", "i", "0")["vsize"], 0);
  equal(values("create", "d", "i", "+7")["vsize"], 7);
  refuses("create", ["d", "i", "08"], 104, "Could not convert: vsize = 08");
});

Deno.test("what is out of range is refused before conversion (105)", () => {
  for (const text of ["-1", "abc", ""]) {
    refuses(
      "create",
      ["d", "i", text],
      105,
      `vsize: Value ${text} not in range [0 - 1.79769e+308]`,
    );
  }
  refuses(
    "create",
    ["d", "i", "536870913"],
    105,
    "vsize: Value 536870913 not in range [0 - 536870912]",
  );
  refuses(
    "commit",
    ["/dev/null", "--threads", "0"],
    105,
    "--compress_threads: Value 0 not in range [1 - 1.79769e+308]",
  );
});

Deno.test("an existing file is anything but a directory (105)", () => {
  using dir = tempDir();
  refuses(
    "commit",
    ["nofile"],
    105,
    "data_file: File does not exist: nofile",
  );
  refuses(
    "commit",
    [dir.path],
    105,
    `data_file: File is actually a directory: ${dir.path}`,
  );
  equal(values("commit", "/dev/null")["data_file"], "/dev/null");
});

Deno.test("a bad uuid is refused, an empty one is none (105)", () => {
  refuses("create", ["d", "i", "1", "-u", "xyz"], 105, "-u: not a uuid: xyz");
  refuses(
    "commit",
    ["/dev/null", "--uuid", `${NIL}0`],
    105,
    `--uuid: not a uuid: ${NIL}0`,
  );
  equal(values("create", "d", "i", "1", "-u", "")["parent"], undefined);
});

Deno.test("what is required is asked for by name (106)", () => {
  refuses("create", [], 106, "data_file is required");
  refuses("create", ["d"], 106, "index_file is required");
  refuses("create", ["d", "i"], 106, "vsize is required");
  refuses("resize", ["--size", "3"], 106, "--config is required");
  refuses("resize", ["--config", "x"], 106, "--size is required");
});

Deno.test("what nobody expects is refused (109)", () => {
  refuses(
    "create",
    ["d", "i", "1", "--nope"],
    109,
    "The following argument was not expected: --nope",
  );
  refuses(
    "create",
    ["d", "i", "1", "x", "-q"],
    109,
    "The following arguments were not expected: x -q",
  );
  // No abbreviations.
  refuses(
    "commit",
    ["/dev/null", "--algo"],
    109,
    "The following argument was not expected: --algo",
  );
});

Deno.test("conversion comes before what is missing, that before the unexpected", () => {
  refuses(
    "create",
    ["-u", "bad", "--nope"],
    105,
    "-u: not a uuid: bad",
  );
  refuses("create", ["d", "--nope"], 106, "index_file is required");
});

Deno.test("--help wins over everything but a missing value", () => {
  const help = { help: true };
  const parse = (...argv: string[]) => parseArgs(commandSpec("create"), argv);
  equal(parse("--help"), help);
  equal(parse("-h"), help);
  equal(parse("d", "--nope", "-sh"), help);
  refuses("create", ["-h", "-u"], 114, "-u: 1 required TEXT missing");
});

Deno.test("serve takes all that is left as images", () => {
  equal(
    values("serve", "a", "--nbd", "s", "b;c", "--insecure", "d")["config"],
    ["a", "b;c", "d"],
  );
});

Deno.test("overlaybd-tcmu ignores what it does not know", () => {
  equal(values("tcmu", "a", "b", "--nope")["service_config"], "a");
});
