// SPDX-License-Identifier: Apache-2.0
// Log and audit: spec/service-config.md, sections 4 and 5.
import {
  deepStrictEqual as equal,
  match,
  ok,
  throws,
} from "node:assert/strict";
import { existsSync, readFileSync, statSync } from "node:fs";
import { openAudit } from "../../src/service/audit.ts";
import { parseServiceConfig } from "../../src/service/config.ts";
import { openLineFile } from "../../src/service/line_file.ts";
import {
  createLog,
  openLog,
  stderrSink,
  timeText,
  withoutSecrets,
} from "../../src/service/log.ts";
import { tempDir } from "../lib/env.ts";

function logConfig(value: unknown) {
  return parseServiceConfig({ logConfig: value }, "o").config.logConfig;
}

const collected = () => {
  const lines: string[] = [];
  return { lines, sink: stderrSink((line) => lines.push(line), false) };
};

Deno.test("a line of the log is the original's", () => {
  using dir = tempDir();
  const logPath = dir.file("log");
  using log = openLog(logConfig({ logPath }));
  log.debug("not at level 1");
  log.info("one");
  log.with({ device: "d1", area: "tcmu" }).warn("two\nlines");
  log.error("three");
  const lines = Deno.readTextFileSync(logPath).split("\n");
  const start =
    /^\d{4}\/\d\d\/\d\d \d\d:\d\d:\d\d\.\d{6}\|(INFO |WARN |ERROR)\|th=[0-9A-F]{16}\|/;
  equal(lines.length, 4);
  for (const line of lines.slice(0, 3)) match(line, start);
  equal(lines.map((line) => line.replace(start, "$1;")), [
    "INFO ;service:0|service:one",
    "WARN ;tcmu:0|tcmu:[device=d1] two\\nlines",
    "ERROR;service:0|service:three",
    "",
  ]);
  equal(statSync(logPath).mode & 0o777, 0o644);
});

Deno.test("times are local, to the microsecond, in the zone of the start", () => {
  const at = new Date(2024, 0, 2, 3, 4, 5, 678).getTime();
  const zone = new Date(at).getTimezoneOffset() ===
    new Date().getTimezoneOffset();
  if (zone) equal(timeText(at + 0.901), "2024/01/02 03:04:05.678901");
});

Deno.test("JSON lines, and the level while it runs", () => {
  using dir = tempDir();
  const logPath = dir.file("log");
  using log = openLog(logConfig({ logPath, logLevel: 3, format: "json" }));
  log.warn("no");
  log.level = 0;
  log.with({ device: "d" }).debug("yes");
  const { time, ...rest } = JSON.parse(Deno.readTextFileSync(logPath));
  match(time, /^\d{4}-.*Z$/);
  equal(rest, { device: "d", level: "debug", text: "yes" });
});

Deno.test("the log is rotated through logRotateNum files", () => {
  using dir = tempDir();
  const path = dir.file("log");
  using file = openLineFile(path, {
    limitBytes: 0,
    files: 3,
    onTrouble: (text) => {
      throw new Error(text);
    },
  });
  const line = "x".repeat(2 ** 19 - 1);
  for (let n = 0; n < 9; n++) file.write(`${n}${line}`);
  const firsts = (name: string) =>
    readFileSync(name, "utf8").split("\n").map((text) => text[0] ?? "").join(
      "",
    );
  equal([path, `${path}.1`, `${path}.2`].map(firsts), ["8", "67", "45"]);
  equal(existsSync(`${path}.3`), false);
});

Deno.test("logSizeMB is the limit, also of 4 GiB; an audit file's is 10 MiB", () => {
  using dir = tempDir();
  const rotates = (size: number, write: (path: string) => void) => {
    const path = dir.file(crypto.randomUUID());
    Deno.createSync(path).close();
    Deno.truncateSync(path, size);
    write(path);
    return existsSync(`${path}.1`);
  };
  const log = (logSizeMB: number) => (logPath: string) => {
    using log = openLog(logConfig({ logPath, logSizeMB }));
    log.error("one");
  };
  equal(rotates(2 * 2 ** 20 - 1, log(2)), false);
  equal(rotates(2 * 2 ** 20, log(2)), true);
  equal(rotates(2 ** 20, log(0)), true);
  equal(rotates(4095 * 2 ** 20, log(4096)), false);
  equal(rotates(4096 * 2 ** 20, log(4096)), true);
  const quiet = createLog(collected().sink, 0);
  const audit = (auditPath: string) => {
    using audit = openAudit({ enableAudit: true, auditPath }, quiet);
    const none = { pathname: "", offset: 0, size: 0, latencyUs: 0 };
    audit.record({ op: "download", ...none });
  };
  equal(rotates(10 * 2 ** 20 - 1, audit), false);
  equal(rotates(10 * 2 ** 20, audit), true);
});

Deno.test("one file begins again; an existing one goes on", () => {
  using dir = tempDir();
  const path = dir.file("log");
  Deno.writeTextFileSync(path, "before\n");
  using file = openLineFile(path, { limitBytes: 1, files: 1, onTrouble() {} });
  file.write("y".repeat(2 ** 20));
  equal(Deno.readTextFileSync(path).startsWith("before\ny"), true);
  file.write("new");
  equal(Deno.readTextFileSync(path), "new\n");
});

Deno.test("a full disk is said once, and the service goes on", () => {
  const said: string[] = [];
  using file = openLineFile("/dev/full", {
    limitBytes: 1,
    files: 3,
    onTrouble: (text) => said.push(text),
  });
  for (let n = 0; n < 5; n++) file.write("line");
  equal(said.length, 1);
  match(said[0] ?? "", /^cannot write \/dev\/full: no space left on device$/);
});

Deno.test("a log that cannot be opened ends the start", () => {
  throws(
    () => openLog(logConfig({ logPath: "/nowhere/log" })),
    /^Error: log_output_file failed: cannot open \/nowhere\/log: no such file or directory$/,
  );
});

Deno.test("secrets are in no line", () => {
  const { lines, sink } = collected();
  const log = createLog(sink, 0);
  const secret = "s3cr3tV4lue";
  for (
    const text of [
      `GET https://user:${secret}@r.io/v2/ 401`,
      `redirect to https://cdn/blob?X-Amz-Signature=${secret}&a=1`,
      `Authorization: Bearer ${secret}`,
      `authorization: basic ${secret}==`,
      `{"username":"u","password":"${secret}"}`,
      `{"access_token": "${secret}", "n": 1}`,
      `token=${secret}`,
    ]
  ) {
    log.info(text);
    ok(!lines.at(-1)?.includes(secret), lines.at(-1));
  }
  equal(
    withoutSecrets("open https://r.io/v2/a/blobs/sha256:ab at 5"),
    "open https://r.io/v2/a/blobs/sha256:ab at 5",
  );
});

Deno.test("journald gets a priority and no time", () => {
  const lines: string[] = [];
  using log = createLog(stderrSink((line) => lines.push(line), true), 0);
  log.error("bad");
  log.with({ device: "d" }).info("good");
  equal(lines, ["<3>bad", "<6>[device=d] good"]);
});

Deno.test("audit lines, thresholds, and nothing where it is off", () => {
  using dir = tempDir();
  const auditPath = dir.file("audit");
  const { lines, sink } = collected();
  const log = createLog(sink, 0);
  using audit = openAudit({ enableAudit: true, auditPath }, log);
  const one = { pathname: "/https://r/v2/a?sig=x", offset: 262144, size: 5 };
  audit.record({ op: "download", ...one, latencyUs: 15321.7 });
  audit.record({ op: "file:pread", ...one, latencyUs: 9999 });
  audit.record({ op: "file:read", ...one, pathname: "", latencyUs: 1000 });
  audit.eviction({
    actualEvict: 1,
    evictByCache: 2,
    evictByDisk: 3,
    totalUsed: 4,
  });
  const start =
    /^\d{4}\/\d\d\/\d\d \d\d:\d\d:\d\d\.\d{6}\|AUDIT\|th=[0-9A-F]{16}\|/;
  const text = Deno.readTextFileSync(auditPath).trimEnd().split("\n");
  for (const line of text) match(line, start);
  equal(text.map((line) => line.replace(start, "")), [
    "download[pathname=/https://r/v2/a?***][offset=262144][size=5][latency=15321]",
    "file:read[pathname=][offset=262144][size=5][latency=1000]",
    "eviction[actualEvict=1][evictByCache=2][evictByDisk=3][totalUsed=4]",
  ]);
  const off = dir.file("off");
  using none = openAudit({ enableAudit: false, auditPath: off }, log);
  none.record({ op: "download", ...one, latencyUs: 1 });
  equal(existsSync(off), false);
  equal(lines, []);
  using _empty = openAudit({ enableAudit: true, auditPath: "" }, log);
  using _missing = openAudit({ enableAudit: true, auditPath: "/no/a" }, log);
  equal(lines.length, 2);
  match(
    lines[1] ?? "",
    /no audit file: cannot open \/no\/a: no such file or directory$/,
  );
});
