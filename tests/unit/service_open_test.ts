// SPDX-License-Identifier: Apache-2.0
import { deepStrictEqual as equal, rejects } from "node:assert/strict";
import { existsSync } from "node:fs";
import { openAudit } from "../../src/service/audit.ts";
import { parseServiceConfig } from "../../src/service/config.ts";
import { createLog } from "../../src/service/log.ts";
import {
  createService,
  DuplicateError,
  type Service,
} from "../../src/service/service.ts";
import { openUpper } from "../../src/layer/upper.ts";
import { type TempDir, tempDir } from "../lib/env.ts";
import { newUpper } from "../lib/product.ts";

function quietService(dir: TempDir): Service {
  const loaded = parseServiceConfig({
    cacheConfig: { cacheType: "file", cacheDir: dir.file("cache") },
    enableAudit: false,
  }, "test");
  const log = createLog({ write() {}, [Symbol.dispose]() {} }, 0);
  return createService({ loaded, log, audit: openAudit(loaded.config, log) });
}

async function writeConfig(dir: TempDir, name: string): Promise<string> {
  const upper = await newUpper(dir.file(name), { size: 1 << 20 });
  const path = dir.file(`${name}.json`);
  Deno.writeTextFileSync(
    path,
    JSON.stringify({ upper, resultFile: `${name}.result` }),
  );
  return path;
}

Deno.test("an image is found by its dev_id while it is open", async () => {
  using dir = tempDir();
  const service = quietService(dir);
  const request = { devId: "x;y", transport: "nbd" } as const;
  const path = await writeConfig(dir, "a");
  const served = await service.open({ path, ...request });
  equal(service.find("x;y")?.id, served.id);
  equal(service.images().map(({ name }) => name), ["x;y"]);
  await served.close();
  equal([service.find("x;y"), service.images()], [undefined, []]);
  await (await service.open({ path, ...request })).close();
  await service.close();
});

Deno.test("a dev_id is taken once, also while its image opens", async () => {
  using dir = tempDir();
  const service = quietService(dir);
  const open = async (name: string, devId: string) =>
    await service.open({
      path: await writeConfig(dir, name),
      devId,
      transport: "nbd",
    });
  const both = await Promise.allSettled([open("a", "1"), open("b", "1")]);
  const failed = both.filter((result) => result.status === "rejected");
  equal(failed.length, 1);
  equal(failed[0]?.reason instanceof DuplicateError, true);
  equal(service.images().length, 1);
  // Without one, any number of images may be open.
  await open("c", "");
  await open("d", "");
  equal(service.images().length, 3);
  await service.close();
  equal(service.images().length, 0);
});

Deno.test("a relative result file lies beside the configuration", async () => {
  using dir = tempDir();
  const service = quietService(dir);
  const path = await writeConfig(dir, "a");
  const served = await service.open({ path, devId: "1", transport: "tcmu" });
  await served.writeResult();
  equal(Deno.readTextFileSync(dir.file("a.result")), "success");
  const second = await writeConfig(dir, "b");
  await rejects(
    service.open({ path: second, devId: "1", transport: "tcmu" }),
    DuplicateError,
  );
  equal(
    Deno.readTextFileSync(dir.file("b.result")),
    "failed:duplicated dev id: 1",
  );
  await service.close();
});

Deno.test("a configuration with a wrong value has its result written, too", async () => {
  using dir = tempDir();
  const service = quietService(dir);
  const path = dir.file("a.json");
  const open = (text: string) => {
    Deno.writeTextFileSync(path, text);
    return service.open({ path, devId: "", transport: "tcmu" });
  };
  await rejects(open('{"lowers": 5, "resultFile": "result"}'), /lowers/);
  equal(
    Deno.readTextFileSync(dir.file("result")),
    `failed:cannot use ${path}: lowers: expected array, got 5`,
  );
  Deno.removeSync(dir.file("result"));
  for (const text of ["{", '{"resultFile": 5}', "[]"]) {
    await rejects(open(text));
    equal([...Deno.readDirSync(dir.path)].map(({ name }) => name), ["a.json"]);
  }
  await service.close();
});

Deno.test("an image that nobody wants any more gives its dev_id back at once", async () => {
  using dir = tempDir();
  const service = quietService(dir);
  const path = await writeConfig(dir, "a");
  const ending = new AbortController();
  const request = { path, devId: "1", transport: "tcmu" } as const;
  const opening = service.open(request, ending.signal);
  ending.abort(new Error("gone"));
  await rejects(opening, /^Error: gone$/);
  equal([service.images(), service.find("1")], [[], undefined]);
  equal(existsSync(dir.file("a.result")), false);
  await (await service.open(request)).close();
  await service.close();
});

Deno.test("an image that is being opened when the service ends is closed", async () => {
  using dir = tempDir();
  const service = quietService(dir);
  const path = await writeConfig(dir, "a");
  const request = { path, devId: "1", transport: "nbd" } as const;
  const opening = service.open(request);
  const refused = rejects(opening, /the service ends/);
  await service.close();
  const lock = await openUpper({
    data: dir.file("a.data"),
    index: dir.file("a.index"),
    readonly: false,
  });
  lock.close();
  await refused;
  equal(service.images(), []);
  await rejects(service.open(request), /the service ends/);
  equal(existsSync(dir.file("a.result")), false);
});
