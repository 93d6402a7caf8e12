// SPDX-License-Identifier: Apache-2.0
/**
 * `version`
 *
 * @module
 */
import { describeEngine } from "../../ffi/engine.ts";
import { VERSION } from "../format/version.ts";
import { EXIT } from "./exit.ts";
import type { Args } from "./table.ts";

/** `overlaybd version [--json]` */
export function run(args: Args<"version">): number {
  const engine = describeEngine();
  const deno = Deno.version.deno;
  console.log(
    args.json
      ? JSON.stringify({ version: VERSION, engine, deno })
      : `overlaybd ${VERSION} (${engine}, deno ${deno})`,
  );
  return EXIT.ok;
}
