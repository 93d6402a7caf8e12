// SPDX-License-Identifier: Apache-2.0
// What the service manager is told (sd_notify(3)).
import { deepStrictEqual as equal } from "node:assert/strict";
import { serviceManager } from "../../src/service/notify.ts";

/** A manager with this environment, and what it was told. */
function told(env: Readonly<Record<string, string>>) {
  const states: string[] = [];
  const warnings: string[] = [];
  const manager = serviceManager((text) => warnings.push(text), {
    env: (name) => env[name],
    send(socket, state) {
      if (socket === "/gone") throw new Error("no such file");
      states.push(`${socket} ${state}`);
    },
  });
  return { manager, states, warnings };
}

const wait = (ms: number) => new Promise((done) => setTimeout(done, ms));

Deno.test("a manager hears that we are ready, and that we end", () => {
  const { manager, states } = told({ NOTIFY_SOCKET: "@x" });
  manager.ready();
  manager.stopping();
  manager[Symbol.dispose]();
  equal(states, ["@x READY=1", "@x STOPPING=1"]);
});

Deno.test("a watchdog hears of us until the end, if it is ours", async () => {
  const env = { NOTIFY_SOCKET: "@x", WATCHDOG_USEC: "10000" };
  const ours = told({ ...env, WATCHDOG_PID: String(Deno.pid) });
  const others = told({ ...env, WATCHDOG_PID: String(Deno.pid + 1) });
  ours.manager.ready();
  others.manager.ready();
  for (let i = 0; ours.states.length < 3 && i < 1000; i++) await wait(5);
  ours.manager[Symbol.dispose]();
  others.manager[Symbol.dispose]();
  equal(ours.states.slice(1, 3), ["@x WATCHDOG=1", "@x WATCHDOG=1"]);
  equal(others.states, ["@x READY=1"]);
  const { length } = ours.states;
  await wait(30);
  equal(ours.states.length, length);
});

Deno.test("without a manager nothing is said, one that has gone is a warning", () => {
  const none = told({ WATCHDOG_USEC: "10000" });
  none.manager.ready();
  none.manager[Symbol.dispose]();
  equal([none.states, none.warnings], [[], []]);
  const gone = told({ NOTIFY_SOCKET: "/gone" });
  gone.manager.ready();
  equal(gone.warnings, ["no such file"]);
});
