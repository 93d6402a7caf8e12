// SPDX-License-Identifier: Apache-2.0
/** Every mutation of the list is caught by the test that it names. */
import { ok } from "node:assert/strict";
import { haveFixtures, tempDir } from "../lib/env.ts";
import {
  checkUnchanged,
  copyTree,
  isCaught,
  MUTATIONS,
} from "../model/mutations.ts";

Deno.test("every listed mutation of the engine is caught", {
  ignore: !haveFixtures,
}, async (t) => {
  using dir = tempDir();
  const root = copyTree(dir);
  await checkUnchanged(root);
  for (const mutation of MUTATIONS) {
    await t.step(mutation.says, async () => {
      ok(await isCaught(root, mutation), `not caught by ${mutation.name}`);
    });
  }
});

Deno.test("the list for reading is the list that runs", () => {
  const text = Deno.readTextFileSync(
    new URL("../model/mutations.md", import.meta.url),
  );
  for (const { says, file, name } of MUTATIONS) {
    ok(text.includes(says), `mutations.md lacks: ${says}`);
    ok(text.includes(file));
    ok(text.includes(name), `mutations.md lacks: ${name}`);
  }
});
