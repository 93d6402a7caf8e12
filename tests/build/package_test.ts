// SPDX-License-Identifier: Apache-2.0
/**
 * The packages: what they hold, and what installing, upgrading, removing and
 * purging them does to a machine, with and without the original on it.
 */
import { deepStrictEqual as equal, match, ok } from "node:assert/strict";
import { existsSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { commandNames, commandSpec } from "../../src/cli/table.ts";
import { bareDebian, type Machine, machine } from "../lib/debian.ts";
import {
  EXECUTABLE,
  have,
  mustRun,
  ROOT,
  run,
  sha256File,
  type TempDir,
  tempDir,
} from "../lib/env.ts";

const CONF = "/etc/overlaybd/overlaybd.json";
const CRED = "/opt/overlaybd/cred.json";
const BIN = "/opt/overlaybd/bin";
const cannot = EXECUTABLE === undefined || Deno.uid() !== 0 ||
  !have("dpkg-deb") || !have("debootstrap");
if (cannot) console.log("skipped: packages need root, dpkg and debootstrap");

type Kind = "deb" | "tarball";

/** Makes a package; returns its path. */
async function make(kind: Kind, env = {}): Promise<string> {
  const out = await mustRun("make", ["-s", "-C", ROOT, kind], { env });
  return join(ROOT, out.trimEnd().split("\n").at(-1) ?? "");
}

const packages = new Map<Kind, Promise<string>>();

/** The package, made once for all tests. */
function made(kind: Kind): Promise<string> {
  const path = packages.get(kind) ??
    make(kind, { TZ: "UTC", LC_ALL: "C.UTF-8" });
  packages.set(kind, path);
  return path;
}

/** Every file with its mode, owner and contents, as lines. */
async function listing(root: string): Promise<string[]> {
  const found = await mustRun("find", [
    root,
    "-mindepth",
    "1",
    "-printf",
    "%y %m %U:%G %P %l\n",
  ]);
  return found.trimEnd().split("\n").map((line) => {
    const [type, , , path = ""] = line.split(" ");
    return type === "f" ? `${line} ${sha256File(join(root, path))}` : line;
  }).toSorted();
}

Deno.test("make install, the package and the tarball are the same files", {
  ignore: cannot,
}, async () => {
  using dir = tempDir();
  const [installed, deb, tarball] = ["installed", "deb", "tarball"]
    .map((name) => dir.file(name)) as [string, string, string];
  for (const path of [installed, deb, tarball]) Deno.mkdirSync(path);
  await mustRun("make", ["-s", "-C", ROOT, "install", `DESTDIR=${installed}`]);
  await mustRun("dpkg-deb", ["-x", await made("deb"), deb]);
  await mustRun("tar", ["-C", tarball, "-xzf", await made("tarball")]);
  const of = await listing(tarball);
  ok(of.length > 50);
  const only = (lines: string[], paths: RegExp) =>
    lines.filter((line) => !of.includes(line) && !paths.test(line));
  // A configuration is made where there is none; Debian wants two documents.
  equal(
    only(await listing(installed), / (etc(\/\S+)?|opt\/overlaybd\/cred.json) /),
    [],
  );
  equal(only(await listing(deb), /\/(changelog\.gz|lintian\S*) /), []);
  for (const [name, lines] of [["deb", deb], ["installed", installed]]) {
    const has = await listing(lines ?? "");
    equal(of.filter((line) => !has.includes(line)), [], name);
  }
  equal(
    readdirSync(join(tarball, BIN)).toSorted(),
    [
      "overlaybd",
      ...commandNames().flatMap((name) => commandSpec(name).original ?? []),
    ].toSorted(),
  );
});

Deno.test("the same sources make the same packages", {
  ignore: cannot,
}, async () => {
  for (const kind of ["deb", "tarball"] as const) {
    const sum = sha256File(await made(kind));
    const again = await make(kind, { TZ: "Asia/Tokyo", LC_ALL: "C" });
    equal(sha256File(again), sum);
  }
});

Deno.test("lintian finds nothing", {
  ignore: cannot || !have("lintian"),
}, async () => {
  const found = await run("lintian", [
    "--allow-root",
    "--fail-on=error,warning",
    await made("deb"),
  ]);
  equal([found.code, found.stdout], [0, ""]);
});

/** A test on a machine of its own, with the package in /root. */
function onMachine(
  name: string,
  test: (on: Machine, deb: string, dir: TempDir) => Promise<void>,
): void {
  Deno.test(name, { ignore: cannot }, async () => {
    const bare = await bareDebian("bookworm");
    if (bare === undefined) {
      console.log("skipped: debootstrap cannot make a bookworm here");
      return;
    }
    const deb = await made("deb");
    using dir = tempDir();
    const on = await machine(bare, dir);
    await mustRun("cp", [deb, join(on.root, "root")]);
    await test(on, `/root/${basename(deb)}`, dir);
  });
}

/** What dpkg itself writes; it drops an empty /opt, too. */
const OF_DPKG =
  /^\/(var\/(lib\/dpkg|log\/(dpkg|alternatives)|cache|lib\/systemd)|root|opt$)(\/|\.|$)/;

onMachine(
  "installed, upgraded over itself, removed and purged, nothing stays",
  async (on, deb) => {
    const others = async () =>
      (await on.files()).filter((path) => !OF_DPKG.test(path));
    const before = await others();
    await on.must(`dpkg -i ${deb}`);
    match(
      await on.must("setpriv --reuid=65534 --clear-groups overlaybd version"),
      /^overlaybd /,
    );
    match(await on.must(`overlaybd config check`), /can be used/);
    equal((Deno.statSync(on.root + CRED).mode ?? 0) & 0o777, 0o600);
    match(await on.must("dpkg -V overlaybd-deno; echo clean"), /^clean$/m);
    // A link that points nowhere but in the machine.
    await on.must(
      "test -L /etc/systemd/system/multi-user.target.wants/" +
        "overlaybd-tcmu.service",
    );

    const edited = '{"logLevel": 2}\n';
    Deno.writeTextFileSync(on.root + CONF, edited);
    await on.must(`dpkg -i ${deb}`);
    equal(Deno.readTextFileSync(on.root + CONF), edited);

    // What a service leaves.
    await on.must(
      "mkdir -p /opt/overlaybd/registry_cache /opt/overlaybd/gzip_cache.state" +
        " && touch /var/log/overlaybd.log.1 /var/log/overlaybd-audit.log",
    );
    await on.must("dpkg -r overlaybd-deno");
    equal(Deno.readTextFileSync(on.root + CONF), edited);
    ok(existsSync(on.root + CRED));
    ok(!existsSync(on.root + BIN));
    await on.must("dpkg -P overlaybd-deno");
    const after = await others();
    equal(after.filter((path) => !before.includes(path)), []);
    equal(before.filter((path) => !after.includes(path)), []);
  },
);

onMachine(
  "a configuration that was there is kept, through purge",
  async (on, deb) => {
    await on.must(`mkdir -p /etc/overlaybd ${BIN}`);
    const mine = '{"registryCacheSizeGB": 9}\n';
    const secret = '{"auths": {"r": {"username": "u", "password": "p"}}}\n';
    Deno.writeTextFileSync(on.root + CONF, mine);
    Deno.writeTextFileSync(on.root + CRED, secret, { mode: 0o640 });
    await on.must(`dpkg -i ${deb} && dpkg -i ${deb}`);
    await on.must("dpkg -P overlaybd-deno");
    equal(Deno.readTextFileSync(on.root + CONF), mine);
    equal(Deno.readTextFileSync(on.root + CRED), secret);
    equal((Deno.statSync(on.root + CRED).mode ?? 0) & 0o777, 0o640);
  },
);

/** Files of the original that stand for all of them. */
const ORIGINAL = [
  `${BIN}/overlaybd-create`,
  `${BIN}/overlaybd-tcmu`,
  `${BIN}/overlaybd-apply`,
  `${BIN}/turboOCI-apply`,
  "/opt/overlaybd/overlaybd-tcmu.service",
  "/opt/overlaybd/baselayers/ext4_64",
  CONF,
  CRED,
];

/** The original's package, as far as paths go, in the machine's /root. */
async function originalPackage(on: Machine, dir: TempDir): Promise<string> {
  const tree = dir.file("original");
  for (const path of ORIGINAL) {
    Deno.mkdirSync(join(tree, path, ".."), { recursive: true });
    Deno.writeTextFileSync(tree + path, `#!/bin/sh\necho the original\n`, {
      mode: 0o755,
    });
  }
  Deno.mkdirSync(`${tree}/DEBIAN`);
  Deno.writeTextFileSync(
    `${tree}/DEBIAN/control`,
    "Package: overlaybd\nVersion: 1.0.15\nArchitecture: amd64\n" +
      "Maintainer: nobody <nobody@localhost>\nDescription: the original\n",
  );
  await mustRun("dpkg-deb", [
    "--root-owner-group",
    "-b",
    tree,
    `${on.root}/root/original.deb`,
  ]);
  return "/root/original.deb";
}

/** True where the original's file is, or is aside, as it was. */
function isOriginal(on: Machine, path: string): boolean {
  const text = Deno.readFileSync(on.root + path).subarray(0, 100);
  return new TextDecoder().decode(text).includes("the original");
}

for (const first of ["original", "ours"] as const) {
  onMachine(
    `beside the original's package, ${first} installed first: only our ` +
      "names are taken, and given back",
    async (on, deb, dir) => {
      const original = await originalPackage(on, dir);
      if (first === "ours") {
        await on.must(`dpkg -i ${deb}`);
        await on.must(`dpkg -i --force-confold ${original}`);
      } else await on.must(`dpkg -i ${original} && dpkg -i ${deb}`);
      const ours = [
        `${BIN}/overlaybd-create`,
        `${BIN}/overlaybd-tcmu`,
        "/opt/overlaybd/overlaybd-tcmu.service",
      ];
      const given = [`${BIN}/overlaybd-apply`, `${BIN}/turboOCI-apply`];
      for (const path of ours) {
        ok(!isOriginal(on, path), path);
        ok(isOriginal(on, `${path}.original`), path);
      }
      for (const path of given) ok(isOriginal(on, path), path);
      match(
        await on.must(`cd /tmp && ${BIN}/overlaybd-create d i 1`),
        /SUCCESSFULLY/,
      );
      await on.must(`dpkg -i ${deb}`);
      await on.must("dpkg -P overlaybd-deno");
      for (const path of ORIGINAL) {
        ok(isOriginal(on, path), path);
        ok(!existsSync(`${on.root}${path}.original`), path);
      }
      match(await on.must(`${BIN}/overlaybd-tcmu`), /the original/);
      equal(await on.must("dpkg-divert --list '*overlaybd*'"), "");
      equal(
        readdirSync(on.root + BIN).toSorted(),
        [
          "overlaybd-apply",
          "overlaybd-create",
          "overlaybd-tcmu",
          "turboOCI-apply",
        ],
      );
    },
  );
}

onMachine(
  "programs of our names that no package owns are put aside, and come back",
  async (on, deb) => {
    const file = `${BIN}/overlaybd-commit`;
    await on.must(`mkdir -p ${BIN} && echo the original > ${file}`);
    await on.must(`dpkg -i ${deb}`);
    ok(!isOriginal(on, file));
    await on.must("dpkg -P overlaybd-deno");
    ok(isOriginal(on, file));
    equal(readdirSync(on.root + BIN), ["overlaybd-commit"]);
  },
);

onMachine(
  "removal is refused while the kernel has disks of ours",
  async (on, deb) => {
    await on.must(`dpkg -i ${deb}`);
    const device = "/sys/class/uio/uio0";
    const name = (text: string) =>
      on.must(`mkdir -p ${device} && echo '${text}' > ${device}/name`);
    await name("tcm-user/1/vol1/overlaybd//root/config.v1.json");
    const refused = await on.sh("dpkg -r overlaybd-deno");
    ok(refused.code !== 0);
    match(refused.stderr, /cannot be removed: 1 disks are attached/);
    match(await on.must("overlaybd version"), /^overlaybd /);
    await on.must(`dpkg -i ${deb}`);
    // Somebody else's is none of ours.
    await name("tcm-user/1/vol1/rbd/pool/image");
    await on.must("dpkg -r overlaybd-deno");
  },
);
