// SPDX-License-Identifier: Apache-2.0
// Whether a handler of TCMU devices runs, from /proc/net/netlink.
import { equal } from "node:assert/strict";
import { hasMember } from "../../src/device/tcmu/handler.ts";

const row = (protocol: number, groups: number) =>
  `0000000085486878 ${protocol}  167        ${
    groups.toString(16).padStart(8, "0")
  } 0        0        0     2        0        11992   \n`;
const HEAD = "sk               Eth Pid        Groups   Rmem     Wmem     " +
  "Dump  Locks    Drops    Inode\n";

Deno.test("a handler is a generic netlink socket in the kernel's group", () => {
  equal(hasMember(HEAD + row(16, 0x100), 9), true);
  equal(hasMember(HEAD + row(16, 0x80000000), 32), true);
  equal(hasMember(HEAD + row(16, 0x100), 8), false);
  equal(hasMember(HEAD + row(16, 0x200) + row(15, 0x100), 9), false);
  equal(hasMember(HEAD, 9), false);
});

Deno.test("where the table does not tell, nothing is said", () => {
  equal(hasMember("", 9), undefined);
  equal(hasMember("what else\n", 9), undefined);
  equal(hasMember(HEAD + row(16, 1), 33), undefined);
  equal(hasMember(HEAD + row(16, 1), 0), undefined);
});
