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
    "Makefile LICENSE README.md deno.json deno.lock main.ts src ffi c docs scripts etc";
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

// The Debian package under systemd.
if (EXECUTABLE !== undefined && have("dpkg-deb") && have("systemctl")) {
  await packageForGuest();
  const options = { disk: "1G", memory: 2048 };
  await guestTests("package.sh", options);
  // In the original's place, and back.
  if (SOAK) await guestTests("switch.sh", options);
} else console.log("skipped: package: no executable, dpkg or systemd");
// How disks outlive the daemon; of a second kernel not more than the main fits
// into the time of `make test`.
const disks = { disk: SOAK ? "16G" : "2G", memory: 1536 };
await guestTests("daemon.sh", { ...disks, cpus: 2 });
// Live snapshots of disks that a real kernel uses.
await guestTests("snapshot.sh", { disk: "3G" });
// Mounted images whose layers are in a registry; the cache leaves 1 GiB free.
await guestTests("download.sh", {
  disk: "4G",
  memory: 1536,
  needs: "docker-registry",
});
await guestTests("daemon.sh", {
  ...{ ...disks, cpus: 2, kernel: KERNELS[1] },
  only: SOAK ? "" : "^kill -9 under fio|^unmounted, detached",
});
// The operator's commands.
await guestTests("trouble.sh", { disk: "2G" });
await guestTests("doctor.sh");
// How disks come, go and work.
for (const kernel of SOAK ? KERNELS : KERNELS.slice(0, 1)) {
  // With AVX2, which costs much and the others go without.
  await guestTests("disk.sh", { ...disks, kernel, cpu: "max" });
  await guestTests("attach.sh", { ...disks, kernel });
  await guestTests("fabric.sh", { ...disks, kernel });
}
// What the page on disks says to type.
await guestTests("pages.sh", { disk: "1G" });
