// SPDX-License-Identifier: Apache-2.0
// What starting costs: loading a module of node: takes longer than Deno
// itself, so that only what needs one may load it, by import().
import { deepStrictEqual as equal, ok } from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join, normalize } from "node:path";
import { ROOT } from "../lib/env.ts";

/** What a module imports, types and import() aside. */
function staticImports(name: string): string[] {
  const text = Deno.readTextFileSync(join(ROOT, name))
    .replace(/^\s*\/?\*.*$/gm, "");
  return [
    ...text.matchAll(/^(?:import|export)\b(?! type\b)[^;]*?"([^"]+)";/gm),
  ].map(([, from]) => from ?? "");
}

Deno.test("no command loads anything of node: when it starts", () => {
  const commands = readdirSync(join(ROOT, "src/cli"))
    .map((name) => `src/cli/${name}`);
  const loaded = new Set(["main.ts", ...commands]);
  const guilty: string[] = [];
  // A set goes on to what is added while it is walked.
  for (const name of loaded) {
    for (const from of staticImports(name)) {
      if (from.startsWith("node:")) guilty.push(name);
      if (from.startsWith(".")) {
        loaded.add(normalize(join(name, "..", from)));
      }
    }
  }
  ok(loaded.size > 80, `${loaded.size} modules`);
  equal(guilty, []);
});

Deno.test("main.ts reaches commands only by import()", () => {
  const program = Deno.readTextFileSync(join(ROOT, "src/cli/program.ts"));
  const imported = [
    ...program.matchAll(/^} from "(.*)";|^import .* from "(.*)";/gm),
  ]
    .map(([, a, b]) => a ?? b).toSorted();
  equal(imported, ["./exit.ts", "./parse.ts", "./table.ts"]);
});
