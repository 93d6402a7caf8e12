// SPDX-License-Identifier: Apache-2.0
// Names and attributes that the kernel shows (spec/tcmu.md, sections 1 and 3).
import { deepStrictEqual as equal, notStrictEqual } from "node:assert/strict";
import {
  act,
  configuredSerial,
  coreDevice,
  derivedSerial,
  deviceIndex,
  type KernelPaths,
  listUio,
  mapSize,
  parseDeviceConfig,
  parseUioName,
  setModule,
} from "../../src/device/tcmu/kernel.ts";

const name = { hba: "1", name: "vol1", config: "overlaybd//x" };

/** A directory in which files stand for the kernel's. */
async function withTree(
  files: Readonly<Record<string, string>>,
  work: (kernel: KernelPaths, dir: string) => Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir();
  try {
    for (const [path, text] of Object.entries(files)) {
      const whole = `${dir}/${path}`;
      await Deno.mkdir(whole.replace(/[^/]*$/, ""), { recursive: true });
      await Deno.writeTextFile(whole, text);
    }
    const kernel = { sys: dir, dev: `${dir}/dev`, configfs: `${dir}/config` };
    await work(kernel, dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

Deno.test("a uio name has the hba, the device and its whole config", () => {
  equal(parseUioName("tcm-user/1/vol1/overlaybd//root/c.json;a/b;c\n"), {
    hba: "1",
    name: "vol1",
    config: "overlaybd//root/c.json;a/b;c",
  });
  equal(parseUioName("tcm-user/1/vol1/\n")?.config, "");
  equal(parseUioName("tcm-user/1/vol1\n"), {
    hba: "1",
    name: "vol1",
    config: "",
  });
  equal(parseUioName("uio_pci_generic\n"), undefined);
});

Deno.test("only the subtype overlaybd, to the letter, is ours", () => {
  const parsed = (text: string) => parseDeviceConfig(`overlaybd/${text}`);
  equal(parsed("/root/c.json"), { path: "/root/c.json", devId: "" });
  equal(parsed("root/x"), { path: "root/x", devId: "" });
  equal(parsed("/x;id;2"), { path: "/x", devId: "id;2" });
  equal(parsed(""), { path: "", devId: "" });
  for (const other of ["over/x", "", "overlaybd", "overlaybd2/x", "file/x"]) {
    equal(parseDeviceConfig(other), undefined, other);
  }
});

Deno.test("TCMU devices are found by minor, others are not", async () => {
  await withTree({
    "class/uio/uio10/name": "tcm-user/1/b/overlaybd//b\n",
    "class/uio/uio2/name": "tcm-user/1/a/overlaybd//a\n",
    "class/uio/uio3/name": "other\n",
    "class/uio/uio2/maps/map0/size": "0x40800000\n",
  }, async (kernel) => {
    equal((await listUio(kernel)).map(({ minor, name }) => [minor, name]), [
      [2, "a"],
      [10, "b"],
    ]);
    equal(await mapSize(kernel, 2), 0x40800000n);
  });
  await withTree({}, async (kernel) => equal(await listUio(kernel), []));
});

Deno.test("attributes that the kernel lacks are told, not made", async () => {
  const action = "config/target/core/user_1/vol1/action";
  const block = "module/target_core_user/parameters/block_netlink";
  await withTree(
    { [`${action}/block_dev`]: "0", [block]: "0" },
    async (kernel, dir) => {
      equal(await act(kernel, name, "block_dev", 1), true);
      equal(await Deno.readTextFile(`${dir}/${action}/block_dev`), "1");
      equal(await act(kernel, name, "reset_ring", 1), false);
      equal(await setModule(kernel, "block_netlink", true), true);
      equal(await setModule(kernel, "reset_netlink", true), false);
    },
  );
});

Deno.test("a serial is the written one, or one of its own for each device", async () => {
  const core = "config/target/core/user_1/vol1";
  await withTree({
    [`${core}/wwn/vpd_unit_serial`]: "T10 VPD Unit Serial Number: abc 1\n",
    [`${core}/statistics/scsi_dev/indx`]: "7\n",
  }, async (kernel, dir) => {
    equal(coreDevice(kernel, name), `${dir}/${core}`);
    equal(await configuredSerial(kernel, name), "abc 1");
    equal(await deviceIndex(kernel, name), 7);
    equal(await configuredSerial(kernel, { ...name, hba: "2" }), undefined);
    equal(await deviceIndex(kernel, { ...name, hba: "2" }), undefined);
  });
  for (const text of ["", "\n", "T10 VPD", "T10 VPD Unit Serial Number: \n"]) {
    await withTree(
      { [`${core}/wwn/vpd_unit_serial`]: text },
      async (kernel) => equal(await configuredSerial(kernel, name), ""),
    );
  }
  const serial = await derivedSerial(name);
  equal(/^[0-9a-f]{32}$/.test(serial), true);
  equal(await derivedSerial({ ...name }), serial);
  notStrictEqual(await derivedSerial({ ...name, name: "vol2" }), serial);
});

Deno.test("the module is told whatever waits for configfs", async () => {
  const netlink = "module/target_core_user/parameters/block_netlink";
  await withTree({ [netlink]: "" }, async (kernel, dir) => {
    // Whoever writes to a pipe waits until somebody reads.
    const devices = Array.from(
      { length: 9 },
      (_, i) => ({ ...name, name: `vol${i}` }),
    );
    const pipes = devices.map((device) =>
      `${coreDevice(kernel, device)}/action/block_dev`
    );
    for (const pipe of pipes) {
      await Deno.mkdir(pipe.replace(/[^/]*$/, ""), { recursive: true });
      await new Deno.Command("mkfifo", { args: [pipe] }).output();
    }
    const written = devices.map((device) =>
      act(kernel, device, "block_dev", 1)
    );
    equal(await setModule(kernel, "block_netlink", true), true);
    equal(await Deno.readTextFile(`${dir}/${netlink}`), "1");
    for (const pipe of pipes) equal(await Deno.readTextFile(pipe), "1");
    equal(await Promise.all(written), devices.map(() => true));
  });
});
