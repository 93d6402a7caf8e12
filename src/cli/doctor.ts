// SPDX-License-Identifier: Apache-2.0
/**
 * `doctor`: what this machine lacks, and the command that mends it.
 *
 * @module
 */
import { examine, type Finding } from "../service/doctor/doctor.ts";
import { EXIT } from "./exit.ts";
import { printJson, stdoutPrinter } from "./print.ts";
import type { Args } from "./table.ts";

/** Something that is needed is missing. */
const EXIT_MISSING = 1;

function report(findings: readonly Finding[]): void {
  const width = Math.max(...findings.map(({ name }) => name.length));
  const out = stdoutPrinter();
  for (const { state, name, found, mend } of findings) {
    const mark = state === "missing" ? "MISSING" : state;
    out.line(`${mark.padEnd(7)}  ${name.padEnd(width)}  ${found}`);
    if (mend !== undefined) out.line(`         mend: ${mend}`);
  }
  out.flush();
}

/** Runs `overlaybd doctor [--service_config_path FILE] [--json]`. */
export async function run(args: Args<"doctor">): Promise<number> {
  const findings = await examine({ root: "", config: args.serviceConfig });
  if (args.json) printJson(findings);
  else report(findings);
  return findings.some(({ state }) => state === "missing")
    ? EXIT_MISSING
    : EXIT.ok;
}
