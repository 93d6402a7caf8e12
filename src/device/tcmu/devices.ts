// SPDX-License-Identifier: Apache-2.0
/**
 * Every TCMU device of ours: what the kernel says happens to them, in order
 * for each and at the same time for all (spec/tcmu.md, sections 2 and 3).
 *
 * @module
 */
import type { TcmuEvent } from "../../../ffi/tcmu.ts";
import type { Around } from "./around.ts";
import { createDevice, type TcmuDevice } from "./device.ts";
import { ERRNO, errnoForKernel, reason } from "./error.ts";
import { compareDevices } from "./lost.ts";
import {
  deviceIndex,
  listUio,
  parseDeviceConfig,
  parseUioName,
  type TcmuName,
  type UioDevice,
  uioName,
} from "./kernel.ts";

/** Answers an event: 0, or the errno that its writer sees. */
export type Reply = (
  event: Pick<TcmuEvent, "command" | "deviceId">,
  errno: number,
) => void;

/** See the module's comment. */
export interface TcmuDevices {
  /** Takes over what a former daemon left; images are not opened yet. */
  claim(): Promise<void>;
  /** Opens the images of what was claimed; does not wait for them. */
  adopt(): void;
  /** Something happens to a device. */
  handle(event: TcmuEvent): void;
  /**
   * Looks for devices whose events were lost: see lost.ts.
   *
   * @param thorough a known minor may be another device's by now
   */
  compare(thorough?: boolean): Promise<void>;
  /**
   * The kernel has let go whoever waited for an answer, and tells nothing for
   * now: a device that was still coming is none.  What those had open that
   * have gone is free when this ends.
   */
  letGo(): Promise<void>;
  /** Has rings that make no sense begun anew. */
  mend(): void;
  /** every device of ours */
  list(): TcmuDevice[];
  /** Leaves every device to the next daemon. */
  close(graceMs: number): Promise<void>;
  /** Everything that was asked is done, and answered. */
  idle(): Promise<void>;
}

interface Entry {
  device: TcmuDevice;
  /** the kernel's number of it: another device has another */
  index: number | undefined;
  /**
   * Its ADDED has its answer, or will have.  A second one is worse than none:
   * the kernel takes it for what the device waits for by then, and forgets
   * whoever did.
   */
  answered: boolean;
  /** whoever makes it waits for that answer */
  coming: boolean;
  /** what has been asked of it, one after the other; never rejects */
  queue: Promise<void>;
}

/**
 * A device of ours.  One without any config is nobody's: only we are left to
 * refuse it.
 */
function isOurs({ config }: TcmuName): boolean {
  return config === "" || parseDeviceConfig(config) !== undefined;
}

/** The kernel may have no memory for an answer. */
const REPLY_TRIES = 50;
const REPLY_AGAIN_MS = 100;

/** Longer than the kernel takes to undo what it has let go. */
const UNDONE_MS = 250;

/** Makes an empty set. */
export function createDevices(around: Around, reply: Reply): TcmuDevices {
  const { kernel, log } = around;
  const entries = new Map<number, Entry>();
  /** what is still done to a device whose minor may be used again */
  const leaving = new Map<number, Promise<void>>();
  let closing = false;
  /** those whose ring is being begun anew */
  const mending = new Set<Entry>();

  /** Whoever waits for it can do nothing else: so often, should it fail. */
  const answer = (event: TcmuEvent, errno: number, tries = REPLY_TRIES) => {
    if (!event.wantsReply) return;
    try {
      reply(event, errno);
    } catch (error) {
      log.error(`cannot answer the kernel: ${reason(error)}`);
      if (tries === 1) return;
      setTimeout(() => answer(event, errno, tries - 1), REPLY_AGAIN_MS);
    }
  };

  const enter = (uio: UioDevice, index?: number): Entry => {
    const entry = {
      device: createDevice(uio, around),
      index,
      answered: index !== undefined,
      coming: false,
      queue: leaving.get(uio.minor) ?? Promise.resolve(),
    };
    entries.set(uio.minor, entry);
    return entry;
  };

  /** Does it after what was asked before, and answers. */
  const enqueue = (
    entry: Entry,
    event: TcmuEvent,
    work: (device: TcmuDevice) => Promise<void>,
  ) => {
    entry.queue = entry.queue.then(async () => {
      let errno = 0;
      try {
        await work(entry.device);
      } catch (error) {
        // The next daemon may do what this one has no time for.
        errno = closing && event.command === "added"
          ? ERRNO.EAGAIN
          : errnoForKernel(error);
        log.warn(
          `${event.command} of ${event.name} refused, errno ${errno}: ${
            reason(error)
          }`,
        );
      }
      answer(event, errno);
    });
  };

  /** Not so when it was removed, unheard, and made again. */
  const mayBe = ({ index }: Entry, number: number | undefined): boolean =>
    index === undefined || number === undefined || index === number;

  const forget = (entry: Entry) => {
    const { minor } = entry.device.uio;
    if (entries.get(minor) === entry) entries.delete(minor);
  };

  const added = (event: TcmuEvent, name: TcmuName) => {
    const known = entries.get(event.minor);
    if (closing) return answer(event, ERRNO.EAGAIN);
    if (
      known !== undefined && uioName(known.device.uio) === event.name &&
      mayBe(known, event.deviceId)
    ) {
      // Found before its event came.
      if (known.answered) return;
      known.index = event.deviceId;
      known.answered = true;
      return enqueue(known, event, () => Promise.resolve());
    }
    if (known !== undefined) removeLost(known);
    const entry = enter(
      { ...name, minor: event.minor },
      event.wantsReply ? event.deviceId : undefined,
    );
    entry.coming = event.wantsReply;
    enqueue(entry, event, async (device) => {
      try {
        await device.add();
      } catch (error) {
        forget(entry);
        throw error;
      } finally {
        entry.coming = false;
      }
    });
  };

  const removed = (event: TcmuEvent) => {
    const known = entries.get(event.minor);
    if (known === undefined) return answer(event, 0);
    forget(known);
    known.device.end();
    enqueue(known, event, (device) => device.remove());
    const { queue } = known;
    leaving.set(event.minor, queue);
    queue.then(() => {
      if (leaving.get(event.minor) === queue) leaving.delete(event.minor);
    });
  };

  const removeLost = (entry: Entry) => {
    const { uio } = entry.device;
    log.warn(`${uioName(uio)} has gone without a word of the kernel`);
    removed({
      command: "removed",
      minor: uio.minor,
      deviceId: entry.index ?? 0,
      name: uioName(uio),
      wantsReply: entry.index !== undefined && !entry.coming,
    });
  };

  /** One that the kernel has and never told us of: its writer may wait. */
  const addLost = async (
    uio: UioDevice,
    index: number | undefined,
  ): Promise<boolean> => {
    if (closing) return false;
    log.warn(`${uioName(uio)} has come without a word of the kernel`);
    added({
      command: "added",
      minor: uio.minor,
      deviceId: index ?? 0,
      name: uioName(uio),
      wantsReply: index !== undefined,
    }, uio);
    await entries.get(uio.minor)?.queue;
    return entries.has(uio.minor);
  };

  const compare = compareDevices({
    kernel,
    known: () => [...entries.values()],
    isKnown: (entry) => entries.get(entry.device.uio.minor) === entry,
    // One whose REMOVED is being answered is no stranger yet.
    isTaken: (minor) => entries.has(minor) || leaving.has(minor),
    add: addLost,
    remove: removeLost,
  });

  const idle = async () => {
    const queues = [...entries.values()].map(({ queue }) => queue);
    await Promise.all([...queues, ...leaving.values()]);
  };

  return {
    async claim() {
      const uios = (await listUio(kernel)).filter((uio) =>
        parseDeviceConfig(uio.config) !== undefined
      );
      await Promise.all(uios.map(async (uio) => {
        const entry = enter(uio);
        const [isLeft, index] = await Promise.all([
          entry.device.claim(),
          deviceIndex(kernel, uio),
        ]);
        entry.index = index;
        // One that is being made now: that fails, and is told us when it is
        // tried again.
        if (!isLeft) forget(entry);
      }));
    },
    adopt() {
      for (const { device } of entries.values()) {
        device.adopt().catch((error) =>
          log.error(`cannot adopt ${device.uio.config}: ${reason(error)}`)
        );
      }
    },
    handle(event) {
      const name = parseUioName(event.name);
      if (name === undefined || !isOurs(name)) return;
      const known = entries.get(event.minor);
      switch (event.command) {
        case "added":
          return added(event, name);
        case "removed":
          return removed(event);
        case "reconfig":
          if (known === undefined || !mayBe(known, event.deviceId)) {
            return answer(event, ERRNO.ENODEV);
          }
          return enqueue(
            known,
            event,
            (device) => device.reconfigure(event.change),
          );
      }
    },
    compare,
    async letGo() {
      for (const entry of entries.values()) if (entry.coming) removeLost(entry);
      for (let look = 0; look < 2; look++) {
        await new Promise((done) => setTimeout(done, UNDONE_MS));
        await compare(true);
      }
      await idle();
    },
    mend() {
      for (const entry of entries.values()) {
        const why = entry.device.disk?.stats().broken;
        if (why === undefined || closing || mending.has(entry)) continue;
        mending.add(entry);
        around.ringBroken();
        entry.queue = entry.queue.then(async () => {
          // It may have been removed while this waited.
          if (entries.get(entry.device.uio.minor) !== entry) return;
          await entry.device.restart(why);
        }).finally(() => mending.delete(entry));
      }
    },
    list: () => [...entries.values()].map(({ device }) => device),
    async close(graceMs) {
      closing = true;
      for (const entry of entries.values()) {
        const { device } = entry;
        device.end();
        // In the queue, so that one that is removed now is closed before.
        entry.queue = entry.queue.then(async () => {
          if (entries.get(device.uio.minor) !== entry) return;
          await device.leave(graceMs);
        });
      }
      await idle();
    },
    idle,
  };
}
