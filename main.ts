// SPDX-License-Identifier: Apache-2.0
/**
 * The program: which command is meant, by the name it was called by or by
 * its first argument.
 *
 * @module
 */
import { runProgram } from "./src/cli/program.ts";

// At once: a call that a disk does not answer would keep the process.
Deno.exit(
  await runProgram(Deno.env.get("OVERLAYBD_ARGV0") ?? "overlaybd", Deno.args),
);
