// SPDX-License-Identifier: Apache-2.0
// One daemon for a host (src/service/tcmu_lock.ts).
import { equal, throws } from "node:assert/strict";
import { lockHost, TcmuError } from "../../src/service/tcmu_lock.ts";
import { tempDir } from "../lib/env.ts";

Deno.test("a daemon that follows a dying one keeps a third from starting", async () => {
  using dir = tempDir();
  const sys = dir.path;
  throws(() => lockHost({ sys }), /`modprobe target_core_user`/);
  const path = dir.file("module/target_core_user");
  Deno.mkdirSync(path, { recursive: true });
  // Who has locked it is dead, and what it has open is open still.
  const holder = new Deno.Command("sh", {
    args: ["-c", `exec 9<${path}; flock 9 & exec sleep 1000`],
  }).spawn();
  const until = async (what: () => boolean) => {
    for (let i = 0; !what(); i++) {
      if (i > 1000) throw new Error(`never: ${what}`);
      await new Promise((done) => setTimeout(done, 10));
    }
  };
  const tryLock = () => {
    try {
      return lockHost({ sys });
    } catch (error) {
      if (error instanceof TcmuError) return undefined;
      throw error;
    }
  };
  try {
    let lock = tryLock();
    await until(() => {
      if (lock?.inherited === true) return true;
      lock?.[Symbol.dispose]();
      lock = tryLock();
      return false;
    });
    using _lock = lock;
    holder.kill();
    await holder.status;
    await until(() => {
      using third = tryLock();
      return third === undefined;
    });
    throws(() => lockHost({ sys }), new RegExp(`process ${Deno.pid}`));
  } finally {
    try {
      holder.kill();
    } catch {
      // It has ended.
    }
  }
  using again = lockHost({ sys });
  equal(again.inherited, false);
});
