// SPDX-License-Identifier: Apache-2.0
/**
 * Where a blob's units lie: in the cache's file, or, while that cannot be
 * written, in one without a name (spec/cache.md, sections 1.3 and 6.5).
 *
 * @module
 */
import { isLate, type WriteBuffer, writeBuffer } from "../../../ffi/buffer.ts";
import { evict, fillSpilled, spillSource } from "../../../ffi/cache.ts";
import { EngineError } from "../../../ffi/errors.ts";
import { closeFd, punchFd, pwriteFd } from "../../../ffi/files.ts";
import type { Source } from "../../../ffi/handle.ts";
import { openUnlinked } from "./file.ts";
import type { Disk } from "./disk.ts";
import type { SpillBudget } from "./spill.ts";
import type { Run } from "./units.ts";

/** Which of the two files a unit lies in. */
export type Place = "file" | "spill";

/** What media are made of. */
export interface MediaOptions {
  /** for messages */
  name: string;
  source: Source;
  fd: number;
  disk: Disk;
  /** false: the file has no name either, and is bounded the same way */
  kept: boolean;
  /** bytes */
  unit: number;
  spill: SpillBudget;
  /** the file is about to change: may, once this resolves */
  onChange: () => Promise<void>;
  /** makes room on a full disk, if it can */
  onFull: () => Promise<void>;
  /** the budget is used up: the blob has to forget a unit */
  onDrop: (unit: number) => void;
  /** ms after which a write is given up */
  writeMs?: number | undefined;
  /** a write has ended */
  onWrite: (at: number, bytes: number, us: number) => void;
  log: (line: string) => void;
}

/** See the module's comment. */
export interface Media {
  /**
   * Writes the first `n` bytes of a buffer, whole units or up to the blob's
   * end, on another thread, and lets go on who waits for them.
   *
   * @param wanted the only file that will do; undefined: either
   * @param onLand called before the promise resolves: they are there
   * @throws {EngineError} nowhere
   */
  write(
    buffer: WriteBuffer,
    at: number,
    n: number,
    wanted: Place | undefined,
    onLand: () => void,
  ): Promise<void>;
  /** A unit is there no longer; its space is given back soon. */
  drop(unit: number): void;
  /** Resolves when the space of what was dropped is given back, or not. */
  given(): Promise<void>;
  /** the units that are not in the cache's file */
  spilled(): ReadonlySet<number>;
  /**
   * The cache's file is not changed any more.
   *
   * @throws {Error} something that was given up may change it still
   */
  freeze(): void;
  /** changes of the cache's file that were given up and have not ended */
  late(): number;
  /** Lets the budget go. */
  close(): void;
}

/** A write that takes longer is given up, and its file left alone. */
const WRITE_MS = 5_000;
/** So long a file that failed is left alone. */
const PAUSE_MS = 10_000;
const ETIMEDOUT = 110;

/** Makes the media of an open blob. */
export function openMedia(options: MediaOptions): Media {
  const { name, source, fd, disk, kept, unit, spill, log } = options;
  const spilled = new Set<number>();
  let spillFd: number | undefined;
  let pausedUntil = -Infinity;
  let failing = false;
  let frozen = false;
  let lateWrites = 0;
  /** dropped, and their space not given back yet */
  const doomed = new Set<number>();
  let punching: { run: Run; done: Promise<void> } | undefined;
  let giving: Promise<void> | undefined;

  const openSpill = (): number => {
    if (spillFd !== undefined) return spillFd;
    const { fd } = openUnlinked();
    try {
      spillSource(source, fd);
    } catch (error) {
      closeFd(fd);
      throw error;
    }
    spillFd = fd;
    return fd;
  };
  const land = (place: Place, at: number, n: number) => {
    if (kept && place === "file") return;
    for (let i = at / unit; i * unit < at + n; i++) {
      if (place === "spill") spilled.add(i);
      spill.add(source, i, unit, () => options.onDrop(i));
    }
  };
  // In memory mostly: not worth another thread, and none may be left.
  const toSpill = (
    { bytes }: WriteBuffer,
    at: number,
    n: number,
    onLand: () => void,
  ) => {
    pwriteFd(openSpill(), bytes.subarray(0, n), at);
    const first = at / unit;
    fillSpilled(source, first, Math.ceil((at + n) / unit) - first);
    land("spill", at, n);
    onLand();
  };
  const late = () => lateWrites + disk.late();
  const isOpen = () =>
    !frozen && late() === 0 && !(kept && performance.now() < pausedUntil);
  const toFile = async (
    buffer: WriteBuffer,
    at: number,
    n: number,
    onLand: () => void,
  ) => {
    await options.onChange();
    const first = at / unit;
    const end = Math.ceil((at + n) / unit);
    for (let i = first; i < end; i++) doomed.delete(i);
    while (
      punching !== undefined && punching.run.first < end &&
      first < punching.run.first + punching.run.count
    ) await punching.done;
    if (!isOpen()) throw new EngineError(ETIMEDOUT, "cannot write");
    await write(buffer, at, n, onLand);
  };
  const write = (
    buffer: WriteBuffer,
    at: number,
    n: number,
    onLand: () => void,
  ) =>
    new Promise<void>((resolve, reject) => {
      writeBuffer(buffer, source, at, n, {
        limitMs: options.writeMs ?? WRITE_MS,
        onEnd(error, us) {
          options.onWrite(at, error === undefined ? n : -1, us);
          if (error !== undefined) {
            if (isLate(buffer)) lateWrites++;
            return reject(error);
          }
          failing = false;
          land("file", at, n);
          onLand();
          resolve();
        },
        onLate: () => void lateWrites--,
      });
    });
  const leaveFile = (error: unknown) => {
    pausedUntil = performance.now() + PAUSE_MS;
    // Said once, until it works again.
    if (!failing) {
      log(
        `WARNING the cache cannot keep ${name}, reading past it: ${
          error instanceof Error ? error.message : String(error)
        }`,
      );
    }
    failing = true;
  };
  /** The next units side by side that are doomed. */
  const nextRun = (): Run | undefined => {
    for (const first of doomed) {
      let count = 0;
      while (doomed.delete(first + count)) count++;
      return { first, count };
    }
    return undefined;
  };
  const give = async (changes: Promise<void>) => {
    await changes;
    for (let run = nextRun(); run !== undefined; run = nextRun()) {
      const done = disk.punch(fd, run.first * unit, run.count * unit)
        // The space stays taken; the units are absent all the same.
        .catch(() => {});
      punching = { run, done };
      await done;
      punching = undefined;
    }
    giving = undefined;
  };
  const punchSpill = (i: number) => {
    try {
      if (spillFd !== undefined) punchFd(spillFd, i * unit, unit);
    } catch {
      // As above.
    }
  };
  return {
    async write(buffer, at, n, wanted, onLand) {
      if (wanted === "spill" || !isOpen()) {
        return toSpill(buffer, at, n, onLand);
      }
      try {
        return await toFile(buffer, at, n, onLand);
      } catch (error) {
        const code = error instanceof EngineError ? error.code : "";
        if (!kept && code !== "ETIMEDOUT") throw error;
        if (code === "ENOSPC" || code === "EDQUOT") {
          await options.onFull();
          if (isOpen()) {
            try {
              return await toFile(buffer, at, n, onLand);
            } catch {
              // Told below, as what it was at first.
            }
          }
        }
        leaveFile(error);
        toSpill(buffer, at, n, onLand);
      }
    },
    drop(i) {
      evict(source, i, 1);
      spill.remove(source, i);
      if (spilled.delete(i)) return punchSpill(i);
      if (frozen) return;
      const changes = options.onChange();
      doomed.add(i);
      giving ??= give(changes);
    },
    given: () => giving ?? Promise.resolve(),
    spilled: () => spilled,
    freeze() {
      if (late() > 0 || giving !== undefined) {
        throw new EngineError(ETIMEDOUT, `cannot leave the file of ${name}`);
      }
      frozen = true;
    },
    late,
    close: () => spill.forget(source),
  };
}
