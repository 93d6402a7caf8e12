// SPDX-License-Identifier: Apache-2.0
/**
 * Disks under real kernels: how they come, go, work, and outlive the daemon.
 */
import { guestTests, KERNELS, SOAK } from "../lib/vm.ts";

// Guests of a second kernel do not fit into the time of `make test`.
for (const kernel of SOAK ? KERNELS : KERNELS.slice(0, 1)) {
  const options = {
    kernel,
    disk: SOAK ? "16G" : "2G",
    memory: 1536,
  };
  await guestTests("attach.sh", options);
  await guestTests("daemon.sh", options);
  await guestTests("disk.sh", options);
  await guestTests("fabric.sh", options);
}
