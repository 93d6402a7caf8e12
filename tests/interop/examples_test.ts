// SPDX-License-Identifier: Apache-2.0
/** What the documentation says to type works as it is written. */
import { equal, match, ok } from "node:assert/strict";
import { existsSync } from "node:fs";
import { have, tempDir } from "../lib/env.ts";
import { examples, runExamples } from "../lib/examples.ts";

const cannotMount = Deno.uid() !== 0 || !existsSync("/dev/fuse") ||
  !existsSync("/dev/loop-control") || !have("nbdfuse");

Deno.test("the README's five minutes, from an empty layer to a mount", {
  ignore: cannotMount,
}, async () => {
  using dir = tempDir();
  ok(examples("README.md").length >= 6);
  const { code, stdout, stderr } = await runExamples("README.md", dir);
  equal(code, 0, stderr + stdout);
  match(stdout, /sound/);
  match(stdout, /different/);
});
