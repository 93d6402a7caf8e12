// SPDX-License-Identifier: Apache-2.0
// A full disk for logs and audit: the service goes on, and says so once.
import { deepStrictEqual as equal, match, ok } from "node:assert/strict";
import { openAudit } from "../../src/service/audit.ts";
import { parseServiceConfig } from "../../src/service/config.ts";
import { openLog } from "../../src/service/log.ts";
import { createService } from "../../src/service/service.ts";
import { mustRun, run, tempDir } from "../lib/env.ts";
import { newUpper } from "../lib/product.ts";

async function canMount(): Promise<boolean> {
  if (Deno.uid() !== 0) return false;
  using dir = tempDir();
  const mounted = await run("mount", ["-t", "tmpfs", "none", dir.path]);
  if (mounted.code !== 0) return false;
  await mustRun("umount", [dir.path]);
  return true;
}

Deno.test({
  name: "logs and audit on a full disk: images open, are used and close " +
    "(needs mount)",
  ignore: !await canMount(),
  async fn() {
    using dir = tempDir();
    const disk = dir.file("disk");
    Deno.mkdirSync(disk);
    await mustRun("mount", ["-t", "tmpfs", "-o", "size=64k", "none", disk]);
    const said: string[] = [];
    const error = console.error;
    console.error = (line: string) => said.push(line);
    try {
      const loaded = parseServiceConfig({
        logConfig: { logPath: `${disk}/log`, logLevel: 0 },
        auditPath: `${disk}/audit`,
        cacheConfig: { cacheType: "file", cacheDir: dir.file("cache") },
      }, dir.file("overlaybd.json"));
      using log = openLog(loaded.config.logConfig);
      using audit = openAudit(loaded.config, log);
      const service = createService({ loaded, log, audit });
      const note = () =>
        service.audit.record({
          op: "download",
          pathname: "/x",
          offset: 0,
          size: 1,
          latencyUs: 1,
        });
      for (let i = 0; i < 2000; i++) {
        log.info(`line ${i} ${"x".repeat(80)}`);
        note();
      }
      const upper = await newUpper(dir.file("up"), { size: 1 << 20 });
      const path = dir.file("c.json");
      Deno.writeTextFileSync(path, JSON.stringify({ upper }));
      const served = await service.open({ path, devId: "a", transport: "nbd" });
      equal(service.find("a"), served);
      await served.close();
      const lost = said.filter((line) => /cannot write .*\/log: /.test(line));
      equal(lost.length, 1, said.join("\n"));
      match(lost[0] ?? "", /no space left/);

      // Room again: what is lost is counted where it can be read.
      Deno.truncateSync(`${disk}/log`);
      log.info("there is room");
      note();
      match(Deno.readTextFileSync(`${disk}/log`), /there is room\n/);
      ok(said.some((line) => /written again, \d+ lost/.test(line)));
      ok(Deno.statSync(`${disk}/audit`).size > 0);
      await service.close();
    } finally {
      console.error = error;
      await mustRun("umount", [disk]);
    }
  },
});
