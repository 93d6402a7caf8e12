// SPDX-License-Identifier: Apache-2.0
import {
  deepStrictEqual as equal,
  match,
  ok,
  rejects,
  throws,
} from "node:assert/strict";
import { statSync } from "node:fs";
import { faultIo, IO } from "../../ffi/files.ts";
import { parseAddress } from "../../src/device/listen.ts";
import { ConfigError } from "../../src/image/config.ts";
import { ImageError } from "../../src/image/error.ts";
import { directoryOf, fullPath, nameOf } from "../../src/layer/files.ts";
import { readServiceConfig } from "../../src/service/config.ts";
import {
  resultText,
  withResultFile,
  writeResult,
} from "../../src/service/result.ts";
import { parseServed } from "../../src/service/served.ts";
import { tempDir } from "../lib/env.ts";

Deno.test("an image to serve is a path and what stands behind its last semicolon", () => {
  equal(parseServed("/a/b.json"), { path: "/a/b.json", devId: "" });
  equal(parseServed("/a/b.json;x"), { path: "/a/b.json", devId: "x" });
  equal(parseServed("/a/b.json;"), { path: "/a/b.json", devId: "" });
  equal(parseServed("/a;b.json;x"), { path: "/a;b.json", devId: "x" });
});

Deno.test("an address is a socket's path unless it ends in a port", () => {
  equal(parseAddress("/run/x.sock"), { kind: "unix", path: "/run/x.sock" });
  equal(parseAddress("x"), { kind: "unix", path: `${Deno.cwd()}/x` });
  equal(parseAddress("/tmp/a:10"), { kind: "unix", path: "/tmp/a:10" });
  const tcp = (host: string, port: number) => ({ kind: "tcp", host, port });
  equal(parseAddress("127.0.0.1:10809"), tcp("127.0.0.1", 10809));
  equal(parseAddress("[::1]:0"), tcp("::1", 0));
  equal(parseAddress(":1"), tcp("", 1));
  throws(() => parseAddress("a:65536"), /no port 65536/);
});

Deno.test("paths: full, directory, name", () => {
  equal(fullPath("/a//b/./../c/"), "/a/c");
  equal(fullPath("../x", "/a/b"), "/a/x");
  equal(fullPath("/../.."), "/");
  equal([directoryOf("/a/b"), nameOf("/a/b")], ["/a", "b"]);
  equal([directoryOf("/a"), nameOf("/a")], ["/", "a"]);
  equal([directoryOf("a"), nameOf("a")], [".", "a"]);
});

Deno.test("the result file is replaced in one piece", async () => {
  using dir = tempDir();
  const path = dir.file("result");
  Deno.writeTextFileSync(path, "something longer from an earlier run");
  const before = statSync(path).ino;
  using reader = Deno.openSync(path);
  await writeResult(path, undefined);
  equal(Deno.readTextFileSync(path), "success");
  ok(statSync(path).ino !== before);
  const old = new Uint8Array(9);
  reader.readSync(old);
  equal(new TextDecoder().decode(old), "something");
  equal([...Deno.readDirSync(dir.path)].length, 1);
});

Deno.test("a failure is written in the original's words, and passed on", async () => {
  using dir = tempDir();
  const path = dir.file("result");
  const error = new ImageError("clear text", "failed to open layer 3");
  await rejects(
    withResultFile(path, () => Promise.reject(error)),
    (thrown) => thrown === error,
  );
  equal(Deno.readTextFileSync(path), "failed:failed to open layer 3");
});

Deno.test("whatever the reason, the result is one line of at most 1 KiB", () => {
  const text = resultText(new Error(`\n${"ü".repeat(1000)}\u0000end`));
  equal(text, `failed: ${"ü".repeat(508)}`);
  ok(new TextEncoder().encode(text).length <= 1024);
  equal(resultText(new Error("a\r\nb")), "failed:a b");
});

Deno.test("a result file that cannot be written is logged, no more", async () => {
  const lines: string[] = [];
  await writeResult("/nowhere/result", undefined, (line) => lines.push(line));
  equal(lines.length, 1);
  match(lines[0] ?? "", /cannot write result file \/nowhere\/result/);
  await writeResult("", undefined, (line) => lines.push(line));
  equal(lines.length, 1);
});

Deno.test("a result file that cannot be replaced is written in place", async () => {
  using dir = tempDir();
  const path = dir.file("result");
  Deno.writeTextFileSync(path, "something longer from an earlier run");
  faultIo(IO.RENAME, 1, 16);
  await writeResult(path, undefined, (line) => {
    throw new Error(line);
  });
  equal(Deno.readTextFileSync(path), "success");
  equal([...Deno.readDirSync(dir.path)].length, 1);
});

Deno.test("a result file that is a device is written in place", async () => {
  await writeResult("/dev/null", undefined, (line) => {
    throw new Error(line);
  });
  ok(statSync("/dev/null").isCharacterDevice());
});

Deno.test("a result file that is a pipe is written where somebody reads", async () => {
  using dir = tempDir();
  const path = dir.file("pipe");
  new Deno.Command("mkfifo", { args: [path] }).outputSync();
  const lines: string[] = [];
  const log = (line: string) => void lines.push(line);
  await writeResult(path, undefined, log);
  equal(lines.length, 1);
  match(lines[0] ?? "", /no such device or address/);
  using pipe = Deno.openSync(path, { read: true, write: true });
  await writeResult(path, undefined, log);
  const got = new Uint8Array(16);
  equal(pipe.readSync(got), "success".length);
  equal(lines.length, 1);
});

Deno.test("the service config: defaults, others' keys, wrong types", async () => {
  using dir = tempDir();
  const path = dir.file("overlaybd.json");
  const read = (text: string) => {
    Deno.writeTextFileSync(path, text);
    return readServiceConfig(path);
  };
  equal((await read("{}")).readDeadlineSeconds, 604_800);
  equal((await read('{"readDeadlineSeconds": 5}')).readDeadlineSeconds, 5);
  equal((await read('{"theirs": [1]}'))["theirs"], [1]);
  for (
    const [text, message] of [
      ["", /error parse global config json/],
      ["[]", /the file: .*expected object/],
      ["null", /expected object/],
      ['{"readDeadlineSeconds": 0}', /readDeadlineSeconds: got 0/],
      ['{"readDeadlineSeconds": "5"}', /got "5", expected a whole number/],
    ] as const
  ) {
    await rejects(read(text), (error) => {
      ok(error instanceof ConfigError);
      match(error.message, message);
      return true;
    });
  }
  await rejects(readServiceConfig(dir.file("nofile")), /no such file/);
});
