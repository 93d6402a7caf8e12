// SPDX-License-Identifier: Apache-2.0
// Disks by request to the daemon, which ends.
import { deepStrictEqual as equal, rejects } from "node:assert/strict";
import { EngineError } from "../../ffi/errors.ts";
import { attachDisk } from "../../src/device/tcmu/configfs.ts";
import { detach } from "../../src/service/attach.ts";
import { RequestError } from "../../src/service/refusal.ts";
import { tcmuKind } from "../../src/service/tcmu_kind.ts";
import { lockHost } from "../../src/service/tcmu_lock.ts";
import { tempDir } from "../lib/env.ts";
import { fakeKernel } from "../lib/fake_kernel.ts";

const EAGAIN = 11;

Deno.test("a disk that waits for its image is detached, as its daemon runs", async () => {
  using dir = tempDir();
  const sys = dir.file("sys");
  const put = (path: string, text: string) => {
    Deno.mkdirSync(dir.file(path.replace(/[^/]*$/, "")), { recursive: true });
    Deno.writeTextFileSync(dir.file(path), text);
  };
  const kernel = fakeKernel();
  const host = {
    ...kernel,
    paths: { ...kernel.paths, sys, dev: dir.file("dev"), proc: dir.path },
  };
  await attachDisk(kernel, { id: "42", path: "/c.json", devId: "" }, {
    log: console.error,
  });
  // Nobody has its uio file open.
  put("sys/class/uio/uio3/name", "tcm-user/999999999/dev_42/overlaybd//c.json");
  put("dev/uio3", "");
  put("sys/module/target_core_user/refcnt", "1");
  const log = console.error;
  await rejects(detach(host, "42", log), /overlaybd-tcmu does not run/);
  using _lock = lockHost({ sys });
  equal((await detach(host, "42", log)).id, "42");
  equal(kernel.made(), []);
});

Deno.test("what is made as the daemon ends is given up, and waited for", async () => {
  using dir = tempDir();
  const path = dir.file("c.json");
  Deno.writeTextFileSync(path, '{"lowers":[{"file":"/x"}]}');
  const kernel = fakeKernel();
  kernel.nodes.set("/cfg/target/core/alua", null);
  const ending = new AbortController();
  let tries = 0;
  kernel.fail = (change) => {
    if (!change.endsWith("/enable 1")) return;
    // From now on nobody would answer.
    if (++tries === 3) ending.abort();
    throw new EngineError(EAGAIN, change);
  };
  const nothing = () => {};
  const log = { debug: nothing, info: nothing, warn: nothing, error: nothing };
  const kind = tcmuKind(
    { images: () => [], log: log as never },
    { list: () => [] },
    { count: () => 0, disk: () => undefined, changed: nothing },
    {
      signal: ending.signal,
      host: { ...kernel, paths: { ...kernel.paths, proc: dir.path } },
    },
  );
  await kind.idle();
  const attached = kind.attach({ path, devId: "" });
  const refused = rejects(
    attached,
    (error) => error instanceof RequestError && error.refusal === "ending",
  );
  await kind.detached();
  await kind.idle();
  equal([tries, kernel.made().filter((it) => !it.endsWith("alua"))], [3, []]);
  await refused;
});
