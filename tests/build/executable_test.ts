// SPDX-License-Identifier: Apache-2.0
/**
 * The one executable: what it needs, where it runs, how it unpacks itself.
 */
import { deepStrictEqual as equal, match, ok } from "node:assert/strict";
import { existsSync, readdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import {
  EXECUTABLE,
  have,
  mustRun,
  ROOT,
  run,
  type TempDir,
  tempDir,
} from "../lib/env.ts";
import { bareDebian } from "../lib/debian.ts";

const BUILD = join(ROOT, "build");
const LIBRARY = join(BUILD, "liboverlaybd.so");
const isRoot = Deno.uid() === 0;
const noExecutable = EXECUTABLE === undefined;
if (noExecutable) console.log("skipped: OVERLAYBD_BIN names no executable");

/** Starts the executable with a cache directory of its own. */
async function start(
  cache: string,
  args: readonly string[],
  exe = EXECUTABLE ?? "",
) {
  return await run(exe, args, { env: { OVERLAYBD_CACHE_DIR: cache } });
}

/** A private directory, as the launcher demands. */
function cacheDir(dir: TempDir, name = "cache"): string {
  const path = dir.file(name);
  Deno.mkdirSync(path, { mode: 0o700 });
  return path;
}

/** Names in a cache directory, without what Deno keeps there. */
function unpacked(cache: string): string[] {
  return readdirSync(cache).filter((name) => !name.startsWith("deno-")).sort();
}

Deno.test("the library needs no glibc above 2.34 and no other library", async () => {
  const dynamic = await mustRun("objdump", ["-T", LIBRARY]);
  const versions = [...dynamic.matchAll(/GLIBC_2\.(\d+)/g)];
  ok(versions.length > 0);
  for (const [name, minor] of versions) ok(Number(minor) <= 34, name);
  const needed = [
    ...(await mustRun("objdump", ["-p", LIBRARY])).matchAll(/NEEDED\s+(\S+)/g),
  ].map(([, name]) => name ?? "");
  for (const name of needed) match(name, /^(libc\.so\.6|ld-linux.*)$/);
});

Deno.test("the library shows obd_ functions and nothing else", async () => {
  const symbols = await mustRun("nm", ["-D", "--defined-only", LIBRARY]);
  for (const line of symbols.trim().split("\n")) match(line, / T obd_\w+$/);
});

Deno.test("the executable does not tell where and when it was built", {
  ignore: noExecutable,
}, () => {
  const bytes = new TextDecoder("latin1")
    .decode(Deno.readFileSync(EXECUTABLE ?? ""));
  ok(!bytes.includes(ROOT));
  // Deno keeps the dates of the files in it, in ms.
  const dates = [...bytes.matchAll(/"t":(\d+)/g)].map(([, ms]) => ms);
  ok(dates.length > 10);
  equal(dates.filter((ms) => ms !== "0"), []);
});

Deno.test("eight first starts at once unpack one copy", {
  ignore: noExecutable,
}, async () => {
  using dir = tempDir();
  const cache = cacheDir(dir);
  const ended = await Promise.all(
    Array.from({ length: 8 }, () => start(cache, ["version"])),
  );
  for (const { code, stderr } of ended) equal([code, stderr], [0, ""]);
  const names = unpacked(cache);
  equal(names.map((name) => name.replace(/-.*/, "")), ["app", "rt"]);
});

Deno.test("a damaged copy is unpacked again", {
  ignore: noExecutable,
}, async () => {
  using dir = tempDir();
  const cache = cacheDir(dir);
  equal((await start(cache, ["version"])).code, 0);
  const [app = "", runtime = ""] = unpacked(cache);
  const library = join(cache, app, "build", "liboverlaybd.so");
  const deno = join(cache, runtime, "deno");
  for (const path of [library, deno]) {
    Deno.chmodSync(path, 0o700);
    Deno.truncateSync(path, 1000);
    equal((await start(cache, ["version"])).code, 0, path);
    Deno.chmodSync(path, 0o500);
  }
  Deno.removeSync(library);
  equal((await start(cache, ["version"])).code, 0);
});

Deno.test("an old version is removed, unless it runs", {
  ignore: noExecutable,
}, async () => {
  using dir = tempDir();
  const cache = cacheDir(dir);
  equal((await start(cache, ["version"])).code, 0);
  const [app = "", runtime = ""] = unpacked(cache);
  // What another version would have left, one in use and one not.
  const used = join(cache, "app-0000");
  Deno.mkdirSync(used);
  Deno.mkdirSync(join(cache, "deno-1111", "npm"), { recursive: true });
  Deno.mkdirSync(join(cache, "app-1111", "build"), { recursive: true });
  renameSync(join(cache, app), join(cache, "app-2222"));
  const holder = new Deno.Command("flock", {
    args: ["--shared", used, "sleep", "60"],
    stdout: "null",
    stderr: "null",
  }).spawn();
  await new Promise((resolve) => setTimeout(resolve, 300));
  equal((await start(cache, ["version"])).code, 0);
  holder.kill();
  await holder.status;
  equal(unpacked(cache), ["app-0000", app, runtime].sort());
  const kept = app.replace("app-", "deno-");
  equal(readdirSync(cache).filter((name) => name.startsWith("deno-")), [kept]);
});

// POSIX locks, as SQLite's: one on every file, till it is killed.
const LOCK_ALL = 'for (@ARGV) { open(my $f, "+<", $_) or die; push @f, $f; ' +
  'my $lock = pack("ssx4qqix4", 1, 0, 0x40000000, 512, 0); ' +
  "fcntl($f, 6, $lock) or die } " +
  'syswrite(STDOUT, "held\\n"); sleep 60';

Deno.test("a process that was stopped while it ended holds up no start", {
  ignore: noExecutable || !have("perl"),
}, async () => {
  using dir = tempDir();
  const cache = cacheDir(dir);
  equal((await start(cache, ["version"])).code, 0);
  const [kept = ""] = readdirSync(cache)
    .filter((name) => name.startsWith("deno-"));
  const files = readdirSync(join(cache, kept))
    .filter((name) => name.includes("_cache_"))
    .map((name) => join(cache, kept, name));
  ok(files.length >= 3, `${files}`);
  const holder = new Deno.Command("perl", {
    args: ["-e", LOCK_ALL, ...files],
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const said = holder.stdout.getReader();
  equal(new TextDecoder().decode((await said.read()).value), "held\n");
  const { code } = await run("timeout", [
    "20",
    "env",
    `OVERLAYBD_CACHE_DIR=${cache}`,
    EXECUTABLE ?? "",
    "version",
  ]);
  holder.kill();
  await said.cancel();
  await holder.status;
  equal(code, 0);
});

Deno.test("what others may write is not trusted, noexec is said", {
  ignore: noExecutable || !isRoot,
}, async () => {
  using dir = tempDir();
  const open = cacheDir(dir, "open");
  Deno.chmodSync(open, 0o777);
  equal((await start(open, ["version"])).code, 0);
  equal(readdirSync(open), []);
  const script = [
    "mount -t tmpfs none /mnt",
    `cp ${EXECUTABLE} /mnt/overlaybd`,
    "mkdir -m 700 /mnt/noexec",
    "mount -t tmpfs -o noexec,mode=700 none /mnt/noexec",
    "mount -t tmpfs -o ro none /var/cache",
    "mount -t tmpfs -o noexec none /tmp",
    "OVERLAYBD_CACHE_DIR=/mnt/noexec /mnt/overlaybd version",
  ].join(" && ");
  if (!(await run("unshare", ["-m", "true"])).code) {
    const { code, stderr } = await run("unshare", ["-m", "sh", "-c", script]);
    equal(code, 125);
    match(stderr, /^overlaybd: no private directory to unpack to .*noexec/);
    match(stderr, /OVERLAYBD_CACHE_DIR/);
  }
});

Deno.test("a damaged executable says so in one line", {
  ignore: noExecutable,
}, async () => {
  using dir = tempDir();
  const cache = cacheDir(dir);
  const whole = Deno.readFileSync(EXECUTABLE ?? "");
  const copy = dir.file("overlaybd");
  const attempt = async (bytes: Uint8Array) => {
    Deno.writeFileSync(copy, bytes, { mode: 0o755 });
    const { code, stdout, stderr } = await start(cache, ["version"], copy);
    equal(code, 125);
    equal(stdout, "");
    match(stderr, /^overlaybd: [^\n]+\n$/);
    equal(unpacked(cache).filter((name) => name.startsWith("app-")), []);
  };
  await attempt(whole.subarray(0, whole.length - 600_000));
  // A byte of the embedded application, its key left as it was.
  const bent = whole.slice();
  const at = whole.length - 10_000;
  bent[at] = (bent[at] ?? 0) ^ 1;
  await attempt(bent);
});

Deno.test(
  "a link's name picks the tool",
  { ignore: noExecutable },
  async () => {
    using dir = tempDir();
    const cache = cacheDir(dir);
    const link = dir.file("overlaybd-create");
    Deno.symlinkSync(EXECUTABLE ?? "", link);
    const { code, stdout } = await start(
      cache,
      [dir.file("d"), dir.file("i"), "1"],
      link,
    );
    equal(code, 0);
    equal(stdout, "overlaybd-create has created files SUCCESSFULLY\n");
  },
);

Deno.test("make install lays everything out, and anybody can run it", {
  ignore: noExecutable || !isRoot,
}, async () => {
  using dir = tempDir();
  Deno.chmodSync(dir.path, 0o755);
  const to = dir.file("root");
  Deno.mkdirSync(`${to}/etc/overlaybd`, { recursive: true });
  Deno.writeTextFileSync(`${to}/etc/overlaybd/overlaybd.json`, "{}");
  await mustRun("make", ["-s", "-C", ROOT, "install", `DESTDIR=${to}`]);
  equal(Deno.readTextFileSync(`${to}/etc/overlaybd/overlaybd.json`), "{}");
  const bin = `${to}/opt/overlaybd/bin`;
  for (const name of ["create", "commit", "zfile", "merge", "resize", "tcmu"]) {
    equal(Deno.readLinkSync(`${bin}/overlaybd-${name}`), "overlaybd");
  }
  ok(existsSync(`${to}/usr/lib/systemd/system/overlaybd-tcmu.service`));
  const { code, stderr } = await run("setpriv", [
    "--reuid=65534",
    "--clear-groups",
    "env",
    "-i",
    "HOME=/nonexistent",
    `${bin}/overlaybd`,
    "version",
  ]);
  equal([code, stderr], [0, ""]);
  // What Deno finds out about the program it keeps for each user, not there.
  const home = dir.file("home");
  Deno.mkdirSync(home);
  Deno.chownSync(home, 65534, 65534);
  await mustRun("setpriv", [
    "--reuid=65534",
    "--clear-groups",
    "env",
    "-i",
    `HOME=${home}`,
    `${bin}/overlaybd`,
    "version",
  ]);
  const [kept = "", ...more] = readdirSync(`${home}/.cache/overlaybd`);
  match(kept, /^deno-[0-9a-f]{32}$/);
  equal(more, []);
  ok(readdirSync(`${home}/.cache/overlaybd/${kept}`).length > 0);
  equal(
    readdirSync(`${to}/opt/overlaybd/lib/overlaybd`)
      .map((name) => name.replace(/-.*/, "")).sort(),
    ["app", "rt"],
  );
});

for (const suite of ["bookworm", "trixie"]) {
  Deno.test(`runs in a bare ${suite}, with nothing installed`, {
    ignore: noExecutable || !isRoot || !have("debootstrap"),
  }, async (t) => {
    const root = await bareDebian(suite);
    if (root === undefined) {
      console.log(`skipped: debootstrap cannot make ${suite} here`);
      await t.step({
        name: "debootstrap cannot make it here",
        ignore: true,
        fn: () => {},
      });
      return;
    }
    for (const name of ["libisal", "liblz4.so", "libzstd.so"]) {
      const found = await run("find", [
        join(root, "usr/lib"),
        "-name",
        `${name}*`,
      ]);
      if (name === "libisal") equal(found.stdout, "");
    }
    await mustRun("cp", [EXECUTABLE ?? "", join(root, "tmp/overlaybd")]);
    const script = [
      "cd /tmp && rm -f d i l c.json",
      "mount -t proc proc /proc",
      "./overlaybd version",
      "./overlaybd create d i 1",
      "./overlaybd commit -z --algorithm zstd d i l",
      "./overlaybd check l",
    ].join(" && ");
    const { code, stdout, stderr } = await run("unshare", [
      "-m",
      "chroot",
      root,
      "sh",
      "-c",
      script,
    ]);
    equal(code, 0, stderr);
    match(stdout, /crc=isal/);
    match(stdout, /sound/);
  });
}
