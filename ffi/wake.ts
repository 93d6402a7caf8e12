// SPDX-License-Identifier: Apache-2.0
/**
 * The one socket over which the C library wakes JavaScript: misses, kernel
 * events, SCSI commands and slow reads have a queue each, and one wake-up for
 * all.
 *
 * @module
 */
import { check } from "./errors.ts";
import { cstring, lib } from "./library.ts";

/** What can be waiting in the library. */
export type Queue = "miss" | "event" | "scsi" | "slow";

const drains = new Map<Queue, () => void>();
let socket: { close(): void } | undefined;

/** One that throws keeps no other from being called, now or later. */
function call(drain: () => void): void {
  try {
    drain();
  } catch (error) {
    reportError(error);
  }
}

function drainAll(): void {
  for (const drain of [...drains.values()]) call(drain);
}

function connect(path: string | null): void {
  check(
    lib.obd_wake_connect(path === null ? null : cstring(path)),
    "cannot connect to the wake-up socket",
  );
}

/** Calls every drain for what arrives; @throws the connection is lost */
async function listenTo(connection: Deno.Conn): Promise<void> {
  const bytes = new Uint8Array(256);
  while (await connection.read(bytes) !== null) drainAll();
  throw new Error("the wake-up socket was closed");
}

/** So long after a failure it is tried again. */
const AGAIN_MS = 100;

/**
 * The library connects by itself: only then is there somebody to accept.
 *
 * @param onLost the connection is no more, and was not closed from here
 */
function openConnection(onLost: (error: unknown) => void): { close(): void } {
  const dir = Deno.makeTempDirSync({ prefix: "obd-wake-" });
  const path = `${dir}/socket`;
  try {
    const listener = Deno.listen({ transport: "unix", path });
    let connection: Deno.Conn | undefined;
    let closed = false;
    try {
      connect(path);
    } catch (error) {
      listener.close();
      throw error;
    }
    const accepted = async () => {
      const opened = await listener.accept().finally(() => listener.close());
      if (closed) return opened.close();
      connection = opened;
      try {
        await listenTo(opened);
      } finally {
        if (!closed) opened.close();
      }
    };
    accepted().catch((error) => {
      if (!closed) onLost(error);
    });
    return {
      close() {
        if (closed) return;
        closed = true;
        connect(null);
        try {
          connection?.close();
        } catch {
          // It was lost.
        }
      },
    };
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
}

/** A connection that is made anew, with what waits, when it is lost. */
function openSocket(): { close(): void } {
  let closed = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const lost = (error: unknown) => {
    // Nobody would hear of a miss any more: said, and mended.
    timer = setTimeout(again, AGAIN_MS);
    reportError(error);
  };
  let connection = openConnection(lost);
  const again = () => {
    if (closed) return;
    try {
      connection = openConnection(lost);
    } catch (error) {
      lost(error);
    }
  };
  return {
    close() {
      closed = true;
      if (timer !== undefined) clearTimeout(timer);
      connection.close();
    },
  };
}

/**
 * Calls `drain` whenever something may be in the queue.  It has to empty the
 * queue: the library wakes again only for one that was empty.  The process
 * stays alive while anything is registered.
 *
 * @returns ends it; one drain for each queue at a time
 */
export function onWake(queue: Queue, drain: () => void): Disposable {
  if (drains.has(queue)) {
    throw new Error(`cannot drain the ${queue} queue twice`);
  }
  drains.set(queue, drain);
  try {
    socket ??= openSocket();
  } catch (error) {
    drains.delete(queue);
    throw error;
  }
  // What came before this queue had a drain woke nobody who would look.
  queueMicrotask(() => {
    if (drains.get(queue) === drain) call(drain);
  });
  return {
    [Symbol.dispose]() {
      if (drains.get(queue) !== drain) return;
      drains.delete(queue);
      if (drains.size > 0) return;
      socket?.close();
      socket = undefined;
    },
  };
}
