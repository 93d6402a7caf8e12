// SPDX-License-Identifier: Apache-2.0
/**
 * Whether anybody handles TCMU devices on this host: the kernel waits for ever
 * for the answer of a handler that has died.
 *
 * @module
 */
import { EngineError } from "../../../ffi/errors.ts";
import { netlinkGroup } from "../../../ffi/tcmu.ts";
import type { HostPaths } from "./configfs.ts";

const GENERIC = "16";

/**
 * Looks for members of a multicast group of generic netlink.
 *
 * @param table what `/proc/net/netlink` says
 * @returns undefined: the table does not tell
 */
export function hasMember(table: string, group: number): boolean | undefined {
  const [head = "", ...lines] = table.split("\n");
  const columns = head.trim().split(/\s+/);
  const protocol = columns.indexOf("Eth");
  const groups = columns.indexOf("Groups");
  // It has a column for the first 32.
  if (protocol < 0 || groups < 0 || group < 1 || group > 32) return undefined;
  return lines.map((line) => line.trim().split(/\s+/)).some((fields) =>
    fields[protocol] === GENERIC &&
    (parseInt(fields[groups] ?? "0", 16) >>> (group - 1) & 1) === 1
  );
}

/**
 * True when some program, ours or another, hears of new devices; undefined:
 * it cannot be told from here.
 */
export async function isHandled(
  { proc }: Pick<HostPaths, "proc">,
): Promise<boolean | undefined> {
  const table = await Deno.readTextFile(`${proc}/net/netlink`).catch(() => "");
  try {
    return hasMember(table, netlinkGroup());
  } catch (error) {
    if (error instanceof EngineError) return undefined;
    throw error;
  }
}
