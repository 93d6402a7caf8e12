// SPDX-License-Identifier: Apache-2.0
/** The Debian package under a real kernel and systemd. */
import { join } from "node:path";
import { EXECUTABLE, have, mustRun, ROOT } from "../lib/env.ts";
import { guestTests } from "../lib/vm.ts";

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

if (EXECUTABLE !== undefined && have("dpkg-deb") && have("systemctl")) {
  await packageForGuest();
  await guestTests("package.sh", { disk: "1G", memory: 2048 });
} else console.log("skipped: package: no executable, dpkg or systemd");
