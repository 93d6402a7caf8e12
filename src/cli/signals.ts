// SPDX-License-Identifier: Apache-2.0
/**
 * SIGINT and SIGTERM as an AbortSignal.
 *
 * @module
 */
import { ExitError } from "./exit.ts";

const NUMBERS = { SIGINT: 2, SIGTERM: 15 } as const;

/** The user or the system wants the command to end. */
export class InterruptedError extends ExitError {
  constructor(signal: keyof typeof NUMBERS) {
    super(128 + NUMBERS[signal], `interrupted by ${signal}`);
  }
}

/** Signals being watched, until the scope ends. */
export interface Interrupt extends Disposable {
  readonly signal: AbortSignal;
}

/**
 * Watches for SIGINT and SIGTERM.  The first one aborts; a second one ends
 * the process as if nobody watched.
 */
export function watchSignals(): Interrupt {
  const controller = new AbortController();
  const stop = () => {
    Deno.removeSignalListener("SIGINT", onInterrupt);
    Deno.removeSignalListener("SIGTERM", onTerminate);
  };
  const abort = (signal: keyof typeof NUMBERS) => {
    stop();
    controller.abort(new InterruptedError(signal));
  };
  const onInterrupt = () => abort("SIGINT");
  const onTerminate = () => abort("SIGTERM");
  Deno.addSignalListener("SIGINT", onInterrupt);
  Deno.addSignalListener("SIGTERM", onTerminate);
  return { signal: controller.signal, [Symbol.dispose]: stop };
}

/**
 * Runs long work that SIGINT and SIGTERM end.
 *
 * @throws {InterruptedError} instead of what the work threw when it was ended
 */
export async function interruptible<T>(
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  using interrupt = watchSignals();
  try {
    return await work(interrupt.signal);
  } catch (error) {
    throw interrupt.signal.aborted ? interrupt.signal.reason : error;
  }
}
