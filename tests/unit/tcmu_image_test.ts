// SPDX-License-Identifier: Apache-2.0
// Images for TCMU: why one cannot be opened, one that grows, one daemon.
import { deepStrictEqual as equal, rejects, throws } from "node:assert/strict";
import { readDeviceSync, writeDevice } from "../../ffi/device.ts";
import { faultIo, IO } from "../../ffi/files.ts";
import { DeviceError, ERRNO } from "../../src/device/tcmu/error.ts";
import { SourceError } from "../../src/source/source.ts";
import { openAudit } from "../../src/service/audit.ts";
import { parseServiceConfig } from "../../src/service/config.ts";
import { createLog } from "../../src/service/log.ts";
import { createService, type Service } from "../../src/service/service.ts";
import {
  lockHost,
  refuseOtherDaemon,
  TcmuError,
} from "../../src/service/tcmu_lock.ts";
import { openFailure, openTcmuImage } from "../../src/service/tcmu_image.ts";
import { type TempDir, tempDir } from "../lib/env.ts";
import { newUpper } from "../lib/product.ts";

const MIB = 1 << 20;

function quietService(dir: TempDir, settings: object = {}): Service {
  const loaded = parseServiceConfig({
    cacheConfig: { cacheType: "file", cacheDir: dir.file("cache") },
    enableAudit: false,
    ...settings,
  }, "test");
  const log = createLog({ write() {}, [Symbol.dispose]() {} }, 0);
  return createService({ loaded, log, audit: openAudit(loaded.config, log) });
}

/** A configuration with an upper of its own, and what is added to it. */
async function configOf(
  dir: TempDir,
  name: string,
  more: object = {},
): Promise<string> {
  const upper = await newUpper(dir.file(name), { size: MIB });
  const path = dir.file(`${name}.json`);
  Deno.writeTextFileSync(path, JSON.stringify({ upper, ...more }));
  return path;
}

Deno.test("the kernel is told why an image cannot be opened", async () => {
  using dir = tempDir();
  const service = quietService(dir);
  const errno = async (config: string, devId = "") => {
    const path = config.startsWith("/") ? config : dir.file("c.json");
    if (path !== config) Deno.writeTextFileSync(path, config);
    try {
      await openTcmuImage(service, { path, devId });
      return 0;
    } catch (error) {
      return error instanceof DeviceError ? error.errno : error;
    }
  };
  equal(await errno("/nowhere.json"), ERRNO.ENOENT);
  equal(await errno(dir.path), 21);
  equal(await errno("{"), ERRNO.EINVAL);
  equal(await errno(""), ERRNO.EINVAL);
  equal(await errno('{"lowers":3}'), ERRNO.EINVAL);
  equal(await errno("{}"), ERRNO.EINVAL);
  equal(await errno('{"lowers":[{"dir":"/nowhere"}]}'), ERRNO.ENOENT);
  const file = dir.file("noise");
  Deno.writeFileSync(file, new Uint8Array(8192).fill(7));
  equal(await errno(`{"lowers":[{"file":"${file}"}]}`), ERRNO.EUCLEAN);
  equal(
    await errno('{"upper":{"data":"/nowhere","index":"/nowhere"}}'),
    ERRNO.ENOENT,
  );
  const config = await configOf(dir, "a");
  equal(await errno(config, "one"), 0);
  equal(await errno(await configOf(dir, "b"), "one"), ERRNO.EEXIST);
  equal(await errno(config), ERRNO.EBUSY);
  for (const code of ["EACCES", "ENOENT", "ETIMEDOUT", "ENOTCONN"] as const) {
    const cause = new SourceError(code, "because");
    const failure = openFailure(new Error("cannot open", { cause }));
    equal([failure.errno, failure.message], [ERRNO[code], "cannot open"]);
  }
  equal(openFailure(new Error("what?")).errno, ERRNO.EIO);
  await service.close();
});

for (const sparse of [false, true]) {
  Deno.test(`a grown disk is as large when it is opened again, ${sparse ? "sparse" : "log"}`, async () => {
    using dir = tempDir();
    const service = quietService(dir);
    const path = dir.file("config.json");
    const upper = await newUpper(dir.file("u"), { size: MIB, sparse });
    Deno.writeTextFileSync(path, JSON.stringify({ upper }));
    const open = () => openTcmuImage(service, { path, devId: "" });
    const image = await open();
    equal(image.discardsReadZero, !sparse);
    equal(image.size, BigInt(MIB));
    await image.grow(BigInt(3 * MIB));
    equal(image.size, BigInt(3 * MIB));
    writeDevice(image.device, new Uint8Array(512).fill(7), 3 * MIB - 512);
    await image.close();
    const again = await open();
    equal(again.size, BigInt(3 * MIB));
    const sector = new Uint8Array(512);
    readDeviceSync(again.device, sector, 3 * MIB - 512);
    equal(sector, new Uint8Array(512).fill(7));
    await rejects(again.grow(BigInt(MIB)), { errno: ERRNO.EINVAL });
    await service.close();
  });
}

Deno.test("the write cache is on unless the service or the image says no", async () => {
  using dir = tempDir();
  const caches = async (settings: object, more: object) => {
    const service = quietService(dir, settings);
    const name = crypto.randomUUID();
    const path = await configOf(dir, name, more);
    const { writeCache } = await openTcmuImage(service, { path, devId: "" });
    await service.close();
    return writeCache;
  };
  equal(await caches({}, {}), true);
  equal(await caches({}, { writeCache: false }), false);
  equal(await caches({ writeCache: false }, {}), false);
  equal(await caches({ writeCache: false }, { writeCache: true }), false);
});

Deno.test("a host has one daemon, and the second names the first", () => {
  using dir = tempDir();
  const kernel = { sys: dir.path, dev: "/dev", configfs: "/config" };
  throws(() => lockHost(kernel), TcmuError);
  Deno.mkdirSync(dir.file("module/target_core_user"), { recursive: true });
  {
    using _first = lockHost(kernel);
    throws(
      () => lockHost(kernel),
      new RegExp(
        `^TcmuError: another overlaybd-tcmu .* process ${Deno.pid}$`,
      ),
    );
  }
  lockHost(kernel)[Symbol.dispose]();
});

Deno.test("devices that somebody else has open are not taken from them", async () => {
  using dir = tempDir();
  const kernel = {
    sys: dir.file("sys"),
    dev: dir.file("dev"),
    configfs: dir.file("config"),
  };
  for (const [minor, config] of ["overlaybd//a", "file//b"].entries()) {
    const uio = `${kernel.sys}/class/uio/uio${minor}`;
    Deno.mkdirSync(uio, { recursive: true });
    Deno.writeTextFileSync(`${uio}/name`, `tcm-user/1/x/${config}\n`);
  }
  // A missing file says nothing of another daemon.
  await refuseOtherDaemon(kernel);
  Deno.mkdirSync(kernel.dev);
  for (const minor of [0, 1]) {
    Deno.writeTextFileSync(`${kernel.dev}/uio${minor}`, "");
  }
  await refuseOtherDaemon(kernel);
  faultIo(IO.OPEN, 1, ERRNO.EBUSY, 3);
  await refuseOtherDaemon(kernel, 1000);
  faultIo(IO.OPEN, 1, ERRNO.EBUSY, 1000);
  try {
    await rejects(
      refuseOtherDaemon(kernel, 100),
      /another daemon .*uio0 open$/,
    );
  } finally {
    faultIo(IO.OPEN, 0, 0, 0);
  }
});
