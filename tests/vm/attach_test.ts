// SPDX-License-Identifier: Apache-2.0
/** Devices come and go under a real kernel: proof of attach and detach. */
import { guestTests } from "../lib/vm.ts";

await guestTests("attach.sh", { disk: "2G", timeout: 600 });
