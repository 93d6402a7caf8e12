// SPDX-License-Identifier: Apache-2.0
/**
 * The SCSI commands that move no blocks, as answers (spec/tcmu.md,
 * section 5), and the rare ones that compare them.  READ, WRITE, WRITE SAME,
 * UNMAP and SYNCHRONIZE CACHE never come here.
 *
 * @module
 */
import type { Bytes } from "../../../ffi/handle.ts";
import { compareAndWrite, type Medium, verifyBytes } from "./compare.ts";
import { inquiry } from "./inquiry.ts";
import { modeSelect, modeSense } from "./mode.ts";
import { good, refuse, type ScsiAnswer, SENSE, senseData } from "./sense.ts";

/** What a disk says of itself. */
export interface ScsiDisk {
  /** sectors of 512 bytes */
  sectors: bigint;
  readonly: boolean;
  /** FLUSH and FUA mean it */
  writeCache: boolean;
  /** what was discarded reads as zeros: not so on a sparse upper */
  discardsReadZero: boolean;
  /** unique and stable, hex digits */
  serial: string;
  /** the device's config string, `overlaybd//path` */
  config: string;
}

/** A command: its CDB, and what the initiator sent with it. */
export interface ScsiRequest {
  cdb: Uint8Array;
  /** called only by commands that have a parameter list */
  list(): Bytes;
  /** used only by commands that compare */
  medium: Medium;
}

type Handler = (
  disk: ScsiDisk,
  request: ScsiRequest,
) => ScsiAnswer | Promise<ScsiAnswer>;

const SECTOR_BYTES = 512;
const LAST_OF_32_BITS = 0xffff_ffffn;

function view(cdb: Uint8Array): DataView {
  return new DataView(cdb.buffer, cdb.byteOffset, cdb.byteLength);
}

/** The last sector, as READ CAPACITY says it: 0 for an empty disk. */
function lastSector({ sectors }: ScsiDisk): bigint {
  return sectors === 0n ? 0n : sectors - 1n;
}

function readCapacity10(disk: ScsiDisk): ScsiAnswer {
  const data = new Uint8Array(8);
  const last = lastSector(disk);
  const v = view(data);
  v.setUint32(0, Number(last < LAST_OF_32_BITS ? last : LAST_OF_32_BITS));
  v.setUint32(4, SECTOR_BYTES);
  return good(data);
}

function serviceActionIn(disk: ScsiDisk, { cdb }: ScsiRequest): ScsiAnswer {
  if (((cdb[1] ?? 0) & 0x1f) !== 0x10) return refuse(SENSE.invalidOpcode);
  const data = new Uint8Array(32);
  const v = view(data);
  v.setBigUint64(0, lastSector(disk));
  v.setUint32(8, SECTOR_BYTES);
  // LBPME: thin; LBPRZ where a discard reads as zeros
  data[14] = 0x80 | (disk.discardsReadZero ? 0x40 : 0);
  return good(data.slice(0, view(cdb).getUint32(10)));
}

function requestSense(_disk: ScsiDisk, { cdb }: ScsiRequest): ScsiAnswer {
  // Descriptor format is for who asked for it at MODE SELECT, which none can.
  return ((cdb[1] ?? 0) & 1) !== 0
    ? refuse(SENSE.invalidCdbField)
    : good(senseData(0).slice(0, cdb[4] ?? 0));
}

/** Where a command of 10, 12 or 16 bytes begins, and how long it is. */
function range(cdb: Uint8Array): { lba: bigint; count: bigint } {
  const v = view(cdb);
  switch (cdb.length) {
    case 10:
      return { lba: BigInt(v.getUint32(2)), count: BigInt(v.getUint16(7)) };
    case 12:
      return { lba: BigInt(v.getUint32(2)), count: BigInt(v.getUint32(6)) };
    default:
      return { lba: v.getBigUint64(2), count: BigInt(v.getUint32(10)) };
  }
}

function inRange(disk: ScsiDisk, cdb: Uint8Array): boolean {
  const { lba, count } = range(cdb);
  return lba <= disk.sectors && count <= disk.sectors - lba;
}

/** PRE-FETCH: a hint that may be ignored, about a range that is there. */
function prefetch(disk: ScsiDisk, { cdb }: ScsiRequest): ScsiAnswer {
  return inRange(disk, cdb) ? good() : refuse(SENSE.outOfRange);
}

/** VERIFY: without comparison there is nothing to do, as reads check. */
function verify(
  disk: ScsiDisk,
  request: ScsiRequest,
): ScsiAnswer | Promise<ScsiAnswer> {
  const { cdb, list, medium } = request;
  const mode = (cdb[1] ?? 0) >> 1 & 3;
  if (mode === 2) return refuse(SENSE.invalidCdbField);
  if (!inRange(disk, cdb)) return refuse(SENSE.outOfRange);
  if (mode === 0) return good();
  const { lba, count } = range(cdb);
  return verifyBytes(medium, list(), {
    lba,
    count: Number(count),
    repeated: mode === 3,
  });
}

function compareWrite(
  disk: ScsiDisk,
  { cdb, list, medium }: ScsiRequest,
): ScsiAnswer | Promise<ScsiAnswer> {
  const flags = cdb[1] ?? 0;
  if (flags >> 5 !== 0) return refuse(SENSE.invalidCdbField);
  const lba = view(cdb).getBigUint64(2);
  const count = cdb[13] ?? 0;
  if (lba > disk.sectors || BigInt(count) > disk.sectors - lba) {
    return refuse(SENSE.outOfRange);
  }
  if (disk.readonly) return refuse(SENSE.writeProtected);
  const fua = disk.writeCache && (flags & 0x08) !== 0;
  return compareAndWrite(medium, list(), { lba, count, fua });
}

/** A command that REPORT SUPPORTED OPERATION CODES knows. */
interface Supported {
  opcode: number;
  serviceAction?: number;
  /** which bits of the CDB mean something, the opcode first */
  usage: readonly number[];
}

const FF2 = [0xff, 0xff];
const FF4 = [...FF2, ...FF2];
const FF8 = [...FF4, ...FF4];

const SUPPORTED: readonly Supported[] = [
  { opcode: 0x00, usage: [0x00, 0, 0, 0, 0, 0] },
  { opcode: 0x03, usage: [0x03, 0x01, 0, 0, 0xff, 0] },
  { opcode: 0x08, usage: [0x08, 0x1f, ...FF2, 0xff, 0] },
  { opcode: 0x0a, usage: [0x0a, 0x1f, ...FF2, 0xff, 0] },
  { opcode: 0x12, usage: [0x12, 0x01, 0xff, ...FF2, 0] },
  { opcode: 0x15, usage: [0x15, 0x11, 0, 0, 0xff, 0] },
  { opcode: 0x1a, usage: [0x1a, 0x08, 0xff, 0xff, 0xff, 0] },
  { opcode: 0x1b, usage: [0x1b, 0x01, 0, 0x0f, 0xf7, 0] },
  { opcode: 0x25, usage: [0x25, 0, ...FF4, 0, 0, 0, 0] },
  { opcode: 0x28, usage: [0x28, 0x18, ...FF4, 0, ...FF2, 0] },
  { opcode: 0x2a, usage: [0x2a, 0x18, ...FF4, 0, ...FF2, 0] },
  { opcode: 0x2f, usage: [0x2f, 0x16, ...FF4, 0, ...FF2, 0] },
  { opcode: 0x34, usage: [0x34, 0x02, ...FF4, 0, ...FF2, 0] },
  { opcode: 0x35, usage: [0x35, 0x02, ...FF4, 0, ...FF2, 0] },
  { opcode: 0x41, usage: [0x41, 0x08, ...FF4, 0, ...FF2, 0] },
  { opcode: 0x42, usage: [0x42, 0, 0, 0, 0, 0, 0, ...FF2, 0] },
  { opcode: 0x55, usage: [0x55, 0x11, 0, 0, 0, 0, 0, ...FF2, 0] },
  { opcode: 0x5a, usage: [0x5a, 0x18, 0xff, 0xff, 0, 0, 0, ...FF2, 0] },
  { opcode: 0x88, usage: [0x88, 0x18, ...FF8, ...FF4, 0, 0] },
  { opcode: 0x89, usage: [0x89, 0x18, ...FF8, 0, 0, 0, 0xff, 0, 0] },
  { opcode: 0x8a, usage: [0x8a, 0x18, ...FF8, ...FF4, 0, 0] },
  { opcode: 0x8f, usage: [0x8f, 0x16, ...FF8, ...FF4, 0, 0] },
  { opcode: 0x90, usage: [0x90, 0x02, ...FF8, ...FF4, 0, 0] },
  { opcode: 0x91, usage: [0x91, 0x02, ...FF8, ...FF4, 0, 0] },
  { opcode: 0x93, usage: [0x93, 0x09, ...FF8, ...FF4, 0, 0] },
  {
    opcode: 0x9e,
    serviceAction: 0x10,
    usage: [0x9e, 0x10, ...FF8, ...FF4, 0, 0],
  },
  {
    opcode: 0xa3,
    serviceAction: 0x0c,
    usage: [0xa3, 0x0c, 0x87, 0xff, ...FF2, ...FF4, 0, 0],
  },
  { opcode: 0xa8, usage: [0xa8, 0x18, ...FF4, ...FF4, 0, 0] },
  { opcode: 0xaa, usage: [0xaa, 0x18, ...FF4, ...FF4, 0, 0] },
  { opcode: 0xaf, usage: [0xaf, 0x16, ...FF4, ...FF4, 0, 0] },
];

/** Every command, eight bytes each (SPC-4 6.35.2). */
function allCommands(): Uint8Array<ArrayBuffer> {
  const data = new Uint8Array(4 + 8 * SUPPORTED.length);
  const v = view(data);
  v.setUint32(0, data.length - 4);
  SUPPORTED.forEach(({ opcode, serviceAction, usage }, i) => {
    const at = 4 + 8 * i;
    data[at] = opcode;
    v.setUint16(at + 2, serviceAction ?? 0);
    data[at + 5] = serviceAction === undefined ? 0 : 1;
    v.setUint16(at + 6, usage.length);
  });
  return data;
}

/** One command: whether it is known, and its usage (SPC-4 6.35.3). */
function oneCommand(found: Supported | undefined): Uint8Array<ArrayBuffer> {
  const usage = found?.usage ?? [];
  const size = found === undefined ? 0 : usage.length;
  return Uint8Array.from([
    0,
    found === undefined ? 1 : 3,
    size >> 8,
    size & 0xff,
    ...usage,
  ]);
}

function maintenanceIn(_disk: ScsiDisk, { cdb }: ScsiRequest): ScsiAnswer {
  if (((cdb[1] ?? 0) & 0x1f) !== 0x0c) return refuse(SENSE.invalidOpcode);
  const v = view(cdb);
  const opcode = cdb[3];
  const action = v.getUint16(4);
  const room = v.getUint32(6);
  const same = SUPPORTED.filter((one) => one.opcode === opcode);
  const withActions = same.some((one) => one.serviceAction !== undefined);
  switch ((cdb[2] ?? 0) & 0x07) {
    case 0:
      return good(allCommands().slice(0, room));
    case 1:
      return withActions
        ? refuse(SENSE.invalidCdbField)
        : good(oneCommand(same[0]).slice(0, room));
    case 2:
      return same.length > 0 && !withActions
        ? refuse(SENSE.invalidCdbField)
        : good(
          oneCommand(same.find((one) => one.serviceAction === action))
            .slice(0, room),
        );
    case 3:
      return good(
        oneCommand(same.find((one) => (one.serviceAction ?? 0) === action))
          .slice(0, room),
      );
    default:
      return refuse(SENSE.invalidCdbField);
  }
}

const HANDLERS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [0x00, () => good()], // TEST UNIT READY
  [0x03, requestSense],
  [0x12, (disk, { cdb }) => inquiry(disk, cdb)],
  [0x15, (disk, { cdb, list }) => modeSelect(disk, cdb, list())],
  [0x1a, (disk, { cdb }) => modeSense(disk, cdb)],
  [0x1b, () => good()], // START STOP UNIT: there is nothing to stop
  [0x25, readCapacity10],
  [0x2f, verify],
  [0x34, prefetch],
  [0x55, (disk, { cdb, list }) => modeSelect(disk, cdb, list())],
  [0x5a, (disk, { cdb }) => modeSense(disk, cdb)],
  [0x89, compareWrite],
  [0x8f, verify],
  [0x90, prefetch],
  [0x9e, serviceActionIn],
  [0xa3, maintenanceIn],
  [0xaf, verify],
]);

/** Answers a command; one that is not known is refused with 05/20/00. */
export function answerScsi(
  disk: ScsiDisk,
  request: ScsiRequest,
): ScsiAnswer | Promise<ScsiAnswer> {
  const handler = HANDLERS.get(request.cdb[0] ?? 0xff);
  return handler === undefined
    ? refuse(SENSE.invalidOpcode)
    : handler(disk, request);
}

/** True for what {@link answerScsi} answers, if only to refuse a field. */
export function isKnownCommand(opcode: number): boolean {
  return HANDLERS.has(opcode);
}
