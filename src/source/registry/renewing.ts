// SPDX-License-Identifier: Apache-2.0
/**
 * A transport that is made anew when its certificates are: they are replaced
 * while the process runs.
 *
 * @module
 */
import {
  createTransport,
  type Transport,
  type TransportOptions,
} from "./transport.ts";

/** What is read from files, PEM. */
export type Certificates = Pick<TransportOptions, "cert" | "key" | "ca">;

/** Requests that began before have ended by then. */
const RETIRE_MS = 60_000;

/**
 * Makes it; nothing is connected yet.
 *
 * @param current called before every request: gives the same object again
 *   until there are others
 */
export function renewingTransport(
  options: TransportOptions,
  current: () => Certificates,
): Transport {
  let used = current();
  let transport = createTransport({ ...options, ...used });
  const retired = new Map<Transport, ReturnType<typeof setTimeout>>();
  const retire = (old: Transport) => {
    const timer = setTimeout(() => {
      retired.delete(old);
      old.close();
    }, RETIRE_MS);
    Deno.unrefTimer(timer);
    retired.set(old, timer);
  };
  const close = () => {
    for (const [old, timer] of retired) {
      clearTimeout(timer);
      old.close();
    }
    retired.clear();
    transport.close();
  };
  return {
    send(request) {
      const now = current();
      if (now !== used) {
        retire(transport);
        used = now;
        transport = createTransport({ ...options, ...now });
      }
      return transport.send(request);
    },
    close,
    [Symbol.dispose]: close,
  };
}
