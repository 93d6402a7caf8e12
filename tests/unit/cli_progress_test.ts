// SPDX-License-Identifier: Apache-2.0
import { deepStrictEqual as equal, ok } from "node:assert/strict";
import {
  formatBytes,
  formatSeconds,
  progressLine,
  showProgress,
} from "../../src/cli/progress.ts";

Deno.test("bytes and seconds are short and readable", () => {
  equal(formatBytes(0), "0 B");
  equal(formatBytes(1023), "1023 B");
  equal(formatBytes(4096), "4 KiB");
  equal(formatBytes(1536), "1.50 KiB");
  equal(formatBytes(12_345_678), "11.8 MiB");
  equal(formatBytes(1n << 59n), "512 PiB");
  equal(formatSeconds(0.25), "0.3 s");
  equal(formatSeconds(42), "42 s");
  equal(formatSeconds(187), "3:07");
  equal(formatSeconds(3723), "1:02:03");
});

Deno.test("the progress line has bar, part, rate and time left", () => {
  const MIB = 1 << 20;
  const line = progressLine(
    "commit",
    { total: 400 * MIB, done: 100 * MIB, written: 0 },
    2,
  );
  equal(line, "commit [######------------------]  25 %  50 MiB/s  6.0 s left");
});

Deno.test("without a total there is no bar", () => {
  equal(
    progressLine("compress", { total: 0, done: 2 << 20, written: 0 }, 1),
    "compress  2 MiB  2 MiB/s",
  );
});

Deno.test("nothing has happened yet: no division by zero", () => {
  ok(
    progressLine("x", { total: 10, done: 0, written: 0 }, 0)
      .endsWith("0 %  0 B/s"),
  );
});

Deno.test({
  name: "nobody watches where stderr is no terminal",
  ignore: Deno.stderr.isTerminal(),
  fn: () => {
    using bar = showProgress("x");
    equal(bar.onProgress, undefined);
  },
});
