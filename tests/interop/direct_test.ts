// SPDX-License-Identifier: Apache-2.0
// ioEngine: 1 reads local layers past the page cache, where that can be.
import { deepStrictEqual as equal, match, ok } from "node:assert/strict";
import { connectNbd } from "../lib/nbd.ts";
import { tempDir } from "../lib/env.ts";
import { makeLayer, SIZE } from "../lib/remote.ts";
import { startServer } from "../lib/server.ts";

const DIRECT = Deno.build.arch === "aarch64" ? 0o200000 : 0o40000;

/** How often a process has a file open, with O_DIRECT and without. */
function openings(pid: number, path: string): { direct: number; all: number } {
  let direct = 0;
  let all = 0;
  for (const { name } of Deno.readDirSync(`/proc/${pid}/fd`)) {
    try {
      if (Deno.readLinkSync(`/proc/${pid}/fd/${name}`) !== path) continue;
      all++;
      const info = Deno.readTextFileSync(`/proc/${pid}/fdinfo/${name}`);
      const flags = parseInt(/^flags:\s*(\d+)/m.exec(info)?.[1] ?? "0", 8);
      if ((flags & DIRECT) !== 0) direct++;
    } catch {
      // Closed since.
    }
  }
  return { direct, all };
}

for (const zfile of [false, true]) {
  for (const ioEngine of [0, 1, 2]) {
    Deno.test(`ioEngine ${ioEngine}, ${zfile ? "a ZFile" : "a plain layer"}`, async () => {
      using dir = tempDir();
      const { path, content } = await makeLayer(dir, { zfile, tar: true });
      const config = dir.file("c.json");
      Deno.writeTextFileSync(
        config,
        JSON.stringify({ lowers: [{ file: path }] }),
      );
      const service = dir.file("overlaybd.json");
      Deno.writeTextFileSync(service, JSON.stringify({ ioEngine }));
      await using server = await startServer(dir.file("nbd"), [`${config};a`], {
        args: ["--service_config_path", service, "--verbose"],
      });
      const { direct, all } = openings(server.pid, path);
      ok(all > 0);
      if (ioEngine !== 1) equal(direct, 0);
      // A file system without it is told of, and read all the same.
      else if (direct === 0) match(server.said(), /ioEngine 1: .* O_DIRECT: /);
      using client = await connectNbd(dir.file("nbd"), "a");
      for (let at = 0; at < SIZE; at += 1 << 20) {
        equal(
          await client.read(at, 1 << 20),
          content.slice(at, at + (1 << 20)),
        );
      }
      equal(
        await client.read(512, 1024),
        content.slice(512, 1536),
      );
    });
  }
}
