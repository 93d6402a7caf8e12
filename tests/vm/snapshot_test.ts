// SPDX-License-Identifier: Apache-2.0
/** Live snapshots of disks that a real kernel uses. */
import { guestTests } from "../lib/vm.ts";

await guestTests("snapshot.sh", { disk: "3G", timeout: 600 });
