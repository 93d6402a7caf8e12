// SPDX-License-Identifier: Apache-2.0
/** The operator's commands under a real kernel. */
import { guestTests } from "../lib/vm.ts";

await guestTests("nobody.sh", { disk: "1G" });
await guestTests("doctor.sh");
