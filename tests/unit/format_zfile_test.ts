// SPDX-License-Identifier: Apache-2.0
import { equal, ok, throws } from "node:assert/strict";
import fc from "fast-check";
import { FormatError } from "../../src/format/error.ts";
import {
  encodeZfileBlock,
  isZfile,
  parseZfileHeader,
  parseZfileTrailer,
  ZFILE_BLOCK,
  type ZfileBlock,
  ZFLAG,
} from "../../src/format/zfile.ts";
import { fixture, haveFixtures } from "../lib/env.ts";
import { crcRegister as crc } from "../lib/spec_reader.ts";

type Fields = Omit<ZfileBlock, "digest">;

/** What the worked example's first header says (spec/zfile.md, 9). */
const FIRST: Fields = {
  flags: ZFLAG.header | ZFLAG.data | ZFLAG.digest,
  indexOffset: 0n,
  indexSize: 0n,
  originalSize: 0n,
  indexCrc: 0,
  blockSize: 4096,
  algo: 1,
  level: 0,
  useDict: 0,
  dictSize: 0,
  verify: 1,
};
/** And its trailer, in a file of 1726 bytes. */
const LAST: Fields = {
  ...FIRST,
  flags: ZFLAG.data | ZFLAG.sealed | ZFLAG.digest,
  indexOffset: 0x46an,
  indexSize: 0x15n,
  originalSize: 0x1401cn,
  indexCrc: 0x946fa6a8,
};
const SIZE = 1726;

const header = (change: Partial<Fields> = {}) =>
  encodeZfileBlock({ ...FIRST, ...change }, crc);
const trailer = (change: Partial<Fields> = {}) =>
  encodeZfileBlock({ ...LAST, ...change }, crc);
/** Changes a block behind its digest's back. */
function patched(bytes: Uint8Array<ArrayBuffer>, at: number, value: number) {
  const copy = bytes.slice();
  copy[at] = value;
  return copy;
}

Deno.test("digests are those of the worked example", () => {
  const digest = (bytes: Uint8Array<ArrayBuffer>) =>
    parseZfileHeader(bytes, crc).digest;
  equal(digest(header()), 0xc7a212fc);
  equal(digest(header({ algo: 2, blockSize: 65536 })), 0xde731be6);
  equal(parseZfileTrailer(trailer(), SIZE, crc).digest, 0xc2d2b430);
});

Deno.test("each broken rule of a header or trailer has its own text", () => {
  const final = ZFLAG.header | ZFLAG.data | ZFLAG.headerOverwritten;
  const parseT = (bytes: Uint8Array) => parseZfileTrailer(bytes, SIZE, crc);
  const parseH = (bytes: Uint8Array) => parseZfileHeader(bytes, crc);
  const cases: [RegExp, () => unknown][] = [
    [/header is short: 511 of 512/, () => parseH(new Uint8Array(511))],
    [/header has no ZFile magic/, () => parseH(new Uint8Array(512))],
    [/header is marked as a trailer/, () => parseH(trailer())],
    [
      /header is not marked as data/,
      () => parseH(header({ flags: ZFLAG.header })),
    ],
    [/header has digest 0x/, () => parseH(patched(header(), 300, 1))],
    [
      /header has block size 3000/,
      () => parseH(header({ flags: final, blockSize: 3000 })),
    ],
    [/trailer has no ZFile magic/, () => parseT(new Uint8Array(512))],
    [/trailer is marked as a header/, () => parseT(header())],
    [
      /trailer is not marked as data/,
      () => parseT(trailer({ flags: ZFLAG.sealed })),
    ],
    [
      /trailer is not marked sealed/,
      () => parseT(trailer({ flags: ZFLAG.data })),
    ],
    [/trailer has digest 0x/, () => parseT(patched(trailer(), 300, 1))],
    [/block size 0,/, () => parseT(trailer({ blockSize: 0 }))],
    [/block size 131072,/, () => parseT(trailer({ blockSize: 131072 }))],
    [/algorithm 0,/, () => parseT(trailer({ algo: 0 }))],
    [/algorithm 3,/, () => parseT(trailer({ algo: 3 }))],
    [
      /counts 1000000001 blocks/,
      () => parseT(trailer({ indexSize: 1_000_000_001n })),
    ],
    [
      /jump table begins at 1215, not in 512..1214/,
      () => parseT(trailer({ indexOffset: 1215n })),
    ],
    [
      /jump table begins at 18446744073709551600/,
      () => parseT(trailer({ indexOffset: 2n ** 64n - 16n })),
    ],
    [
      /jump table ends at 1218, past 1214/,
      () => parseT(trailer({ indexSize: 0x16n })),
    ],
  ];
  for (const [text, parse] of cases) {
    throws(parse, (error) => {
      ok(error instanceof FormatError);
      return text.test(error.message);
    }, `${text}`);
  }
});

Deno.test("old files: no digest, garbage in reserved bytes and flag bits", () => {
  const old = (bytes: Uint8Array<ArrayBuffer>) => {
    const copy = bytes.slice();
    copy.fill(0xa5, 28, 32);
    copy.fill(0xa5, 33, 40);
    copy.fill(0xa5, 64, 72);
    copy.fill(0xa5, 89, 512);
    return copy;
  };
  const first = old(header({ flags: ZFLAG.header | ZFLAG.data }));
  equal(parseZfileHeader(first, crc).verify, 1);
  const last = old(trailer({ flags: ZFLAG.data | ZFLAG.sealed }));
  equal(parseZfileTrailer(last, SIZE, crc).originalSize, 0x1401cn);
});

Deno.test("an unfinished header's fields are not looked at", () => {
  const bytes = header({ blockSize: 0, algo: 77, indexSize: 2n ** 63n });
  equal(parseZfileHeader(bytes, crc).algo, 77);
});

Deno.test("detection: magic and header bit, at least 512 bytes", () => {
  ok(isZfile(header()));
  equal(isZfile(trailer()), false);
  equal(isZfile(header().subarray(0, 511)), false);
  for (let at = 0; at < 24; at++) {
    equal(isZfile(patched(header(), at, 0x99)), false, `byte ${at}`);
  }
});

Deno.test("a mutated block parses or is a FormatError, nothing else", () => {
  const noDigest = (flags: bigint) => flags & ~ZFLAG.digest;
  const inputs = [
    header(),
    header({ flags: noDigest(FIRST.flags) }),
    header({ flags: noDigest(FIRST.flags) | ZFLAG.headerOverwritten }),
    trailer(),
    trailer({ flags: noDigest(LAST.flags) }),
  ];
  fc.assert(
    fc.property(
      fc.constantFrom(...inputs),
      fc.array(fc.tuple(fc.nat(100), fc.nat(255)), { maxLength: 6 }),
      fc.integer({ min: ZFILE_BLOCK, max: 2000 }),
      (block, changes, size) => {
        const bytes = block.slice();
        for (const [at, value] of changes) bytes[at] = value;
        for (
          const parse of [
            () => parseZfileHeader(bytes, crc),
            () => parseZfileTrailer(bytes, size, crc),
          ]
        ) {
          try {
            parse();
          } catch (error) {
            ok(error instanceof FormatError, String(error));
          }
        }
      },
    ),
    { numRuns: 500 },
  );
});

Deno.test("blocks of real files are encoded to the same bytes", {
  ignore: !haveFixtures,
}, () => {
  for (
    const name of [
      "06-zfile/lz4-4k.crc.zf",
      "06-zfile/lz4-64k.nocrc.zf",
      "06-zfile/zstd-16k.hdr.zf",
      "06-zfile/empty.zstd.zf",
      "07-commit-zfile/zstd-64k.zf",
      "10-merge/merged.zf",
    ]
  ) {
    const bytes = Deno.readFileSync(fixture(name));
    const first = bytes.subarray(0, ZFILE_BLOCK);
    const last = bytes.subarray(-ZFILE_BLOCK);
    const a = encodeZfileBlock(parseZfileHeader(first, crc), crc);
    const b = encodeZfileBlock(
      parseZfileTrailer(last, bytes.length, crc),
      crc,
    );
    equal(a.toHex(), first.toHex(), name);
    equal(b.toHex(), last.toHex(), name);
  }
});
