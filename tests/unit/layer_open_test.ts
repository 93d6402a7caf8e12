// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import fc from "fast-check";
import { indexRecords } from "../../ffi/index.ts";
import { readSource } from "../../ffi/sources.ts";
import { EngineError } from "../../ffi/errors.ts";
import { FormatError } from "../../src/format/error.ts";
import { parseRecords } from "../../src/format/lsmt.ts";
import { tarHead, tarTail } from "../../src/format/tar.ts";
import { looksLikeLayer, openLayer } from "../../src/layer/open.ts";
import { fixture, haveFixtures, tempDir } from "../lib/env.ts";
import { BLOCK, concat, layerBytes, PADDING, type Rec } from "./layer_files.ts";

/** Opens bytes as a layer and lets it go. */
async function open(bytes: Uint8Array, raw = false): Promise<void> {
  using dir = tempDir("memory");
  Deno.writeFileSync(dir.file("layer"), bytes);
  using layer = await openLayer(dir.file("layer"), { raw });
  equal(layer.virtualSize, layer.trailer.virtualSize);
}

Deno.test("each broken rule of a layer is refused with its own text", async () => {
  const rec = (...records: Rec[]) => layerBytes({ records, sectors: 8 });
  const good = layerBytes();
  const cases: [RegExp, Uint8Array][] = [
    [/has 0 bytes, a layer at least 8192/, new Uint8Array(0)],
    [/has 511 bytes/, new Uint8Array(511)],
    [/has 8191 bytes/, good.slice(0, 8191)],
    [/header has no LSMT magic/, new Uint8Array(8192)],
    [/trailer has no LSMT magic/, good.slice(0, -1)],
    [/header is marked as a trailer/, layerBytes({ header: { flags: 6 } })],
    [/header is that of an index file/, layerBytes({ header: { flags: 5 } })],
    [/trailer is marked as a header/, layerBytes({ trailer: { flags: 7 } })],
    [/trailer is not marked as data/, layerBytes({ trailer: { flags: 4 } })],
    [/trailer is not marked sealed/, layerBytes({ trailer: { flags: 2 } })],
    [/1000001 records/, layerBytes({ trailer: { indexSize: 1_000_001 } })],
    [
      /index begins at 8704, past the trailer at 8208/,
      layerBytes({ trailer: { indexOffset: 8704 } }),
    ],
    [
      /index ends at 8224, past the trailer at 8208/,
      layerBytes({ trailer: { indexSize: 2 } }),
    ],
    [
      /virtual size is/,
      layerBytes({ trailer: { virtualSize: 2n ** 60n } }),
    ],
    [
      /record 0 ends after the next one begins/,
      rec({ lba: 0, n: 8, at: 8 }, { lba: 7, n: 1, at: 8 }),
    ],
    [
      /record 0 ends after the next one begins/,
      rec({ lba: 9, n: 1, at: 8 }, { lba: 0, n: 1, at: 9 }),
    ],
    [/record 0 is mapped before sector 8/, rec({ lba: 0, n: 1, at: 7 })],
    [/record 0 is mapped before sector 8/, rec({ lba: 0, n: 0, at: 8 })],
    [/record 0 is mapped past the end/, rec({ lba: 0, n: 1, at: 16 })],
    [/record 0 is mapped past the end/, rec({ lba: 0, n: 9, at: 8 })],
    [
      /record 1 is mapped past the end/,
      rec({ lba: 0, n: 1, at: 8 }, { lba: 1, n: 1, at: 17, zeroed: true }),
    ],
    [
      /passes the last logical sector/,
      rec({ lba: 2 ** 50 - 2, n: 8, at: 8 }),
    ],
  ];
  for (const [text, bytes] of cases) {
    await rejects(open(bytes), (error) => {
      ok(error instanceof FormatError, String(error));
      ok(text.test(error.message), `${text}: ${error.message}`);
      ok(error.message.startsWith("cannot open layer /"), error.message);
      return true;
    });
  }
});

Deno.test("what the original accepts is accepted", async () => {
  const rec = (...records: Rec[]) => layerBytes({ records, sectors: 8 });
  for (
    const bytes of [
      layerBytes({ records: [], sectors: 0 }),
      layerBytes({ header: { flags: 0x03 } }),
      layerBytes({ header: { flags: 0xffffff07 } }),
      layerBytes({ trailer: { flags: 0xffffff06, uuid: "no uuid" } }),
      layerBytes({ gap: 496 }),
      layerBytes({ trailer: { virtualSize: 0 } }),
      rec(PADDING, { lba: 5, n: 8, at: 8, tag: 200 }, PADDING),
      rec({ lba: 0, n: 16383, at: 16, zeroed: true }),
      rec({ lba: 3, n: 1, at: 8, zeroed: true }, { lba: 4, n: 1, at: 8 }),
    ]
  ) await open(bytes);
});

Deno.test("padding is dropped and tags are 0 in what is loaded", async () => {
  using dir = tempDir("memory");
  const records = [PADDING, { lba: 5, n: 8, at: 8, tag: 200 }, PADDING];
  Deno.writeFileSync(dir.file("layer"), layerBytes({ records }));
  using layer = await openLayer(dir.file("layer"));
  deepEqual([...parseRecords(indexRecords(layer.index, 0, 10))], [
    { offset: 5, length: 8, moffset: 8, zeroed: false, tag: 0 },
  ]);
});

Deno.test("a tar wrapper is peeled, one that lies about its size refused", async () => {
  const bytes = layerBytes();
  const size = bytes.length;
  await open(concat(tarHead(size, 0o100644), bytes, tarTail(size)));
  await open(concat(tarHead(size, 0o100644), bytes));
  await rejects(
    open(concat(tarHead(size + 1, 0o100644), bytes)),
    /tar header says that it ends at 13841, the file ends at 13840/,
  );
  await rejects(
    open(concat(tarHead(size, 0o100644), bytes), true),
    /header has no LSMT magic/,
    "raw: no wrapper is looked for",
  );
});

Deno.test("a missing file and a directory keep their errno", async () => {
  using dir = tempDir();
  const code = (wanted: string) => (error: unknown) =>
    error instanceof EngineError && error.code === wanted;
  await rejects(openLayer(dir.file("none")), code("ENOENT"));
  await rejects(
    openLayer(dir.path),
    (error) => error instanceof EngineError && error.message.includes(dir.path),
  );
});

Deno.test("a mutated layer opens or is refused, nothing else", async () => {
  const whole = layerBytes({
    records: [{ lba: 0, n: 4, at: 8 }, { lba: 9, n: 4, at: 12 }, PADDING],
  });
  using dir = tempDir("memory");
  const path = dir.file("layer");
  const interesting = [
    ...Array.from({ length: 140 }, (_, i) => i),
    ...Array.from({ length: 48 }, (_, i) => 2 * BLOCK + i),
    ...Array.from({ length: 140 }, (_, i) => whole.length - BLOCK + i),
  ];
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.constantFrom(...interesting), fc.nat(255)), {
        maxLength: 4,
      }),
      fc.option(fc.nat(whole.length), { freq: 5 }),
      async (changes, cut) => {
        const bytes = whole.slice();
        for (const [at, value] of changes) bytes[at] = value;
        Deno.writeFileSync(path, bytes.subarray(0, cut ?? bytes.length));
        try {
          using layer = await openLayer(path);
          readSource(layer.source, new Uint8Array(512), 4096);
        } catch (error) {
          ok(error instanceof FormatError, String(error));
        }
      },
    ),
    { numRuns: 300 },
  );
});

Deno.test("looksLikeLayer: LSMT or ZFile, wrapped or not, and nothing else", {
  ignore: !haveFixtures,
}, () => {
  for (
    const name of [
      "04-commit/plain.lsmt",
      "06-zfile/empty.lz4.zf",
      "08-tar/commit-lz4.tar",
      "03-rw-data/rw.data",
    ]
  ) ok(looksLikeLayer(fixture(name)), name);
  for (const name of ["06-zfile/plain.bin", "12-ext4-apply/layer1.tar"]) {
    equal(looksLikeLayer(fixture(name)), false, name);
  }
});

Deno.test("every layer fixture opens, with the index the original dumped", {
  ignore: !haveFixtures,
}, async () => {
  const dumps: [layer: string, dump: string][] = [
    ["04-commit/plain.lsmt", "04-commit/plain.segs.txt"],
    ["04-commit/tagged.lz4.zf", "04-commit/plain.segs.txt"],
    ["05-sealed/sealed.lsmt", "05-sealed/sealed.segs.txt"],
    ["08-tar/commit-lz4.tar", "04-commit/plain.segs.txt"],
    ["11-extents/huge.lsmt", "11-extents/huge.segs.txt"],
    ["11-extents/big.lz4.zf", "11-extents/big.segs.txt"],
  ];
  for (const [name, dump] of dumps) {
    using layer = await openLayer(fixture(name));
    const got = [...parseRecords(indexRecords(layer.index, 0, 1 << 16))]
      .map((r) =>
        `${r.offset} ${r.length} ${r.moffset} ${r.zeroed ? 1 : 0} ${r.tag}`
      );
    const wanted = Deno.readTextFileSync(fixture(dump)).trim().split("\n");
    deepEqual(got, wanted, name);
  }
});
