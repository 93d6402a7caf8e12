// SPDX-License-Identifier: Apache-2.0
/**
 * One image behind one ring: what the initiator may ask of it, and what may
 * be changed while it is served.
 *
 * @module
 */
import { closeDevice, endWaiting } from "../../../ffi/device.ts";
import type { Ring, RingStats, ScsiCommand } from "../../../ffi/tcmu.ts";
import type { Around, TcmuImage } from "./around.ts";
import { DeviceError, ERRNO, reason } from "./error.ts";
import { configuredSerial, derivedSerial, type UioDevice } from "./kernel.ts";
import { createMedium } from "./medium.ts";
import { answerScsi, isKnownCommand, type ScsiDisk } from "./scsi.ts";
import { refuse, type ScsiAnswer, SENSE } from "./sense.ts";

/** A disk being served. */
export interface Disk {
  readonly image: TcmuImage;
  /**
   * Makes it larger, and lets the initiator know.
   *
   * @throws {DeviceError} it cannot be
   */
  grow(size: bigint): Promise<void>;
  /** Lets the initiator know that the image has grown. */
  grown(): void;
  setWriteCache(on: boolean): void;
  /** serial that the initiator was told */
  readonly serial: string;
  /** commands that came, those that run now, why none come any more */
  stats(): Pick<RingStats, "commands" | "depth" | "broken">;
  /** Ends what waits for absent data: the initiator may try again. */
  endWaiting(): void;
  /** Goes on until the ring is empty, for at most `graceMs`; then ends. */
  close(graceMs: number): Promise<void>;
}

/** Parameter lists are short; VERIFY has as many bytes as it compares. */
const LIST_MAX_BYTES = 8 << 20;

const DRAIN_POLL_MS = 20;

/** Growing may wait for absent data, and whoever asked for it in the kernel. */
const GROW_MS = 30_000;

const CAPACITY_CHANGED = 0x2a09;
const MODE_CHANGED = 0x2a01;
const ESHUTDOWN = 108;
const INQUIRY = 0x12;

/** READ, WRITE and the like are the library's; these are silently refused. */
const EXPECTED = new Set([0xa3, 0xa4]);

let lastId = 0;

/** What a disk says of itself; its serial may be written until exported. */
async function describe(
  uio: UioDevice,
  image: TcmuImage,
  { kernel }: Around,
): Promise<{ disk: ScsiDisk; readSerial(): Promise<void> }> {
  const derived = await derivedSerial(uio);
  const disk: ScsiDisk = {
    get sectors() {
      return image.size / 512n;
    },
    readonly: image.readonly,
    writeCache: image.writeCache,
    get discardsReadZero() {
      return image.discardsReadZero;
    },
    serial: derived,
    config: uio.config,
  };
  return {
    disk,
    async readSerial() {
      const given = await configuredSerial(kernel, uio);
      // A disk that has another serial is another disk.
      if (given !== undefined) disk.serial = given || derived;
    },
  };
}

/** Says each opcode that nobody knows, once. */
function noteStrange(log: Around["log"]): (opcode: number) => void {
  const strange = new Set<number>();
  return (opcode) => {
    if (isKnownCommand(opcode) || EXPECTED.has(opcode)) return;
    if (strange.has(opcode)) return;
    strange.add(opcode);
    log.warn(`unknown command ${opcode}`);
  };
}

/**
 * Answers commands, whatever goes wrong with them.
 *
 * @param ring where the answers go; undefined: it is closed, and has answered
 */
function answerWith(
  answer: (command: ScsiCommand) => Promise<ScsiAnswer>,
  ring: () => Promise<Ring | undefined>,
  log: Around["log"],
): (command: ScsiCommand) => void {
  const give = async (command: ScsiCommand): Promise<void> => {
    let given: ScsiAnswer;
    try {
      given = await answer(command);
    } catch (error) {
      log.error(`cannot answer command ${command.cdb[0]}: ${reason(error)}`);
      given = refuse(SENSE.internalFailure);
    }
    const { status, sense, data } = given;
    (await ring())?.complete(command.tag, status, sense, data);
  };
  return (command) => {
    give(command).catch((error) =>
      log.error(`cannot end a command: ${reason(error)}`)
    );
  };
}

/**
 * Serves an image on the ring of `/dev/uioN`.
 *
 * @throws {EngineError} the ring cannot be used; the image is still open
 */
export async function serveDisk(
  uio: UioDevice,
  image: TcmuImage,
  around: Around,
): Promise<Disk> {
  const { log } = around;
  const { device } = image;
  const { disk, readSerial } = await describe(uio, image, around);
  await readSerial();
  const medium = createMedium(device);
  const note = noteStrange(log);
  const id = ++lastId;
  // Commands may come before the ring is known here.
  const opened = Promise.withResolvers<Ring>();
  let closing = false;

  const answer = async (command: ScsiCommand): Promise<ScsiAnswer> => {
    const { cdb, tag, length } = command;
    const [opcode = 0, flags = 0] = cdb;
    const ring = await opened.promise;
    note(opcode);
    if (opcode === INQUIRY && (flags & 1) === 1) await readSerial();
    return await answerScsi(disk, {
      cdb,
      list: () => ring.data(tag, Math.min(length, LIST_MAX_BYTES)),
      medium,
    });
  };
  const route = around.route(
    id,
    answerWith(
      answer,
      async () => {
        const ring = await opened.promise;
        return closing ? undefined : ring;
      },
      log,
    ),
  );
  let ring: Ring;
  try {
    ring = await around.openRing(uio.minor, device, {
      writeCache: disk.writeCache,
      id,
    });
  } catch (error) {
    route[Symbol.dispose]();
    throw error;
  }
  opened.resolve(ring);

  const grown = () => ring.attention(CAPACITY_CHANGED);

  return {
    image,
    grown,
    async grow(size) {
      if (size % 512n !== 0n || size < image.size) {
        throw new DeviceError(
          ERRNO.EINVAL,
          `cannot resize from ${image.size} to ${size} bytes: a disk can ` +
            "only grow, by whole sectors",
        );
      }
      if (size === image.size) return;
      const timer = setTimeout(() => endWaiting(device, ESHUTDOWN), GROW_MS);
      try {
        await image.grow(size);
      } finally {
        clearTimeout(timer);
      }
      grown();
    },
    setWriteCache(on) {
      if (on === disk.writeCache) return;
      disk.writeCache = on;
      ring.setWriteCache(on);
      ring.attention(MODE_CHANGED);
    },
    get serial() {
      return disk.serial;
    },
    stats: () => ring.stats(),
    endWaiting() {
      // Whoever asks may have waited; what is closed has ended it.
      if (closing) return;
      log.info(
        `what waits on ${image.name} is ended, to be tried again: a disk or ` +
          "an export is being taken away",
      );
      endWaiting(device, ESHUTDOWN);
    },
    async close(graceMs) {
      const end = performance.now() + graceMs;
      while (ring.stats().depth > 0n && performance.now() < end) {
        await new Promise((done) => setTimeout(done, DRAIN_POLL_MS));
      }
      closing = true;
      await ring.close(graceMs > 0 ? DRAIN_POLL_MS : 0);
      route[Symbol.dispose]();
      if (medium.running > 0) closeDevice(device, ESHUTDOWN);
      await medium.close();
      await image.close();
    },
  };
}
