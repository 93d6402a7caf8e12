// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, ok, throws } from "node:assert/strict";
import fc from "fast-check";
import { FormatError } from "../../src/format/error.ts";
import {
  BLOCK_SIZE,
  encodeLsmtBlock,
  FLAG,
  FLAGS,
  INVALID_LBA,
  isLsmt,
  MAX_TAG,
  parseIndexHeader,
  parseLsmtHeader,
  parseLsmtTrailer,
  parseRecords,
} from "../../src/format/lsmt.ts";
import {
  isUuid,
  NIL_UUID,
  normalizeUuid,
  randomUuid,
} from "../../src/format/uuid.ts";
import { fixture, haveFixtures } from "../lib/env.ts";

const UUID = "01234567-89AB-4CDE-8F01-23456789ABCD";
const PARENT = "00112233-4455-4677-8899-AABBCCDDEEFF";
/** Layer of one block of data and one of index. */
const SIZE = 4 * BLOCK_SIZE;

function trailer(change: Partial<Parameters<typeof encodeLsmtBlock>[0]> = {}) {
  return encodeLsmtBlock({
    flags: FLAGS.trailer,
    indexOffset: 2 * BLOCK_SIZE,
    indexSize: 256,
    virtualSize: 1 << 30,
    ...change,
  });
}

const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const uuid = fc.uuid().map((text) => text.toUpperCase());

Deno.test("a header that was encoded parses to the same values", () => {
  fc.assert(fc.property(
    fc.record({
      flags: fc.nat().map((n) => n | FLAG.header | FLAG.data),
      indexOffset: u64,
      indexSize: u64,
      virtualSize: u64,
      uuid,
      parentUuid: uuid,
      userTag: fc.uint8Array({ maxLength: MAX_TAG })
        .filter((tag) => tag.at(-1) !== 0),
    }),
    (block) => {
      const bytes = encodeLsmtBlock(block);
      equal(bytes.length, BLOCK_SIZE);
      const back = parseLsmtHeader(bytes);
      deepEqual({ ...back, userTag: [...back.userTag] }, {
        ...block,
        userTag: [...block.userTag],
      });
      ok(bytes.subarray(390).every((b) => b === 0), "reserved bytes are 0");
    },
  ));
});

Deno.test("the worked example's header comes out byte for byte", () => {
  const bytes = encodeLsmtBlock({
    flags: FLAGS.committedHeader,
    virtualSize: 1 << 30,
    uuid: UUID,
    parentUuid: PARENT,
    userTag: new TextEncoder().encode("hi"),
  });
  equal(
    bytes.subarray(24, 56).toHex(),
    "8601000007000000" + "00".repeat(16) + "0000004000000000",
  );
  const text = (from: number, to: number) =>
    new TextDecoder().decode(bytes.subarray(from, to));
  equal(text(56, 93), `${UUID}\0`);
  equal(text(93, 130), `${PARENT}\0`);
  equal(bytes.subarray(130, 138).toHex(), "0000010168690000");
});

Deno.test("a user tag has 0, 255 or 256 bytes, not 257", () => {
  for (const length of [0, 255, 256]) {
    const userTag = new Uint8Array(length).fill(120);
    const bytes = encodeLsmtBlock({ flags: 3, userTag });
    equal(parseLsmtHeader(bytes).userTag.length, length);
  }
  throws(
    () => encodeLsmtBlock({ flags: 3, userTag: new Uint8Array(257) }),
    /257 bytes: at most 256/,
  );
});

Deno.test("each broken rule of a header or trailer has its own text", () => {
  const cases: [RegExp, () => unknown][] = [
    [/short: 4095 of 4096/, () => parseLsmtHeader(new Uint8Array(4095))],
    [/header has no LSMT magic/, () => parseLsmtHeader(new Uint8Array(4096))],
    [
      /header is marked as a trailer/,
      () => parseLsmtHeader(encodeLsmtBlock({ flags: 6 })),
    ],
    [
      /that of an index file/,
      () => parseLsmtHeader(encodeLsmtBlock({ flags: 1 })),
    ],
    [
      /trailer has no LSMT magic/,
      () => parseLsmtTrailer(new Uint8Array(4096), SIZE),
    ],
    [
      /trailer is marked as a header/,
      () => parseLsmtTrailer(trailer({ flags: 7 }), SIZE),
    ],
    [
      /not marked as data/,
      () => parseLsmtTrailer(trailer({ flags: 4 }), SIZE),
    ],
    [
      /not marked sealed/,
      () => parseLsmtTrailer(trailer({ flags: 2 }), SIZE),
    ],
    [
      /1000001 records, at most 1000000/,
      () => parseLsmtTrailer(trailer({ indexSize: 1_000_001 }), SIZE),
    ],
    [
      /begins at 12800, past the trailer at 12288/,
      () => parseLsmtTrailer(trailer({ indexOffset: 12800 }), SIZE),
    ],
    [
      /begins at 512, inside the header/,
      () => parseLsmtTrailer(trailer({ indexOffset: 512 }), SIZE),
    ],
    [
      /ends at 12304, past the trailer at 12288/,
      () => parseLsmtTrailer(trailer({ indexSize: 257 }), SIZE),
    ],
    [
      /index header is marked as a trailer/,
      () => parseIndexHeader(encodeLsmtBlock({ flags: 0 })),
    ],
    [
      /that of a data file/,
      () => parseIndexHeader(encodeLsmtBlock({ flags: 3 })),
    ],
    [
      /index header is marked sealed/,
      () => parseIndexHeader(encodeLsmtBlock({ flags: 5 })),
    ],
    [
      /begins at 8192, not at 4096/,
      () => parseIndexHeader(encodeLsmtBlock({ flags: 1, indexOffset: 8192 })),
    ],
  ];
  for (const [text, parse] of cases) {
    throws(parse, (error) => {
      ok(error instanceof FormatError);
      return text.test(error.message);
    }, `${text}`);
  }
  const texts = cases.map(([text]) => text.source);
  equal(new Set(texts).size, texts.length);
});

Deno.test("an index that just fits, or is empty, is accepted", () => {
  equal(parseLsmtTrailer(trailer(), SIZE).indexSize, 256n);
  const none = trailer({ indexOffset: BLOCK_SIZE, indexSize: 0 });
  equal(parseLsmtTrailer(none, 2 * BLOCK_SIZE).indexSize, 0n);
});

Deno.test("an index end past 2^64 does not slip through", () => {
  const huge = trailer({ indexOffset: 2n ** 64n - 16n, indexSize: 1 });
  throws(() => parseLsmtTrailer(huge, SIZE), /past the trailer/);
});

Deno.test("unknown flag bits and reserved bytes are ignored", () => {
  const bytes = trailer({ flags: FLAGS.trailer | 0xffffff00 });
  bytes.fill(0xa5, 390);
  bytes.fill(0xa5, 130, 134);
  bytes.fill(0xa5, 24, 28);
  equal(parseLsmtTrailer(bytes, SIZE).indexSize, 256n);
});

Deno.test("a mutated block parses or is a FormatError, nothing else", () => {
  const parsers = [
    { bytes: encodeLsmtBlock({ flags: 7 }), parse: parseLsmtHeader },
    {
      bytes: trailer(),
      parse: (b: Uint8Array) => parseLsmtTrailer(b, SIZE),
    },
    {
      bytes: encodeLsmtBlock({ flags: 1, indexOffset: BLOCK_SIZE }),
      parse: parseIndexHeader,
    },
  ];
  fc.assert(
    fc.property(
      fc.constantFrom(...parsers),
      fc.array(fc.tuple(fc.nat(BLOCK_SIZE - 1), fc.nat(255)), {
        minLength: 1,
        maxLength: 8,
      }),
      fc.nat(BLOCK_SIZE),
      (parser, changes, cut) => {
        const bytes = parser.bytes.slice();
        for (const [at, value] of changes) bytes[at % 400] = value;
        for (const input of [bytes, bytes.subarray(0, cut)]) {
          try {
            parser.parse(input);
          } catch (error) {
            ok(error instanceof FormatError, String(error));
          }
        }
      },
    ),
    { numRuns: 500 },
  );
});

Deno.test("records: the spec's examples", () => {
  const bytes = Uint8Array.fromHex(
    "00000000000040810800000000000000" +
      "502000000000e0015820000000008000" +
      "ffffffffffff03000000000000000000" +
      "1000000000002000",
  );
  deepEqual([...parseRecords(bytes)], [
    { offset: 0, length: 8272, moffset: 8, zeroed: false, tag: 0 },
    { offset: 8272, length: 120, moffset: 8280, zeroed: true, tag: 0 },
    { offset: INVALID_LBA, length: 0, moffset: 0, zeroed: false, tag: 0 },
  ], "a torn record at the end is left out");
});

Deno.test("records: every field comes back from its bits", () => {
  fc.assert(fc.property(
    fc.record({
      offset: fc.maxSafeNat().map((n) => n % 2 ** 50),
      length: fc.nat(16383),
      moffset: fc.maxSafeNat(),
      zeroed: fc.boolean(),
      tag: fc.nat(255),
    }),
    (record) => {
      const words = BigUint64Array.of(
        BigInt(record.offset) | BigInt(record.length) << 50n,
        BigInt(record.moffset) | (record.zeroed ? 1n << 55n : 0n) |
          BigInt(record.tag) << 56n,
      );
      deepEqual([...parseRecords(new Uint8Array(words.buffer))], [record]);
    },
  ));
});

Deno.test("uuid: what the original accepts, stored upper-case", () => {
  ok(isUuid(NIL_UUID) && isUuid(UUID) && isUuid(UUID.toLowerCase()));
  ok(isUuid("01234567a89ab-4cde-8f01-23456789abcd"), "a digit for a hyphen");
  for (
    const bad of [
      "",
      UUID.slice(1),
      `${UUID}0`,
      UUID.replace("4CDE", "4CDG"),
      UUID.replace("0123", "01-3"),
      `${UUID.slice(0, 35)}\n`,
    ]
  ) equal(isUuid(bad), false, JSON.stringify(bad));
  equal(normalizeUuid(UUID.toLowerCase()), UUID);
  const random = randomUuid();
  ok(
    /^[0-9A-F]{8}-[0-9A-F]{4}-4[0-9A-F]{3}-[89AB][0-9A-F]{3}-[0-9A-F]{12}$/
      .test(random),
    random,
  );
});

Deno.test("headers of real layers are encoded to the same bytes", {
  ignore: !haveFixtures,
}, () => {
  const headers = [
    "01-rw-empty/vs1g.data",
    "01-rw-empty/vs1g-parent.data",
    "01-rw-empty/vs0.data",
    "04-commit/plain.lsmt",
    "04-commit/tagged.lsmt",
    "04-commit/tag256.lsmt",
    "10-merge/merged.drv.lsmt",
  ];
  for (const name of headers) {
    const bytes = Deno.readFileSync(fixture(name)).subarray(0, BLOCK_SIZE);
    equal(encodeLsmtBlock(parseLsmtHeader(bytes)).toHex(), bytes.toHex(), name);
  }
  for (const name of ["vs1g", "vs1g-parent", "vs0", "drv1m"]) {
    const bytes = Deno.readFileSync(fixture(`01-rw-empty/${name}.index`))
      .subarray(0, BLOCK_SIZE);
    equal(encodeLsmtBlock(parseIndexHeader(bytes)).toHex(), bytes.toHex());
  }
  for (const name of ["plain", "tagged", "tag256", "empty1g"]) {
    const bytes = Deno.readFileSync(fixture(`04-commit/${name}.lsmt`));
    const last = bytes.subarray(-BLOCK_SIZE);
    ok(isLsmt(last));
    const block = parseLsmtTrailer(last, bytes.length);
    equal(encodeLsmtBlock(block).toHex(), last.toHex(), name);
  }
});
