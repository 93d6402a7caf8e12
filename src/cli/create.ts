// SPDX-License-Identifier: Apache-2.0
/**
 * `create`: makes a writable layer (spec/tools.md, section 2).
 *
 * @module
 */
import { createUpper } from "../layer/create.ts";
import { EXIT } from "./exit.ts";
import { failure, notBuilt, warnWithout } from "./original.ts";
import type { Call } from "./program.ts";
import type { Args } from "./table.ts";

const GIB = 1n << 30n;

/** Runs `overlaybd-create data_file index_file vsize`. */
export async function run(args: Args<"create">, call: Call): Promise<number> {
  if (args.turboOci) throw notBuilt(call, "--turboOCI");
  if (args.mkfs) throw notBuilt(call, "--mkfs");
  if (args.raw) {
    warnWithout([
      ...args.sparse ? ["-s"] : [],
      ...args.parent === undefined ? [] : ["-u"],
    ], "with '--raw'");
  }
  try {
    await createUpper({
      data: args.data_file,
      index: args.index_file,
      virtualSize: BigInt(args.vsize) * GIB,
      kind: args.raw ? "raw" : args.sparse ? "sparse" : "log",
      parentUuid: args.parent,
    });
  } catch (error) {
    throw failure(call, error, "create the layer", [
      args.data_file,
      args.index_file,
    ]);
  }
  if (args.verbose) {
    console.error(
      `created ${args.data_file} and ${args.index_file}: ${args.vsize} GiB`,
    );
  }
  console.log("overlaybd-create has created files SUCCESSFULLY");
  return EXIT.ok;
}
