// SPDX-License-Identifier: Apache-2.0
// What starting costs: loading a module of node: takes longer than Deno
// itself, so that only what needs one may load it, by import().
import { deepStrictEqual as equal, ok } from "node:assert/strict";
import { readdirSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { COMMANDS } from "../../src/cli/table.ts";
import { EXECUTABLE, ROOT, run, tempDir } from "../lib/env.ts";

/** What a module imports, types and import() aside. */
function staticImports(name: string): string[] {
  const text = Deno.readTextFileSync(join(ROOT, name))
    .replace(/^\s*\/?\*.*$/gm, "");
  return [
    ...text.matchAll(/^(?:import|export)\b(?! type\b)[^;]*?"([^"]+)";/gm),
  ].map(([, from]) => from ?? "");
}

/** Every module below a directory. */
function* sources(dir: string): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(join(ROOT, dir))) {
    if (isDirectory) yield* sources(join(dir, name));
    else yield join(dir, name);
  }
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

/** What `make build` compiled into the executable beside it. */
const BUNDLE = EXECUTABLE === undefined
  ? undefined
  : join(dirname(EXECUTABLE), "bundle");

/** What a chunk of the bundle imports when it is loaded. */
function chunkImports(name: string): string[] {
  const text = Deno.readTextFileSync(join(BUNDLE ?? "", name));
  return [...text.matchAll(/^(?:import|\}|export).*"([^"]+)";$/gm)]
    .map(([, from]) => from ?? "");
}

/** Chunks that are loaded together with these, and node: modules. */
function loadedWith(...names: string[]): { chunks: string[]; node: string[] } {
  const chunks = new Set(names);
  const node = new Set<string>();
  for (const name of chunks) {
    for (const from of chunkImports(name)) {
      if (from.startsWith("./")) chunks.add(from.slice(2));
      else node.add(from);
    }
  }
  return { chunks: [...chunks], node: [...node] };
}

/** The chunk of each command, as main.js imports it. */
function commandChunks(): Map<string, string> {
  const main = Deno.readTextFileSync(join(BUNDLE ?? "", "main.js"));
  return new Map(
    [...main.matchAll(/(\w+): \(\) => import\(String\("\.\/(.+)"\)\)/g)]
      .map(([, name, file]) => [name ?? "", file ?? ""]),
  );
}

Deno.test({
  name: "no command starts with anything of node:, or with all of zod" +
    (EXECUTABLE === undefined ? " (needs OVERLAYBD_BIN)" : ""),
  ignore: EXECUTABLE === undefined,
  fn: () => {
    const commands = commandChunks();
    equal([...commands.keys()].toSorted(), Object.keys(COMMANDS).toSorted());
    for (const [name, file] of commands) {
      const { chunks, node } = loadedWith("main.js", file);
      ok(chunks.length > 2, `${name}: ${chunks}`);
      equal(node, [], name);
      ok(!chunks.includes("openapi.js"), name);
    }
  },
});

/** Commands that run for each container or layer. */
const OFTEN = [
  "create",
  "commit",
  "zfile",
  "attach",
  "detach",
  "ls",
  "ctl",
  "version",
];

Deno.test({
  name: "what runs for each container loads at most 40 chunks, 200 KiB" +
    (EXECUTABLE === undefined ? " (needs OVERLAYBD_BIN)" : ""),
  ignore: EXECUTABLE === undefined,
  fn: () => {
    const commands = commandChunks();
    for (const name of OFTEN) {
      const { chunks } = loadedWith("main.js", commands.get(name) ?? "");
      const bytes = chunks
        .map((chunk) => Deno.statSync(join(BUNDLE ?? "", chunk)).size)
        .reduce((a, b) => a + b);
      ok(chunks.length <= 40, `${name}: ${chunks.length} chunks`);
      ok(bytes <= 200 << 10, `${name}: ${bytes} bytes`);
    }
  },
});

Deno.test("only openapi.ts imports what keeps all of zod", () => {
  const whole = ["zod", "@hono/zod-openapi"];
  const guilty = [...sources("src")].filter((name) =>
    staticImports(name).some((from) => whole.includes(from))
  );
  equal(guilty, ["src/service/api/openapi.ts"]);
});

const PRELOAD = join(ROOT, "tests/lib/slow_globals.ts");

/** Globals that a command uses and Deno has to load something for. */
async function slowGlobals(...args: string[]): Promise<string[]> {
  const { stderr } = await run(Deno.execPath(), [
    "run",
    "-A",
    "--no-check",
    `--preload=${PRELOAD}`,
    ...args,
  ]);
  return [...stderr.matchAll(/^loads (\w+)$/gm)].map(([, name]) => name ?? "");
}

Deno.test("what runs for each container needs no timers, nor else of node:", async () => {
  using dir = tempDir("memory");
  const program = dir.file("program.ts");
  Deno.writeTextFileSync(program, "clearTimeout(undefined);");
  equal(await slowGlobals(program), ["clearTimeout"]);
  const [data, index] = [dir.file("data"), dir.file("index")];
  const [layer, packed] = [dir.file("layer"), dir.file("packed")];
  const plain = dir.file("plain");
  const config = dir.file("config.json");
  Deno.writeTextFileSync(config, JSON.stringify({ lowers: [{ file: layer }] }));
  for (
    const args of [
      ["create", data, index, "1"],
      ["commit", "-z", data, index, layer],
      ["zfile", layer, packed],
      ["zfile", "-x", packed, plain],
      ["inspect", layer],
      ["attach", config],
      ["detach", "nothing"],
      ["ls"],
      ["ctl", "--api", dir.file("socket"), "devices"],
      ["create", "--help"],
      ["version"],
    ]
  ) {
    const main = join(ROOT, "main.ts");
    equal(await slowGlobals(main, ...args), [], args.join(" "));
  }
  equal(Deno.readFileSync(plain), Deno.readFileSync(layer));
});
