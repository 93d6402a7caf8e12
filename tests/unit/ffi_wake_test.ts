// SPDX-License-Identifier: Apache-2.0
import { deepStrictEqual as equal } from "node:assert/strict";
import { onWake } from "../../ffi/wake.ts";

Deno.test("a queue's drain that throws keeps no other from being called", async () => {
  const thrown: unknown[] = [];
  const note = (event: ErrorEvent) => {
    event.preventDefault();
    thrown.push(event.error.message);
  };
  globalThis.addEventListener("error", note);
  try {
    // Both are called as they are registered, and by the first wake-up.
    using _event = onWake("event", () => {
      throw new Error("broken");
    });
    let calls = 0;
    using _scsi = onWake("scsi", () => calls++);
    for (let i = 0; calls < 2 && i < 1000; i++) {
      await new Promise((done) => setTimeout(done, 5));
    }
    equal([calls, thrown], [2, ["broken", "broken"]]);
  } finally {
    globalThis.removeEventListener("error", note);
  }
});
