// SPDX-License-Identifier: Apache-2.0
/**
 * The original's `pread` figures from what devices count: a read that is
 * served from here never comes to us (spec/api.md, section 2).
 *
 * @module
 */
import {
  type DeviceStats,
  deviceStats,
  deviceTimes,
} from "../../ffi/device.ts";
import type { Device } from "../../ffi/handle.ts";
import type { Meter } from "./metrics.ts";

type Times = ReturnType<typeof deviceTimes>;

/** What a device had counted when it was looked at last. */
interface Seen {
  stats: DeviceStats;
  times: Times;
}

/** The longest time of the reads between two looks, in us, as it is known. */
function longest(before: Times, now: Times): number {
  const top = (old: readonly number[], all: readonly number[]) =>
    all.findLastIndex((n, i) => n > (old[i] ?? 0));
  const bucket = Math.max(
    top(before.local.buckets, now.local.buckets),
    top(before.fetched.buckets, now.fetched.buckets),
  );
  // Bucket i has what took at most 4^i us.
  return bucket < 0 ? 0 : 4 ** bucket;
}

/**
 * Feeds a meter with what devices have read.
 *
 * @param devices those that are open now
 * @param everyMs how often to look
 */
export function meterReads(
  meter: Meter,
  devices: () => Iterable<Device>,
  everyMs = 1000,
): Disposable {
  let seen = new Map<Device, Seen>();
  const look = () => {
    const next = new Map<Device, Seen>();
    for (const device of devices()) {
      const stats = deviceStats(device);
      const before = seen.get(device);
      if (before !== undefined && before.stats.reads === stats.reads) {
        next.set(device, before);
        continue;
      }
      const times = deviceTimes(device);
      next.set(device, { stats, times });
      const reads = stats.reads - (before?.stats.reads ?? 0);
      if (reads <= 0) continue;
      const none = { buckets: [], seconds: 0 };
      meter.record(
        stats.readBytes - (before?.stats.readBytes ?? 0),
        longest(before?.times ?? { local: none, fetched: none }, times),
        reads,
      );
    }
    seen = next;
  };
  look();
  const timer = setInterval(look, everyMs);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}
