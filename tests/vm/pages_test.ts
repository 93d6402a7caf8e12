// SPDX-License-Identifier: Apache-2.0
/** What the page on disks says to type, under a real kernel. */
import { guestTests } from "../lib/vm.ts";

await guestTests("pages.sh", { disk: "1G" });
