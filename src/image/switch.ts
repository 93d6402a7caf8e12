// SPDX-License-Identifier: Apache-2.0
/**
 * The moment of a live snapshot in which changes wait.
 *
 * @module
 */
import { EngineError } from "../../ffi/errors.ts";
import { MAX_RECORDS } from "../format/lsmt.ts";
import { SnapshotError } from "./successor.ts";

/**
 * How long changes are held up at first, until those that run have ended.  A
 * disk on which they take longer costs longer waits, and not its snapshots.
 */
const LIMIT_MS = 4;
/** Attempts before the limit is doubled: up to 2 s, 45 s in all. */
const TRIES = 10;
const DOUBLINGS = 9;
/** Between attempts, so that what runs long can end. */
const RETRY_MS = 50;

/**
 * Switches changes to a new upper.
 *
 * @param push one attempt; returns the pause in microseconds
 * @returns the longest pause that a change had, in microseconds
 * @throws {SnapshotError | EngineError} why not: nothing has changed
 */
export async function switchUpper(
  push: (limitMs: number) => Promise<number>,
  sleep = (ms: number) => new Promise<void>((done) => setTimeout(done, ms)),
): Promise<number> {
  let longest = 0;
  for (let attempt = 0;; attempt++) {
    const limit = LIMIT_MS * 2 ** Math.floor(attempt / TRIES);
    try {
      return Math.max(longest, await push(limit));
    } catch (error) {
      if (!(error instanceof EngineError)) throw error;
      if (error.code === "E2BIG") {
        throw new SnapshotError(
          `its upper has more than ${MAX_RECORDS} records, and no reader ` +
            "takes a layer with more",
        );
      }
      const last = attempt === TRIES * (DOUBLINGS + 1) - 1;
      if (error.code !== "ETIMEDOUT" || last) throw error;
    }
    longest = Math.max(longest, limit * 1000);
    await sleep(RETRY_MS);
  }
}
