// SPDX-License-Identifier: Apache-2.0
// The tools as processes: names, exit codes, last lines, and that a failure
// leaves nothing (spec/tools.md; spec/defects.md, 8 to 10, 12 and 14).
import {
  deepStrictEqual as equal,
  match,
  notStrictEqual as differs,
  ok,
} from "node:assert/strict";
import { existsSync } from "node:fs";
import {
  type Ended,
  have,
  mustRun,
  mustTool,
  run,
  type TempDir,
  tempDir,
  tool,
  toolCommand,
} from "../lib/env.ts";
import { connectNbd } from "../lib/nbd.ts";
import { ServeError, startServer } from "../lib/server.ts";

const RUN_HELP = "Run with --help for more information.\n";
const NIL = "00000000-0000-0000-0000-000000000000";
const COMMITTED = "overlaybd-commit has committed files SUCCESSFULLY\n";
const CREATED = "overlaybd-create has created files SUCCESSFULLY\n";

function names(dir: TempDir): string[] {
  return [...Deno.readDirSync(dir.path)].map(({ name }) => name).toSorted();
}

/** Exit code and stderr; stdout must be empty. */
function refused(ended: Ended, code: number, stderr: string | RegExp) {
  if (typeof stderr === "string") equal(ended.stderr, stderr);
  else match(ended.stderr, stderr);
  equal(ended.stdout, "");
  equal(ended.code, code);
}

/** One clear line of failure. */
function oneLine(ended: Ended, code: number, stderr: RegExp) {
  match(ended.stderr, stderr);
  equal(ended.stderr.split("\n").length, 2, ended.stderr);
  equal(ended.code, code, ended.stderr);
}

/** An empty writable layer `d`, `i` in a directory. */
async function layer(dir: TempDir, ...options: string[]) {
  await mustTool("overlaybd-create", [
    ...options,
    dir.file("d"),
    dir.file("i"),
    "1",
  ]);
  return [dir.file("d"), dir.file("i")];
}

function config(dir: TempDir, extra: Record<string, unknown> = {}): string {
  const path = dir.file("config.json");
  Deno.writeTextFileSync(
    path,
    JSON.stringify({
      upper: { data: dir.file("d"), index: dir.file("i") },
      ...extra,
    }),
  );
  return path;
}

// ---- argument errors, one tool after the other ------------------------

type Row = [code: number, argv: string[], text: string];

/** Refused by its arguments alone: section 1's table for every tool. */
const ROWS: Record<string, Row[]> = {
  "overlaybd-create": [
    [104, ["d", "i", "1.5"], "Could not convert: vsize = 1.5"],
    [
      105,
      ["d", "i", "-1"],
      "vsize: Value -1 not in range [0 - 1.79769e+308]",
    ],
    [106, ["d"], "index_file is required"],
    [
      109,
      ["d", "i", "1", "--nope"],
      "The following argument was not expected: --nope",
    ],
    [114, ["d", "i", "1", "-u"], "-u: 1 required TEXT missing"],
    [
      114,
      ["d", "i", "1", "-u", NIL, "-u", NIL],
      "-u: At Most 1 required but received 2",
    ],
    [105, ["d", "i", "1", "-u", "no"], "-u: not a uuid: no"],
  ],
  "overlaybd-commit": [
    [104, ["/dev/null", "--bs", "1.5"], "Could not convert: --bs = 1.5"],
    [105, ["nofile"], "data_file: File does not exist: nofile"],
    [105, ["/dev/null", "--uuid", "x"], "--uuid: not a uuid: x"],
    [105, ["/dev/null", "-p", "x"], "--parent-uuid: not a uuid: x"],
    [106, [], "data_file is required"],
    [
      109,
      ["/dev/null", "i", "o", "one-too-many"],
      "The following argument was not expected: one-too-many",
    ],
    [114, ["/dev/null", "-m"], "-m: 1 required TEXT missing"],
  ],
  "overlaybd-zfile": [
    [104, ["a", "b", "--bs", "x"], "Could not convert: --bs = x"],
    [106, ["-x"], "source_file is required"],
    [109, ["a", "b", "c"], "The following argument was not expected: c"],
    [114, ["a", "--algorithm"], "--algorithm: 1 required TEXT missing"],
  ],
  "overlaybd-merge": [
    [
      104,
      ["/dev/null", "--compress=maybe"],
      "Could not convert: --compress = maybe",
    ],
    [105, ["nofile"], "image_config_path: File does not exist: nofile"],
    [
      105,
      ["/dev/null", "o", "--service_config_path", "nofile"],
      "--service_config_path: File does not exist: nofile",
    ],
    [106, [], "image_config_path is required"],
    [
      109,
      ["/dev/null", "o", "-q"],
      "The following argument was not expected: -q",
    ],
    [
      114,
      ["/dev/null", "--upload"],
      "--upload: 1 required TEXT missing",
    ],
  ],
  "overlaybd-resize": [
    [106, ["--size", "1"], "--config is required"],
    [106, ["--config", "x"], "--size is required"],
    [
      105,
      ["--config", "x", "--size", "1", "--service_config_path", "nofile"],
      "--service_config_path: File does not exist: nofile",
    ],
    [
      109,
      ["--config", "x", "--size", "1", "more"],
      "The following argument was not expected: more",
    ],
    [114, ["--config"], "--config: 1 required TEXT missing"],
  ],
};

for (const [program, rows] of Object.entries(ROWS)) {
  Deno.test(`${program} refuses bad arguments as the original does`, async () => {
    using dir = tempDir();
    for (const [code, argv, text] of rows) {
      const byName = await tool(program, argv, { cwd: dir.path });
      refused(byName, code, `${text}\n${RUN_HELP}`);
      const sub = program.replace("overlaybd-", "");
      const asCommand = await tool("overlaybd", [sub, ...argv], {
        cwd: dir.path,
      });
      equal(asCommand, byName);
    }
    equal(names(dir), []);
  });

  Deno.test(`${program} --help is on stdout and exits 0`, async () => {
    const help = await tool(program, ["--help"]);
    equal(help.code, 0);
    equal(help.stderr, "");
    match(help.stdout, new RegExp(`^Usage: ${program} \\[OPTIONS\\]`, "m"));
    equal(await tool(program, ["-h"]), help);
  });
}

Deno.test("overlaybd needs a command that there is", async () => {
  refused(
    await tool("overlaybd", []),
    106,
    `A subcommand is required\n${RUN_HELP}`,
  );
  refused(
    await tool("overlaybd", ["nope"]),
    109,
    `The following argument was not expected: nope\n${RUN_HELP}`,
  );
  const help = await mustTool("overlaybd", ["--help"]);
  equal(await mustTool("overlaybd", ["help"]), help);
  match(await mustTool("overlaybd", ["--version"]), /^overlaybd \d+\.\d+\.\d+/);
});

Deno.test("overlaybd-tcmu takes one argument, and says what it cannot use", async () => {
  using dir = tempDir();
  const config = dir.file("overlaybd.json");
  for (const argv of [[config], [config, "b", "--c"]]) {
    Deno.writeTextFileSync(config, "{");
    oneLine(
      await tool("overlaybd-tcmu", argv),
      255,
      /^overlaybd-tcmu: failed to create image service: error parse global config json: /,
    );
    Deno.writeTextFileSync(config, '{"ioEngine":3}');
    oneLine(
      await tool("overlaybd-tcmu", argv),
      255,
      /^overlaybd-tcmu: failed to create image service: .*unknown io_engine: 3: it is not 0 to 2\n$/,
    );
  }
  for (
    const [text, why] of [
      [
        '{"cacheType":"x"}',
        /cacheType: unknown cache type: x: it is not file, download or ocf\n$/,
      ],
      [
        '{"logPath":"/nowhere/log"}',
        /log_output_file failed: cannot open \/nowhere\/log: no such file/,
      ],
    ] as const
  ) {
    Deno.writeTextFileSync(config, text);
    oneLine(await tool("overlaybd-tcmu", [config]), 255, why);
  }
});

Deno.test({
  name: "why the daemon cannot start is in its log, too (without TCMU only)",
  ignore: existsSync("/sys/module/target_core_user"),
  async fn() {
    using dir = tempDir();
    const config = dir.file("overlaybd.json");
    const logPath = dir.file("log");
    // No audit file is no reason.
    Deno.writeTextFileSync(
      config,
      JSON.stringify({ logPath, auditPath: "/nowhere/audit" }),
    );
    const ended = await tool("overlaybd-tcmu", [config]);
    oneLine(ended, 255, /^overlaybd-tcmu: tcmulib init failed\.: /);
    const lines = Deno.readTextFileSync(logPath).trimEnd().split("\n");
    match(lines[0] ?? "", /\|INFO \|.*using config /);
    ok(lines.some((line) => /no audit file: cannot open/.test(line)));
    match(lines.at(-1) ?? "", /\|ERROR\|.*tcmulib init failed\.: /);
  },
});

// ---- create -----------------------------------------------------------

Deno.test("create makes both files; options and arguments in any order", async () => {
  const orders = [
    ["d", "i", "1", "-s"],
    ["-s", "d", "i", "1"],
    ["d", "-s", "--verbose", "i", "-u", NIL, "1"],
    ["--", "d", "i", "1"],
  ];
  for (const argv of orders) {
    using dir = tempDir();
    const ended = await tool("overlaybd-create", argv, { cwd: dir.path });
    equal([ended.code, ended.stdout], [0, CREATED]);
    equal(names(dir), ["d", "i"]);
    equal(
      Deno.statSync(dir.file("d")).size,
      argv.includes("-s") ? 4096 + 2 ** 30 : 4096,
    );
  }
});

Deno.test("create takes size 0, and --raw makes a plain file", async () => {
  using dir = tempDir();
  const [a, b, c, d] = ["a", "b", "c", "d"].map((n) => dir.file(n));
  await mustTool("overlaybd-create", [a ?? "", b ?? "", "0"]);
  await mustTool("overlaybd-create", ["--raw", c ?? "", d ?? "", "3"]);
  equal(Deno.statSync(c ?? "").size, 3 * 2 ** 30);
  equal(Deno.statSync(d ?? "").size, 0);
});

Deno.test("create refuses what exists and leaves it alone", async () => {
  using dir = tempDir();
  Deno.writeTextFileSync(dir.file("d"), "mine");
  const args = [dir.file("d"), dir.file("i"), "1"];
  refused(
    await tool("overlaybd-create", args),
    255,
    `failed to open file '${dir.file("d")}', 17: File exists\n`,
  );
  equal(names(dir), ["d"]);
  oneLine(
    await tool("overlaybd", ["create", ...args]),
    255,
    /^overlaybd create: cannot create .*\/d: file exists$/m,
  );
  Deno.renameSync(dir.file("d"), dir.file("i"));
  refused(
    await tool("overlaybd-create", args),
    255,
    `failed to open file '${dir.file("i")}', 17: File exists\n`,
  );
  equal(names(dir), ["i"]);
  equal(Deno.readTextFileSync(dir.file("i")), "mine");
});

Deno.test("create --mkfs and --turboOCI are not built: one line, nothing made", async () => {
  for (const option of ["--mkfs", "--turboOCI", "--fastoci"]) {
    using dir = tempDir();
    const ended = await tool(
      "overlaybd-create",
      ["d", "i", "-s", "1", option],
      { cwd: dir.path },
    );
    oneLine(ended, 255, /not built yet/);
    equal(ended.stdout, "");
    equal(names(dir), []);
  }
});

// ---- commit -----------------------------------------------------------

Deno.test("commit: every form that the snapshotter and the convertor call", async () => {
  using dir = tempDir();
  const [d, i] = await layer(dir);
  const commit = (...argv: string[]) => tool("overlaybd-commit", argv);
  const out = (name: string) => dir.file(name);
  const plain = await commit(d ?? "", i ?? "", out("plain"));
  equal(plain, { code: 0, stdout: COMMITTED, stderr: "" });
  const tar = await commit(
    ...[d ?? "", i ?? "", out("tar"), "-z", "-t", "--uuid", NIL],
    ...["--parent-uuid", NIL],
  );
  equal(tar, { code: 0, stdout: COMMITTED, stderr: "" });
  const sealed = await commit("--seal", d ?? "", i ?? "");
  equal(sealed, { code: 0, stdout: "", stderr: "" });
  const again = await commit(
    ...["--commit_sealed", d ?? "", out("sealed"), "-z", "-t"],
  );
  equal(again, { code: 0, stdout: COMMITTED, stderr: "" });
  const twice = await commit("--commit_sealed", out("plain"), out("twice"));
  equal(twice, { code: 0, stdout: COMMITTED, stderr: "" });
  equal(
    Deno.readFileSync(out("twice")),
    Deno.readFileSync(out("plain")),
  );
});

Deno.test("commit takes its options anywhere", async () => {
  using dir = tempDir();
  const [d = "", i = ""] = await layer(dir);
  const orders = [
    [d, i, "OUT", "-zt", "-mx"],
    ["-m", "x", d, "-t", i, "-z", "OUT"],
    ["-tzmx", d, i, "--", "OUT"],
    ["-z=", d, i, "OUT"],
  ];
  const sums = new Set<string>();
  for (const [n, argv] of orders.slice(0, 3).entries()) {
    const file = dir.file(`o${n}`);
    await mustTool(
      "overlaybd-commit",
      argv.map((word) => word === "OUT" ? file : word),
    );
    sums.add(Deno.readFileSync(file).toBase64());
  }
  equal(sums.size, 1);
  const bad = await tool("overlaybd-commit", orders[3] ?? []);
  equal(bad.code, 109);
  match(bad.stderr, /not expected: -=$/m);
});

Deno.test("commit keeps an existing output without -f, replaces it with", async () => {
  using dir = tempDir();
  const [d = "", i = ""] = await layer(dir);
  Deno.writeTextFileSync(dir.file("o"), "mine");
  refused(
    await tool("overlaybd-commit", [d, i, dir.file("o")]),
    255,
    `failed to open file '${dir.file("o")}', 17: File exists\n`,
  );
  equal(Deno.readTextFileSync(dir.file("o")), "mine");
  await mustTool("overlaybd-commit", [d, i, dir.file("o"), "-f"]);
  equal(Deno.statSync(dir.file("o")).size, 8192);
  equal(names(dir), ["d", "i", "o"]);
});

Deno.test("commit takes a message of 256 bytes and refuses one of 257", async () => {
  using dir = tempDir();
  const [d = "", i = ""] = await layer(dir);
  const text = "ü".repeat(128);
  await mustTool("overlaybd-commit", [d, i, dir.file("o"), "-m", text]);
  const bytes = Deno.readFileSync(dir.file("o")).subarray(134, 390);
  equal(new TextDecoder().decode(bytes), text);
  oneLine(
    await tool("overlaybd-commit", [d, i, dir.file("p"), "-m", `${text}x`]),
    255,
    /^failed to perform commit\(\), 105: No buffer space available.*257/,
  );
  equal(existsSync(dir.file("p")), false);
});

Deno.test("commit refuses bad values with the original's texts", async () => {
  using dir = tempDir();
  const [d = "", i = ""] = await layer(dir);
  const o = dir.file("o");
  const rows: [string[], string][] = [
    [["-z", "--bs", "5"], "invalid '--bs' parameters.\n"],
    [["-z", "--bs", "128"], "invalid '--bs' parameters.\n"],
    [["-z", "--bs", "0"], "invalid '--bs' parameters.\n"],
    [["-z", "--algorithm", "xz"], "invalid '--algorithm' parameters.\n"],
    [
      ["-z", "-t", "--upload", "http://x"],
      "unsupport option with '-t' and '--upload' at the same time.\n",
    ],
  ];
  for (const [argv, text] of rows) {
    refused(await tool("overlaybd-commit", [d, i, o, ...argv]), 255, text);
  }
  for (const option of ["--turboOCI"]) {
    oneLine(
      await tool("overlaybd-commit", [d, i, o, "-z", option]),
      255,
      /not built yet/,
    );
  }
  equal(existsSync(o), false);
});

Deno.test("a failed commit does not say SUCCESSFULLY and leaves nothing", async () => {
  using dir = tempDir();
  const [d = "", i = ""] = await layer(dir);
  const commit = (...argv: string[]) =>
    tool("overlaybd-commit", [...argv, dir.file("o")]);
  refused(
    await commit(d, dir.file("missing")),
    255,
    `failed to open file '${dir.file("missing")}', ` +
      "2: No such file or directory\n",
  );
  oneLine(
    await tool("overlaybd-commit", [d, i, "/nowhere/o"]),
    255,
    /^failed to open file '\/nowhere\/o', 2: No such file or directory$/m,
  );
  // A record that points past the end of the data.
  const record = new Uint8Array(16);
  const view = new DataView(record.buffer);
  view.setBigUint64(0, 8n << 50n, true);
  view.setBigUint64(8, 1000n, true);
  const bad = new Uint8Array([...Deno.readFileSync(i), ...record]);
  // A mark behind it: the record was flushed, and so cannot be cut.
  const mark = new Uint8Array(16);
  const markView = new DataView(mark.buffer);
  markView.setBigUint64(0, (1n << 50n) - 1n, true);
  markView.setBigUint64(8, 2000n, true);
  Deno.writeFileSync(i, new Uint8Array([...bad, ...mark]));
  oneLine(
    await commit(d, i),
    255,
    /^failed to perform commit\(\), \d+: .*record \d+/,
  );
  Deno.writeFileSync(dir.file("short"), new Uint8Array(100));
  oneLine(await commit(dir.file("short"), i), 255, /failed to perform/);
  oneLine(await tool("overlaybd-commit", [d]), 255, /index_file is required/);
  oneLine(
    await tool("overlaybd-commit", [d, i]),
    255,
    /commit_file is required/,
  );
  equal(names(dir), ["d", "i", "short"]);
});

Deno.test("options without effect are said to have none, others are not", async () => {
  using dir = tempDir();
  const [d = "", i = ""] = await layer(dir);
  const commit = async (name: string, ...argv: string[]) =>
    (await tool("overlaybd-commit", [d, i, dir.file(name), ...argv])).stderr;
  equal(
    await commit("a", "-t", "--bs", "8"),
    "WARNING option '-t' and '--bs' will be ignored without '-z'\n",
  );
  equal(await commit("b", "-z", "--bs", "8", "--algorithm", "zstd"), "");
  equal(await commit("c", "--compress_threads", "2", "-z"), "");
});

Deno.test("the output does not depend on the number of threads", async () => {
  using dir = tempDir();
  const [d = "", i = ""] = await layer(dir);
  const one = dir.file("one");
  const many = dir.file("many");
  await mustTool("overlaybd-commit", [d, i, one, "-z"]);
  await mustTool("overlaybd-commit", [d, i, many, "-z", "--threads", "4"]);
  equal(Deno.readFileSync(many), Deno.readFileSync(one));
});

Deno.test("a directory that cannot be written stays as it is", {
  ignore: Deno.uid() !== 0 || !have("setpriv"),
}, async () => {
  using dir = tempDir();
  const [d = "", i = ""] = await layer(dir);
  Deno.chmodSync(d, 0o644);
  Deno.mkdirSync(dir.file("ro"), { mode: 0o555 });
  const asNobody = (program: string, argv: string[]) => {
    const call = toolCommand(program, argv);
    // The program's files may be root's alone: only writing must fail.
    return run("setpriv", [
      "--bounding-set=-dac_override",
      "--inh-caps=-dac_override",
      call.command,
      ...call.args,
    ], { env: call.env });
  };
  oneLine(
    await asNobody("overlaybd-create", [
      dir.file("ro/d"),
      dir.file("ro/i"),
      "1",
    ]),
    255,
    /^failed to open file '.*\/ro\/d', 13: Permission denied$/m,
  );
  oneLine(
    await asNobody("overlaybd-commit", [d, i, dir.file("ro/o")]),
    255,
    /^failed to open file '.*\/ro\/o', 13: Permission denied$/m,
  );
  equal([...Deno.readDirSync(dir.file("ro"))], []);
});

Deno.test("SIGTERM during commit ends it and leaves nothing", async () => {
  using dir = tempDir();
  const [d = "", i = ""] = await layer(dir, "-s");
  // Incompressible data, more than is done before the signal comes.
  const chunk = new Uint8Array(1 << 24);
  for (let at = 0; at < chunk.length; at += 65536) {
    crypto.getRandomValues(chunk.subarray(at, at + 65536));
  }
  using file = Deno.openSync(d, { write: true });
  file.seekSync(4096, Deno.SeekMode.Start);
  for (let n = 0; n < 32; n++) file.writeSync(chunk);
  for (const [signal, code] of [["SIGTERM", 143], ["SIGINT", 130]] as const) {
    const call = toolCommand("overlaybd-commit", [
      ...[d, i, dir.file("o"), "-z", "--algorithm", "zstd"],
    ]);
    const child = new Deno.Command(call.command, {
      args: call.args,
      env: call.env,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    // Under way: the input is open.
    for (let tries = 0; tries < 500; tries++) {
      const fds = (() => {
        try {
          return [...Deno.readDirSync(`/proc/${child.pid}/fd`)];
        } catch {
          return [];
        }
      })();
      const open = fds.some(({ name }) => {
        try {
          return Deno.readLinkSync(`/proc/${child.pid}/fd/${name}`) === d;
        } catch {
          return false;
        }
      });
      if (open) break;
      await new Promise((done) => setTimeout(done, 10));
    }
    await new Promise((done) => setTimeout(done, 100));
    child.kill(signal);
    const ended = await child.output();
    equal(ended.code, code);
    equal(
      new TextDecoder().decode(ended.stderr),
      `interrupted by ${signal}\n`,
    );
    equal(ended.stdout.length, 0);
    equal(names(dir), ["d", "i"]);
  }
});

// ---- zfile ------------------------------------------------------------

Deno.test("zfile compresses, verifies and extracts with the original's lines", async () => {
  using dir = tempDir();
  const [a, z, b] = [dir.file("a"), dir.file("z"), dir.file("b")];
  Deno.writeTextFileSync(a, "text ".repeat(10_000));
  equal(await tool("overlaybd-zfile", [a, z]), {
    code: 0,
    stdout: `compress file ${a} as ${z}\ncompress file done.\n`,
    stderr: "",
  });
  equal(await tool("overlaybd-zfile", ["--verify", z]), {
    code: 0,
    stdout: `${z} is a valid zfile blob.\n`,
    stderr: "",
  });
  equal(await tool("overlaybd-zfile", ["-x", z, b]), {
    code: 0,
    stdout: `decompress file ${z} as ${b}\ndecompress file done.\n`,
    stderr: "",
  });
  equal(Deno.readFileSync(b), Deno.readFileSync(a));
  const mode = (path: string) => (Deno.statSync(path).mode ?? 0) & 0o777;
  equal(mode(b), 0o700);
  equal(mode(z), 0o644 & ~Deno.umask());
});

Deno.test("zfile compresses standard input, also from a slow pipe", async () => {
  using dir = tempDir();
  const text = "0123456789".repeat(5000);
  const call = toolCommand("overlaybd-zfile", [dir.file("z")]);
  const quoted = [call.command, ...call.args].map((w) => `'${w}'`).join(" ");
  const script =
    `for i in 1 2 3 4 5; do printf %s "$DATA"; sleep 0.02; done |` +
    ` ${quoted}`;
  await mustRun("sh", ["-c", script], { env: { ...call.env, DATA: text } });
  await mustTool("overlaybd-zfile", ["-x", dir.file("z"), dir.file("t")]);
  equal(Deno.readTextFileSync(dir.file("t")), text.repeat(5));
});

Deno.test("zfile failures: one line, no target", async () => {
  using dir = tempDir();
  const [a, t] = [dir.file("a"), dir.file("t")];
  Deno.writeTextFileSync(a, "no zfile ".repeat(1000));
  const zfile = (...argv: string[]) => tool("overlaybd-zfile", argv);
  const stderrOf = async (ended: Promise<Ended>, code = 255) => {
    const { code: got, stderr, stdout } = await ended;
    equal(got, code);
    ok(!stdout.includes("done"));
    equal(stderr.split("\n").length, 2, stderr);
    return stderr;
  };
  equal(
    await stderrOf(zfile("-x", a, t)),
    "format error! <source_file> should be a zfile.\n",
  );
  match(
    await stderrOf(zfile("-x", dir.file("nofile"), t)),
    /^failed to open file .*\/nofile: No such file or directory$/m,
  );
  match(
    await stderrOf(zfile(dir.file("nofile"), t)),
    /^failed to open file .*\/nofile/,
  );
  match(await stderrOf(zfile(a, t, "--bs", "3")), /^invalid '--bs' parameters/);
  match(await stderrOf(zfile("-x", a)), /target_file is required/);
  equal(names(dir), ["a"]);
  Deno.writeTextFileSync(t, "mine");
  match(
    await stderrOf(zfile(a, t)),
    /^failed to open file .*\/t: File exists$/m,
  );
  equal(Deno.readTextFileSync(t), "mine");
  await mustTool("overlaybd-zfile", [a, t, "-f"]);
  differs(Deno.readTextFileSync(t), "mine");
  const notValid = await zfile("--verify", a);
  equal(notValid.code, 255);
  equal(
    notValid.stdout,
    `${a} is not a valid zfile blob or checksum can't be found.\n`,
  );
});

Deno.test("zfile --verify finds one flipped bit", async () => {
  using dir = tempDir();
  const bytes = new Uint8Array(100_000).map((_, i) => (i * 2654435761) >> 13);
  Deno.writeFileSync(dir.file("a"), bytes);
  await mustTool("overlaybd-zfile", [dir.file("a"), dir.file("z")]);
  const stored = Deno.readFileSync(dir.file("z"));
  stored[1000] = (stored[1000] ?? 0) ^ 1;
  Deno.writeFileSync(dir.file("z"), stored);
  const ended = await tool("overlaybd-zfile", ["--verify", dir.file("z")]);
  equal(ended.code, 255);
  match(ended.stdout, /is not a valid zfile blob/);
  match(ended.stderr, /1 of \d+ blocks are bad, the first is 0/);
});

// ---- merge ------------------------------------------------------------

Deno.test("merge: plain or compressed, output replaced, silent", async () => {
  using dir = tempDir();
  await layer(dir);
  const path = config(dir);
  const silent = { code: 0, stdout: "", stderr: "" };
  const o = dir.file("o");
  Deno.writeTextFileSync(o, "old");
  equal(await tool("overlaybd-merge", [path, o]), silent);
  match(new TextDecoder().decode(Deno.readFileSync(o)), /^ZFile/);
  equal(await tool("overlaybd-merge", ["--compress=false", path, o]), silent);
  match(new TextDecoder().decode(Deno.readFileSync(o)), /^LSMT/);
  const { stderr, code } = await tool("overlaybd-merge", ["-t", path, o]);
  equal([code, stderr], [0, "WARNING option '-t' will be ignored by merge\n"]);
  equal(names(dir), ["config.json", "d", "i", "o"]);
});

Deno.test("merge takes a sparse layer of size 0 on top, alone it has no size", async () => {
  using dir = tempDir();
  await layer(dir);
  const at = (name: string) => dir.file(name);
  await mustTool("overlaybd-commit", [at("d"), at("i"), at("base")]);
  await mustTool("overlaybd-create", ["-s", at("s"), at("si"), "0"]);
  const upper = { data: at("s"), index: at("si") };
  const write = (name: string, value: unknown) => {
    Deno.writeTextFileSync(at(name), JSON.stringify(value));
    return at(name);
  };
  const alone = write("alone.json", { upper });
  oneLine(
    await tool("overlaybd", ["merge", alone, at("none")]),
    255,
    /every virtual size is 0/,
  );
  const lowers = [{ file: at("base") }];
  const stack = write("stack.json", { lowers, upper });
  {
    await using _server = await startServer(at("sock"), [`${stack};x`]);
    using client = await connectNbd(at("sock"), "x");
    await client.write(8192, new Uint8Array(4096).fill(7));
    await client.flush();
  }
  await mustTool("overlaybd", ["merge", stack, at("flat")]);
  equal(await mustTool("overlaybd", ["diff", stack, at("flat")]), "");
  const { code } = await tool("overlaybd", ["diff", at("base"), at("flat")]);
  equal(code, 1);
});

Deno.test("merge failures name what could not be made", async () => {
  using dir = tempDir();
  await layer(dir);
  const good = config(dir);
  const merge = (...argv: string[]) => tool("overlaybd-merge", argv);
  oneLine(await merge(good), 255, /^failed to create output file/);
  oneLine(
    await merge(good, "/nowhere/o"),
    255,
    /^failed to create output file: cannot create \/nowhere\/o/,
  );
  const bad = config(dir, {
    lowers: [{ file: "/nowhere" }],
    resultFile: dir.file("result"),
  });
  oneLine(
    await merge(bad, dir.file("o")),
    255,
    /^failed to create image file: cannot open lowers\[0\]/,
  );
  match(Deno.readTextFileSync(dir.file("result")), /^failed:/);
  Deno.writeTextFileSync(dir.file("config.json"), "{");
  oneLine(
    await merge(bad, dir.file("o")),
    255,
    /^failed to create image file: cannot parse image config/,
  );
  equal(existsSync(dir.file("o")), false);
});

Deno.test("no service config is needed", {
  ignore: existsSync("/etc/overlaybd/overlaybd.json"),
}, async () => {
  using dir = tempDir();
  await layer(dir);
  const path = config(dir);
  await mustTool("overlaybd-merge", ["--help"]);
  await mustTool("overlaybd-merge", [path, dir.file("o")]);
  await mustTool("overlaybd", ["resize", "--config", path, "--size", "2"]);
});

Deno.test("a named service config must be good", async () => {
  using dir = tempDir();
  await layer(dir);
  const path = config(dir);
  const service = dir.file("overlaybd.json");
  const merge = () =>
    tool("overlaybd-merge", [
      ...[path, dir.file("o"), "--service_config_path", service],
    ]);
  Deno.writeTextFileSync(service, "{nope");
  oneLine(
    await merge(),
    255,
    /error parse global config json: .*overlaybd.json/,
  );
  Deno.writeTextFileSync(service, '{"readDeadlineSeconds": "1"}');
  oneLine(
    await merge(),
    255,
    /readDeadlineSeconds: got "1", expected a whole number/,
  );
  Deno.writeTextFileSync(service, '{"logLevel": 1, "unknown": {}}');
  equal((await merge()).code, 0);
});

// ---- resize -----------------------------------------------------------

Deno.test("resize grows the disk, and by the original's name still fails", async () => {
  for (const kind of [[], ["-s"]]) {
    using dir = tempDir();
    await layer(dir, ...kind);
    const path = config(dir);
    const size = () => {
      using file = Deno.openSync(dir.file("d"));
      const header = new Uint8Array(56);
      file.readSync(header);
      return new DataView(header.buffer).getBigUint64(48, true);
    };
    const grown = await tool("overlaybd", [
      ...["resize", "--config", path, "--size", "2"],
    ]);
    equal([grown.code, grown.stdout], [
      0,
      "the disk grew from 1 GiB to 2 GiB\n",
    ]);
    match(grown.stderr, /file system on it did not grow/);
    equal(size(), 2n << 30n);
    const original = await tool("overlaybd-resize", [
      ...["--size", "3", "--config", path],
    ]);
    oneLine(original, 1, /^resize failed: the disk grew .* was not resized$/m);
    equal(original.stdout, "");
    equal(size(), 3n << 30n);
    const shrunk = await tool("overlaybd-resize", [
      ...["--size", "1", "--config", path],
    ]);
    oneLine(shrunk, 1, /^resize failed: cannot shrink/);
    equal(size(), 3n << 30n);
    const same = await tool("overlaybd-resize", [
      ...["--size", "3", "--config", path],
    ]);
    oneLine(same, 1, /already has 3 GiB/);
  }
});

Deno.test("a layer without a size of its own grows from that of the layers below, and a refusal leaves it without", async () => {
  using dir = tempDir();
  const [lower, d, i] = [dir.file("lower"), dir.file("d"), dir.file("i")];
  await mustTool("overlaybd-create", [dir.file("d2"), dir.file("i2"), "2"]);
  await mustTool("overlaybd-commit", [dir.file("d2"), dir.file("i2"), lower]);
  await mustTool("overlaybd-create", [d, i, "0"]);
  const resultFile = dir.file("result");
  const path = config(dir, { lowers: [{ file: lower }], resultFile });
  const files = () => [d, i].map((path) => Deno.readFileSync(path));
  const before = files();
  const resize = (size: string) =>
    tool("overlaybd", ["resize", "--config", path, "--size", size]);
  oneLine(await resize("1"), 1, /^overlaybd resize: cannot shrink/);
  equal(files(), before);
  equal(Deno.readTextFileSync(resultFile), "success");
  equal((await resize("3")).stdout, "the disk grew from 2 GiB to 3 GiB\n");
  Deno.removeSync(lower);
  const grown = files();
  oneLine(await resize("4"), 1, /cannot open lowers\[0\]/);
  equal(files(), grown);
  match(Deno.readTextFileSync(resultFile), /^failed:/);
});

Deno.test("resize refuses what is no size, with both lines", async () => {
  const rows: [string, string][] = [
    ["0", "size must be greater than 0"],
    ["-5", "size must be positive: -5"],
    ["1.5", "invalid size (expected integer in GB): 1.5"],
    ["x", "invalid size (expected integer in GB): x"],
    ["99999999999999999999999", "size value out of range: "],
    ["17179869184", "size overflow: 17179869184 GB"],
  ];
  for (const [size, text] of rows) {
    const ended = await tool("overlaybd-resize", [
      `--size=${size}`,
      "--config",
      "nofile",
    ]);
    equal([ended.code, ended.stdout], [1, ""]);
    const [first = "", second] = ended.stderr.split("\n");
    ok(first.startsWith(text), first);
    equal(second, `invalid size: ${size}`);
  }
  oneLine(
    await tool("overlaybd-resize", ["--size", "1", "--config", "nofile"]),
    1,
    /^failed to open overlaybd image: .*nofile: no such file/,
  );
});

// ---- inspect, map, check, diff ----------------------------------------

Deno.test("inspect, map, check and diff print JSON that parses", async () => {
  using dir = tempDir();
  const [d = "", i = ""] = await layer(dir);
  const path = config(dir);
  await mustTool("overlaybd-commit", [d, i, dir.file("o"), "-z", "-mhi"]);
  const json = async (...argv: string[]) =>
    JSON.parse(await mustTool("overlaybd", [...argv, "--json"]));
  const inspected = await json("inspect", dir.file("o"));
  equal(inspected.kind, "committed");
  equal(inspected.userTag, "hi");
  equal(inspected.virtualSize, 2 ** 30);
  equal(await json("map", path), [
    { offset: 0, length: 2 ** 30, layer: null, kind: "hole", at: null },
  ]);
  equal((await json("check", path)).sound, true);
  const same = await json("diff", path, dir.file("o"));
  equal([same.same, same.ranges], [true, []]);
  equal((await json("version")).version, "0.1.0");
});

Deno.test("check: 0 sound, 2 damaged with what and where, 1 not checked", async () => {
  using dir = tempDir();
  const [d = "", i = ""] = await layer(dir);
  const o = dir.file("o");
  await mustTool("overlaybd-commit", [d, i, o]);
  equal(await tool("overlaybd", ["check", o]), {
    code: 0,
    stdout: `${o} is sound\n`,
    stderr: "",
  });
  Deno.truncateSync(o, 8000);
  const damaged = await tool("overlaybd", ["check", o]);
  equal([damaged.code, damaged.stderr], [2, ""]);
  match(damaged.stdout, /^error: .*\/o/);
  match(damaged.stdout, /is damaged: 1 error$/m);
  oneLine(
    await tool("overlaybd", ["check", dir.file("nofile")]),
    1,
    /^overlaybd check: could not check .*nofile/,
  );
});

Deno.test("diff: 0 the same, 1 different with the ranges, 2 trouble", async () => {
  using dir = tempDir();
  const [a, b] = [dir.file("a"), dir.file("b")];
  const bytes = new Uint8Array(1 << 20);
  Deno.writeFileSync(a, bytes);
  bytes[70_000] = 1;
  bytes[70_200] = 1;
  bytes[900_000] = 1;
  Deno.writeFileSync(b, bytes);
  equal(await tool("overlaybd", ["diff", a, a]), {
    code: 0,
    stdout: "",
    stderr: "",
  });
  const differ = await tool("overlaybd", ["diff", a, b]);
  equal(differ.code, 1);
  equal(
    differ.stdout.split("\n").map((line) => line.trim().split(/\s+/)),
    [
      ["69632", "1024"],
      ["899584", "512"],
      "1.50 KiB in 2 ranges differ".split(" "),
      [""],
    ],
  );
  Deno.truncateSync(b, 1 << 19);
  const sizes = await tool("overlaybd", ["diff", a, b]);
  equal(sizes.code, 1);
  match(sizes.stdout, /sizes differ: 1048576 and 524288 bytes/);
  oneLine(
    await tool("overlaybd", ["diff", a, dir.file("nofile")]),
    2,
    /^overlaybd diff: .*nofile/,
  );
});

// ---- serve ------------------------------------------------------------

Deno.test("serve: ready line, names, result file, a clean end", async () => {
  using dir = tempDir();
  await layer(dir);
  const path = config(dir, { resultFile: dir.file("result") });
  Deno.writeTextFileSync(dir.file("result"), "longer than the new content");
  const socket = dir.file("sock");
  await using server = await startServer(socket, [path]);
  equal(server.uri, `nbd+unix:///?socket=${socket}`);
  equal(Deno.readTextFileSync(dir.file("result")), "success");
  if (have("nbdinfo")) {
    const list = JSON.parse(
      await mustRun("nbdinfo", ["--list", "--json", server.uri]),
    );
    equal(
      list.exports.map((e: Record<string, unknown>) => e["export-name"]),
      [path],
    );
    const one = JSON.parse(await mustRun("nbdinfo", ["--json", server.uri]));
    equal(one.exports[0]["export-size"], 2 ** 30);
  }
  const ended = await server.stop();
  equal(ended, { code: 0, signal: null, stderr: "" });
  equal(existsSync(socket), false);
});

Deno.test("serve replaces a stale socket, and no live one", async () => {
  using dir = tempDir();
  await layer(dir);
  const path = config(dir);
  const socket = dir.file("sock");
  const killed = await startServer(socket, [path]);
  await killed.stop("SIGKILL");
  ok(existsSync(socket));
  await using live = await startServer(socket, [path]);
  await mustTool("overlaybd", ["create", dir.file("d2"), dir.file("i2"), "1"]);
  const other = dir.file("other.json");
  Deno.writeTextFileSync(
    other,
    JSON.stringify({ upper: { data: dir.file("d2"), index: dir.file("i2") } }),
  );
  const refusal = await startServer(socket, [other]).catch((e) => e);
  ok(refusal instanceof ServeError);
  equal(refusal.code, 255);
  match(refusal.stderr, /another server listens there/);
  Deno.writeTextFileSync(dir.file("file"), "mine");
  const file = await startServer(dir.file("file"), [other]).catch((e) => e);
  match(String(file), /exists and is no socket/);
  equal(Deno.readTextFileSync(dir.file("file")), "mine");
  equal((await live.stop()).code, 0);
});

Deno.test("serve refuses duplicates, busy layers, and other machines", async () => {
  using dir = tempDir();
  await layer(dir);
  const path = config(dir, { resultFile: dir.file("result") });
  const refusal = async (...argv: string[]) => {
    const ended = await tool("overlaybd", ["serve", ...argv]);
    equal([ended.code, ended.stdout], [255, ""]);
    equal(ended.stderr.split("\n").length, 2, ended.stderr);
    return ended.stderr;
  };
  match(
    await refusal("--nbd", dir.file("s"), path, path),
    /duplicated dev id: .*config\.json/,
  );
  match(
    await refusal("--nbd", dir.file("s"), `${path};x`, `${path};x`),
    /duplicated dev id: x$/m,
  );
  // Different names, but one upper.
  match(
    await refusal("--nbd", dir.file("s"), `${path};x`, `${path};y`),
    /cannot serve .*in use by process/,
  );
  match(Deno.readTextFileSync(dir.file("result")), /^failed:/);
  match(await refusal("--nbd", "0.0.0.0:0", path), /--insecure/);
  match(await refusal("--nbd", ":0", path), /--insecure/);
  match(await refusal("--nbd", "localhost:70000", path), /no port 70000/);
  match(
    await refusal("--nbd", dir.file("s"), dir.file("nofile")),
    /nofile: no such file/,
  );
  const none = await tool("overlaybd", ["serve", "--nbd", dir.file("s")]);
  equal(none.code, 106);
  match(none.stderr, /^config is required\n/);
  await using server = await startServer(dir.file("s"), [path]);
  match(
    await refusal("--nbd", dir.file("s2"), path),
    new RegExp(`in use by process ${server.pid}`),
  );
  oneLine(
    await tool("overlaybd-commit", [
      dir.file("d"),
      dir.file("i"),
      dir.file("o"),
    ]),
    255,
    /^failed to perform commit\(\), 16: .*in use by process/,
  );
});

Deno.test("serve on TCP tells the port; names and default export", {
  ignore: !have("nbdinfo"),
}, async () => {
  using dir = tempDir();
  await layer(dir);
  const path = config(dir);
  await mustTool("overlaybd", ["create", dir.file("d2"), dir.file("i2"), "2"]);
  const other = dir.file("other.json");
  Deno.writeTextFileSync(
    other,
    JSON.stringify({ upper: { data: dir.file("d2"), index: dir.file("i2") } }),
  );
  await using server = await startServer("127.0.0.1:0", [
    `${other};second`,
    path,
  ]);
  match(server.uri, /^nbd:\/\/127\.0\.0\.1:\d+\/$/);
  const size = async (uri: string) =>
    Number(await mustRun("nbdinfo", ["--size", uri]));
  equal(await size(server.uri), 2 * 2 ** 30);
  equal(await size(`${server.uri}second`), 2 * 2 ** 30);
  equal(await size(server.uri + encodeURIComponent(path)), 2 ** 30);
});
