// SPDX-License-Identifier: Apache-2.0
// Where files lie when nothing is said: the original's places for root, the
// XDG directories for everybody else.
import { deepStrictEqual as equal, match } from "node:assert/strict";
import { defaultPaths } from "../../src/service/paths.ts";
import { mustRun, mustTool, run, tempDir, toolCommand } from "../lib/env.ts";

function of(uid: number, variables: Record<string, string>) {
  return defaultPaths(uid, (name) => variables[name]);
}

Deno.test("root has the original's places, whatever its environment", () => {
  const paths = of(0, { HOME: "/root", XDG_CACHE_HOME: "/x" });
  equal(paths, {
    config: "/etc/overlaybd/overlaybd.json",
    registryCache: "/opt/overlaybd/registry_cache",
    gzipCache: "/opt/overlaybd/gzip_cache",
    credentials: "/opt/overlaybd/cred.json",
    log: "/var/log/overlaybd.log",
    audit: "/var/log/overlaybd-audit.log",
    run: "/run/overlaybd",
  });
});

Deno.test("others have their own, by XDG or below their home", () => {
  const plain = of(1000, {
    HOME: "/home/u",
    XDG_RUNTIME_DIR: "/run/user/1000",
  });
  equal(plain, {
    config: "/home/u/.config/overlaybd/overlaybd.json",
    registryCache: "/home/u/.cache/overlaybd/registry_cache",
    gzipCache: "/home/u/.cache/overlaybd/gzip_cache",
    credentials: "/home/u/.config/overlaybd/cred.json",
    log: "/home/u/.local/state/overlaybd/overlaybd.log",
    audit: "/home/u/.local/state/overlaybd/overlaybd-audit.log",
    run: "/run/user/1000/overlaybd",
  });
  const named = of(1000, {
    HOME: "/home/u",
    XDG_CONFIG_HOME: "/c",
    XDG_CACHE_HOME: "relative",
    XDG_STATE_HOME: "/s",
  });
  equal(named.credentials, "/c/overlaybd/cred.json");
  // Relative ones do not count, as the specification says.
  equal(named.registryCache, "/home/u/.cache/overlaybd/registry_cache");
  equal(named.log, "/s/overlaybd/overlaybd.log");
  equal(named.run, "/tmp/overlaybd-1000/overlaybd");
});

Deno.test({
  name:
    "another user's service has its socket in its own directory (needs root)",
  ignore: Deno.uid() !== 0,
  async fn() {
    using dir = tempDir();
    Deno.chmodSync(dir.path, 0o777);
    const call = toolCommand("overlaybd", ["ctl", "health"]);
    const ended = await run("setpriv", [
      "--reuid=65534",
      "--clear-groups",
      call.command,
      ...call.args,
    ], {
      env: {
        ...call.env,
        HOME: dir.path,
        XDG_RUNTIME_DIR: dir.path,
        XDG_CACHE_HOME: dir.file("cache"),
      },
    });
    equal(ended.code, 255, ended.stderr);
    match(
      ended.stderr,
      new RegExp(`cannot reach the API at ${dir.path}/overlaybd/api.sock: `),
    );
  },
});

Deno.test({
  name: "what the default file enables is the daemon's: `serve --nbd` starts " +
    "beside it (needs root)",
  ignore: Deno.uid() !== 0,
  async fn() {
    using dir = tempDir();
    await mustTool("overlaybd", [
      "create",
      dir.file("d"),
      dir.file("i"),
      "1",
    ]);
    Deno.writeTextFileSync(
      dir.file("c.json"),
      JSON.stringify({ upper: { data: dir.file("d"), index: dir.file("i") } }),
    );
    Deno.mkdirSync(dir.file("overlaybd"));
    Deno.writeTextFileSync(
      dir.file("overlaybd/overlaybd.json"),
      JSON.stringify({ apiConfig: { enable: true, address: "/no/api.sock" } }),
    );
    await mustRun("chown", ["-R", "65534", dir.path]);
    const call = toolCommand("overlaybd", [
      ...["serve", "--nbd", dir.file("nbd"), dir.file("c.json")],
    ]);
    const child = new Deno.Command("setpriv", {
      args: ["--reuid=65534", "--clear-groups", call.command, ...call.args],
      env: {
        ...call.env,
        HOME: dir.path,
        XDG_CONFIG_HOME: dir.path,
        XDG_CACHE_HOME: dir.file("cache"),
      },
      stdin: "null",
      stdout: "piped",
      stderr: "null",
    }).spawn();
    const lines = child.stdout.pipeThrough(new TextDecoderStream());
    for await (const text of lines) {
      match(text, /^ready /);
      child.kill("SIGTERM");
    }
    equal((await child.status).code, 0);
  },
});
