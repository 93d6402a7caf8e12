// SPDX-License-Identifier: Apache-2.0
/**
 * The tar wrapper of a blob (spec/lsmt.md, section 11).
 *
 * @module
 */

const SECTOR = 512;

/** Bytes before the payload in a wrapper that we write. */
export const TAR_HEAD = 3 * SECTOR;

/** Bytes that a probe wants to see. */
export const TAR_PROBE = 3 * SECTOR;

/** Where the payload of a wrapped blob lies, in bytes. */
export interface TarPayload {
  at: number;
  size: number;
}

function ascii(bytes: Uint8Array): string {
  return new TextDecoder("latin1").decode(bytes);
}

/** An octal field; undefined when it holds anything else. */
function octal(bytes: Uint8Array): number | undefined {
  const [, digits] = /^ *([0-7]*)[ \0]/.exec(ascii(bytes) + "\0") ?? [];
  return digits === undefined ? undefined : parseInt(`0${digits}`, 8);
}

/** The stored sum equals that of the block, bytes signed or unsigned. */
function checksumHolds(block: Uint8Array): boolean {
  const stored = octal(block.subarray(148, 156));
  let unsigned = 0;
  let signed = 0;
  for (const [i, byte] of block.subarray(0, SECTOR).entries()) {
    const b = i >= 148 && i < 156 ? 0x20 : byte;
    unsigned += b;
    signed += b << 24 >> 24;
  }
  return stored === unsigned || stored === signed;
}

/** The value of `size` in pax records; 0 when there is none. */
function paxSize(records: string): number {
  let at = 0;
  while (at < records.length) {
    const [head, digits] = /^(\d{1,10}) /.exec(records.slice(at)) ?? [];
    const length = Number(digits ?? 0);
    if (head === undefined || length <= head.length) return 0;
    const record = records.slice(at + head.length, at + length - 1);
    const [, size] = /^size=(\d{1,15})$/.exec(record) ?? [];
    if (size !== undefined) return Number(size);
    at += length;
  }
  return 0;
}

/**
 * Finds the payload of a tar-wrapped blob.
 *
 * @param head the first {@linkcode TAR_PROBE} bytes of the file, fewer when it is shorter
 * @returns undefined when this is no ustar archive: the blob is as it is
 */
export function probeTar(head: Uint8Array): TarPayload | undefined {
  if (head.length < SECTOR) return undefined;
  if (ascii(head.subarray(257, 262)) !== "ustar") return undefined;
  if (ascii(head.subarray(263, 265)) !== "00") return undefined;
  if (!checksumHolds(head)) return undefined;
  const type = String.fromCharCode(head[156] ?? 0);
  if (type !== "x" && type !== "g") {
    return { at: SECTOR, size: octal(head.subarray(124, 136)) ?? 0 };
  }
  const records = head.subarray(SECTOR, 2 * SECTOR);
  const length = octal(head.subarray(124, 136)) ?? 0;
  const size = paxSize(ascii(records.subarray(0, length)));
  const file = head.subarray(2 * SECTOR, 3 * SECTOR);
  return {
    at: TAR_HEAD,
    size: size > 0 ? size : octal(file.subarray(124, 136)) ?? 0,
  };
}

function put(block: Uint8Array, at: number, text: string): void {
  new TextEncoder().encodeInto(text, block.subarray(at));
}

/** Name, numbers and checksum of one header block. */
function headerBlock(fields: readonly [at: number, text: string][]) {
  const block = new Uint8Array(SECTOR);
  for (const [at, text] of fields) put(block, at, text);
  put(block, 257, "ustar\0" + "00");
  block.fill(0x20, 148, 156);
  const sum = block.reduce((total, b) => total + b, 0);
  put(block, 148, `${sum.toString(8).padStart(6)} \0`);
  return block;
}

/**
 * The 1536 bytes before a payload.
 *
 * @param payload its length in bytes
 * @param mode `st_mode` of the output, as in `0o100644`
 */
export function tarHead(
  payload: number,
  mode: number,
): Uint8Array<ArrayBuffer> {
  const body = ` size=${payload}\n`;
  // The length counts its own digits.
  let length = body.length + 1;
  while (`${length}${body}`.length !== length) length++;
  const head = new Uint8Array(TAR_HEAD);
  head.set(
    headerBlock([
      [0, "overlaybd.pax"],
      [124, `${length.toString(8).padStart(11)} `],
      [156, "x"],
    ]),
  );
  put(head, SECTOR, `${length}${body}`);
  head.set(
    headerBlock([
      [0, "overlaybd.commit"],
      [100, `${mode.toString(8).padStart(6)} \0`],
      [108, "     0 \0"],
      [116, "     0 \0"],
      [124, "          0 "],
      [136, "          0 "],
      [156, "0"],
      [265, "root"],
      [297, "root"],
    ]),
    2 * SECTOR,
  );
  return head;
}

/** What follows a payload: zeros to 512, and two end blocks. */
export function tarTail(payload: number): Uint8Array<ArrayBuffer> {
  const pad = (SECTOR - payload % SECTOR) % SECTOR;
  return new Uint8Array(pad + 2 * SECTOR);
}
