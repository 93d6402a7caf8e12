// SPDX-License-Identifier: Apache-2.0
// Disks that the kernel takes away while they wait for absent data.
import { deepStrictEqual as equal } from "node:assert/strict";
import type { Disk } from "../../src/device/tcmu/disk.ts";
import { watchExports } from "../../src/device/tcmu/exports.ts";
import { watchGoing, watchWaiting } from "../../src/device/tcmu/going.ts";
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

Deno.test("what waits on a disk that has left sysfs is ended", async () => {
  const here = new Set(["a", "b"]);
  const look = watchGoing(
    { count: (serial) => here.has(serial) ? 1 : 0 },
    () => Promise.resolve(false),
  );
  const [a, b, far] = ["a", "b", "far"].map(createDisk);
  if (a === undefined || b === undefined || far === undefined) return;
  const all = [a.disk, b.disk, far.disk];
  await look(all);
  for (const { stats } of [a, b, far]) {
    stats.commands = 5n;
    stats.depth = 2n;
  }
  await look(all);
  here.delete("a");
  await look(all);
  // One that never was a disk of this host is somebody else's to take away.
  equal([a.ended(), b.ended(), far.ended()], [1, 0, 0]);
  // It goes on: nothing waits without a move.
  a.stats.commands++;
  await look(all);
  equal(a.ended(), 1);
  await look(all);
  equal(a.ended(), 2);
  a.stats.depth = 0n;
  await look(all);
  equal(a.ended(), 2);
});

Deno.test("an idle disk is looked for only while it is new", async () => {
  let looks = 0;
  const look = watchGoing({
    count: () => {
      looks++;
      return 0;
    },
  }, () => Promise.resolve(false));
  const { disk, stats } = createDisk("x");
  for (let i = 0; i < 100; i++) await look([disk]);
  equal(looks, 30);
  stats.depth = 1n;
  await look([disk]);
  equal(looks, 31);
});

Deno.test("what waits is ended while an export is taken away, whoever sees its disk", async () => {
  let locked = false;
  let looks = 0;
  const look = watchGoing(
    { count: (serial) => serial === "here" ? 1 : 0 },
    () => {
      looks++;
      return Promise.resolve(locked);
    },
  );
  const [here, far, busy] = ["here", "far", "busy"].map(createDisk);
  if (here === undefined || far === undefined || busy === undefined) return;
  const all = [here.disk, far.disk, busy.disk];
  const ended = () => [here.ended(), far.ended(), busy.ended()];
  await look(all);
  equal(looks, 0);
  for (const { stats } of [here, far, busy]) stats.depth = 1n;
  busy.stats.commands++;
  await look(all);
  equal([ended(), looks], [[0, 0, 0], 1]);
  locked = true;
  busy.stats.commands++;
  await look(all);
  equal(ended(), [1, 1, 0]);
});

Deno.test("what waits for a disk that goes before its image opens fails, for a while", async () => {
  const here = new Set(["a", "b"]);
  const look = watchWaiting(
    { count: (serial) => here.has(serial) ? 1 : 0 },
    ({ name }) => Promise.resolve(name),
  );
  const given: string[] = [];
  const [a, b, far] = ["a", "b", "far"].map((name, minor) => ({
    uio: { minor, hba: "1", name, config: "" },
    giveUp: () => Promise.resolve(void given.push(name)),
  }));
  if (a === undefined || b === undefined || far === undefined) return;
  const all = [a, b, far];
  await look(all);
  equal(given, []);
  here.delete("a");
  await look(all);
  // One that never was a disk of this host is somebody else's to take away.
  equal(given.splice(0), ["a"]);
  for (let i = 0; i < 100; i++) await look(all);
  equal(given.splice(0).length, 14);
  // It is exported again, and goes again.
  here.add("a");
  await look(all);
  here.delete("a");
  await look(all);
  equal(given, ["a"]);
});

Deno.test("an export is locked when its directory cannot be listed", async () => {
  using dir = tempDir();
  const lun = "iscsi/iqn.x/tpgt_1/lun/lun_0";
  for (
    const path of [
      lun,
      "iscsi/iqn.x/tpgt_1/np/127.0.0.1:3260",
      "loopback/naa.1/tpgt_1/lun/lun_0",
      "core/user_1/vol1",
    ]
  ) Deno.mkdirSync(dir.file(`target/${path}`), { recursive: true });
  const listed: string[] = [];
  let open: ((names: string[]) => void) | undefined;
  let lockedDir = "";
  const isLocked = watchExports({ configfs: dir.path }, (path, pattern) => {
    listed.push(path.slice(dir.path.length + 8));
    if (path.endsWith(lockedDir) && lockedDir !== "") {
      return new Promise((done) => open = done);
    }
    const found = [...Deno.readDirSync(path)].map(({ name }) => name);
    return Promise.resolve(
      found.filter((name) => pattern?.test(name) !== false)
        .map((name) => `${path}/${name}`),
    );
  });
  equal(await isLocked(), false);
  equal(listed.at(-1), lun);
  // Nothing of the device itself, nor of what has no LUN.
  equal(listed.filter((path) => /core|np/.test(path)), []);
  lockedDir = "lun_0";
  equal(await isLocked(), true);
  const looks = listed.length;
  equal(await isLocked(), true);
  equal(listed.length, looks);
  lockedDir = "";
  open?.([]);
  await new Promise((done) => setTimeout(done));
  equal(await isLocked(), false);
});

Deno.test("where there is no target no export is locked", async () => {
  equal(await watchExports({ configfs: "/nowhere" })(), false);
  using dir = tempDir();
  Deno.mkdirSync(dir.file("target/iscsi/iqn.x/tpgt_1/lun/lun_0"), {
    recursive: true,
  });
  equal(await watchExports({ configfs: dir.path })(), false);
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
  const old = scsiDevices({ sys: dir.path }, Infinity);
  equal([scsi.count("s1"), scsi.disk("s1")], [0, undefined]);
  equal(old.disk("s1"), undefined);
  make("0:0:1:0", "s1", "sda");
  make("1:0:1:0", "s2");
  equal(old.disk("s1"), undefined);
  old.changed();
  equal(old.disk("s1"), "/dev/sda");
  equal([scsi.count("s1"), scsi.disk("s1")], [1, "/dev/sda"]);
  equal([scsi.count("s2"), scsi.disk("s2")], [1, undefined]);
  // Its address is given to another, which is not taken for it.
  Deno.removeSync(dir.file("class/scsi_device/0:0:1:0"), { recursive: true });
  make("0:0:1:0", "s3", "sdb");
  equal([scsi.count("s1"), scsi.count("s3")], [0, 1]);
  equal([scsi.disk("s3"), old.disk("s1")], ["/dev/sdb", undefined]);
});
