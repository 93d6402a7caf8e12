// SPDX-License-Identifier: Apache-2.0
/**
 * What doctor makes of a machine: each test is a machine, as files below a
 * temporary root, that lacks one thing.  Whether the commands mend it is
 * proven in a guest (tests/vm/guest/doctor.sh).
 */
import { deepEqual, equal, match } from "node:assert/strict";
import { dirname } from "node:path";
import { examine, type Finding } from "../../src/service/doctor/doctor.ts";
import { mustTool, type TempDir, tempDir, tool } from "../lib/env.ts";

const RELEASE = "6.1.0-test";
const ALL_CAPABILITIES = "CapEff:\t000001ffffffffff\n";
const UNIT = "tcm-user/999999999/dev_1/overlaybd//a.json\n";

/** A machine that lacks nothing, but for `changes`; undefined: not there. */
function machine(changes: Record<string, string | undefined> = {}): TempDir {
  const dir = tempDir();
  const files: Record<string, string | undefined> = {
    "proc/self/status": ALL_CAPABILITIES,
    "proc/self/mounts": "sysfs /sys sysfs rw,nosuid 0 0\n" +
      "configfs /sys/kernel/config configfs rw,relatime 0 0\n",
    "proc/self/limits": "Max open files            1024   1048576   files\n",
    "proc/sys/fs/nr_open": "1048576\n",
    "proc/sys/kernel/osrelease": `${RELEASE}\n`,
    "proc/1/cmdline": "/sbin/init\0",
    "etc/os-release": "NAME=x\nID=debian\n",
    "etc/ssl/certs/ca-certificates.crt": "x",
    "etc/overlaybd/overlaybd.json": JSON.stringify({
      logConfig: { logPath: "/logs/log" },
      auditPath: "/logs/audit",
      cacheConfig: { cacheType: "file", cacheDir: "/cache/here" },
      credentialConfig: { mode: "file", path: "/cred.json" },
    }),
    "sys/module/target_core_user/parameters/block_netlink": "unblocked\n",
    "sys/module/tcm_loop/refcnt": "0\n",
    "logs/x": "",
    "cache/x": "",
    ...changes,
  };
  for (const [name, text] of Object.entries(files)) {
    if (text === undefined) continue;
    Deno.mkdirSync(dirname(dir.file(name)), { recursive: true });
    Deno.writeTextFileSync(dir.file(name), text);
  }
  return dir;
}

function look(dir: TempDir): Promise<Finding[]> {
  return examine({
    root: dir.path,
    config: "/etc/overlaybd/overlaybd.json",
  });
}

/** What is not well, as `name: mend`. */
async function complaints(
  changes: Record<string, string | undefined>,
): Promise<string[]> {
  using dir = machine(changes);
  return (await look(dir)).filter(({ state }) => state !== "ok")
    .map(({ name, mend }) => `${name}: ${mend?.replaceAll(dir.path, "")}`);
}

Deno.test("doctor has nothing to say about a machine that lacks nothing", async () => {
  using dir = machine();
  deepEqual((await look(dir)).filter(({ state }) => state !== "ok"), []);
});

Deno.test("doctor: each thing that is missing, and the command for it", async () => {
  const cases: [string, Record<string, string | undefined>, string][] = [
    ["no rights", {
      "proc/self/status": "CapEff:\t0000000000000000\n",
    }, "permissions: sudo overlaybd doctor"],
    ["module not loaded", {
      "sys/module/tcm_loop/refcnt": undefined,
      [`lib/modules/${RELEASE}/modules.dep`]:
        "kernel/drivers/target/loopback/tcm_loop.ko.xz: x\n",
    }, "module tcm_loop: modprobe tcm_loop"],
    [
      "module not there",
      {
        "sys/module/tcm_loop/refcnt": undefined,
      },
      "module tcm_loop: apt-get install " +
      "linux-image-$(dpkg --print-architecture) && reboot",
    ],
    ["module not there, Ubuntu", {
      "sys/module/tcm_loop/refcnt": undefined,
      "etc/os-release": "ID=ubuntu\n",
    }, "module tcm_loop: apt-get install linux-modules-extra-$(uname -r)"],
    ["configfs not mounted", {
      "proc/self/mounts": "sysfs /sys sysfs rw 0 0\n",
      "sys/kernel/config/.keep": "",
    }, "configfs: mount -t configfs configfs /sys/kernel/config"],
    [
      "configfs not known",
      {
        "proc/self/mounts": "sysfs /sys sysfs rw 0 0\n",
      },
      "configfs: modprobe configfs && " +
      "mount -t configfs configfs /sys/kernel/config",
    ],
    ["configfs read-only", {
      "proc/self/mounts": "sysfs /sys sysfs rw 0 0\n" +
        "configfs /sys/kernel/config configfs ro 0 0\n",
    }, "configfs: mount -o remount,rw /sys/kernel/config"],
    ["sysfs read-only", {
      "proc/self/mounts": "sysfs /sys sysfs ro 0 0\n" +
        "configfs /sys/kernel/config configfs rw 0 0\n",
    }, "sysfs: mount -o remount,rw /sys"],
    ["another daemon", {
      "proc/77/cmdline": "/opt/overlaybd/bin/overlaybd-tcmu\0",
      "proc/78/cmdline": "overlaybd\0run\0main.js\0tcmu\0",
      "proc/79/cmdline": "vi\0overlaybd-tcmu\0",
    }, "daemon: kill 77 78"],
    ["devices without a daemon", {
      "sys/class/uio/uio0/name": UNIT,
      "dev/uio0": "",
    }, "devices: overlaybd-tcmu &"],
    ["devices without a daemon, systemd", {
      "sys/class/uio/uio0/name": UNIT,
      "dev/uio0": "",
      "run/systemd/system/x": "",
    }, "devices: systemctl start overlaybd-tcmu"],
    [
      "blocked",
      {
        "sys/module/target_core_user/parameters/block_netlink": "blocked\n",
      },
      "netlink: echo 0 > /sys/module/target_core_user/parameters/" +
      "block_netlink",
    ],
    ["io_uring switched off", {
      "proc/sys/kernel/io_uring_disabled": "2\n",
      "etc/overlaybd/overlaybd.json": JSON.stringify({
        ioEngine: 1,
        logConfig: { logPath: "/logs/log" },
        auditPath: "/logs/audit",
        cacheConfig: { cacheType: "file", cacheDir: "/cache/here" },
      }),
    }, "io_uring: sysctl -w kernel.io_uring_disabled=0"],
    ["no bundle", {
      "etc/ssl/certs/ca-certificates.crt": undefined,
    }, "CA bundle: apt-get install -y ca-certificates"],
    ["no bundle, but what makes it", {
      "etc/ssl/certs/ca-certificates.crt": "",
      "usr/sbin/update-ca-certificates": "",
    }, "CA bundle: update-ca-certificates"],
    ["no log directory", {
      "logs/x": undefined,
      "etc/overlaybd/overlaybd.json":
        '{"logConfig": {"logPath": "/nowhere to/log"}, "enableAudit": false,' +
        '"cacheConfig": {"cacheType": "file", "cacheDir": "/cache"}}',
    }, "log: mkdir -p '/nowhere to'"],
    ["a file for a directory", {
      "cache/x": undefined,
      "cache": "",
    }, "cache: mv /cache /cache.old && mkdir -p /cache/here"],
    [
      "config",
      { "etc/overlaybd/overlaybd.json": "{" },
      "configuration: mv /etc/overlaybd/overlaybd.json " +
      "/etc/overlaybd/overlaybd.json.broken",
    ],
    ["limit of the kernel", {
      "proc/sys/fs/nr_open": "1024\n",
    }, "open files: sysctl -w fs.nr_open=1048576"],
  ];
  for (const [what, changes, expected] of cases) {
    const found = await complaints(changes);
    equal(found.includes(expected), true, `${what}: ${found.join("; ")}`);
    // Without a configuration the default directories count, which no
    // machine of these has.
    if (what !== "config" && what !== "no rights") {
      equal(found.length, 1, `${what}: ${found.join("; ")}`);
    }
  }
});

Deno.test("doctor: directories that the daemon makes are not missing", async () => {
  const defaults = {
    "etc/overlaybd/overlaybd.json": "{}",
    "logs/x": undefined,
  };
  deepEqual(await complaints(defaults), []);
});

Deno.test("doctor: a low limit of open files matters to who cannot raise it", async () => {
  const limits = "Max open files            1024   4096   files\n";
  deepEqual(await complaints({ "proc/self/limits": limits }), []);
  const found = await complaints({
    "proc/self/limits": limits,
    "proc/self/status": "CapEff:\t000001fffeffffff\n",
  });
  equal(found.length, 1);
  match(found[0] ?? "", /^open files: prlimit --pid \d+ --nofile=1048576:/);
});

Deno.test("doctor: credentials that others can read are a warning", async () => {
  using dir = machine({ "cred.json": "{}" });
  Deno.chmodSync(dir.file("cred.json"), 0o640);
  const found = (await look(dir)).find(({ name }) => name === "credentials");
  equal(found?.state, "warning");
  equal(found?.mend, "chmod go= /cred.json");
  Deno.chmodSync(dir.file("cred.json"), 0o600);
  const again = (await look(dir)).find(({ name }) => name === "credentials");
  equal(again?.state, "ok");
});

Deno.test("doctor: /dev/uioN that is missing is made with the kernel's numbers", async () => {
  const found = await complaints({
    "proc/77/cmdline": "overlaybd-tcmu\0",
    "sys/class/uio/uio3/name": UNIT,
    "sys/class/uio/uio3/dev": "245:3\n",
    "sys/class/uio/uio4/name": "other\n",
  });
  equal(found.includes("/dev/uio*: mknod /dev/uio3 c 245 3"), true, `${found}`);
});

Deno.test("doctor: our own daemon is none too many while it starts", async () => {
  using dir = machine({ "proc/77/cmdline": "overlaybd-tcmu\0run\0" });
  Deno.symlinkSync("/opt/overlaybd/lib/rt-1/deno", dir.file("proc/77/exe"));
  const daemon = (await look(dir)).find(({ name }) => name === "daemon");
  deepEqual(daemon, { name: "daemon", state: "ok", found: "process 77" });
});

Deno.test("doctor prints a line for each check, as text and as JSON", async () => {
  const { code, stdout } = await tool("overlaybd", ["doctor", "--json"]);
  const findings: Finding[] = JSON.parse(stdout);
  equal(code, findings.some(({ state }) => state === "missing") ? 1 : 0);
  equal(findings.length >= 14, true);
  const text = (await tool("overlaybd", ["doctor"])).stdout;
  for (const { name, mend } of findings) {
    equal(text.includes(`  ${name} `), true, name);
    if (mend?.startsWith("prlimit") === false) {
      equal(text.includes(`mend: ${mend}`), true);
    }
  }
  match(await mustTool("overlaybd", ["doctor", "--help"]), /mends/);
});
