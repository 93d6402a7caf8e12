// SPDX-License-Identifier: Apache-2.0
/**
 * INQUIRY and its vital product data (SPC-4 6.4, 7.8; SBC-3 6.6).
 *
 * @module
 */
import type { ScsiDisk } from "./scsi.ts";
import { good, refuse, type ScsiAnswer, SENSE } from "./sense.ts";

const VENDOR = "LIO-ORG ";
const PRODUCT = "TCMU device";
const REVISION = "0002";

/** A discard of this many sectors at most: 2 GiB, quick to record. */
const MAX_UNMAP_SECTORS = 4 << 20;
const MAX_UNMAP_RANGES = 256;
/** Shorter discards free nothing. */
const ALIGNED_SECTORS = 8;

type Page = (disk: ScsiDisk) => Uint8Array<ArrayBuffer>;

const encoder = new TextEncoder();

function bytes(
  length: number,
  fill: (view: DataView, raw: Uint8Array) => void,
): Uint8Array<ArrayBuffer> {
  const raw = new Uint8Array(length);
  fill(new DataView(raw.buffer), raw);
  return raw;
}

function page(
  code: number,
  body: Uint8Array,
): Uint8Array<ArrayBuffer> {
  return bytes(4 + body.length, (view, raw) => {
    raw[1] = code;
    view.setUint16(2, body.length);
    raw.set(body, 4);
  });
}

/**
 * NAA IEEE Registered Extended: 6, the company's 00 14 05, then 25 hex digits
 * of the serial, zeros behind a shorter one.
 */
export function naaDesignator(serial: string): Uint8Array<ArrayBuffer> {
  const digits = `6001405${serial.replace(/[^0-9a-f]/gi, "")}`.slice(0, 32)
    .padEnd(32, "0");
  return bytes(16, (_, raw) => {
    for (let i = 0; i < 16; i++) {
      raw[i] = parseInt(digits.slice(2 * i, 2 * i + 2), 16);
    }
  });
}

/** One designation descriptor; what does not fit its length is cut. */
function designator(
  codeSet: 1 | 2,
  type: number,
  id: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const cut = id.subarray(0, 252);
  return bytes(4 + cut.length, (_, raw) => {
    raw[0] = codeSet;
    raw[1] = type;
    raw[3] = cut.length;
    raw.set(cut, 4);
  });
}

function concat(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

const PAGES: ReadonlyMap<number, Page> = new Map<number, Page>([
  [0x00, () => page(0x00, Uint8Array.from(PAGES.keys()))],
  [0x80, ({ serial }) => page(0x80, encoder.encode(`${serial}\0`))],
  [
    0x83,
    ({ serial, config }) =>
      page(
        0x83,
        concat([
          designator(2, 1, encoder.encode(`${VENDOR}${serial}\0`)),
          designator(1, 3, naaDesignator(serial)),
          designator(2, 0, encoder.encode(`${config}\0`)),
        ]),
      ),
  ],
  [
    0xb0,
    () =>
      page(
        0xb0,
        bytes(60, (view, raw) => {
          raw[0] = 1; // WSNZ: a WRITE SAME of 0 blocks is refused
          raw[1] = 1; // COMPARE AND WRITE of one block
          view.setUint32(16, MAX_UNMAP_SECTORS);
          view.setUint32(20, MAX_UNMAP_RANGES);
          view.setUint32(24, ALIGNED_SECTORS); // granularity of discards
          view.setUint32(28, 0x80000000); // aligned at 0
          view.setBigUint64(32, BigInt(MAX_UNMAP_SECTORS)); // WRITE SAME
        }),
      ),
  ],
  [
    0xb1,
    () =>
      page(
        0xb1,
        bytes(60, (view) => view.setUint16(0, 1)), // does not rotate
      ),
  ],
  [
    0xb2,
    ({ discardsReadZero }) =>
      page(
        0xb2,
        // LBPU, LBPWS, LBPWS10, and LBPRZ where a discard reads as zeros
        bytes(4, (_, raw) => {
          raw[1] = 0xe0 | (discardsReadZero ? 0x04 : 0);
          raw[2] = 0x02; // thin provisioned
        }),
      ),
  ],
]);

function standard(): Uint8Array<ArrayBuffer> {
  return bytes(36, (_, raw) => {
    raw.set([0, 0, 0x05, 0x02, 0x1f, 0x08, 0, 0x02]);
    raw.set(encoder.encode(VENDOR + PRODUCT.padEnd(16) + REVISION), 8);
  });
}

/** Answers INQUIRY. */
export function inquiry(disk: ScsiDisk, cdb: Uint8Array): ScsiAnswer {
  const [, flags = 0, code = 0, high = 0, low = 0] = cdb;
  const room = high << 8 | low;
  if ((flags & 1) === 0) {
    return code === 0
      ? good(standard().slice(0, room))
      : refuse(SENSE.invalidCdbField);
  }
  const make = PAGES.get(code);
  return make === undefined
    ? refuse(SENSE.invalidCdbField)
    : good(make(disk).slice(0, room));
}
