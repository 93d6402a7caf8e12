// SPDX-License-Identifier: Apache-2.0
/**
 * `attach`: an image as a disk of this machine.
 *
 * @module
 */
import { HOST } from "../device/tcmu/configfs.ts";
import { attach } from "../service/attach.ts";
import { EXIT } from "./exit.ts";
import { printJson } from "./print.ts";
import { interruptible } from "./signals.ts";
import type { Args } from "./table.ts";

/** Runs `overlaybd attach CONFIG[;dev_id] [--id X] [--json]`. */
export async function run(args: Args<"attach">): Promise<number> {
  const { config, id } = args;
  const attached = await interruptible((signal) =>
    attach(HOST, { config, id, signal, log: (line) => console.error(line) })
  );
  if (args.json) printJson(attached);
  else console.log(attached.disk);
  return EXIT.ok;
}
