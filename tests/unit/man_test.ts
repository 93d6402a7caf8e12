// SPDX-License-Identifier: Apache-2.0
// The manual says what the table says, in roff that no formatter minds.
import { deepStrictEqual as equal, ok } from "node:assert/strict";
import { manPages } from "../../scripts/reference/man.ts";
import { escapeRoff } from "../../scripts/reference/roff.ts";
import { commandNames, commandSpec } from "../../src/cli/table.ts";
import { have, mustRun, run, tempDir } from "../lib/env.ts";

const PAGES = manPages("2026-11-29");

/** The page of a command. */
function pageOf(name: string): string {
  return PAGES.find(({ file }) => file.replace(/\.\d$/, "") === name)?.text ??
    "";
}

Deno.test("every command has a page with its options and arguments", () => {
  const overview = pageOf("overlaybd");
  for (const name of commandNames()) {
    const spec = commandSpec(name);
    const text = pageOf(`overlaybd-${name}`);
    ok(overview.includes(escapeRoff(`overlaybd-${name}`)), name);
    for (const option of Object.values(spec.options)) {
      for (const word of option.names) {
        ok(text.includes(escapeRoff(word)), `${name}: ${word}`);
      }
    }
    for (const positional of Object.keys(spec.positionals)) {
      ok(text.includes(positional), `${name}: ${positional}`);
    }
    for (const [line] of spec.examples) {
      ok(text.includes(escapeRoff(line)), line);
    }
  }
});

Deno.test("text is shown as it is, whatever is in it", {
  ignore: !have("mandoc"),
}, async () => {
  const nasty = "a 'b' `c` \\d -e ^f ~g\n.so /etc/passwd\n'br h";
  const { stdout } = await run("mandoc", ["-Tascii"], {
    stdin: new TextEncoder().encode(
      `.TH X 1 2026-01-01\n.SH NAME\n.nf\n${escapeRoff(nasty)}\n.fi\n`,
    ),
  });
  for (const line of nasty.split("\n")) ok(stdout.includes(line), stdout);
});

Deno.test("mandoc has nothing to say of any page", {
  ignore: !have("mandoc"),
}, async () => {
  using dir = tempDir();
  const files = PAGES.map(({ file, text }) => {
    Deno.writeTextFileSync(dir.file(file), text);
    return dir.file(file);
  });
  equal(await mustRun("mandoc", ["-T", "lint", "-W", "warning", ...files]), "");
});
