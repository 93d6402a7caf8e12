// SPDX-License-Identifier: Apache-2.0
/**
 * What comes too late, and what nobody has expected.
 *
 * @module
 */
import {
  deepStrictEqual as equal,
  match,
  ok,
  throws,
} from "node:assert/strict";
import { newDevice } from "../../ffi/device.ts";
import { newIndex } from "../../ffi/index.ts";
import { newView } from "../../ffi/view.ts";
import { EngineError } from "../../ffi/errors.ts";
import { startNbdServer } from "../../src/device/nbd/server.ts";
import { surviveErrors } from "../../src/service/survive.ts";
import { tempDir } from "../lib/env.ts";

Deno.test("an export that comes when the server has ended is refused", async () => {
  using dir = tempDir();
  using index = newIndex(new Uint8Array(0));
  using view = newView(index, [], 4096n);
  using device = newDevice(view, undefined, 4096n);
  const server = await startNbdServer(
    { kind: "unix", path: dir.file("socket") },
    [{ name: "one", description: "", device }],
  );
  equal(server.users("one"), 0);
  equal(server.users("two"), undefined);
  await server.remove("one", 0);
  equal(server.users("one"), undefined);
  await server.close(0);
  const isShutdown = (error: unknown) =>
    error instanceof EngineError && error.code === "ESHUTDOWN";
  throws(
    () => server.add({ name: "late", description: "", device }),
    isShutdown,
  );
  equal(server.users("late"), undefined);
  const failed = await server.remove("late", 0).catch((error) => error);
  ok(isShutdown(failed), String(failed));
});

Deno.test("an error that nobody has expected is logged, and ends nothing", async () => {
  const lines: string[] = [];
  using _ = surviveErrors({ error: (line) => void lines.push(line) });
  Promise.reject(new Error("of one device"));
  setTimeout(() => {
    throw new Error("of a timer");
  });
  await new Promise((done) => setTimeout(done, 20));
  equal(lines.length, 2);
  match(lines[0] ?? "", /unexpected: Error: of one device/);
  match(lines[1] ?? "", /unexpected: Error: of a timer/);
});
