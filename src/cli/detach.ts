// SPDX-License-Identifier: Apache-2.0
/**
 * `detach`: takes an attached disk away.
 *
 * @module
 */
import { HOST } from "../device/tcmu/configfs.ts";
import { detach } from "../service/attach.ts";
import { EXIT } from "./exit.ts";
import type { Args } from "./table.ts";

/** Runs `overlaybd detach ID|/dev/sdX|CONFIG`. */
export async function run(args: Args<"detach">): Promise<number> {
  await detach(HOST, args.device, (line) => console.error(line));
  return EXIT.ok;
}
