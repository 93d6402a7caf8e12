// SPDX-License-Identifier: Apache-2.0
// What starting costs: the bundle has one file, so that every static import
// of node: is loaded by every command, and takes longer than Deno itself.
import { deepStrictEqual as equal } from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "../lib/env.ts";

Deno.test("nothing of node: is imported but by import()", () => {
  const sources = ["src", "ffi"].flatMap((dir) =>
    readdirSync(join(ROOT, dir), { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".ts"))
      .map((name) => join(dir, name))
  );
  const guilty = ["main.ts", ...sources].filter((name) =>
    /^(import|export)\b[^;]*"node:/m.test(
      Deno.readTextFileSync(join(ROOT, name)).replace(/^\s*\/?\*.*$/gm, ""),
    )
  );
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
