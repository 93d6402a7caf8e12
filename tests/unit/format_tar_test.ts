// SPDX-License-Identifier: Apache-2.0
import { deepEqual, equal, ok } from "node:assert/strict";
import fc from "fast-check";
import { probeTar, TAR_HEAD, tarHead, tarTail } from "../../src/format/tar.ts";
import {
  fixture,
  have,
  haveFixtures,
  mustRun,
  sha256,
  tempDir,
} from "../lib/env.ts";

/** Puts the right checksum into a header that was changed. */
function resum(header: Uint8Array, signed = false): void {
  header.fill(0x20, 148, 156);
  const sum = header.subarray(0, 512)
    .reduce((total, b) => total + (signed && b > 127 ? b - 256 : b), 0);
  const text = `${sum.toString(8).padStart(6, "0")}\0 `;
  header.set(new TextEncoder().encode(text), 148);
}

/** A plain ustar header, as other writers put before a layer. */
function plainHeader(size: string): Uint8Array {
  const header = new Uint8Array(512);
  const put = (at: number, text: string) =>
    header.set(new TextEncoder().encode(text), at);
  put(0, "overlaybd.commit");
  put(100, "0000444\0");
  put(124, size);
  put(156, "0");
  put(257, "ustar\x0000");
  resum(header);
  return header;
}

Deno.test("a wrapper is found where it was put, for every size", () => {
  fc.assert(fc.property(fc.nat(2 ** 31), (kib) => {
    const size = kib * 4 + 1;
    deepEqual(probeTar(tarHead(size, 0o100644)), { at: TAR_HEAD, size });
    const total = TAR_HEAD + size + tarTail(size).length;
    equal(total % 512, 0);
    ok(tarTail(size).length >= 1024 && tarTail(size).length < 1536);
  }));
});

Deno.test("a pax record counts the digits of its own length", () => {
  for (const size of [1, 9, 10, 8, 99999999, 999999999999]) {
    const head = tarHead(size, 0o100644);
    const text = new TextDecoder().decode(head.subarray(512, 1024));
    const [record = ""] = text.split("\0");
    equal(Number.parseInt(record, 10), record.length);
    ok(record.endsWith(` size=${size}\n`));
  }
});

Deno.test("a plain ustar header of another writer has its payload at 512", () => {
  deepEqual(probeTar(plainHeader("00000020000\0")), { at: 512, size: 8192 });
  deepEqual(probeTar(plainHeader("      20000 ")), { at: 512, size: 8192 });
});

Deno.test("a signed checksum is accepted as well as an unsigned one", () => {
  for (const signed of [false, true]) {
    const header = plainHeader("00000020000\0");
    header.set([0xc3, 0xbc], 3);
    resum(header, signed);
    deepEqual(probeTar(header), { at: 512, size: 8192 });
  }
});

Deno.test("no wrapper: short, GNU, other version, wrong checksum", () => {
  const header = plainHeader("00000020000\0");
  equal(probeTar(header.subarray(0, 511)), undefined);
  equal(probeTar(new Uint8Array(1536)), undefined);
  const gnu = header.slice();
  gnu.set(new TextEncoder().encode("ustar  \0"), 257);
  resum(gnu);
  equal(probeTar(gnu), undefined);
  const version = header.slice();
  version[264] = 0x31;
  resum(version);
  equal(probeTar(version), undefined);
  const damaged = header.slice();
  damaged[0] = 0x50;
  equal(probeTar(damaged), undefined);
});

Deno.test("pax without size falls back to the octal field", () => {
  const head = tarHead(8192, 0o100644);
  head.fill(0, 512, 1024);
  head.set(new TextEncoder().encode("12 path=abc\n"), 512);
  head.set(plainHeader("00000020000\0"), 1024);
  deepEqual(probeTar(head), { at: TAR_HEAD, size: 8192 });
});

Deno.test("a mutated head gives a place inside 64 bits or none, no throw", () => {
  const heads = [tarHead(428359, 0o100644), tarHead(7, 0o100600)];
  fc.assert(fc.property(
    fc.constantFrom(...heads),
    fc.array(fc.tuple(fc.nat(1535), fc.nat(255)), { maxLength: 6 }),
    fc.nat(1536),
    (head, changes, cut) => {
      const bytes = head.slice();
      for (const [at, value] of changes) bytes[at] = value;
      resum(bytes);
      const found = probeTar(bytes.subarray(0, cut));
      if (found === undefined) return;
      ok(found.at === 512 || found.at === TAR_HEAD);
      ok(Number.isSafeInteger(found.size) && found.size >= 0);
    },
  ));
});

Deno.test("the wrapper is the original's, byte for byte", {
  ignore: !haveFixtures,
}, () => {
  for (const name of ["commit-lz4", "commit-zstd16k", "zfile-plain"]) {
    const bytes = Deno.readFileSync(fixture(`08-tar/${name}.tar`));
    const found = probeTar(bytes);
    ok(found !== undefined);
    const { at, size } = found;
    const head = tarHead(size, 0o100644);
    equal(sha256(bytes.subarray(0, at)), sha256(head), name);
    equal(sha256(bytes.subarray(at + size)), sha256(tarTail(size)), name);
  }
});

Deno.test("tar(1) lists and extracts the wrapper", {
  ignore: !have("tar"),
}, async () => {
  using dir = tempDir();
  const payload = new Uint8Array(8193).fill(7);
  const parts = [tarHead(payload.length, 0o100640), payload];
  const tail = tarTail(payload.length);
  Deno.writeFileSync(
    dir.file("a.tar"),
    await new Blob([...parts, tail]).bytes(),
  );
  await mustRun("tar", ["-xf", dir.file("a.tar"), "-C", dir.path, "-o"]);
  deepEqual(Deno.readFileSync(dir.file("overlaybd.commit")), payload);
});
