// SPDX-License-Identifier: Apache-2.0
/**
 * How SCSI commands end (spec/tcmu.md, section 5).
 *
 * @module
 */

import { EngineError } from "../../../ffi/errors.ts";

/** SAM status codes. */
export const STATUS = {
  good: 0x00,
  checkCondition: 0x02,
  busy: 0x08,
  taskSetFull: 0x28,
} as const;

/** Sense key << 16 | additional code << 8 | its qualifier. */
export const SENSE = {
  invalidOpcode: 0x052000,
  outOfRange: 0x052100,
  invalidCdbField: 0x052400,
  invalidListField: 0x052600,
  listLength: 0x051a00,
  writeProtected: 0x053005,
  readError: 0x031100,
  writeError: 0x030c00,
  internalFailure: 0x044400,
  miscompare: 0x0e1d00,
  noSpace: 0x072707,
} as const;

/** The answer to a command: status, sense for CHECK CONDITION, data. */
export interface ScsiAnswer {
  status: number;
  sense?: Uint8Array<ArrayBuffer>;
  data?: Uint8Array<ArrayBuffer>;
}

/** Fixed-format sense data of 18 bytes. */
export function senseData(code: number): Uint8Array<ArrayBuffer> {
  const sense = new Uint8Array(18);
  sense[0] = 0x70;
  sense[2] = code >> 16;
  sense[7] = 10;
  sense[12] = code >> 8;
  sense[13] = code;
  return sense;
}

/** GOOD, with what the initiator asked for. */
export function good(data?: Uint8Array<ArrayBuffer>): ScsiAnswer {
  return { status: STATUS.good, ...(data === undefined ? {} : { data }) };
}

/**
 * What an error of the disk says, as for the commands that the library
 * answers.
 *
 * @param otherwise the sense of an error that has none of its own
 */
export function failed(error: unknown, otherwise: number): ScsiAnswer {
  switch (error instanceof EngineError ? error.code : "") {
    case "ESHUTDOWN": // to be tried again
      return { status: STATUS.busy };
    case "ENOMEM":
      return { status: STATUS.taskSetFull };
    case "EROFS":
      return refuse(SENSE.writeProtected);
    case "ENOSPC":
    case "EDQUOT":
    case "EFBIG":
      return refuse(SENSE.noSpace);
    default:
      return refuse(otherwise);
  }
}

/** CHECK CONDITION. */
export function refuse(code: number): ScsiAnswer {
  return { status: STATUS.checkCondition, sense: senseData(code) };
}
