// SPDX-License-Identifier: Apache-2.0
/**
 * MODE SENSE and MODE SELECT, 6 and 10 bytes (SPC-4 6.9 to 6.12).
 *
 * @module
 */
import type { ScsiDisk } from "./scsi.ts";
import { good, refuse, type ScsiAnswer, SENSE } from "./sense.ts";

const ALL_PAGES = 0x3f;
const WRITE_PROTECTED = 0x80;
const DPOFUA = 0x10;
/** Longer parameter lists than any page needs are not read. */
const LIST_MAX = 512;

type Page = (disk: ScsiDisk) => number[];

const PAGES: ReadonlyMap<number, Page> = new Map<number, Page>([
  [0x01, () => [0x01, 0x0a, ...zeros(10)]],
  [
    0x08,
    ({ writeCache }) => [0x08, 0x12, writeCache ? 0x04 : 0, ...zeros(17)],
  ],
  [0x0a, () => [0x0a, 0x0a, 0x02, 0, 0, 0x40, 0, 0, 0xff, 0xff, 0, 0]],
]);

function zeros(n: number): number[] {
  return new Array<number>(n).fill(0);
}

/** Answers MODE SENSE; its length says what all of it would be. */
export function modeSense(disk: ScsiDisk, cdb: Uint8Array): ScsiAnswer {
  const six = cdb[0] === 0x1a;
  const header = six ? 4 : 8;
  const room = six ? cdb[4] ?? 0 : (cdb[7] ?? 0) << 8 | (cdb[8] ?? 0);
  const code = (cdb[2] ?? 0) & 0x3f;
  const changeable = (cdb[2] ?? 0) >> 6 === 1;
  if (room === 0) return good();
  if (room < header || (cdb[3] ?? 0) !== 0) {
    return refuse(SENSE.invalidCdbField);
  }
  const makers = code === ALL_PAGES
    ? [...PAGES.values()]
    : [PAGES.get(code)].filter((make) => make !== undefined);
  if (makers.length === 0) return refuse(SENSE.invalidCdbField);
  // Nothing is changeable by MODE SELECT: its mask is all zeros.
  const pages = makers.flatMap((make) => {
    const page = make(disk);
    return changeable ? [...page.slice(0, 2), ...zeros(page.length - 2)] : page;
  });
  const device = (disk.readonly ? WRITE_PROTECTED : 0) |
    (disk.writeCache ? DPOFUA : 0);
  const length = header + pages.length;
  const head = six
    ? [length - 1, 0, device, 0]
    : [(length - 2) >> 8, (length - 2) & 0xff, 0, device, 0, 0, 0, 0];
  return good(Uint8Array.from([...head, ...pages]).slice(0, room));
}

/** Answers MODE SELECT: only what is so already may be set. */
export function modeSelect(
  disk: ScsiDisk,
  cdb: Uint8Array,
  list: Uint8Array,
): ScsiAnswer {
  const six = cdb[0] === 0x15;
  const length = six ? cdb[4] ?? 0 : (cdb[7] ?? 0) << 8 | (cdb[8] ?? 0);
  const flags = cdb[1] ?? 0;
  if (length === 0) return good();
  if ((flags & 0x10) === 0 || (flags & 0x01) !== 0) {
    return refuse(SENSE.invalidCdbField);
  }
  if (length >= LIST_MAX || list.length < length) {
    return refuse(SENSE.listLength);
  }
  const header = six ? 4 : 8;
  if (length < header) return refuse(SENSE.listLength);
  const descriptors = six ? list[3] ?? 0 : (list[6] ?? 0) << 8 | (list[7] ?? 0);
  let at = header + descriptors;
  if (at > length) return refuse(SENSE.listLength);
  while (at < length) {
    const make = PAGES.get((list[at] ?? 0) & 0x3f);
    if (make === undefined) return refuse(SENSE.invalidListField);
    const page = make(disk);
    if (at + page.length > length) return refuse(SENSE.listLength);
    const from = at;
    if (page.some((byte, i) => i > 0 && byte !== list[from + i])) {
      return refuse(SENSE.invalidListField);
    }
    at += page.length;
  }
  return good();
}
