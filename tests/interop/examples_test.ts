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

Deno.test("a live snapshot, as its page says, step by step", {
  ignore: !have("qemu-io") || !have("curl"),
}, async () => {
  using dir = tempDir();
  const { code, stdout, stderr } = await runExamples("docs/snapshot.md", dir);
  equal(code, 0, stderr + stdout);
  match(stdout, /"success": true/);
  match(stdout, /sound/);
});

Deno.test("the API's page: attach, grow, look, detach", {
  ignore: !have("nbdinfo") || !have("curl"),
}, async () => {
  using dir = tempDir();
  const { code, stdout, stderr } = await runExamples("docs/api.md", dir);
  equal(code, 0, stderr + stdout);
  match(stdout, /^2147483648$/m);
  match(stdout, /web is detached/);
});
