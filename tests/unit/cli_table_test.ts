// SPDX-License-Identifier: Apache-2.0
// Help and completions say what the table says, and nothing else.
import { deepStrictEqual as equal, ok } from "node:assert/strict";
import { bashScript, zshScript } from "../../src/cli/completion.ts";
import { helpText, overviewText } from "../../src/cli/help.ts";
import { parseArgs } from "../../src/cli/parse.ts";
import {
  commandNames,
  commandOfProgram,
  commandSpec,
  type OptionSpec,
} from "../../src/cli/table.ts";
import { have, mustRun, run, tempDir } from "../lib/env.ts";

function optionNames(options: Record<string, OptionSpec>): string[] {
  return Object.values(options).flatMap((option) => [...option.names]);
}

const OWN = { original: false, program: "overlaybd" };

Deno.test("every option and argument of a command is in its help", () => {
  for (const name of commandNames()) {
    const spec = commandSpec(name);
    const text = helpText(name, OWN);
    for (const option of optionNames(spec.options)) {
      ok(text.includes(option), `${name}: ${option}`);
    }
    for (const positional of Object.keys(spec.positionals)) {
      ok(text.includes(positional), `${name}: ${positional}`);
    }
    for (const [line] of spec.examples) ok(text.includes(line), line);
    for (const word of text.match(/(?<![\w-])--[a-zA-Z][\w-]*/g) ?? []) {
      ok(
        word === "--help" || optionNames(spec.options).includes(word),
        `${name}'s help speaks of ${word}`,
      );
    }
    ok(text.split("\n").every((line) => line.length <= 100), name);
  }
});

Deno.test("help under the original's names speaks of those", () => {
  for (const name of commandNames()) {
    const { original } = commandSpec(name);
    if (original === undefined) continue;
    equal(commandOfProgram(original), name);
    const text = helpText(name, { program: original, original: true });
    ok(text.includes(`Usage: ${original} [OPTIONS]`));
    ok(!text.includes("overlaybd help"));
  }
  equal(commandOfProgram("overlaybd"), undefined);
});

Deno.test("the overview names every command", () => {
  for (const name of commandNames()) {
    ok(new RegExp(`^  ${name}\\b`, "m").test(overviewText()), name);
  }
});

/** A command line cut into words as a shell would. */
function words(line: string): string[] {
  return (line.match(/'[^']*'|\S+/g) ?? [])
    .map((word) => word.replaceAll("'", ""));
}

Deno.test("every example parses", () => {
  using dir = tempDir();
  const here = Deno.cwd();
  Deno.chdir(dir.path);
  try {
    for (const name of commandNames()) {
      const spec = commandSpec(name);
      for (const [line] of spec.examples) {
        const [command, ...argv] = words(line);
        equal(command, name);
        for (const word of argv) {
          if (/^\w[\w.]*$/.test(word)) Deno.writeTextFileSync(word, "");
        }
        equal(parseArgs(spec, argv).help, false, line);
      }
    }
  } finally {
    Deno.chdir(here);
  }
});

/** What bash offers for the last of these words. */
async function complete(dir: string, line: readonly string[]) {
  const quoted = line.map((word) => `'${word}'`).join(" ");
  const script = `${bashScript()}
COMP_WORDS=(${quoted}); COMP_CWORD=${line.length - 1}
_overlaybd; printf '%s\\n' "\${COMPREPLY[@]}"`;
  const out = await mustRun("bash", ["-c", script], { cwd: dir });
  return out.split("\n").filter((word) => word !== "").toSorted();
}

Deno.test("bash completes commands, options, values and files", async () => {
  using dir = tempDir();
  Deno.writeTextFileSync(dir.file("layer"), "");
  const bash = (...line: string[]) => complete(dir.path, line);
  equal(
    await bash("overlaybd", ""),
    [...commandNames(), "--help", "--version"].toSorted(),
  );
  for (const name of commandNames()) {
    const want = ["--help", ...optionNames(commandSpec(name).options)];
    equal(await bash("overlaybd", name, "-"), want.toSorted(), name);
    const { original } = commandSpec(name);
    if (original !== undefined) {
      equal(await bash(original, "-"), want.toSorted(), original);
    }
  }
  equal(await bash("overlaybd", "commit", "--algorithm", ""), ["lz4", "zstd"]);
  equal(await bash("overlaybd", "completion", ""), ["bash", "zsh"]);
  equal(await bash("overlaybd", "inspect", "la"), ["layer"]);
  equal(await bash("overlaybd", "help", "com"), ["commit", "completion"]);
});

Deno.test("the zsh script has every option, and zsh takes it", async () => {
  const script = zshScript();
  for (const name of commandNames()) {
    const [, part = ""] = script.split(`\n    ${name}) _arguments`);
    const [mine = ""] = part.split(" ;;\n");
    for (const option of optionNames(commandSpec(name).options)) {
      ok(mine.includes(`'${option}`), `${name}: ${option}`);
    }
  }
  if (!have("zsh")) return;
  equal((await run("zsh", ["-n", "-c", script])).code, 0);
});
