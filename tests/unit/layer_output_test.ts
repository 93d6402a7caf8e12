// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, ok, rejects, throws } from "node:assert/strict";
import { faultIo, IO, pwriteFd, traceIo } from "../../ffi/files.ts";
import { EngineError } from "../../ffi/errors.ts";
import { createOutput, refuseExisting } from "../../src/layer/output.ts";
import { tempDir } from "../lib/env.ts";

const HELLO = new TextEncoder().encode("hello");

function names(path: string): string[] {
  return [...Deno.readDirSync(path)].map((entry) => entry.name).sort();
}

const isErrno = (code: string) => (error: unknown) =>
  error instanceof EngineError && error.code === code;

Deno.test("an output has no name until it is published, then its mode", async () => {
  using dir = tempDir();
  const output = createOutput(dir.file("out"), { mode: 0o640 });
  pwriteFd(output.fd, HELLO, 0);
  deepEqual(names(dir.path), []);
  await output.publish();
  deepEqual(names(dir.path), ["out"]);
  deepEqual(Deno.readFileSync(dir.file("out")), HELLO);
  const { mode } = Deno.statSync(dir.file("out"));
  equal((mode ?? 0) & 0o777, 0o640 & ~Deno.umask());
  equal(output.mode, mode);
  output.abort();
  deepEqual(names(dir.path), ["out"], "abort after publish does nothing");
});

Deno.test("an aborted output leaves nothing", () => {
  using dir = tempDir();
  const output = createOutput(dir.file("out"));
  pwriteFd(output.fd, HELLO, 0);
  output.abort();
  output.abort();
  deepEqual(names(dir.path), []);
});

Deno.test("an existing file is refused at once, and at the end too", async () => {
  using dir = tempDir();
  Deno.writeTextFileSync(dir.file("out"), "old");
  throws(() => createOutput(dir.file("out")), isErrno("EEXIST"));
  Deno.symlinkSync("nowhere", dir.file("dangling"));
  throws(() => createOutput(dir.file("dangling")), isErrno("EEXIST"));
  throws(() => createOutput(dir.path, { replace: true }), isErrno("EISDIR"));
  throws(() => createOutput(dir.file("no/out")), isErrno("ENOENT"));
  const late = createOutput(dir.file("late"));
  Deno.writeTextFileSync(dir.file("late"), "somebody was faster");
  await rejects(late.publish(), isErrno("EEXIST"));
  equal(Deno.readTextFileSync(dir.file("late")), "somebody was faster");
  deepEqual(names(dir.path), ["dangling", "late", "out"]);
});

Deno.test("replacing keeps the old file until the new one is whole", async () => {
  using dir = tempDir();
  const path = dir.file("out");
  Deno.writeTextFileSync(path, "old");
  const output = createOutput(path, { replace: true });
  pwriteFd(output.fd, HELLO, 0);
  equal(Deno.readTextFileSync(path), "old");
  await output.publish();
  equal(Deno.readTextFileSync(path), "hello");
  deepEqual(names(dir.path), ["out"]);
});

Deno.test("symbolic links are followed, dangling ones too when replacing", async () => {
  using dir = tempDir();
  Deno.mkdirSync(dir.file("sub"));
  Deno.writeTextFileSync(dir.file("sub/real"), "old");
  Deno.symlinkSync("sub/real", dir.file("link"));
  Deno.symlinkSync("sub/new", dir.file("dangling"));
  for (const name of ["link", "dangling"]) {
    const output = createOutput(dir.file(name), { replace: true });
    pwriteFd(output.fd, HELLO, 0);
    await output.publish();
    ok(Deno.lstatSync(dir.file(name)).isSymlink);
    equal(Deno.readTextFileSync(dir.file(name)), "hello");
  }
  deepEqual(names(dir.file("sub")), ["new", "real"]);
});

Deno.test("bytes are on disk before the name is, and the name after it", async () => {
  using dir = tempDir();
  const trace = dir.file("trace");
  for (const replace of [false, true]) {
    const output = createOutput(dir.file("out"), { replace });
    traceIo(trace);
    try {
      pwriteFd(output.fd, HELLO, 0);
      await output.publish();
    } finally {
      traceIo(null);
    }
    const ops = Deno.readTextFileSync(trace).trim().split("\n")
      .map((line) => line.split(" ")[1]);
    deepEqual(
      ops,
      replace
        ? ["pwrite", "sync", "link", "rename", "open", "sync"]
        : ["pwrite", "sync", "link", "open", "sync"],
    );
  }
});

Deno.test("a failed fsync, link or rename leaves the old state", async () => {
  using dir = tempDir();
  const path = dir.file("out");
  Deno.writeTextFileSync(path, "old");
  const EIO = 5;
  for (const op of [IO.SYNC, IO.LINK, IO.RENAME]) {
    const output = createOutput(path, { replace: true });
    pwriteFd(output.fd, HELLO, 0);
    faultIo(op, 1, EIO);
    await rejects(output.publish(), isErrno("EIO"));
    faultIo(op, 1, EIO, 0);
    equal(Deno.readTextFileSync(path), "old");
    deepEqual(names(dir.path), ["out"]);
  }
});

Deno.test("without O_TMPFILE a hidden name serves, and goes", async () => {
  using dir = tempDir();
  const EOPNOTSUPP = 95;
  for (const replace of [false, true]) {
    faultIo(IO.OPEN, 1, EOPNOTSUPP);
    const kept = createOutput(dir.file("out"), { replace });
    pwriteFd(kept.fd, HELLO, 0);
    await kept.publish();
    deepEqual(names(dir.path), ["out"]);
    faultIo(IO.OPEN, 1, EOPNOTSUPP);
    const dropped = createOutput(dir.file("other"));
    equal(names(dir.path).length, 2);
    dropped.abort();
    deepEqual(names(dir.path), ["out"]);
  }
});

Deno.test("what is no regular file is written in place", async () => {
  const output = createOutput("/dev/null", { replace: true });
  equal(output.stream, true);
  throws(() => output.restart(), /cannot start/);
  await output.publish();
  ok(Deno.statSync("/dev/null").isCharDevice);
  refuseExisting("/dev/null", false);
});

Deno.test("a directory that cannot be synced takes a new name back", async () => {
  using dir = tempDir();
  const EIO = 5;
  const output = createOutput(dir.file("out"));
  faultIo(IO.SYNC, 2, EIO);
  await rejects(output.publish(), isErrno("EIO"));
  faultIo(IO.SYNC, 1, EIO, 0);
  deepEqual(names(dir.path), []);
});
