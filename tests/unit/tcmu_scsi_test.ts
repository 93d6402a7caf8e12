// SPDX-License-Identifier: Apache-2.0
// What a disk says of itself over SCSI (spec/tcmu.md, section 5).
import { deepStrictEqual as equal, ok } from "node:assert/strict";
import fc from "fast-check";
import { naaDesignator } from "../../src/device/tcmu/inquiry.ts";
import { EngineError } from "../../ffi/errors.ts";
import type { Medium } from "../../src/device/tcmu/compare.ts";
import { answerScsi, type ScsiDisk } from "../../src/device/tcmu/scsi.ts";
import type { ScsiAnswer } from "../../src/device/tcmu/sense.ts";

const disk: ScsiDisk = {
  sectors: 2048n,
  readonly: false,
  writeCache: true,
  discardsReadZero: true,
  serial: "0123456789abcdef01234",
  config: "overlaybd//root/config.v1.json",
};

/** A disk in memory; `fails` makes each access of that kind fail. */
function failure(errno: number | boolean): Error {
  return typeof errno === "number"
    ? new EngineError(errno, "cannot")
    : new Error("gone");
}

function memory(
  bytes: Uint8Array,
  fails: { read?: boolean | number; write?: boolean | number } = {},
): Medium & { flushes: number } {
  let last: Promise<unknown> = Promise.resolve();
  return {
    flushes: 0,
    read(into, at) {
      if (fails.read) return Promise.reject(failure(fails.read));
      into.set(bytes.subarray(Number(at), Number(at) + into.length));
      return Promise.resolve();
    },
    write(from, at) {
      if (fails.write) return Promise.reject(failure(fails.write));
      bytes.set(from, Number(at));
      return Promise.resolve();
    },
    flush() {
      this.flushes++;
      return Promise.resolve();
    },
    exclusive<T>(work: () => Promise<T>): Promise<T> {
      const mine = last.then(work);
      last = mine.catch(() => {});
      return mine;
    },
  };
}

interface Asked {
  of?: Partial<ScsiDisk>;
  list?: readonly number[];
  medium?: Medium;
}

function answer(
  cdb: readonly number[],
  { of = {}, list = [], medium = memory(new Uint8Array(0)) }: Asked,
): ScsiAnswer | Promise<ScsiAnswer> {
  return answerScsi({ ...disk, ...of }, {
    cdb: Uint8Array.from(cdb),
    list: () => Uint8Array.from(list),
    medium,
  });
}

function shown({ status, sense, data }: ScsiAnswer) {
  if (sense !== undefined) {
    equal([(sense[0] ?? 0) & 0x7f, sense[7], sense.length], [0x70, 10, 18]);
  }
  return {
    status,
    data: data ?? new Uint8Array(),
    code: sense &&
      [sense[2], sense[12], sense[13]]
        .map((byte) => byte?.toString(16).padStart(2, "0")).join("/"),
  };
}

/** For commands that need no disk: they are answered at once. */
function ask(
  cdb: readonly number[],
  of: Partial<ScsiDisk> = {},
  list: readonly number[] = [],
) {
  const given = answer(cdb, { of, list });
  if (given instanceof Promise) throw new Error("not answered at once");
  return shown(given);
}

async function compare(cdb: readonly number[], asked: Asked) {
  const given = await answer(cdb, asked);
  const at = given.sense?.[0] === 0xf0
    ? new DataView(given.sense.buffer).getUint32(3)
    : undefined;
  return { code: shown(given).code, at };
}

function text(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

const inquiry = (page: number, room = 255, evpd = 1) =>
  ask([0x12, evpd, page, room >> 8, room & 0xff, 0]);

Deno.test("INQUIRY names vendor, product and revision, cut at its room", () => {
  const { data } = inquiry(0, 255, 0);
  equal([...data.slice(0, 8)], [0, 0, 5, 2, 0x1f, 8, 0, 2]);
  equal(text(data.slice(8)), "LIO-ORG TCMU device     0002");
  equal(inquiry(0, 5, 0).data.length, 5);
  equal(inquiry(0, 36, 0).data.length, 36);
  equal(inquiry(3, 36, 0).code, "05/24/00");
});

Deno.test("every listed page is there, another is refused", () => {
  const { data } = inquiry(0);
  equal([...data], [0, 0, 0, 6, 0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
  for (const code of data.slice(4)) {
    const page = inquiry(code).data;
    equal(page[1], code);
    equal((page[2] ?? 0) << 8 | (page[3] ?? 0), page.length - 4);
  }
  equal(inquiry(0x84).code, "05/24/00");
  equal(text(inquiry(0x80).data.slice(4)), `${disk.serial}\0`);
});

Deno.test("page 83 has three designators whatever is in them", () => {
  fc.assert(fc.property(
    fc.string({ maxLength: 40 }),
    fc.string({ maxLength: 300 }),
    (serial, config) => {
      const { data } = ask([0x12, 1, 0x83, 0xff, 0xff, 0], { serial, config });
      const types: number[] = [];
      let at = 4;
      while (at < data.length) {
        types.push(data[at + 1] ?? -1);
        at += 4 + (data[at + 3] ?? 0);
      }
      equal(at, data.length);
      equal(types, [1, 3, 0]);
    },
  ));
});

Deno.test("the NAA id begins with 6 001405 and goes on with the serial", () => {
  const hex = (serial: string) =>
    [...naaDesignator(serial)].map((b) => b.toString(16).padStart(2, "0"))
      .join("");
  equal(hex("abcd-EF"), "6001405abcdef0000000000000000000");
  equal(hex("1".repeat(60)), `6001405${"1".repeat(25)}`);
});

Deno.test("pages b0, b1, b2: discards of a useful size, no rotation", () => {
  const limits = new DataView(inquiry(0xb0).data.buffer);
  equal(limits.getUint8(4), 1);
  ok(limits.getUint32(20) > 0 && limits.getUint32(24) > 0);
  // mkfs takes a granularity of transfers for the stripe unit of a RAID.
  equal([limits.getUint16(6), limits.getUint32(28)], [0, 8]);
  equal(new DataView(inquiry(0xb1).data.buffer).getUint16(4), 1);
  equal(inquiry(0xb2).data[5], 0xe4);
  equal(
    ask([0x12, 1, 0xb2, 0, 255, 0], { discardsReadZero: false }).data[5],
    0xe0,
  );
});

Deno.test("READ CAPACITY: 10 bytes saturate, 16 bytes say all", () => {
  const ten = (sectors: bigint) =>
    new DataView(
      ask([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], { sectors }).data.buffer,
    );
  equal(ten(2048n).getUint32(0), 2047);
  equal(ten(2048n).getUint32(4), 512);
  equal(ten(1n << 32n).getUint32(0), 0xffffffff);
  equal(ten(1n << 40n).getUint32(0), 0xffffffff);
  equal(ten(0n).getUint32(0), 0);
  const rc16 = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
  const { data } = ask(rc16, { sectors: 1n << 40n });
  equal(new DataView(data.buffer).getBigUint64(0), (1n << 40n) - 1n);
  equal([data.length, data[14]], [32, 0xc0]);
  equal(ask(rc16, { discardsReadZero: false }).data[14], 0x80);
  equal(ask([0x9e, 0x12, ...rc16.slice(2)]).code, "05/20/00");
});

Deno.test("MODE SENSE: pages, write protection, cache, and every room", () => {
  const all = ask([0x1a, 0, 0x3f, 0, 255, 0]).data;
  equal([...all.slice(0, 6)], [47, 0, 0x10, 0, 0x01, 0x0a]);
  equal(all.length, 48);
  equal([all[16], all[17], all[18]], [0x08, 0x12, 0x04]);
  const plain = ask([0x1a, 0, 0x08, 0, 255, 0], {
    writeCache: false,
    readonly: true,
  }).data;
  equal([plain[2], plain[6]], [0x80, 0]);
  const ten = ask([0x5a, 0, 0x0a, 0, 0, 0, 0, 0, 255, 0]).data;
  equal([...ten.slice(0, 10)], [0, 18, 0, 0x10, 0, 0, 0, 0, 0x0a, 0x0a]);
  // The length says what there is, not what there is room for.
  equal([...ask([0x1a, 0, 0x3f, 0, 4, 0]).data], [47, 0, 0x10, 0]);
  equal(ask([0x1a, 0, 0x3f, 0, 24, 0]).data.length, 24);
  equal(ask([0x1a, 0, 0x3f, 0, 0, 0]), {
    status: 0,
    data: new Uint8Array(),
    code: undefined,
  });
  equal(ask([0x1a, 0, 0x3f, 0, 3, 0]).code, "05/24/00");
  equal(ask([0x1a, 0, 0x1c, 0, 255, 0]).code, "05/24/00");
  equal(ask([0x1a, 0, 0x3f, 0xff, 255, 0]).code, "05/24/00");
  // What may be changed: nothing.
  equal(ask([0x1a, 0, 0x48, 0, 255, 0]).data[6], 0);
});

Deno.test("MODE SELECT takes what is so already, and nothing else", () => {
  const page = [...ask([0x1a, 0, 0x08, 0, 255, 0]).data.slice(4)];
  const list = [0, 0, 0, 0, ...page];
  const select = (
    bytes: readonly number[],
    length = bytes.length,
    flags = 0x10,
  ) => ask([0x15, flags, 0, 0, length, 0], {}, bytes).code;
  equal(select(list), undefined);
  equal(select([]), undefined);
  equal(select(list.with(6, 0)), "05/26/00");
  equal(select(list.with(4, 0x1c)), "05/26/00");
  equal(select(list.slice(0, 10)), "05/1a/00");
  equal(select(list, 40), "05/1a/00");
  equal(select(list, list.length, 0), "05/24/00");
  equal(select(list, list.length, 0x11), "05/24/00");
  const ten = [0, 0, 0, 0, 0, 0, 0, 0, ...page];
  equal(
    ask([0x55, 0x10, 0, 0, 0, 0, 0, 0, ten.length, 0], {}, ten).code,
    undefined,
  );
  equal(ask([0x55, 0x10, 0, 0, 0, 0, 0, 2, 0, 0], {}, ten).code, "05/1a/00");
});

Deno.test("REQUEST SENSE, START STOP and TEST UNIT READY are fine", () => {
  equal([...ask([0x03, 0, 0, 0, 18, 0]).data.slice(0, 3)], [0x70, 0, 0]);
  equal(ask([0x03, 1, 0, 0, 18, 0]).code, "05/24/00");
  equal(ask([0x1b, 0, 0, 0, 1, 0]).status, 0);
  equal(ask([0, 0, 0, 0, 0, 0]).status, 0);
});

Deno.test("VERIFY and PRE-FETCH look at their range", () => {
  const ten = (opcode: number, lba: number, count: number, flags = 0) =>
    ask([opcode, flags, 0, 0, lba >> 8, lba & 0xff, 0, 0, count, 0]).code;
  equal(ten(0x2f, 2040, 8), undefined);
  equal(ten(0x2f, 2041, 8), "05/21/00");
  equal(ten(0x2f, 0, 8, 0x04), "05/24/00");
  equal(ten(0x34, 0, 8, 0x02), undefined);
  equal(ten(0x34, 2048, 1), "05/21/00");
});

Deno.test("REPORT SUPPORTED OPERATION CODES knows what is answered", () => {
  const report = (option: number, opcode = 0, action = 0, room = 4096) =>
    ask([
      ...[0xa3, 0x0c, option, opcode, 0, action],
      ...[0, 0, room >> 8, room & 0xff, 0, 0],
    ]);
  const all = report(0).data;
  equal(new DataView(all.buffer).getUint32(0), all.length - 4);
  for (let at = 4; at < all.length; at += 8) {
    const opcode = all[at] ?? 0;
    const actions = all[at + 5] !== 0;
    const one = report(actions ? 2 : 1, opcode, all[at + 3]).data;
    equal(one[1], 3);
    equal(one[3], all[at + 7]);
    equal(one[4], opcode);
    equal(one.length, 4 + (one[3] ?? 0));
  }
  equal([...report(1, 0x83).data], [0, 1, 0, 0]);
  equal(report(1, 0x9e).code, "05/24/00");
  equal(report(2, 0x28).code, "05/24/00");
  equal(report(3, 0x9e, 0x10).data[1], 3);
  equal(report(3, 0x9e, 0x11).data[1], 1);
  equal(report(5).code, "05/24/00");
  equal(report(0, 0, 0, 10).data.length, 10);
  equal(ask([0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).code, "05/20/00");
});

const sectors = (...bytes: number[]) =>
  bytes.flatMap((byte) => Array<number>(512).fill(byte));

Deno.test("COMPARE AND WRITE writes what compares equal, and only that", async () => {
  const bytes = new Uint8Array(2048 * 512);
  const medium = memory(bytes);
  const caw = (lba: number, count: number, flags = 0) => [
    ...[0x89, flags, 0, 0, 0, 0, 0, 0, lba >> 8, lba & 0xff],
    ...[0, 0, 0, count, 0, 0],
  ];
  const none = { code: undefined, at: undefined };
  equal(await compare(caw(3, 1), { medium, list: sectors(0, 7) }), none);
  equal([...bytes.slice(3 * 512, 4 * 512)], sectors(7));
  equal(await compare(caw(3, 1), { medium, list: sectors(0, 9) }), {
    code: "0e/1d/00",
    at: 0,
  });
  const nearly = sectors(7, 9).with(100, 1);
  equal((await compare(caw(3, 1), { medium, list: nearly })).at, 100);
  equal([...bytes.slice(3 * 512, 4 * 512)], sectors(7));
  equal(medium.flushes, 0);
  equal(await compare(caw(3, 1, 0x08), { medium, list: sectors(7, 8) }), none);
  equal(medium.flushes, 1);
  const code = async (cdb: readonly number[], asked: Asked = {}) =>
    (await compare(cdb, { medium, list: sectors(0, 0), ...asked })).code;
  equal(await code(caw(3, 0)), undefined);
  equal(await code(caw(3, 2)), "05/24/00");
  equal(await code(caw(3, 1, 0x20)), "05/24/00");
  equal(await code(caw(2048, 1)), "05/21/00");
  equal(await code(caw(3, 1), { list: sectors(8) }), "05/1a/00");
  equal(await code(caw(3, 1), { of: { readonly: true } }), "05/30/05");
  const bad = (fails: Parameters<typeof memory>[1]) =>
    code(caw(0, 1), { medium: memory(bytes, fails) });
  equal(await bad({ read: true }), "03/11/00");
  equal(await bad({ write: true }), "03/0c/00");
  // As where the library answers: what was ended is to be tried again.
  const [ENOMEM, ENOSPC, EROFS, ESHUTDOWN] = [12, 28, 30, 108];
  equal(await bad({ write: ENOSPC }), "07/27/07");
  equal(await bad({ write: EROFS }), "05/30/05");
  const status = async (read: number) =>
    (await answer(caw(0, 1), {
      list: sectors(0, 0),
      medium: memory(bytes, { read }),
    })).status;
  equal([await status(ESHUTDOWN), await status(ENOMEM)], [0x08, 0x28]);
});

Deno.test("of two that compare with the same, one writes", async () => {
  const medium = memory(new Uint8Array(2048 * 512));
  const cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0];
  const codes = await Promise.all(
    [1, 2, 3].map(async (byte) =>
      (await compare(cdb, { medium, list: sectors(0, byte) })).code
    ),
  );
  equal(codes, [undefined, "0e/1d/00", "0e/1d/00"]);
});

Deno.test("VERIFY compares byte for byte, or every sector with one", async () => {
  const bytes = new Uint8Array(4096 * 512).fill(5);
  const medium = memory(bytes);
  const of = { sectors: 4096n };
  const verify = (count: number, mode: number, list: readonly number[]) =>
    compare(
      [0x2f, mode << 1, 0, 0, 0, 1, 0, count >> 8, count & 0xff, 0],
      { of, medium, list },
    );
  equal((await verify(2, 1, sectors(5, 5))).code, undefined);
  equal((await verify(2, 1, sectors(5))).code, "05/1a/00");
  equal((await verify(0, 1, [])).code, undefined);
  equal((await verify(0, 3, [])).code, undefined);
  equal((await verify(4000, 3, sectors(5))).code, undefined);
  bytes[512 * 3000 + 9] = 6;
  equal(await verify(4000, 3, sectors(5)), {
    code: "0e/1d/00",
    at: 2999 * 512 + 9,
  });
});

Deno.test("no CDB is too odd to be answered", async () => {
  await fc.assert(fc.asyncProperty(
    fc.constantFrom(6, 10, 12, 16).chain((n) =>
      fc.uint8Array({ minLength: n, maxLength: n })
    ),
    fc.uint8Array({ maxLength: 600 }),
    async (cdb, list) => {
      // The library hands over CDBs as long as their group says.
      const length = [6, 10, 10, 0, 16, 12][(cdb[0] ?? 0) >> 5] ?? 0;
      fc.pre(length === cdb.length);
      const { status, code } = shown(
        await answer([...cdb], {
          list: [...list],
          medium: memory(new Uint8Array(2048 * 512)),
        }),
      );
      ok(status === 0 ? code === undefined : /^(05|0e)\//.test(code ?? ""));
    },
  ));
});
