// SPDX-License-Identifier: Apache-2.0
/**
 * The commands that compare what the initiator sent with what is on the
 * disk: COMPARE AND WRITE, VERIFY with comparison (SBC-3 5.2, 5.32).
 *
 * @module
 */
import type { Bytes } from "../../../ffi/handle.ts";
import { failed, good, refuse, type ScsiAnswer, SENSE } from "./sense.ts";

/** The disk's bytes. */
export interface Medium {
  /** Fills `into` from byte `at`. */
  read(into: Bytes, at: bigint): Promise<void>;
  write(from: Bytes, at: bigint): Promise<void>;
  flush(): Promise<void>;
  /** Runs one after the other: what is compared is not changed before. */
  exclusive<T>(work: () => Promise<T>): Promise<T>;
}

const SECTOR_BYTES = 512;
const PIECE_BYTES = 1 << 20;

/** MISCOMPARE, with the offset of the first byte that differs. */
function miscompare(offset: number): ScsiAnswer {
  const answer = refuse(SENSE.miscompare);
  if (answer.sense !== undefined) {
    answer.sense[0] = 0xf0;
    new DataView(answer.sense.buffer).setUint32(3, offset);
  }
  return answer;
}

function firstDifference(a: Uint8Array, b: Uint8Array): number | undefined {
  const at = a.findIndex((byte, i) => byte !== b[i]);
  return at < 0 ? undefined : at;
}

/** An error of the medium as the answer to a command. */
async function orMediumError(
  sense: number,
  work: () => Promise<ScsiAnswer>,
): Promise<ScsiAnswer> {
  try {
    return await work();
  } catch (error) {
    return failed(error, sense);
  }
}

/**
 * COMPARE AND WRITE of one sector.
 *
 * @param list the bytes to compare with, then those to write
 * @param lba in range, as `count` sectors from it are
 * @param fua what is written is on the disk before the answer
 */
export async function compareAndWrite(
  medium: Medium,
  list: Bytes,
  { lba, count, fua }: { lba: bigint; count: number; fua: boolean },
): Promise<ScsiAnswer> {
  if (count === 0) return good();
  if (count > 1) return refuse(SENSE.invalidCdbField);
  if (list.length < 2 * SECTOR_BYTES) return refuse(SENSE.listLength);
  const at = lba * BigInt(SECTOR_BYTES);
  const on = new Uint8Array(SECTOR_BYTES);
  return await medium.exclusive(async () => {
    const compared = await orMediumError(SENSE.readError, async () => {
      await medium.read(on, at);
      const differs = firstDifference(list.subarray(0, SECTOR_BYTES), on);
      return differs === undefined ? good() : miscompare(differs);
    });
    if (compared.status !== 0) return compared;
    return await orMediumError(SENSE.writeError, async () => {
      await medium.write(list.slice(SECTOR_BYTES, 2 * SECTOR_BYTES), at);
      if (fua) await medium.flush();
      return good();
    });
  });
}

/**
 * VERIFY with comparison.
 *
 * @param list as long as the range, or one sector that all must equal
 */
export async function verifyBytes(
  medium: Medium,
  list: Bytes,
  { lba, count, repeated }: { lba: bigint; count: number; repeated: boolean },
): Promise<ScsiAnswer> {
  const length = count * SECTOR_BYTES;
  if (list.length < (repeated && count > 0 ? SECTOR_BYTES : length)) {
    return refuse(SENSE.listLength);
  }
  return await orMediumError(SENSE.readError, async () => {
    for (let done = 0; done < length;) {
      const piece = new Uint8Array(Math.min(PIECE_BYTES, length - done));
      await medium.read(piece, lba * BigInt(SECTOR_BYTES) + BigInt(done));
      const differs = repeated
        ? piece.findIndex((byte, i) => byte !== list[i % SECTOR_BYTES])
        : firstDifference(piece, list.subarray(done)) ?? -1;
      if (differs >= 0) return miscompare(done + differs);
      done += piece.length;
    }
    return good();
  });
}
