// SPDX-License-Identifier: Apache-2.0
// Disks that the kernel takes away while they wait for absent data.
import { deepStrictEqual as equal } from "node:assert/strict";
import type { Disk } from "../../src/device/tcmu/disk.ts";
import { watchGoing } from "../../src/device/tcmu/going.ts";
import { scsiDevices } from "../../src/device/tcmu/scsi_devices.ts";
import { tempDir } from "../lib/env.ts";

function createDisk(serial: string) {
  const stats = { commands: 0n, depth: 0n, broken: undefined };
  let ended = 0;
  const nothing = () => {};
  const disk: Disk = {
    serial,
    image: undefined as never,
    grow: () => Promise.resolve(),
    grown: nothing,
    setWriteCache: nothing,
    stats: () => stats,
    endWaiting: () => void ended++,
    close: () => Promise.resolve(),
  };
  return { disk, stats, ended: () => ended };
}

Deno.test("what waits on a disk that has left sysfs is ended", () => {
  const here = new Set(["a", "b"]);
  const look = watchGoing({ count: (serial) => here.has(serial) ? 1 : 0 });
  const [a, b, far] = ["a", "b", "far"].map(createDisk);
  if (a === undefined || b === undefined || far === undefined) return;
  const all = [a.disk, b.disk, far.disk];
  look(all);
  for (const { stats } of [a, b, far]) {
    stats.commands = 5n;
    stats.depth = 2n;
  }
  look(all);
  here.delete("a");
  look(all);
  // One that never was a disk of this host is somebody else's to take away.
  equal([a.ended(), b.ended(), far.ended()], [1, 0, 0]);
  // It goes on: nothing waits without a move.
  a.stats.commands++;
  look(all);
  equal(a.ended(), 1);
  look(all);
  equal(a.ended(), 2);
  a.stats.depth = 0n;
  look(all);
  equal(a.ended(), 2);
});

Deno.test("an idle disk is looked for only while it is new", () => {
  let looks = 0;
  const look = watchGoing({
    count: () => {
      looks++;
      return 0;
    },
  });
  const { disk, stats } = createDisk("x");
  for (let i = 0; i < 100; i++) look([disk]);
  equal(looks, 30);
  stats.depth = 1n;
  look([disk]);
  equal(looks, 31);
});

Deno.test("SCSI devices are found by the serial that the kernel read", () => {
  using dir = tempDir();
  const make = (name: string, serial: string, disk?: string) => {
    const path = dir.file(`class/scsi_device/${name}/device`);
    Deno.mkdirSync(path, { recursive: true });
    Deno.writeTextFileSync(`${path}/vpd_pg80`, `\0\0\0\x05${serial}\0`);
    if (disk !== undefined) {
      Deno.mkdirSync(`${path}/block/${disk}`, { recursive: true });
    }
  };
  const scsi = scsiDevices({ sys: dir.path }, 0);
  equal([scsi.count("s1"), scsi.disk("s1")], [0, undefined]);
  make("0:0:1:0", "s1", "sda");
  make("1:0:1:0", "s2");
  equal([scsi.count("s1"), scsi.disk("s1")], [1, "/dev/sda"]);
  equal([scsi.count("s2"), scsi.disk("s2")], [1, undefined]);
  Deno.removeSync(dir.file("class/scsi_device/0:0:1:0"), { recursive: true });
  equal(scsi.count("s1"), 0);
});
