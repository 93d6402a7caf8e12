// SPDX-License-Identifier: Apache-2.0
/**
 * Disks under real kernels: how they come, go, work, and outlive the daemon.
 */
import { guestTests, KERNELS, SOAK } from "../lib/vm.ts";

for (const kernel of KERNELS) {
  // Of the newer kernel, what depends on the kernel most.
  const main = kernel === KERNELS[0] || SOAK;
  const options = {
    kernel,
    disk: SOAK ? "16G" : "2G",
    memory: 1536,
  };
  const some = (only: string) => main ? options : { ...options, only };
  await guestTests("attach.sh", some("again and again"));
  await guestTests("daemon.sh", some("kill -9 under"));
  if (!main) continue;
  await guestTests("disk.sh", options);
  await guestTests("fabric.sh", options);
}
