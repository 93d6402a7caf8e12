// SPDX-License-Identifier: Apache-2.0
/**
 * Attaching and detaching in configfs, against a model of the kernel's tree:
 * every step in the snapshotter's order, every one undone when a later one
 * fails.
 */
import {
  deepEqual,
  equal,
  match,
  ok,
  rejects,
  throws,
} from "node:assert/strict";
import { EngineError } from "../../ffi/errors.ts";
import { faultIo, HANG, IO } from "../../ffi/files.ts";
import {
  attachDisk,
  AttachError,
  detachDisk,
  deviceConfig,
  HOST,
  namesOf,
  RefusedError,
} from "../../src/device/tcmu/configfs.ts";
import { isClaimed, listDevices } from "../../src/device/tcmu/inventory.ts";
import { CORE, fakeKernel, PATHS } from "../lib/fake_kernel.ts";

const ENOENT = 2;
const EIO = 5;
const EAGAIN = 11;
const EBUSY = 16;
const EINVAL = 22;

const WANTED = { id: "42", path: "/images/a/config.v1.json", devId: "" };
const NAMES = namesOf(PATHS, "42");
const QUIET = {
  log: (line: string) => {
    throw new Error(line);
  },
};

Deno.test("waiting keeps a program alive, and ends", async () => {
  const started = performance.now();
  for (let i = 0; i < 3; i++) await HOST.sleep(10);
  ok(performance.now() - started >= 29);
});

Deno.test("attach makes the snapshotter's steps in the snapshotter's order", async () => {
  const kernel = fakeKernel();
  equal(await attachDisk(kernel, WANTED, QUIET), "sdx");
  const device = `${CORE}/user_999999999/dev_42`;
  const wwn = "naa.1990000000000042";
  const target = `/cfg/target/loopback/${wwn}`;
  deepEqual(kernel.did, [
    `mkdir ${device}`,
    `write ${device}/control dev_config=overlaybd//images/a/config.v1.json`,
    `write ${device}/control max_data_area_mb=4`,
    `write ${device}/enable 1`,
    `write ${device}/attrib/cmd_time_out 2147483`,
    `mkdir ${target}`,
    `mkdir ${target}/tpgt_1`,
    `mkdir ${target}/tpgt_1/lun/lun_0`,
    `write ${target}/tpgt_1/nexus ${wwn}`,
    `link ${target}/tpgt_1/lun/lun_0/dev_42`,
    "write /sys/block/sdx/device/timeout 2147483",
  ]);
});

Deno.test("whichever step of attach fails, nothing is left", async () => {
  const whole = fakeKernel();
  await attachDisk(whole, WANTED, QUIET);
  for (const step of whole.did) {
    const kernel = fakeKernel();
    kernel.fail = (change) => {
      if (change === step) throw new EngineError(EIO, `no ${change}`);
    };
    await rejects(attachDisk(kernel, WANTED, QUIET), /input\/output error/);
    deepEqual(kernel.made(), [], step);
  }
});

Deno.test("attach that is interrupted between two steps leaves nothing", async () => {
  for (let after = 0; after < 6; after++) {
    const kernel = fakeKernel();
    let passed = 0;
    const checkpoint = () => {
      if (passed++ === after) throw new Error("interrupted");
    };
    await rejects(
      attachDisk(kernel, WANTED, { ...QUIET, checkpoint }),
      /interrupted/,
    );
    deepEqual(kernel.made(), [], `after ${after}`);
  }
});

Deno.test("a step that cannot be undone is said, the others are undone", async () => {
  const kernel = fakeKernel();
  const said: string[] = [];
  kernel.fail = (change) => {
    if (change.startsWith("link") || change === `remove ${NAMES.lun}`) {
      throw new EngineError(EIO, change);
    }
  };
  const log = (line: string) => said.push(line);
  await rejects(attachDisk(kernel, WANTED, { log }), /^EngineError: link/);
  match(said.join("\n"), /remove .*lun_0: input\/output error/);
  equal(kernel.nodes.has(NAMES.device), false);
});

Deno.test("attach waits while the daemon starts: EAGAIN, EINTR", async () => {
  const kernel = fakeKernel();
  let left = 99;
  kernel.fail = (change) => {
    if (change.endsWith("/enable 1") && left-- > 0) {
      throw new EngineError(left % 2 === 0 ? EAGAIN : 4, change);
    }
  };
  equal(await attachDisk(kernel, WANTED, QUIET), "sdx");
});

Deno.test("attach tries no more once it is interrupted: nobody may answer", async () => {
  const kernel = fakeKernel();
  let tries = 0;
  kernel.fail = (change) => {
    if (!change.endsWith("/enable 1")) return;
    tries++;
    throw new EngineError(EAGAIN, change);
  };
  const checkpoint = () => {
    if (tries === 3) throw new Error("interrupted");
  };
  await rejects(
    attachDisk(kernel, WANTED, { ...QUIET, checkpoint }),
    /interrupted/,
  );
  equal(tries, 3);
  deepEqual(kernel.made(), []);
});

Deno.test("attach ends after 100 times EAGAIN, and at once for what will not heal", async () => {
  for (const [errno, tries] of [[EAGAIN, 100], [EINVAL, 1], [ENOENT, 1]]) {
    const kernel = fakeKernel();
    let calls = 0;
    kernel.fail = (change) => {
      if (!change.endsWith("/enable 1")) return;
      calls++;
      throw new EngineError(errno ?? 0, change);
    };
    await rejects(attachDisk(kernel, WANTED, QUIET), (error) => {
      equal(error instanceof RefusedError && error.cause.errno, errno);
      return true;
    });
    equal(calls, tries);
    deepEqual(kernel.made(), []);
  }
});

Deno.test("attach without a disk in time fails, and leaves nothing", async () => {
  const kernel = fakeKernel();
  const { list } = kernel.tree;
  kernel.tree.list = (path) =>
    path.startsWith("/sys") ? Promise.resolve([]) : list(path);
  await rejects(attachDisk(kernel, WANTED, QUIET), /no disk came at .* 3:0:1/);
  deepEqual(kernel.made(), []);
});

Deno.test("an id that is taken is refused, and its owner keeps the device", async () => {
  const kernel = fakeKernel();
  await attachDisk(kernel, WANTED, QUIET);
  const before = kernel.made();
  await rejects(attachDisk(kernel, WANTED, QUIET), AttachError);
  deepEqual(kernel.made(), before);
});

Deno.test("ids of 1 and 13 characters make a WWN of 16 digits, others none", () => {
  equal(namesOf(PATHS, "1").wwn, "naa.1990000000000001");
  equal(namesOf(PATHS, "1234567890123").wwn, "naa.1991234567890123");
  for (const id of ["", "12345678901234", "a/b", "a b", ".."]) {
    throws(() => deviceConfig({ ...WANTED, id }), AttachError, id);
  }
});

Deno.test("a dev_config of 255 bytes is given to the kernel, one more is refused", () => {
  const room = 255 - "overlaybd/".length;
  const path = `/${"p".repeat(room - 1)}`;
  equal(deviceConfig({ ...WANTED, path }).length, 255);
  throws(
    () => deviceConfig({ ...WANTED, path: `${path}x` }),
    /1 bytes too long/,
  );
  // Bytes, not characters.
  throws(
    () => deviceConfig({ ...WANTED, path: `/${"é".repeat(room - 1)}` }),
    /244 bytes too long/,
  );
  throws(() => deviceConfig({ ...WANTED, path, devId: "x" }), /2 bytes too/);
});

Deno.test("a path that the kernel would take apart is refused", () => {
  for (const path of ["/a,b", "/a\nb", "/a;b"]) {
    throws(() => deviceConfig({ ...WANTED, path }), /the kernel allows no/);
  }
  equal(
    deviceConfig({ ...WANTED, path: "/a", devId: "x;y" }),
    "overlaybd//a;x;y",
  );
});

Deno.test("devices are listed with disk, size, state, and where they are mounted", async () => {
  const kernel = fakeKernel();
  await attachDisk(kernel, { ...WANTED, devId: "web" }, QUIET);
  await kernel.tree.makeDir(`${CORE}/user_1/vol1`);
  const vol1 = `${CORE}/user_1/vol1`;
  await kernel.tree.write(`${vol1}/control`, "dev_config=overlaybd//b.json");
  await kernel.tree.makeDir(`${CORE}/user_2/glfs`);
  await kernel.tree.write(`${CORE}/user_2/glfs/control`, "dev_config=glfs/v");
  kernel.nodes.set(
    "/proc/self/mountinfo",
    "30 1 8:17 / /mnt/a\\040b rw - ext4 /dev/sdx1 rw\n" +
      "31 1 8:1 / /other rw - ext4 /dev/sda1 rw\n",
  );
  const found = await listDevices(kernel);
  deepEqual(found.map(({ exports: _, ...device }) => device), [{
    id: "42",
    hba: "999999999",
    name: "dev_42",
    config: "/images/a/config.v1.json",
    devId: "web",
    disk: "/dev/sdx",
    size: 1048576,
    readOnly: true,
    state: "running",
    mounted: ["/mnt/a b"],
    exported: [],
  }, {
    id: "user_1/vol1",
    hba: "1",
    name: "vol1",
    config: "/b.json",
    devId: "",
    disk: null,
    size: null,
    readOnly: null,
    state: "disabled",
    mounted: [],
    exported: [],
  }]);
});

Deno.test("devices are listed by id, numbers in it by size", async () => {
  const kernel = fakeKernel();
  for (const name of ["vol10", "vol9", "b", "Vol9"]) {
    const dir = `${CORE}/user_1/${name}`;
    await kernel.tree.makeDir(dir);
    await kernel.tree.write(`${dir}/control`, `dev_config=overlaybd//${name}`);
  }
  const found = await listDevices(kernel);
  deepEqual(found.map(({ name }) => name), ["Vol9", "b", "vol9", "vol10"]);
});

Deno.test("detach removes link, LUN, port, target and device in this order", async () => {
  const kernel = fakeKernel();
  await attachDisk(kernel, WANTED, QUIET);
  const [device] = await listDevices(kernel);
  kernel.did.length = 0;
  await detachDisk(kernel, NAMES.device, device?.exports ?? []);
  deepEqual(kernel.did, [
    `remove ${NAMES.link}`,
    `remove ${NAMES.lun}`,
    `remove ${NAMES.port}`,
    `remove ${NAMES.target}`,
    `remove ${NAMES.device}`,
  ]);
  deepEqual(kernel.made(), []);
});

Deno.test("other LUNs of a target stay when one is detached", async () => {
  const kernel = fakeKernel();
  await attachDisk(kernel, WANTED, QUIET);
  await kernel.tree.makeDir(`${NAMES.port}/lun/lun_1`);
  const [device] = await listDevices(kernel);
  await detachDisk(kernel, NAMES.device, device?.exports ?? []);
  equal(kernel.nodes.get(`${NAMES.port}/lun/lun_1`), null);
  equal(kernel.nodes.has(NAMES.device), false);
});

Deno.test("exports that are no loopback disk are listed", async () => {
  const kernel = fakeKernel();
  await kernel.tree.makeDir(`${CORE}/user_1/vol1`);
  await kernel.tree.write(
    `${CORE}/user_1/vol1/control`,
    "dev_config=overlaybd//b.json",
  );
  await kernel.tree.write(`${CORE}/user_1/vol1/enable`, "1");
  const port = "/cfg/target/iscsi/iqn.2026-01.x:y/tpgt_1";
  await kernel.tree.makeDir(`${port}/lun/lun_0`);
  kernel.nodes.set(`${port}/lun/lun_0/l`, `-> ${CORE}/user_1/vol1`);
  const [device] = await listDevices(kernel);
  deepEqual(device?.exported, ["iscsi iqn.2026-01.x:y"]);
  equal(device?.state, "no disk");
});

Deno.test("a disk whose opening waits for its source is in nobody's use, and holds nothing up", async () => {
  const path = await Deno.makeTempFile();
  try {
    equal(await isClaimed(path), false);
    // Whoever serves the disk is this very thread.
    faultIo(IO.OPEN, 1, HANG);
    const turn = new Promise((done) => setTimeout(() => done("a turn")));
    const claimed = isClaimed(path);
    equal(await Promise.race([turn, claimed]), "a turn");
    equal(await claimed, false);
    faultIo(IO.OPEN, 0, 0, 0);
    // Refused when it is exclusive.
    faultIo(IO.OPEN, 2, EBUSY);
    equal(await isClaimed(path), true);
  } finally {
    faultIo(IO.OPEN, 0, 0, 0);
    await Deno.remove(path);
  }
});
