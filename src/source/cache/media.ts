// SPDX-License-Identifier: Apache-2.0
/**
 * Where a blob's units lie: in the cache's file, or, while that cannot be
 * written, in one without a name (spec/cache.md, sections 1.3 and 6.5).
 *
 * @module
 */
import { evict, fill, fillSpilled, spillSource } from "../../../ffi/cache.ts";
import { EngineError } from "../../../ffi/errors.ts";
import { closeFd, preadFd, punchFd, pwriteFd } from "../../../ffi/files.ts";
import type { Bytes, Source } from "../../../ffi/handle.ts";
import { openUnlinked } from "./file.ts";
import type { SpillBudget } from "./spill.ts";

/** Which of the two files a unit lies in. */
export type Place = "file" | "spill";

/** What media are made of. */
export interface MediaOptions {
  /** for messages */
  name: string;
  source: Source;
  fd: number;
  /** false: the file has no name either, and is bounded the same way */
  kept: boolean;
  /** bytes */
  unit: number;
  spill: SpillBudget;
  /** the file is about to change */
  onChange: () => void;
  /** makes room on a full disk, if it can */
  onFull: () => Promise<void>;
  /** the budget is used up: the blob has to forget a unit */
  onDrop: (unit: number) => void;
  /** a write has ended */
  onWrite: (at: number, bytes: number, us: number) => void;
  log: (line: string) => void;
}

/** See the module's comment. */
export interface Media {
  /**
   * Writes a piece of a unit, or whole ones.
   *
   * @param begun where the unit's earlier pieces are
   * @returns where it is
   * @throws {EngineError} nowhere
   */
  write(at: number, bytes: Bytes, begun?: Place): Promise<Place>;
  /** Units are there: whoever waits for them goes on. */
  land(place: Place, first: number, count: number): void;
  /** A unit is there no longer; its space is given back. */
  drop(unit: number): void;
  /** the units that are not in the cache's file */
  spilled(): ReadonlySet<number>;
  /** The cache's file is not changed any more. */
  freeze(): void;
  /** Lets the budget go. */
  close(): void;
}

const PIECE = 256 << 10;
/** So long a file that failed is left alone. */
const PAUSE_MS = 10_000;
const EROFS = 30;

/** Makes the media of an open blob. */
export function openMedia(options: MediaOptions): Media {
  const { name, source, fd, kept, unit, spill, log } = options;
  const spilled = new Set<number>();
  let spillFd: number | undefined;
  let pausedUntil = -Infinity;
  let failing = false;
  let frozen = false;

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
  // At once: a thread of Deno's pool may not come while reads that wait for
  // these bytes hold all of them.
  const toFile = (at: number, bytes: Bytes) => {
    options.onChange();
    const start = performance.now();
    try {
      pwriteFd(fd, bytes, at);
      failing = false;
      options.onWrite(at, bytes.length, (performance.now() - start) * 1000);
    } catch (error) {
      options.onWrite(at, -1, (performance.now() - start) * 1000);
      throw error;
    }
  };
  /** The pieces of a unit that are in the file already. */
  const moveToSpill = (from: number, to: number) => {
    const piece = new Uint8Array(Math.min(PIECE, to - from));
    for (let at = from; at < to; at += piece.length) {
      const part = piece.subarray(0, Math.min(PIECE, to - at));
      preadFd(fd, part, at);
      pwriteFd(openSpill(), part, at);
    }
  };
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
  const write = async (
    at: number,
    bytes: Bytes,
    begun?: Place,
  ): Promise<Place> => {
    const paused = frozen || kept && performance.now() < pausedUntil;
    const place = begun ?? (paused ? "spill" : "file");
    if (frozen && place === "file") {
      throw new EngineError(EROFS, `cannot keep ${name}`);
    }
    if (place === "spill") {
      pwriteFd(openSpill(), bytes, at);
      return place;
    }
    try {
      toFile(at, bytes);
      return place;
    } catch (error) {
      if (!kept) throw error;
      const full = error instanceof EngineError &&
        (error.code === "ENOSPC" || error.code === "EDQUOT");
      if (full) {
        await options.onFull();
        try {
          toFile(at, bytes);
          return place;
        } catch {
          // Told below, as what it was at first.
        }
      }
      leaveFile(error);
      moveToSpill(at - at % unit, at);
      return await write(at, bytes, "spill");
    }
  };
  const punch = (file: number, i: number) => {
    try {
      punchFd(file, i * unit, unit);
    } catch {
      // The space stays taken; the unit is absent all the same.
    }
  };
  return {
    write,
    land(place, first, count) {
      if (place === "spill") fillSpilled(source, first, count);
      else fill(source, first, count);
      if (kept && place === "file") return;
      for (let i = first; i < first + count; i++) {
        if (place === "spill") spilled.add(i);
        spill.add(source, i, unit, () => options.onDrop(i));
      }
    },
    drop(i) {
      evict(source, i, 1);
      spill.remove(source, i);
      if (spilled.delete(i)) {
        if (spillFd !== undefined) punch(spillFd, i);
        return;
      }
      if (frozen) return;
      options.onChange();
      punch(fd, i);
    },
    spilled: () => spilled,
    freeze() {
      frozen = true;
    },
    close: () => spill.forget(source),
  };
}
