// SPDX-License-Identifier: Apache-2.0
// TCMU devices as the kernel's events make them (spec/tcmu.md, sections 2, 3
// and 10), with files for sysfs and configfs, and rings that only remember.
import { deepStrictEqual as equal, match, ok } from "node:assert/strict";
import { newDevice } from "../../ffi/device.ts";
import { EngineError } from "../../ffi/errors.ts";
import { newIndex } from "../../ffi/index.ts";
import { newView } from "../../ffi/view.ts";
import type { Ring, ScsiCommand, TcmuEvent } from "../../ffi/tcmu.ts";
import type { Around, TcmuImage } from "../../src/device/tcmu/around.ts";
import { createDevices } from "../../src/device/tcmu/devices.ts";
import { DeviceError, ERRNO } from "../../src/device/tcmu/error.ts";
import { tempDir } from "../lib/env.ts";

const SIZE = 1 << 20;

interface Answer {
  status: number;
  /** sense key and additional code, "" without */
  code: string;
  data: number[];
}

/** One side of a device: what was asked of its image and its ring. */
interface Shown {
  path: string;
  devId: string;
  results: string[];
  closed: boolean;
  ringClosed: boolean;
  writeCache: boolean;
  attention: number[];
  size: bigint;
  /** why its ring makes no sense */
  broken: string | undefined;
  /** Sends a command as the ring does; what it was answered. */
  send(...cdb: number[]): Promise<Answer>;
}

function createWorld() {
  const dir = tempDir();
  const kernel = {
    sys: dir.file("sys"),
    dev: dir.file("dev"),
    configfs: dir.file("configfs"),
  };
  const shown: Shown[] = [];
  const replies: string[] = [];
  const lines: string[] = [];
  const counts = { broken: 0, unanswered: 0 };
  const line = (text: string) => void lines.push(text);
  const routes = new Map<number, (command: ScsiCommand) => void>();
  /** by path: what opening an image waits for; "close", "grow": and these */
  const gates = new Map<string, Promise<void>>();

  const core = (name: string) =>
    `${kernel.configfs}/target/core/user_1/${name}`;
  const put = (path: string, text: string) => {
    Deno.mkdirSync(path.replace(/[^/]*$/, ""), { recursive: true });
    Deno.writeTextFileSync(path, text);
  };
  const get = (path: string) => Deno.readTextFileSync(path);

  const openImage: Around["openImage"] = async ({ path, devId }) => {
    await gates.get(path);
    using index = newIndex(new Uint8Array(0));
    using view = newView(index, [], SIZE);
    const device = newDevice(view, undefined, SIZE, { readonly: true });
    const one: Shown = {
      path,
      devId,
      results: [],
      closed: false,
      ringClosed: false,
      writeCache: true,
      attention: [],
      size: BigInt(SIZE),
      broken: undefined,
      send: () => Promise.reject(new Error("no ring")),
    };
    shown.push(one);
    const image: TcmuImage = {
      id: shown.length,
      name: path,
      device,
      readonly: false,
      get size() {
        return one.size;
      },
      discardsReadZero: true,
      writeCache: true,
      async grow(size) {
        await gates.get("grow");
        one.size = size;
      },
      writeResult(error) {
        one.results.push(error === undefined ? "success" : "failed");
        return Promise.resolve();
      },
      close() {
        one.closed = true;
        device.close();
        return Promise.resolve();
      },
    };
    return image;
  };

  const openRing: Around["openRing"] = (minor, _device, { id }) => {
    const one = shown.at(-1);
    if (one === undefined) throw new Error("no image");
    if (minor === 99) return Promise.reject(new Error("no such uio"));
    const answers = new Map<number, (answer: Answer) => void>();
    let tag = 0;
    one.send = (...cdb) =>
      new Promise((done) => {
        answers.set(++tag, done);
        routes.get(id)?.({
          ring: id,
          tag,
          cdb: Uint8Array.from(cdb),
          length: 4096,
        });
      });
    const ring: Ring = {
      setWriteCache: (on) => void (one.writeCache = on),
      attention: (code) => void one.attention.push(code),
      stats: () => ({
        commands: 0n,
        asked: 0n,
        kicks: 0n,
        refused: 0n,
        depth: 0n,
        depthMax: 0n,
        broken: one.broken,
      }),
      data() {
        throw new Error("no data");
      },
      complete: (tag, status, sense, data) =>
        answers.get(tag)?.({
          status,
          code: sense === undefined
            ? ""
            : `${sense[2]?.toString(16)}/${sense[12]?.toString(16)}`,
          data: [...data ?? []],
        }),
      async close() {
        await gates.get("close");
        one.ringClosed = true;
      },
    };
    return Promise.resolve(ring);
  };

  const devices = createDevices({
    kernel,
    log: { debug: line, info: line, warn: line, error: line },
    openImage,
    openRing,
    ringBroken: () => void counts.broken++,
    route(id, answer) {
      routes.set(id, answer);
      return { [Symbol.dispose]: () => routes.delete(id) };
    },
  }, ({ command, deviceId }, errno) => {
    if (counts.unanswered-- > 0) throw new EngineError(12, "no memory");
    replies.push(`${command} ${deviceId} ${errno}`);
  });

  const event = (minor: number, config: string): Omit<
    TcmuEvent & { command: "added" },
    "command"
  > => ({
    minor,
    deviceId: 100 + minor,
    wantsReply: true,
    name: `tcm-user/1/vol${minor}${config === "" ? "" : `/${config}`}`,
  });

  return {
    devices,
    shown,
    replies,
    lines,
    counts,
    gates,
    /** The kernel has this device. */
    has(
      minor: number,
      config: string,
      { index, serial }: { index?: number; serial?: string } = {},
    ) {
      put(
        `${kernel.sys}/class/uio/uio${minor}/name`,
        `${event(minor, config).name}\n`,
      );
      put(`${core(`vol${minor}`)}/action/block_dev`, "");
      put(`${core(`vol${minor}`)}/action/reset_ring`, "");
      if (serial !== undefined) {
        put(
          `${core(`vol${minor}`)}/wwn/vpd_unit_serial`,
          `T10 VPD Unit Serial Number: ${serial}\n`,
        );
      }
      if (index !== undefined) {
        put(
          `${core(`vol${minor}`)}/statistics/scsi_dev/indx`,
          `${index}\n`,
        );
      }
    },
    lacks(minor: number) {
      Deno.removeSync(`${kernel.sys}/class/uio/uio${minor}`, {
        recursive: true,
      });
    },
    /** An attribute is another kind of file. */
    instead(
      minor: number,
      name: string,
      make: (path: string, old: string) => void,
    ) {
      const path = `${core(`vol${minor}`)}/${name}`;
      Deno.renameSync(path, `${path}.old`);
      make(path, `${path}.old`);
    },
    action: (minor: number, name: string) =>
      get(`${core(`vol${minor}`)}/action/${name}`),
    add: (minor: number, config: string) =>
      devices.handle({ command: "added", ...event(minor, config) }),
    remove: (minor: number, config: string) =>
      devices.handle({ command: "removed", ...event(minor, config) }),
    reconfig: (
      minor: number,
      config: string,
      change: (TcmuEvent & { command: "reconfig" })["change"],
    ) =>
      devices.handle({ command: "reconfig", ...event(minor, config), change }),
    /** Waits until so many events were answered. */
    async answered(count: number): Promise<string[]> {
      for (let i = 0; replies.length < count; i++) {
        if (i > 2000) throw new Error(`answered: ${replies.join(", ")}`);
        await new Promise((done) => setTimeout(done, 5));
      }
      return replies.splice(0);
    },
    async until(what: () => boolean): Promise<void> {
      for (let i = 0; !what(); i++) {
        if (i > 2000) throw new Error(`never: ${what}`);
        await new Promise((done) => setTimeout(done, 5));
      }
    },
    [Symbol.dispose]: () => dir[Symbol.dispose](),
  };
}

const one = (list: readonly Shown[], at = 0): Shown => {
  const it = list.at(at);
  if (it === undefined) throw new Error("no image was opened");
  return it;
};

Deno.test("a device is served, then answered; removed, closed, then answered", async () => {
  using world = createWorld();
  world.add(0, "overlaybd//x/c.json;id;1");
  equal(await world.answered(1), ["added 100 0"]);
  const image = one(world.shown);
  equal([image.path, image.devId], ["/x/c.json", "id;1"]);
  equal(image.results, ["success"]);
  const capacity = await image.send(
    ...[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  );
  equal(capacity.data, [0, 0, 7, 0xff, 0, 0, 2, 0]);
  world.remove(0, "overlaybd//x/c.json;id;1");
  equal(await world.answered(1), ["removed 100 0"]);
  equal([image.ringClosed, image.closed], [true, true]);
  equal(world.devices.list().length, 0);
  for (const text of ["dev open /x/c", "dev opened /x/c", "dev closed /x/c"]) {
    ok(world.lines.some((line) => line.startsWith(text)), text);
  }
});

Deno.test("devices of other programs are not answered", async () => {
  using world = createWorld();
  for (const [minor, config] of ["file//x", "over/x", "overlaybd"].entries()) {
    world.add(minor, config);
    world.reconfig(minor, config, { kind: "unknown" });
    world.remove(minor, config);
  }
  // Without any config it is nobody's, and nobody else would answer.
  world.add(8, "");
  world.add(9, "overlaybd/");
  equal(await world.answered(2), [
    `added 108 ${ERRNO.EINVAL}`,
    `added 109 ${ERRNO.EINVAL}`,
  ]);
  equal(world.shown.length, 0);
});

Deno.test("why an image cannot be opened is answered, never EAGAIN", async () => {
  using world = createWorld();
  const fails = (minor: number, errno: number) => {
    const path = `/bad${minor}`;
    const failure = Promise.reject(new DeviceError(errno, "because"));
    failure.catch(() => {});
    world.gates.set(path, failure);
    world.add(minor, `overlaybd/${path}`);
  };
  fails(1, ERRNO.EACCES);
  fails(2, ERRNO.EAGAIN);
  fails(3, 512);
  equal((await world.answered(3)).sort(), [
    `added 101 ${ERRNO.EACCES}`,
    `added 102 ${ERRNO.EIO}`,
    `added 103 ${ERRNO.EIO}`,
  ]);
  equal(world.devices.list().length, 0);
  // The same device may be tried again.
  world.gates.clear();
  world.add(1, "overlaybd//bad1");
  equal(await world.answered(1), ["added 101 0"]);
});

Deno.test("a ring that cannot be had is told in the result file", async () => {
  using world = createWorld();
  world.add(99, "overlaybd//x");
  equal(await world.answered(1), [`added 199 ${ERRNO.EIO}`]);
  const image = one(world.shown);
  equal([image.results, image.closed], [["failed"], true]);
  ok(world.lines.some((line) => /^handler open failed for uio99/.test(line)));
});

Deno.test("an answer that the kernel has no memory for is given again", async () => {
  using world = createWorld();
  world.counts.unanswered = 2;
  world.add(0, "overlaybd//x");
  equal(await world.answered(1), ["added 100 0"]);
  equal(
    world.lines.filter((line) => line.startsWith("cannot answer")).length,
    2,
  );
});

Deno.test("a disk keeps its serial while nobody can say what it is", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a", { serial: "s1" });
  world.add(1, "overlaybd//a");
  await world.answered(1);
  const serial = async () =>
    String.fromCharCode(
      ...(await one(world.shown).send(0x12, 1, 0x80, 0, 255, 0)).data.slice(4),
    );
  equal(await serial(), "s1\0");
  world.instead(1, "wwn/vpd_unit_serial", (path) => {
    new Deno.Command("mkfifo", { args: [path] }).outputSync();
  });
  equal(await serial(), "s1\0");
  // Whoever reads it waits until somebody writes.
  world.instead(
    1,
    "wwn/vpd_unit_serial",
    (_, old) => Deno.writeTextFileSync(old, "", { create: false }),
  );
});

Deno.test("a slow image holds up its own device alone", async () => {
  using world = createWorld();
  const gate = Promise.withResolvers<void>();
  world.gates.set("/slow", gate.promise);
  world.add(1, "overlaybd//slow");
  world.reconfig(1, "overlaybd//slow", { kind: "writeCache", on: false });
  world.add(2, "overlaybd//fast");
  equal(await world.answered(1), ["added 102 0"]);
  gate.resolve();
  equal(await world.answered(2), ["added 101 0", "reconfig 101 0"]);
});

Deno.test("a device that goes while its image opens goes at once", async () => {
  using world = createWorld();
  const gate = Promise.withResolvers<void>();
  world.gates.set("/slow", gate.promise);
  world.add(1, "overlaybd//slow");
  world.remove(1, "overlaybd//slow");
  equal(await world.answered(2), [
    `added 101 ${ERRNO.ENODEV}`,
    "removed 101 0",
  ]);
  gate.resolve();
  await world.until(() => world.shown[0]?.closed === true);
});

Deno.test("a name that the kernel has cut is refused with that reason", async () => {
  using world = createWorld();
  const path = `/${"a".repeat(244)}`;
  world.add(1, `overlaybd/${path}`);
  equal(await world.answered(1), ["added 101 0"]);
  const missing = Promise.reject(new DeviceError(ERRNO.ENOENT, "no file"));
  missing.catch(() => {});
  world.gates.set(path, missing);
  world.add(2, `overlaybd/${path}`);
  world.add(3, `overlaybd/${path.slice(0, 240)};${"b".repeat(4)}`);
  equal(await world.answered(2), [
    `added 103 ${ERRNO.EINVAL}`,
    `added 102 ${ERRNO.EINVAL}`,
  ]);
  equal(
    world.lines.filter((line) => /the rest was cut off$/.test(line)).length,
    4,
  );
});

Deno.test("a cut name that is another file's is refused when a longer one is there", async () => {
  using world = createWorld();
  using dir = tempDir();
  const path = dir.file("a".repeat(246 - dir.file("a").length));
  equal(path.length, 245);
  Deno.writeTextFileSync(path, "{}");
  world.add(1, `overlaybd/${path}`);
  equal(await world.answered(1), ["added 101 0"]);
  Deno.writeTextFileSync(`${path}.old`, "{}");
  world.add(2, `overlaybd/${path}`);
  equal(await world.answered(1), [`added 102 ${ERRNO.EINVAL}`]);
  match(world.lines.at(-1) ?? "", /a\.old may be meant$/);
  // One that is short enough has not been cut, whatever lies beside it.
  world.add(3, `overlaybd/${path.slice(0, -1)}`);
  equal(await world.answered(1), ["added 103 0"]);
  // A directory, whatever is said of it.
  Deno.removeSync(path);
  Deno.removeSync(`${path}.old`);
  Deno.mkdirSync(path);
  const refused = Promise.reject(new DeviceError(ERRNO.EIO, "a directory"));
  refused.catch(() => {});
  world.gates.set(path, refused);
  world.add(4, `overlaybd/${path}`);
  equal(await world.answered(1), [`added 104 ${ERRNO.EINVAL}`]);
});

Deno.test("RECONFIG: a disk grows by whole sectors, its cache is switched", async () => {
  using world = createWorld();
  const config = "overlaybd//x";
  world.add(1, config);
  await world.answered(1);
  const image = one(world.shown);
  const resize = (size: number) =>
    world.reconfig(1, config, { kind: "size", size: BigInt(size) });
  resize(SIZE - 512);
  resize(SIZE + 1);
  resize(SIZE);
  equal(await world.answered(3), [
    `reconfig 101 ${ERRNO.EINVAL}`,
    `reconfig 101 ${ERRNO.EINVAL}`,
    "reconfig 101 0",
  ]);
  equal(image.attention, []);
  resize(2 * SIZE);
  equal(await world.answered(1), ["reconfig 101 0"]);
  equal([image.size, image.attention], [BigInt(2 * SIZE), [0x2a09]]);
  const capacity = await image.send(
    ...[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  );
  equal(capacity.data.slice(0, 4), [0, 0, 15, 0xff]);
  const caching = async () =>
    (await image.send(0x1a, 0, 0x08, 0, 255, 0)).data[6];
  equal(await caching(), 4);
  world.reconfig(1, config, { kind: "writeCache", on: false });
  equal(await world.answered(1), ["reconfig 101 0"]);
  equal([image.writeCache, await caching()], [false, 0]);
  equal(image.attention, [0x2a09, 0x2a01]);
  world.reconfig(1, config, { kind: "config", config: "overlaybd//y" });
  world.reconfig(1, config, { kind: "unknown" });
  world.reconfig(7, config, { kind: "unknown" });
  equal((await world.answered(3)).sort(), [
    `reconfig 101 ${ERRNO.EOPNOTSUPP}`,
    `reconfig 101 ${ERRNO.EOPNOTSUPP}`,
    `reconfig 107 ${ERRNO.ENODEV}`,
  ]);
});

Deno.test("devices of a former daemon are held back, reset, opened, let go on", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a");
  world.has(2, "overlaybd//b");
  world.has(3, "file//c");
  const gate = Promise.withResolvers<void>();
  world.gates.set("/b", gate.promise);
  await world.devices.claim();
  for (const minor of [1, 2]) {
    equal(world.action(minor, "block_dev"), "1");
    equal(world.action(minor, "reset_ring"), "1");
  }
  equal(world.action(3, "block_dev"), "");
  world.devices.adopt();
  await world.until(() => world.action(1, "block_dev") === "0");
  equal(world.action(2, "block_dev"), "1");
  // What is not open cannot be changed, and its writer does not wait.
  world.reconfig(2, "overlaybd//b", { kind: "writeCache", on: true });
  equal(await world.answered(1), [`reconfig 102 ${ERRNO.EBUSY}`]);
  gate.resolve();
  await world.until(() => world.action(2, "block_dev") === "0");
  await world.devices.close(0);
});

Deno.test("what was found at the start is another device when it is made again", async () => {
  using world = createWorld();
  // Somebody makes it while the daemon starts: it is refused, and tried again.
  world.has(1, "overlaybd//a", { index: 100 });
  world.has(2, "overlaybd//b", { index: 102 });
  await world.devices.claim();
  world.devices.adopt();
  await world.until(() => world.action(1, "block_dev") === "0");
  world.add(1, "overlaybd//a");
  equal(await world.answered(2), ["removed 100 0", "added 101 0"]);
  // One that is heard of once, from before: its only answer.
  world.add(2, "overlaybd//b");
  world.add(2, "overlaybd//b");
  equal(await world.answered(1), ["added 102 0"]);
  equal(world.replies, []);
  equal(
    world.shown.map(({ path, closed }) => `${path} ${closed}`).toSorted(),
    ["/a false", "/a true", "/b false"],
  );
});

Deno.test("a device that is being made while the daemon starts is not left by another", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a", { index: 101 });
  // As the kernel says it of a device that is not enabled: EINVAL.
  world.instead(
    1,
    "action/block_dev",
    (path) => Deno.symlinkSync("/proc/self/timens_offsets", path),
  );
  await world.devices.claim();
  equal(world.devices.list(), []);
  world.devices.adopt();
  world.add(1, "overlaybd//a");
  equal(await world.answered(1), ["added 101 0"]);
  equal(world.shown.length, 1);
});

Deno.test("a ring that is not reset yet is not served", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a");
  // Whoever writes to it waits until somebody reads.
  world.instead(1, "action/reset_ring", (path) => {
    new Deno.Command("mkfifo", { args: [path] }).outputSync();
  });
  await world.devices.claim();
  world.devices.adopt();
  await new Promise((done) => setTimeout(done, 50));
  equal(world.shown.length, 0);
  equal(world.action(1, "reset_ring"), "1");
  await world.until(() => world.action(1, "block_dev") === "0");
  equal(world.shown.length, 1);
});

Deno.test("an image that cannot open yet is tried again until it does", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a");
  const down = Promise.reject(new DeviceError(ERRNO.ENOTCONN, "no registry"));
  down.catch(() => {});
  world.gates.set("/a", down);
  await world.devices.claim();
  world.devices.adopt();
  await world.until(() =>
    world.lines.some((line) => /no registry$/.test(line))
  );
  equal(world.action(1, "block_dev"), "1");
  world.gates.delete("/a");
  await world.until(() => world.action(1, "block_dev") === "0");
  equal(one(world.shown).results, ["success"]);
});

Deno.test("what waits for an image fails when its disk goes, and is held back again", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a");
  const gate = Promise.withResolvers<void>();
  world.gates.set("/a", gate.promise);
  await world.devices.claim();
  world.devices.adopt();
  const [device] = world.devices.list();
  equal(device?.held, true);
  const given = device?.giveUp();
  await world.until(() => world.action(1, "reset_ring") === "2");
  equal(world.action(1, "block_dev"), "0");
  // A ring that is reset is not opened meanwhile.
  gate.resolve();
  await world.until(() => world.shown.length === 1);
  await new Promise((done) => setTimeout(done, 100));
  equal([device?.held, one(world.shown).results], [true, []]);
  await given;
  await world.until(() => world.action(1, "block_dev") === "0");
  equal([device?.held, one(world.shown).results], [false, ["success"]]);
  const reset = world.lines.length;
  await device?.giveUp();
  equal(world.lines.length, reset);
});

Deno.test("a device that waits for its image is removed at once", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a");
  world.gates.set("/a", new Promise(() => {}));
  await world.devices.claim();
  world.devices.adopt();
  world.remove(1, "overlaybd//a");
  equal(await world.answered(1), ["removed 101 0"]);
  equal(world.devices.list().length, 0);
});

Deno.test("at the end devices are held back, closed, and left to the next", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a");
  world.has(2, "overlaybd//b");
  world.gates.set("/b", new Promise(() => {}));
  world.gates.set("/c", new Promise(() => {}));
  await world.devices.claim();
  world.devices.adopt();
  await world.until(() => world.action(1, "block_dev") === "0");
  world.add(3, "overlaybd//c");
  await world.devices.close(0);
  // Its client may try again with the next daemon.
  equal(await world.answered(1), [`added 103 ${ERRNO.EAGAIN}`]);
  equal([one(world.shown).ringClosed, one(world.shown).closed], [true, true]);
  equal(world.action(1, "block_dev"), "0");
  world.add(4, "overlaybd//d");
  equal(await world.answered(1), [`added 104 ${ERRNO.EAGAIN}`]);
});

Deno.test("a device that is removed while it is left is closed, then answered", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a");
  world.add(1, "overlaybd//a");
  await world.answered(1);
  const gate = Promise.withResolvers<void>();
  world.gates.set("close", gate.promise);
  const left = world.devices.close(0);
  await world.until(() => world.action(1, "block_dev") === "1");
  world.remove(1, "overlaybd//a");
  await new Promise((done) => setTimeout(done, 20));
  equal(world.replies, []);
  gate.resolve();
  await left;
  equal(await world.answered(1), ["removed 101 0"]);
});

Deno.test("a disk that waits for its source to grow is left all the same", async () => {
  using world = createWorld();
  const config = "overlaybd//a";
  world.has(1, config);
  world.add(1, config);
  await world.answered(1);
  world.gates.set("grow", new Promise(() => {}));
  world.reconfig(1, config, { kind: "size", size: 2n * BigInt(SIZE) });
  await world.devices.close(0);
  equal(world.replies, [`reconfig 101 ${ERRNO.ENODEV}`]);
  equal(one(world.shown).closed, true);
});

Deno.test("a device that is removed at the very end is answered before there is nobody", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a");
  world.add(1, "overlaybd//a");
  await world.answered(1);
  await world.devices.close(0);
  world.remove(1, "overlaybd//a");
  await world.devices.idle();
  equal(world.replies, ["removed 101 0"]);
});

Deno.test("a device whose event was lost is served and answered at the second look", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a", { index: 101 });
  world.has(2, "file//b", { index: 42 });
  await world.devices.compare();
  equal(world.replies, []);
  await world.devices.compare();
  equal(await world.answered(1), ["added 101 0"]);
  // Its event comes after all.  The kernel would take a second answer for
  // what the device waits for by then, and forget whoever did.
  world.add(1, "overlaybd//a");
  world.reconfig(1, "overlaybd//a", { kind: "writeCache", on: false });
  equal(await world.answered(1), ["reconfig 101 0"]);
  equal(world.shown.length, 1);
  await world.devices.compare();
  equal([world.shown.length, world.replies], [1, []]);
  world.lacks(1);
  await world.devices.compare();
  equal(world.devices.list().length, 1);
  await world.devices.compare();
  equal(await world.answered(1), ["removed 101 0"]);
  equal(one(world.shown).closed, true);
});

Deno.test("a device whose maker was let go holds nothing that the next attempt needs", async () => {
  using world = createWorld();
  world.gates.set("/a", new Promise(() => {}));
  world.has(1, "overlaybd//a", { index: 101 });
  world.add(1, "overlaybd//a");
  world.has(2, "overlaybd//b", { index: 102 });
  world.add(2, "overlaybd//b");
  equal(await world.answered(1), ["added 102 0"]);
  // Its maker undoes it; the other one is there.
  world.lacks(1);
  const done = world.devices.letGo();
  // At once: its minor may be the next attempt's.
  equal(world.devices.list().map(({ uio }) => uio.minor), [2]);
  await done;
  equal(world.replies, [`added 101 ${ERRNO.ENODEV}`]);
  world.replies.length = 0;
  world.gates.clear();
  world.has(1, "overlaybd//a", { index: 101 });
  world.add(1, "overlaybd//a");
  equal(await world.answered(1), ["added 101 0"]);
  equal(world.shown.map(({ closed }) => closed), [false, false]);
});

Deno.test("a device that went unheard is closed before a new one may come", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a", { index: 101 });
  world.add(1, "overlaybd//a");
  await world.answered(1);
  world.lacks(1);
  await world.devices.letGo();
  equal(one(world.shown).closed, true);
  equal(world.devices.list(), []);
});

Deno.test("a device that is slow to close is not taken for one whose event was lost", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a", { index: 101 });
  world.add(1, "overlaybd//a");
  await world.answered(1);
  const gate = Promise.withResolvers<void>();
  world.gates.set("close", gate.promise);
  world.remove(1, "overlaybd//a");
  for (let look = 0; look < 3; look++) await world.devices.compare();
  gate.resolve();
  equal(await world.answered(1), ["removed 101 0"]);
  await new Promise((done) => setTimeout(done, 20));
  equal([world.shown.length, world.replies], [1, []]);
});

Deno.test("an image that opens slowly holds up no look at other devices", async () => {
  using world = createWorld();
  world.gates.set("/a", new Promise(() => {}));
  world.has(1, "overlaybd//a", { index: 101 });
  await world.devices.compare();
  await world.devices.compare();
  world.has(2, "overlaybd//b", { index: 102 });
  await world.devices.compare();
  await world.devices.compare();
  equal(await world.answered(1), ["added 102 0"]);
});

Deno.test("one that was refused is tried again when it was made again", async () => {
  using world = createWorld();
  const failure = Promise.reject(new DeviceError(ERRNO.EINVAL, "because"));
  failure.catch(() => {});
  world.gates.set("/a", failure);
  world.has(1, "overlaybd//a", { index: 5 });
  await world.devices.compare();
  await world.devices.compare();
  equal(await world.answered(1), [`added 5 ${ERRNO.EINVAL}`]);
  for (let look = 0; look < 3; look++) await world.devices.compare();
  equal(world.replies, []);
  // With the same name and minor, between two looks.
  world.gates.clear();
  world.has(1, "overlaybd//a", { index: 6 });
  await world.devices.compare();
  equal(await world.answered(1), ["added 6 0"]);
});

Deno.test("a device that was made again under its name, unheard, is another one", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a", { index: 101 });
  world.add(1, "overlaybd//a");
  await world.answered(1);
  for (let look = 0; look < 3; look++) await world.devices.compare(true);
  equal(world.replies, []);
  world.has(1, "overlaybd//a", { index: 102 });
  for (let look = 0; look < 4; look++) await world.devices.compare(true);
  equal(await world.answered(2), ["removed 101 0", "added 102 0"]);
  equal(world.shown.map(({ closed }) => closed), [true, false]);
});

Deno.test("a minor that another device has now is that device", async () => {
  using world = createWorld();
  world.has(1, "overlaybd//a");
  world.add(1, "overlaybd//a");
  await world.answered(1);
  world.has(1, "overlaybd//b", { index: 5 });
  await world.devices.compare();
  await world.devices.compare();
  equal(one(world.shown).closed, false);
  for (let look = 0; look < 4; look++) await world.devices.compare(true);
  equal(one(world.shown).closed, true);
  equal(one(world.shown, -1).path, "/b");
  equal(await world.answered(2), ["removed 101 0", "added 5 0"]);
});

Deno.test("a command that cannot be answered is refused, and said once", async () => {
  using world = createWorld();
  world.add(1, "overlaybd//a");
  await world.answered(1);
  const image = one(world.shown);
  equal((await image.send(0x83, ...Array<number>(15).fill(0))).status, 2);
  equal((await image.send(0x83, ...Array<number>(15).fill(0))).status, 2);
  equal((await image.send(0xa4, ...Array<number>(11).fill(0))).status, 2);
  const said = world.lines.filter((line) => /^unknown command/.test(line));
  equal(said, ["unknown command 131"]);
  const { status, code } = await image.send(0x15, 0x10, 0, 0, 24, 0);
  equal([status, code], [2, "4/44"]);
  ok(world.lines.includes("cannot answer command 21: no data"));
  match(world.lines.join("\n"), /dev opened/);
});

Deno.test("a ring that makes no sense is told, reset, and served anew", async () => {
  using world = createWorld();
  const config = "overlaybd//x";
  world.has(1, config);
  world.has(2, "overlaybd//y");
  world.add(1, config);
  await world.answered(1);
  world.add(2, "overlaybd//y");
  await world.answered(1);
  world.devices.mend();
  equal([world.shown.length, world.counts.broken], [2, 0]);
  const image = one(world.shown);
  const gate = Promise.withResolvers<void>();
  world.gates.set("close", gate.promise);
  image.broken = "its head is at 3";
  world.devices.mend();
  // Not twice, and not reset while commands use its memory.
  world.devices.mend();
  await world.until(() => world.action(1, "block_dev") === "1");
  equal(world.action(1, "reset_ring"), "");
  gate.resolve();
  await world.until(() => world.action(1, "block_dev") === "0");
  equal([image.ringClosed, image.closed], [true, true]);
  equal(world.action(1, "reset_ring"), "1");
  equal([world.shown.length, world.shown[2]?.path], [3, "/x"]);
  equal(world.counts.broken, 1);
  const said = world.lines.filter((line) => /broken/.test(line));
  equal(said, ["the ring of uio1, /x, is broken: its head is at 3"]);
  // The other one has felt nothing, and the device is removed as any.
  equal(world.action(2, "block_dev"), "");
  world.remove(1, config);
  equal(await world.answered(1), ["removed 101 0"]);
  equal(world.shown[2]?.closed, true);
});

Deno.test("without reset_ring a broken ring ends its device, and it is said how", async () => {
  using world = createWorld();
  const config = "overlaybd//x";
  // No configfs: this kernel has no actions.
  world.add(1, config);
  await world.answered(1);
  one(world.shown).broken = "its head is at 3";
  world.devices.mend();
  await world.until(() => world.lines.some((it) => /cannot reset/.test(it)));
  match(world.lines.at(-1) ?? "", /take the device away and make it again$/);
  equal([world.shown.length, world.shown[0]?.closed], [1, true]);
  world.devices.mend();
  world.remove(1, config);
  equal(await world.answered(1), ["removed 101 0"]);
});

Deno.test("a device that is removed while its ring is reset is closed, then answered", async () => {
  using world = createWorld();
  const config = "overlaybd//x";
  world.has(1, config);
  world.add(1, config);
  await world.answered(1);
  const gate = Promise.withResolvers<void>();
  world.gates.set("close", gate.promise);
  one(world.shown).broken = "its head is at 3";
  world.devices.mend();
  await world.until(() => world.action(1, "block_dev") === "1");
  world.remove(1, config);
  gate.resolve();
  equal(await world.answered(1), ["removed 101 0"]);
  equal(world.shown.every(({ closed }) => closed), true);
  equal(world.devices.list(), []);
});

Deno.test("a device that was made again, with its removal unheard, is another one", async () => {
  using world = createWorld();
  const config = "overlaybd//x";
  world.has(1, config);
  world.add(1, config);
  await world.answered(1);
  // The same event once more is the same device.
  world.add(1, config);
  equal([world.shown.length, world.replies], [1, []]);
  // A change of another device is not made to this one.
  world.devices.handle({
    command: "reconfig",
    minor: 1,
    deviceId: 7,
    wantsReply: true,
    name: `tcm-user/1/vol1/${config}`,
    change: { kind: "size", size: 2n * BigInt(SIZE) },
  });
  equal(await world.answered(1), [`reconfig 7 ${ERRNO.ENODEV}`]);
  equal(one(world.shown).size, BigInt(SIZE));
  world.devices.handle({
    command: "added",
    minor: 1,
    deviceId: 7,
    wantsReply: true,
    name: `tcm-user/1/vol1/${config}`,
  });
  equal(await world.answered(2), ["removed 101 0", "added 7 0"]);
  equal(world.shown.map(({ closed }) => closed), [true, false]);
});

Deno.test("one that was found without its event is the same when that comes late", async () => {
  using world = createWorld();
  const config = "overlaybd//x";
  world.has(1, config);
  await world.devices.compare();
  await world.devices.compare();
  await world.until(() => world.shown.length === 1);
  world.add(1, config);
  equal(await world.answered(1), ["added 101 0"]);
  equal(world.shown.map(({ closed }) => closed), [false]);
});
