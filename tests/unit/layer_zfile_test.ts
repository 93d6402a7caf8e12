// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, match, ok, rejects } from "node:assert/strict";
import fc from "fast-check";
import { faultIo, IO } from "../../ffi/files.ts";
import { readSource } from "../../ffi/sources.ts";
import { EngineError } from "../../ffi/errors.ts";
import { FormatError } from "../../src/format/error.ts";
import { unwrapFile } from "../../src/layer/open.ts";
import { LayerError } from "../../src/layer/write.ts";
import {
  compressFile,
  extractFile,
  NotZfileError,
  verifyFile,
} from "../../src/layer/zfile.ts";
import { fixture, haveFixtures, sha256File, tempDir } from "../lib/env.ts";
import { checkTar, checkZfile } from "../lib/spec_reader.ts";

const ignore = !haveFixtures;
const LZ4 = { algorithm: "lz4", blockSize: 4096 } as const;

/** Compressible and incompressible pieces in turn. */
function sample(length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at += 10_000) {
    const piece = bytes.subarray(at, Math.min(at + 10_000, length));
    if (at % 20_000 === 0) crypto.getRandomValues(piece);
    else piece.fill(at >> 8);
  }
  return bytes;
}

const names = (path: string) =>
  [...Deno.readDirSync(path)].map((entry) => entry.name).sort();

Deno.test("compress, verify, extract: the input comes back, sizes and threads", async () => {
  using dir = tempDir("memory");
  const file = (name: string) => dir.file(name);
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(0, 1, 4095, 4096, 4097, 14336, 65536, 65537, 300_001),
      fc.constantFrom("lz4" as const, "zstd" as const),
      fc.constantFrom(4096, 8192, 16384, 32768),
      fc.constantFrom(1, 2, 8),
      fc.boolean(),
      async (length, algorithm, blockSize, threads, tar) => {
        Deno.writeFileSync(file("in"), sample(length));
        const written = await compressFile({
          input: file("in"),
          output: file("z"),
          zfile: { algorithm, blockSize },
          threads,
          tar,
          replace: true,
        });
        equal(written.size, Deno.statSync(file("z")).size);
        equal(written.originalSize, length);
        checkZfile(file("z"));
        if (tar) checkTar(file("z"));
        const verified = await verifyFile(file("z"), { threads });
        deepEqual(verified, {
          checksums: true,
          blocks: Math.ceil(length / blockSize),
          bad: 0,
          first: [],
        });
        const to = { input: file("z"), output: file("x"), replace: true };
        await extractFile({ ...to, threads });
        equal(sha256File(file("x")), sha256File(file("in")));
      },
    ),
    { numRuns: 60 },
  );
});

Deno.test("64 KiB blocks of noise: again with 32 KiB, or refused", async () => {
  using dir = tempDir();
  Deno.writeFileSync(
    dir.file("in"),
    crypto.getRandomValues(new Uint8Array(65536)),
  );
  const zfile = { algorithm: "zstd", blockSize: 65536 } as const;
  const written = await compressFile({
    input: dir.file("in"),
    output: dir.file("z"),
    zfile,
  });
  equal(written.blockSize, 32768);
  equal(checkZfile(dir.file("z")).header.blockSize, 32768);
  await extractFile({ input: dir.file("z"), output: dir.file("x") });
  equal(sha256File(dir.file("x")), sha256File(dir.file("in")));
  // A pipe cannot be read twice.
  await new Deno.Command("mkfifo", { args: [dir.file("fifo")] }).output();
  const feed = new Deno.Command("cp", {
    args: [dir.file("in"), dir.file("fifo")],
  }).output();
  await rejects(
    compressFile({ input: dir.file("fifo"), output: dir.file("no"), zfile }),
    (error) => {
      ok(error instanceof LayerError);
      match(error.message, /one grew past 65536 bytes.*use --bs 32/);
      return true;
    },
  );
  await feed;
  deepEqual(names(dir.path), ["fifo", "in", "x", "z"]);
});

Deno.test("what fails leaves no output", async () => {
  using dir = tempDir();
  Deno.writeFileSync(dir.file("in"), sample(100_000));
  const to = (output: string) => ({ input: dir.file("in"), output });
  for (let nth = 1; nth <= 2; nth++) {
    faultIo(IO.PWRITE, nth, 28);
    await rejects(compressFile({ ...to(dir.file("z")), zfile: LZ4 }));
    faultIo(IO.PWRITE, 1, 28, 0);
  }
  await rejects(extractFile(to(dir.file("x"))), NotZfileError);
  await rejects(
    compressFile({ ...to(dir.file("no/z")), zfile: LZ4 }),
    (error) => error instanceof EngineError && error.code === "ENOENT",
  );
  await rejects(
    compressFile({ ...to("/dev/null"), zfile: LZ4, tar: true }),
    /cannot write a tar wrapper to a pipe or device/,
  );
  deepEqual(names(dir.path), ["in"]);
  Deno.writeTextFileSync(dir.file("z"), "mine");
  await rejects(
    compressFile({ ...to(dir.file("z")), zfile: LZ4 }),
    (error) => error instanceof EngineError && error.code === "EEXIST",
  );
  equal(Deno.readTextFileSync(dir.file("z")), "mine");
});

Deno.test("a damaged block stops an extraction and is counted by verify", async () => {
  using dir = tempDir();
  Deno.writeFileSync(dir.file("in"), sample(100_000));
  await compressFile({
    input: dir.file("in"),
    output: dir.file("z"),
    zfile: LZ4,
  });
  const bytes = Deno.readFileSync(dir.file("z"));
  bytes[600] = (bytes[600] ?? 0) ^ 1;
  Deno.writeFileSync(dir.file("bad"), bytes);
  const verified = await verifyFile(dir.file("bad"));
  equal(verified.bad, 1);
  deepEqual(verified.first, [0]);
  await rejects(
    extractFile({ input: dir.file("bad"), output: dir.file("x") }),
    (error) => error instanceof EngineError && error.code === "EUCLEAN",
  );
  deepEqual(names(dir.path), ["bad", "in", "z"]);
});

Deno.test(
  "a mutated ZFile reads right, fails or is refused",
  { ignore },
  async () => {
    using dir = tempDir("memory");
    const path = dir.file("z");
    const wholes = ["06-zfile/twoblk.lz4.zf", "06-zfile/zstd-16k.hdr.zf"]
      .map((name) => Deno.readFileSync(fixture(name)));
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...wholes),
        fc.array(
          fc.record({
            at: fc.nat(600),
            fromEnd: fc.boolean(),
            value: fc.nat(255),
          }),
          { minLength: 1, maxLength: 3 },
        ),
        fc.option(fc.nat(9000), { freq: 8 }),
        async (whole, changes, cut) => {
          const bytes = whole.slice();
          for (const { at, fromEnd, value } of changes) {
            bytes[fromEnd ? bytes.length - 1 - at : at] = value;
          }
          Deno.writeFileSync(path, bytes.subarray(0, cut ?? bytes.length));
          try {
            const file = await unwrapFile(path);
            try {
              readSource(file.source, new Uint8Array(9000), 0);
            } finally {
              file.close();
            }
          } catch (error) {
            const known = error instanceof FormatError ||
              error instanceof EngineError && error.code === "EUCLEAN";
            ok(known, String(error));
          }
        },
      ),
      { numRuns: 400 },
    );
  },
);

Deno.test("without block checksums verify says so", { ignore }, async () => {
  const result = await verifyFile(fixture("06-zfile/lz4-4k.nocrc.zf"));
  equal(result.checksums, false);
  equal(result.bad, 0);
});
