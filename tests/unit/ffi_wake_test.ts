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

Deno.test("a wake-up socket that nobody can accept is said, made anew, and brings what waited", async () => {
  const said: string[] = [];
  const note = (event: ErrorEvent) => {
    event.preventDefault();
    said.push(event.error.message);
  };
  globalThis.addEventListener("error", note);
  const { listen } = Deno;
  let refusals = 2;
  // As when no descriptor is left.
  const refusing = (options: { transport: "unix"; path: string }) => {
    const listener = listen(options);
    const accept = listener.accept.bind(listener);
    listener.accept = () =>
      refusals-- > 0
        ? Promise.reject(new Error("too many open files"))
        : accept();
    return listener;
  };
  Object.defineProperty(Deno, "listen", { value: refusing, writable: true });
  try {
    let calls = 0;
    using _ = onWake("scsi", () => calls++);
    // The first call is by registering, the next by the connection.
    for (let i = 0; calls < 2 && i < 1000; i++) {
      await new Promise((done) => setTimeout(done, 5));
    }
    equal(calls >= 2, true);
    equal(said, ["too many open files", "too many open files"]);
  } finally {
    Object.defineProperty(Deno, "listen", { value: listen, writable: true });
    globalThis.removeEventListener("error", note);
  }
});
