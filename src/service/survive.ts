// SPDX-License-Identifier: Apache-2.0
/**
 * What nobody has expected.
 *
 * @module
 */
import type { Logger } from "./log.ts";

/** Nothing that one device or client does ends the service of all others. */
export function surviveErrors(log: Pick<Logger, "error">): Disposable {
  const survive = (event: PromiseRejectionEvent | ErrorEvent) => {
    event.preventDefault();
    const error = event instanceof ErrorEvent ? event.error : event.reason;
    const text = error instanceof Error ? error.stack ?? error.message : error;
    log.error(`unexpected: ${String(text)}`);
  };
  globalThis.addEventListener("unhandledrejection", survive);
  globalThis.addEventListener("error", survive);
  return {
    [Symbol.dispose]() {
      globalThis.removeEventListener("unhandledrejection", survive);
      globalThis.removeEventListener("error", survive);
    },
  };
}
