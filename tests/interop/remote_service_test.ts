// SPDX-License-Identifier: Apache-2.0
/**
 * A service with remote layers: its audit lines, and how it ends while a
 * registry hangs.
 *
 * @module
 */
import assert from "node:assert/strict";
import { mustRun, sha256File, type TempDir, tempDir } from "../lib/env.ts";
import { answerRange, startFake } from "../lib/fake_registry.ts";
import { until } from "../lib/blobs.ts";
import { connectNbd } from "../lib/nbd.ts";
import { makeLayer } from "../lib/remote.ts";
import { ServeError, startServer } from "../lib/server.ts";

function configure(
  dir: TempDir,
  origin: string,
  layer: string,
  cacheSizeGB: number,
): { config: string; args: string[]; url: string } {
  const config = dir.file("config.v1.json");
  const digest = `sha256:${sha256File(layer)}`;
  const repoBlobUrl = `${origin}/v2/a/b/blobs`;
  Deno.writeTextFileSync(
    config,
    JSON.stringify({ repoBlobUrl, lowers: [{ digest }] }),
  );
  const service = dir.file("overlaybd.json");
  Deno.writeTextFileSync(
    service,
    JSON.stringify({
      cacheConfig: {
        cacheType: "file",
        cacheDir: dir.file("cache"),
        cacheSizeGB,
        refillSize: 65536,
      },
      auditPath: dir.file("audit.log"),
      logPath: "",
    }),
  );
  return {
    config,
    args: ["--service_config_path", service],
    url: `${repoBlobUrl}/${digest}`,
  };
}

Deno.test("every fetch and every eviction has its audit line", async () => {
  using dir = tempDir();
  const { path } = await makeLayer(dir, { zfile: true, tar: true });
  const blob = Deno.readFileSync(path);
  await using registry = await startFake((asked) => answerRange(asked, blob));
  const { config, args, url } = configure(dir, registry.origin, path, 0);
  const eviction =
    /\|eviction\[actualEvict=\d+\]\[evictByCache=\d+\]\[evictByDisk=0\]\[totalUsed=\d+\]/;
  const audit = () => Deno.readTextFileSync(dir.file("audit.log"));
  {
    await using server = await startServer(dir.file("nbd"), [config], { args });
    await mustRun("nbdcopy", [server.uri, "null:"]);
    // The cache evicts in the background, soon after it is too full.
    await until(() => eviction.test(audit()), "evicted");
  }
  const lines = audit().split("\n");
  const fetched = lines.flatMap((line) => {
    const [, pathname, offset, size] =
      /\|download\[pathname=([^\]]*)\]\[offset=(\d+)\]\[size=(\d+)\]\[latency=\d+\]$/
        .exec(line) ?? [];
    return pathname === undefined ? [] : [{ pathname, offset, size }];
  });
  assert.deepEqual([...new Set(fetched.map((line) => line.pathname))], [
    `/${url}`,
  ]);
  assert.equal(fetched.length, registry.asked.length);
  assert(fetched.every(({ offset }) => Number(offset) % 65536 === 0));
});

Deno.test("reads that a slow disk holds up have their audit lines", async () => {
  using dir = tempDir();
  const { path } = await makeLayer(dir, { zfile: true, tar: true });
  const blob = Deno.readFileSync(path);
  await using registry = await startFake((asked) => answerRange(asked, blob));
  const { config, args } = configure(dir, registry.origin, path, 4);
  const local = dir.file("local.json");
  Deno.writeTextFileSync(local, JSON.stringify({ lowers: [{ file: path }] }));
  const read = async (config: string, env: Record<string, string>) => {
    await using server = await startServer(dir.file("nbd"), [config], {
      args,
      env,
    });
    await mustRun("nbdcopy", [server.uri, "null:"]);
  };
  const audited = (op: string) =>
    Deno.readTextFileSync(dir.file("audit.log")).split("\n").flatMap((line) => {
      const [, pathname, offset, size, latency] = new RegExp(
        `\\|${op}\\[pathname=([^\\]]*)\\]\\[offset=(\\d+)\\]` +
          "\\[size=(\\d+)\\]\\[latency=(\\d+)\\]$",
      ).exec(line) ?? [];
      const numbers = [offset, size, latency].map(Number);
      return pathname === undefined ? [] : [{ pathname, numbers }];
    });
  const paths = (op: string) =>
    new Set(audited(op).map(({ pathname }) => pathname));
  await read(config, { OVERLAYBD_IO_DELAY: "2" });
  assert.deepEqual(paths("file:read"), new Set([""]));
  assert(
    audited("file:read").every(({ numbers: [offset, size, latency] }) =>
      Number(offset) + Number(size) <= blob.length && Number(latency) >= 1000
    ),
  );
  assert.deepEqual(audited("file:pread"), []);
  await read(local, { OVERLAYBD_IO_DELAY: "11" });
  assert.deepEqual(paths("file:pread"), new Set([path]));
});

Deno.test("a service ends at once while a registry hangs: reads end, too", async () => {
  using dir = tempDir();
  const { path } = await makeLayer(dir, { zfile: true, tar: true });
  const blob = Deno.readFileSync(path);
  let hangs = false;
  await using registry = await startFake((asked) => {
    if (!hangs) answerRange(asked, blob);
  });
  const { config, args } = configure(dir, registry.origin, path, 4);
  const server = await startServer(dir.file("nbd"), [config], { args });
  const client = await connectNbd(dir.file("nbd"), "");
  hangs = true;
  const waits = assert.rejects(client.read(5 << 20, 4096));
  await new Promise((done) => setTimeout(done, 100));
  const start = performance.now();
  const { code } = await server.stop("SIGTERM");
  await waits;
  client.close();
  assert.equal(code, 0);
  // Requests that can end have 5 s, a registry's attempt has 30.
  assert(performance.now() - start < 4_000);
});

Deno.test("a service that opens an image whose registry hangs can be ended", async () => {
  using dir = tempDir();
  const { path } = await makeLayer(dir, { zfile: true, tar: true });
  await using registry = await startFake(() => {});
  const { config, args } = configure(dir, registry.origin, path, 4);
  const stop = setInterval(() => {
    const { asked } = registry;
    if (asked.length === 0) return;
    clearInterval(stop);
    for (const pid of children()) Deno.kill(pid, "SIGTERM");
  }, 50);
  const children = () =>
    [...Deno.readDirSync("/proc")].map(({ name }) => Number(name))
      .filter((pid) => Number.isInteger(pid) && pid > 0)
      .filter((pid) => {
        try {
          return Deno.readTextFileSync(`/proc/${pid}/cmdline`)
            .includes(dir.file("nbd"));
        } catch {
          return false;
        }
      });
  const start = performance.now();
  await assert.rejects(
    startServer(dir.file("nbd"), [config], { args }),
    (error: unknown) =>
      error instanceof ServeError && error.code === 143 &&
      error.stderr === "interrupted by SIGTERM\n",
  );
  clearInterval(stop);
  assert(performance.now() - start < 15_000, "it waited for the registry");
});
