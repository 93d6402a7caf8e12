// SPDX-License-Identifier: Apache-2.0
/**
 * A model of the kernel's trees, for attaching and detaching without one.
 *
 * @module
 */
import { EngineError } from "../../ffi/errors.ts";
import type { Host, KernelTree } from "../../src/device/tcmu/configfs.ts";

export const PATHS = {
  sys: "/sys",
  dev: "/dev",
  configfs: "/cfg",
  proc: "/proc",
};
export const CORE = "/cfg/target/core";
const ENOENT = 2;
const EBUSY = 16;

/** A kernel with the target's directories and no device. */
export interface FakeKernel extends Host {
  /** everything below configfs but what was there at first */
  made(): string[];
  /** changes so far: "mkdir /x", "write /x v", "link /x", "remove /x" */
  did: string[];
  nodes: Map<string, string | null>;
  /** called before each change; may throw */
  fail: (change: string) => void;
}

export function fakeKernel(): FakeKernel {
  /** null: a directory; "-> x": a link to x; else an attribute's value */
  const nodes = new Map<string, string | null>([[CORE, null]]);
  const did: string[] = [];
  const kernel: Pick<FakeKernel, "fail"> = { fail: () => {} };
  const change = (text: string) => {
    kernel.fail(text);
    did.push(text);
  };
  const children = (path: string) =>
    [...nodes.keys()].filter((it) => it.startsWith(`${path}/`))
      .map((it) => it.slice(path.length + 1).split("/")[0] ?? "");
  const attribute = (path: string, value: string) => nodes.set(path, value);
  const born = (path: string) => {
    if (/core\/user_\d+\/[^/]+$/.test(path)) {
      for (const name of ["control", "attrib/cmd_time_out"]) {
        attribute(`${path}/${name}`, "");
      }
      attribute(`${path}/enable`, "0");
      attribute(`${path}/attrib/dev_config`, "");
      attribute(`${path}/action/block_dev`, "unblocked");
    } else if (/tpgt_1$/.test(path)) {
      attribute(`${path}/nexus`, "");
      attribute(`${path}/address`, "3:0:1\n");
    }
  };
  const isDirectory = (path: string) =>
    nodes.get(path) === null || children(path).length > 0;
  const tree: KernelTree = {
    makeDir: (path) => {
      if (isDirectory(path)) return Promise.resolve(false);
      change(`mkdir ${path}`);
      nodes.set(path, null);
      born(path);
      return Promise.resolve(true);
    },
    write: async (path, value) => {
      if (typeof nodes.get(path) !== "string") {
        throw new EngineError(ENOENT, `cannot write ${path}`);
      }
      await Promise.resolve();
      change(`write ${path} ${value}`);
      attribute(path, value);
      const [, config] = /^dev_config=(.*)$/.exec(value) ?? [];
      if (config !== undefined) {
        attribute(path.replace("control", "attrib/dev_config"), config);
      }
    },
    read: async (path) => {
      await Promise.resolve();
      const value = nodes.get(path);
      if (typeof value === "string") return value;
      throw new EngineError(ENOENT, `cannot read ${path}`);
    },
    link: async (target, path) => {
      await Promise.resolve();
      change(`link ${path}`);
      nodes.set(path, `-> ${target}`);
      nodes.set("/sys/class/scsi_device/3:0:1:0/device/block/sdx", null);
      attribute("/sys/block/sdx/device/timeout", "30");
      attribute("/sys/block/sdx/device/state", "running");
      attribute("/sys/block/sdx/size", "2048");
      attribute("/sys/block/sdx/ro", "1");
      attribute("/sys/block/sdx/dev", "8:16");
      attribute("/sys/block/sdx/sdx1/dev", "8:17");
    },
    remove: async (path) => {
      await Promise.resolve();
      const linked = [...nodes.values()].includes(`-> ${path}`);
      const busy = linked ||
        children(path).some((name) =>
          nodes.get(`${path}/${name}`) === null ||
          nodes.get(`${path}/${name}`)?.startsWith("-> ") === true
        );
      if (busy) throw new EngineError(EBUSY, `cannot remove ${path}`);
      change(`remove ${path}`);
      if (nodes.get(path)?.startsWith("-> ") === true) {
        nodes.delete("/sys/class/scsi_device/3:0:1:0/device/block/sdx");
      }
      for (const it of [...nodes.keys()]) {
        if (it === path || it.startsWith(`${path}/`)) nodes.delete(it);
      }
    },
    list: (path) => Promise.resolve([...new Set(children(path))]),
    follow: (path) => {
      const [, target] = /^-> (.*)$/.exec(nodes.get(path) ?? "") ?? [];
      return Promise.resolve(target);
    },
  };
  return Object.assign(kernel, {
    paths: PATHS,
    tree,
    sleep: () => Promise.resolve(),
    nodes,
    did,
    made: () =>
      [...nodes.keys()].filter((it) => it.startsWith("/cfg") && it !== CORE),
  });
}
