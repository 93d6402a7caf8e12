// SPDX-License-Identifier: Apache-2.0
/**
 * `tcmu`: says that it is not there yet.
 *
 * @module
 */
import { EXIT, ExitError } from "./exit.ts";
import type { Args } from "./table.ts";
import type { Call } from "./program.ts";

/** `overlaybd-tcmu [service_config]` */
export function run(_args: Args<"tcmu">, call: Call): number {
  throw new ExitError(
    EXIT.failure,
    `${call.program}: this version cannot serve TCMU devices; ` +
      "`overlaybd serve` serves images over NBD",
  );
}
