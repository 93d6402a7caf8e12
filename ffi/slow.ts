// SPDX-License-Identifier: Apache-2.0
/**
 * Reads that waited long for a disk, as the audit file wants to know them.
 *
 * @module
 */
import { check } from "./errors.ts";
import type { Source } from "./handle.ts";
import { lib } from "./library.ts";
import { onWake } from "./wake.ts";

/** One of them. */
export interface SlowRead {
  /** a cache's file, or a local layer */
  kind: "cache" | "local";
  /** of the layer; empty for a cache's file and a layer closed meanwhile */
  path: string;
  /** bytes, in the blob or in what the layer shows */
  at: number;
  /** bytes asked for; of a cache's file those that came, -1 for none */
  length: number;
  latencyUs: number;
}

/** Told of slow reads, and of how many went unseen: there is an end to it. */
export interface SlowReadListener {
  read(done: SlowRead): void;
  dropped(reads: number): void;
}

const SIZE = 40;
const MAX = 256;
// One buffer for all calls: they do not overlap.
const raw = new Uint8Array(MAX * SIZE);
const fields = new DataView(raw.buffer);
const dropped = new BigUint64Array(1);

const paths = new Map<bigint, string>();
let nextName = 1n;
const listeners = new Set<SlowReadListener>();
let wake: Disposable | undefined;

function drain(): void {
  for (;;) {
    const got = check(
      lib.obd_slow_drain(raw, MAX, dropped),
      "cannot take slow reads",
    );
    for (let at = 0; at < got * SIZE; at += SIZE) {
      const read: SlowRead = {
        kind: fields.getUint32(at + 32, true) === 1 ? "local" : "cache",
        path: paths.get(fields.getBigUint64(at, true)) ?? "",
        at: Number(fields.getBigUint64(at + 8, true)),
        length: Number(fields.getBigInt64(at + 16, true)),
        latencyUs: Number(fields.getBigUint64(at + 24, true)) / 1000,
      };
      for (const listener of listeners) listener.read(read);
    }
    const lost = Number(dropped[0]);
    if (lost > 0) { for (const listener of listeners) listener.dropped(lost); }
    if (got < MAX) return;
  }
}

/** Names a layer's source for slow reads, until the scope ends. */
export function nameSource(source: Source, path: string): Disposable {
  const name = nextName++;
  check(lib.obd_source_name(source.pointer, name), `cannot name ${path}`);
  paths.set(name, path);
  return {
    [Symbol.dispose]() {
      paths.delete(name);
    },
  };
}

/**
 * Tells `listener` of reads that take at least so long, until the scope ends;
 * all listeners want the same.
 *
 * @param floors microseconds
 */
export function watchSlowReads(
  floors: { cacheUs: number; localUs: number },
  listener: SlowReadListener,
): Disposable {
  const watch = (cacheUs: number, localUs: number) =>
    check(
      lib.obd_slow_watch(BigInt(cacheUs * 1000), BigInt(localUs * 1000)),
      "cannot watch for slow reads",
    );
  listeners.add(listener);
  wake ??= onWake("slow", drain);
  watch(floors.cacheUs, floors.localUs);
  return {
    [Symbol.dispose]() {
      if (!listeners.has(listener)) return;
      drain();
      listeners.delete(listener);
      if (listeners.size > 0) return;
      watch(0, 0);
      wake?.[Symbol.dispose]();
      wake = undefined;
    },
  };
}
