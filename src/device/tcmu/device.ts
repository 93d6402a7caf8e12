// SPDX-License-Identifier: Apache-2.0
/**
 * One TCMU device, from the kernel's "added" to its "removed", or from one
 * daemon to the next (spec/tcmu.md, section 3).
 *
 *     add ─────> opening ──> serving ──┬─> remove: gone
 *     claim, adopt ─> opening ─┘ ▲     └─> leave: for the next daemon
 *                        └ waiting ┘   an image that cannot open yet
 *
 * `remove` and `leave` end any of them at once.
 *
 * @module
 */
import pLimit from "p-limit";
import { EngineError } from "../../../ffi/errors.ts";
import type { TcmuEvent } from "../../../ffi/tcmu.ts";
import { argumentOf, explainCut } from "./argument.ts";
import type { Around, TcmuImage } from "./around.ts";
import { type Disk, serveDisk } from "./disk.ts";
import { DeviceError, ERRNO, reason } from "./error.ts";
import { act, type DeviceArgument, type UioDevice, within } from "./kernel.ts";

/** What a RECONFIG event asks for. */
export type Change = (TcmuEvent & { command: "reconfig" })["change"];

/** One device; its methods are called one after the other, but for `end`. */
export interface TcmuDevice {
  readonly uio: UioDevice;
  /** undefined while it is not served */
  readonly disk: Disk | undefined;
  /** its commands are held back until its image is open */
  readonly held: boolean;
  /**
   * Serves a new device.
   *
   * @throws {DeviceError | EngineError} why not; nothing is left of it
   */
  add(): Promise<void>;
  /**
   * Holds commands back and takes what was sent to a former daemon.
   *
   * @returns false: it is no device yet, somebody is making it just now
   */
  claim(): Promise<boolean>;
  /** Serves a claimed device as soon as that is possible. */
  adopt(): Promise<void>;
  /** @throws {DeviceError | EngineError} it stays as it is */
  reconfigure(change: Change): Promise<void>;
  /** Ends waiting and opening: the device is going. */
  end(): void;
  /**
   * Its ring makes no sense: the kernel is to begin a new one, and to have
   * what was on its way tried again.
   */
  restart(why: string): Promise<void>;
  /** Fails what is held back now: its disk is being taken away. */
  giveUp(): Promise<void>;
  /** The kernel takes it away. */
  remove(): Promise<void>;
  /** The daemon goes, the device stays; commands have `graceMs` to end. */
  leave(graceMs: number): Promise<void>;
}

const RETRY_FIRST_MS = 250;
const RETRY_MAX_MS = 30_000;

/** Longer than any of these takes, unless somebody else is in the way. */
const ACTION_PATIENCE_MS = 2000;

/** A flush of a disk that goes is tried again and again. */
const GIVE_UP_TIMES = 10;
const GIVE_UP_MS = 100;

/** Thrown where a device went while it was opened. */
class EndedError extends DeviceError {
  constructor() {
    super(ERRNO.ENODEV, "the device is going");
  }
}

/** What `work` gives; when the signal is first, that goes to `late`. */
async function unlessEnded<T>(
  signal: AbortSignal,
  work: Promise<T>,
  late: (value: T) => unknown,
): Promise<T> {
  const { promise: ended, reject } = Promise.withResolvers<never>();
  const end = () => reject(new EndedError());
  signal.addEventListener("abort", end);
  if (signal.aborted) end();
  try {
    return await Promise.race([work, ended]);
  } catch (error) {
    if (error instanceof EndedError) work.then(late, () => {});
    throw error;
  } finally {
    signal.removeEventListener("abort", end);
  }
}

/** Waits, or less. */
async function pause(ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  const end = () => resolve();
  signal.addEventListener("abort", end);
  if (signal.aborted) end();
  await promise;
  clearTimeout(timer);
  signal.removeEventListener("abort", end);
}

/** Makes a device; nothing is done yet. */
export function createDevice(uio: UioDevice, around: Around): TcmuDevice {
  const { kernel, log } = around;
  const ending = new AbortController();
  let disk: Disk | undefined;
  let claimed = false;
  /** the last attempt; short once the device is ending */
  let opening: Promise<void> = Promise.resolve();
  /** a ring is opened, or reset */
  const alone = pLimit(1);

  /** @throws {DeviceError} */
  const openImage = async (argument: DeviceArgument): Promise<TcmuImage> => {
    try {
      return await unlessEnded(
        ending.signal,
        around.openImage(argument, ending.signal),
        (image) => image.close(),
      );
    } catch (error) {
      throw explainCut(uio, argument, error);
    }
  };

  const serve = async (image: TcmuImage): Promise<void> => {
    try {
      disk = await serveDisk(uio, image, around);
    } catch (error) {
      log.error(`handler open failed for uio${uio.minor}: ${reason(error)}`);
      await image.writeResult(error);
      await image.close();
      throw error;
    }
    await image.writeResult();
  };

  const openOnce = async (): Promise<void> => {
    const started = performance.now();
    const argument = await argumentOf(uio);
    const image = await openImage(argument);
    await alone(() => serve(image));
    const ms = Math.round(performance.now() - started);
    log.info(`dev opened ${argument.path}, time cost ${ms} ms`);
    if (!image.writeCache && !image.readonly) {
      log.warn(
        "writeCache is off: the kernel never asks for a flush, and what an " +
          "fsync inside the disk promises is not kept after a power cut",
      );
    }
  };

  const open = (): Promise<void> => {
    const attempt = openOnce();
    opening = attempt.catch(() => {});
    return attempt;
  };

  /** the last action: one that is late must not come after the next */
  let acting: Promise<unknown> = Promise.resolve();
  let configured = true;

  /** An action on the device; what cannot be done is said. */
  const action = async (
    name: "block_dev" | "reset_ring",
    value: 0 | 1 | 2,
  ): Promise<boolean> => {
    const done = acting.then(() => act(kernel, uio, name, value));
    acting = done.catch(() => {});
    try {
      return await within(ACTION_PATIENCE_MS, done, true);
    } catch (error) {
      // What the kernel says of a device that is not enabled.
      configured = !(error instanceof EngineError && error.code === "EINVAL");
      log.warn(reason(error));
      return false;
    }
  };

  const argumentText = uio.config.replace(/^overlaybd\//, "");
  const isHeld = () => claimed && disk === undefined && !ending.signal.aborted;

  const closeDisk = async (graceMs: number): Promise<void> => {
    const last = disk;
    disk = undefined;
    try {
      await last?.close(graceMs);
    } catch (error) {
      log.error(`cannot close ${argumentText}: ${reason(error)}`);
    }
    log.info(`dev closed ${argumentText}`);
  };

  const adopt = async (): Promise<void> => {
    log.info(`dev open ${argumentText}`);
    let said = "";
    for (let ms = RETRY_FIRST_MS; !ending.signal.aborted;) {
      try {
        // A ring that is reset while it is served would bring old commands.
        await unlessEnded(ending.signal, acting, () => {});
        await open();
        const stays = !ending.signal.aborted;
        if (claimed && stays) await action("block_dev", 0);
        return;
      } catch (error) {
        if (error instanceof EndedError) return;
        const why = reason(error);
        if (why !== said) {
          log.error(
            `create image file failed, it will be tried again: ${why}`,
          );
        }
        said = why;
      }
      await pause(ms, ending.signal);
      ms = Math.min(2 * ms, RETRY_MAX_MS);
    }
  };

  return {
    uio,
    get disk() {
      return disk;
    },
    get held() {
      return isHeld();
    },
    async add() {
      log.info(`dev open ${argumentText}`);
      try {
        await open();
      } catch (error) {
        log.error(`create image file failed: ${reason(error)}`);
        throw error;
      }
    },
    async claim() {
      claimed = await action("block_dev", 1);
      if (claimed) await action("reset_ring", 1);
      return configured;
    },
    adopt,
    async reconfigure(change) {
      if (disk === undefined) {
        throw new DeviceError(ERRNO.EBUSY, "the device is not open yet");
      }
      switch (change.kind) {
        case "size":
          // Closing ends what it waits for.
          await unlessEnded(ending.signal, disk.grow(change.size), () => {});
          log.info(`dev ${argumentText}: ${change.size} bytes`);
          return;
        case "writeCache":
          disk.setWriteCache(change.on);
          log.info(
            `dev ${argumentText}: write cache ${change.on ? "on" : "off"}`,
          );
          return;
        default:
          throw new DeviceError(
            ERRNO.EOPNOTSUPP,
            `a device's ${change.kind} cannot be changed while it is served`,
          );
      }
    },
    async restart(why) {
      log.error(
        `the ring of uio${uio.minor}, ${argumentText}, is broken: ${why}`,
      );
      // What runs uses the ring's memory until it ends: the reset is last.
      const held = await action("block_dev", 1);
      await closeDisk(0);
      claimed = held && await action("reset_ring", 1);
      if (claimed) {
        adopt().catch((error) => log.error(reason(error)));
        return;
      }
      log.error(
        `${argumentText} is not served any more: this kernel cannot reset a ` +
          "ring: take the device away and make it again",
      );
    },
    giveUp: () =>
      alone(async () => {
        if (!isHeld()) return;
        log.warn(
          `what waits for ${argumentText} fails: its disk is being taken away`,
        );
        await action("block_dev", 0);
        for (let i = 0; i < GIVE_UP_TIMES && isHeld(); i++) {
          await action("reset_ring", 2);
          await pause(GIVE_UP_MS, ending.signal);
        }
        if (isHeld()) await action("block_dev", 1);
      }),
    end: () => ending.abort(),
    async remove() {
      ending.abort();
      await opening;
      await closeDisk(0);
    },
    async leave(graceMs) {
      ending.abort();
      await opening;
      const blocked = claimed && disk === undefined ||
        await action("block_dev", 1);
      await closeDisk(graceMs);
      if (blocked) await action("block_dev", 0);
    },
  };
}
