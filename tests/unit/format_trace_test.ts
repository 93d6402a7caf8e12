// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, ok, throws } from "node:assert/strict";
import fc from "fast-check";
import { crc32c } from "../../ffi/crc32c.ts";
import { FormatError } from "../../src/format/error.ts";
import {
  encodeTraceHeader,
  encodeTraceRecords,
  isTrace,
  parseTrace,
  TRACE_BLOCK,
  TRACE_COUNT_MAX,
  type TraceRecord,
} from "../../src/format/trace.ts";
import { crcRegister } from "../lib/spec_reader.ts";

const hex = (text: string) => Uint8Array.fromHex(text.replaceAll(" ", ""));
const HEADER = "2018efc200000000 1800000000000000 6981f6de 00000000";
const RECORD = "52000000 02000000 0010000000000000 0020000000000000";
const ONE: TraceRecord = { op: "read", layer: 2, offset: 8192, count: 4096 };

function encode(records: readonly TraceRecord[]): Uint8Array<ArrayBuffer> {
  const data = encodeTraceRecords(records);
  const header = encodeTraceHeader(data.length, crcRegister(0, data));
  return new Uint8Array([...header, ...data]);
}
/** Gives a changed file the checksum that it should have. */
function mended(file: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const copy = file.slice();
  new DataView(copy.buffer).setUint32(
    16,
    crcRegister(0, copy.subarray(TRACE_BLOCK)),
    true,
  );
  return copy;
}

const record: fc.Arbitrary<TraceRecord> = fc.record({
  op: fc.constantFrom("read" as const, "write" as const),
  layer: fc.integer({ min: 0, max: 254 }),
  offset: fc.integer({ min: 0, max: 2 ** 50 }),
  count: fc.integer({ min: 1, max: TRACE_COUNT_MAX }),
});

Deno.test("a trace is the specification's, byte for byte", () => {
  deepEqual(encode([ONE]), hex(HEADER + RECORD));
  deepEqual(encode([]), hex("2018efc2" + "00".repeat(20)));
  equal(crcRegister(0, new TextEncoder().encode("123456789")), 0x58e3fa20);
  equal(crc32c(0, new TextEncoder().encode("123456789")), 0x58e3fa20);
});

Deno.test("the specification's trace is read", () => {
  deepEqual(parseTrace(hex(HEADER + RECORD), crc32c), [ONE]);
  deepEqual(parseTrace(hex("2018efc2" + "00".repeat(20)), crc32c), []);
});

Deno.test("padding that the original left dirty is hashed as it is", () => {
  const dirty = hex(HEADER + RECORD);
  dirty.fill(0xaa, 4, 8).fill(0xbb, 20, 24).fill(0xcc, 25, 28);
  throws(() => parseTrace(dirty, crc32c), /does not match its checksum/);
  deepEqual(parseTrace(mended(dirty), crc32c), [ONE]);
});

Deno.test("a trace that breaks a rule says which", () => {
  const good = hex(HEADER + RECORD);
  const bad = (file: Uint8Array<ArrayBuffer>, why: RegExp) =>
    throws(
      () => parseTrace(file, crc32c),
      (error) => error instanceof FormatError && why.test(error.message),
    );
  bad(good.slice(0, 47), /has 23 bytes of records, its header says 24/);
  bad(good.slice(0, 10), /inside its header/);
  bad(good.slice(0, 3), /magic/);
  bad(new Uint8Array(24), /magic/);
  const odd = new Uint8Array([...good, 1]);
  odd[8] = 25;
  bad(mended(odd), /inside a record/);
});

Deno.test("what a layer cannot have is read as it stands", () => {
  const file = hex(HEADER + RECORD);
  file.fill(0xff, 32, 48);
  const [huge] = parseTrace(mended(file), crc32c);
  deepEqual(huge, { op: "read", layer: 2, offset: -1, count: 2 ** 64 });
  file[24] = 0x41;
  deepEqual(parseTrace(mended(file), crc32c), []);
});

Deno.test("no record is longer than the original's buffer", () => {
  const long = { ...ONE, count: 3 * TRACE_COUNT_MAX + 512 };
  const parsed = parseTrace(encode([long, { ...ONE, count: 0 }]), crc32c);
  deepEqual(parsed.map(({ count }) => count), [
    ...[TRACE_COUNT_MAX, TRACE_COUNT_MAX, TRACE_COUNT_MAX],
    512,
  ]);
  equal(parsed[3]?.offset, 8192 + 3 * TRACE_COUNT_MAX);
});

Deno.test("property: what is written is read back, checksums of pieces chain", () => {
  fc.assert(
    fc.property(
      fc.array(record, { maxLength: 40 }),
      fc.nat(40),
      (records, cut) => {
        const file = encode(records);
        deepEqual(parseTrace(file, crc32c), records);
        const first = encodeTraceRecords(records.slice(0, cut));
        const rest = encodeTraceRecords(records.slice(cut));
        equal(
          crc32c(crc32c(0, first), rest),
          crcRegister(0, file.subarray(TRACE_BLOCK)),
        );
      },
    ),
  );
});

Deno.test("property: any change of a trace is either noticed or in padding", () => {
  const file = encode([ONE, { ...ONE, offset: 0 }]);
  fc.assert(
    fc.property(
      fc.nat(file.length - 1),
      fc.integer({ min: 1, max: 255 }),
      (at, flip) => {
        const copy = file.slice();
        copy[at] = (copy[at] ?? 0) ^ flip;
        const padding = at >= 4 && at < 8 || at >= 20 && at < 24;
        if (padding) equal(parseTrace(copy, crc32c).length, 2);
        else throws(() => parseTrace(copy, crc32c), FormatError);
        equal(isTrace(copy), at >= 4);
      },
    ),
  );
});

Deno.test("property: any bytes are parsed or refused, never more than they hold", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (tail) => {
      const file = new Uint8Array([
        ...encodeTraceHeader(tail.length, crcRegister(0, tail)),
        ...tail,
      ]);
      try {
        ok(parseTrace(file, crc32c).length <= tail.length / TRACE_BLOCK);
      } catch (error) {
        ok(error instanceof FormatError);
      }
    }),
  );
});
