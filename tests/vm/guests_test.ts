// SPDX-License-Identifier: Apache-2.0
/**
 * What a real kernel makes of it: one guest a script, two at a time, those
 * that take longest first.
 */
import { join } from "node:path";
import { EXECUTABLE, have, mustRun, ROOT } from "../lib/env.ts";
import { guestTests, KERNELS, SOAK } from "../lib/vm.ts";

/** The package as it is, but not compressed: unpacking takes a guest long. */
async function packageForGuest(): Promise<void> {
  const out = await mustRun("make", ["-s", "-C", ROOT, "deb"]);
  const deb = join(ROOT, out.trimEnd().split("\n").at(-1) ?? "");
  const dir = join(ROOT, "build/package");
  await mustRun("rm", ["-rf", `${dir}/raw`]);
  await mustRun("dpkg-deb", ["-R", deb, `${dir}/raw`]);
  await mustRun("dpkg-deb", [
    ...["--root-owner-group", "-Znone", "-b"],
    ...[`${dir}/raw`, `${dir}/vm.deb`],
  ]);
}

/** This tree by another version, in build/vm-other. */
async function otherVersion(): Promise<void> {
  const dir = join(ROOT, "build/other");
  await mustRun("rm", ["-rf", dir, join(ROOT, "build/vm-other")]);
  await mustRun("mkdir", ["-p", dir]);
  const sources =
    "Makefile LICENSE deno.json deno.lock main.ts src ffi c scripts etc";
  await mustRun("cp", ["-r", ...sources.split(" "), dir], { cwd: ROOT });
  await Deno.writeTextFile(
    join(dir, "src/format/version.ts"),
    'export const VERSION = "999.0.0";\n',
  );
  await mustRun("make", [
    ...["-s", "-C", dir, "install", `DESTDIR=${join(ROOT, "build/vm-other")}`],
    `TOOLS=${join(ROOT, "build/tools")}`,
    `DENO_DIR=${join(ROOT, "build/deno_dir")}`,
  ]);
}
if (SOAK && EXECUTABLE !== undefined) await otherVersion();

// How disks come, go, work, and outlive the daemon.
for (const kernel of SOAK ? KERNELS : KERNELS.slice(0, 1)) {
  const options = {
    ...{ kernel, disk: SOAK ? "16G" : "2G", memory: 1536 },
    ...kernel === KERNELS[0] ? {} : { cpu: "max" },
  };
  await guestTests("daemon.sh", { ...options, cpus: 2 });
  await guestTests("attach.sh", options);
  await guestTests("disk.sh", options);
  await guestTests("fabric.sh", options);
}
// Of a second kernel not more than the main fits into the time of `make test`.
// It has AVX2, which the others go without.
if (!SOAK) {
  await guestTests("daemon.sh", {
    kernel: KERNELS[1],
    disk: "2G",
    memory: 1536,
    cpus: 2,
    only: "^kill -9 under fio|^unmounted, detached",
    cpu: "max",
  });
}
// Mounted images whose layers are in a registry; the cache leaves 1 GiB free.
await guestTests("download.sh", {
  disk: "4G",
  memory: 1536,
  needs: "docker-registry",
});
// The Debian package under systemd.
if (EXECUTABLE !== undefined && have("dpkg-deb") && have("systemctl")) {
  await packageForGuest();
  const options = { disk: "1G", memory: 2048 };
  await guestTests("package.sh", options);
  // In the original's place, and back.
  if (SOAK) await guestTests("switch.sh", options);
} else console.log("skipped: package: no executable, dpkg or systemd");
// Live snapshots of disks that a real kernel uses.
await guestTests("snapshot.sh", { disk: "3G" });
// The operator's commands, and what the page on disks says to type.
await guestTests("trouble.sh", { disk: "2G" });
await guestTests("doctor.sh");
await guestTests("pages.sh", { disk: "1G" });
