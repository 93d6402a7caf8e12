// SPDX-License-Identifier: Apache-2.0
/**
 * What the service manager is told (sd_notify(3), sd_watchdog_enabled(3)).
 *
 * @module
 */
import { notify } from "../../ffi/tcmu.ts";

/** Talks to the service manager; does nothing where there is none. */
export interface Manager extends Disposable {
  ready(): void;
  stopping(): void;
}

type Env = (name: string) => string | undefined;

/** How often the watchdog wants to hear of us, in ms. */
function watchdogMs(env: Env): number | undefined {
  const pid = env("WATCHDOG_PID") ?? "";
  if (pid !== "" && Number(pid) !== Deno.pid) return undefined;
  const usec = Number(env("WATCHDOG_USEC") ?? "");
  return usec > 0 ? usec / 1000 : undefined;
}

/**
 * The manager that started this process.
 *
 * @param env where it says how it wants to be told
 */
export function serviceManager(
  warn: (text: string) => void,
  { env = (name) => Deno.env.get(name), send = notify }: {
    env?: Env;
    send?: typeof notify;
  } = {},
): Manager {
  const socket = env("NOTIFY_SOCKET") ?? "";
  const tell = (state: string) => {
    if (socket === "") return;
    try {
      send(socket, state);
    } catch (error) {
      warn(error instanceof Error ? error.message : String(error));
    }
  };
  let timer: ReturnType<typeof setInterval> | undefined;
  return {
    ready() {
      tell("READY=1");
      const ms = watchdogMs(env);
      if (socket === "" || ms === undefined) return;
      timer = setInterval(() => tell("WATCHDOG=1"), ms / 2);
    },
    stopping: () => tell("STOPPING=1"),
    [Symbol.dispose]: () => clearInterval(timer),
  };
}
