// SPDX-License-Identifier: Apache-2.0
/**
 * What a command costs that has nothing to do: those that run for each
 * container or layer.
 *
 * @module
 */
import { spawnSync } from "node:child_process";
import { statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pairs, type Result } from "./measure.ts";

/** Start of the executable, against Deno with nothing to run. */
export async function benchStart(dir: string): Promise<Result[]> {
  const exe = Deno.env.get("OVERLAYBD_BIN");
  if (exe === undefined || !statSync(exe).isFile()) return [];
  const file = (name: string) => join(dir, name);
  const empty = file("empty.ts");
  writeFileSync(empty, "");
  const start = (...args: string[]) => {
    const { status } = spawnSync(exe, args);
    if (status !== 0) throw new Error(`${args.join(" ")} failed`);
  };
  let made = 0;
  const create = () => {
    const name = file(`start${made++}`);
    start("create", `${name}.data`, `${name}.index`, "1");
  };
  const layer = file("layer");
  create();
  const upper = [file("start0.data"), file("start0.index")];
  const commit = () => start("commit", "-f", ...upper, layer);
  commit();
  const commands: [what: string, aim: number, run: () => void][] = [
    ["create", 1.6, create],
    ["commit", 2.2, commit],
    ["zfile", 2, () => start("zfile", "-f", layer, file("packed"))],
    ["version", 1.6, () => start("version")],
  ];
  const results: Result[] = [];
  for (const [name, aim, run] of commands) {
    const figures = await pairs(
      run,
      () => spawnSync(Deno.execPath(), ["run", empty]),
      15,
    );
    results.push({
      what: `start of \`overlaybd ${name}\``,
      reference: "`deno run` of an empty file",
      ratio: 1 / figures.ratio,
      aim,
      most: true,
      ours: `${figures.ours.toFixed(0)} ms`,
      theirs: `${figures.theirs.toFixed(0)} ms`,
    });
  }
  return results;
}
