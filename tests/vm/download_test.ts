// SPDX-License-Identifier: Apache-2.0
/** Mounted images whose layers are in a registry. */
import { guestTests } from "../lib/vm.ts";

await guestTests("download.sh", {
  disk: "1G",
  memory: 1536,
  needs: "docker-registry",
});
