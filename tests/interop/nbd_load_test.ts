// SPDX-License-Identifier: Apache-2.0
/**
 * Many requests at once over several NBD connections, against a plain array:
 * reads, writes, zeroes, trims and flushes that do not overlap in flight.
 */
import { equal, ok } from "node:assert/strict";
import { tempDir } from "../lib/env.ts";
import { CMD, connectNbd, type NbdClient } from "../lib/nbd.ts";
import { newUpper, writeConfig } from "../lib/product.ts";
import { chooseSeed, generator, noise, numberFromEnv } from "../lib/random.ts";
import { equalBytes } from "../lib/crash.ts";
import { startServer } from "../lib/server.ts";
import { readDisk } from "../lib/spec_reader.ts";
import { encodeFullLayer } from "../lib/spec_writer.ts";

const SECTOR = 512;
const SECTORS = 4096;
const CONNECTIONS = 4;
const DEPTH = 4;
const REQUESTS = numberFromEnv("REQUESTS", 6000);
const FUA = 1;

/** A range that nobody else has in flight, taken until `free`. */
function take(busy: Uint8Array, random: () => number) {
  for (;;) {
    const n = random() < 0.1 ? 1 + random() * 500 : 1 + random() * 20;
    const sectors = Math.floor(n);
    const lba = Math.floor(random() * (SECTORS - sectors));
    if (busy.subarray(lba, lba + sectors).some((it) => it !== 0)) continue;
    busy.fill(1, lba, lba + sectors);
    return { lba, sectors, free: () => busy.fill(0, lba, lba + sectors) };
  }
}

async function request(
  client: NbdClient,
  plain: Uint8Array,
  busy: Uint8Array,
  random: () => number,
  sparse: boolean,
): Promise<void> {
  const { lba, sectors, free } = take(busy, random);
  const [at, n] = [lba * SECTOR, sectors * SECTOR];
  const dice = random();
  const expected = () => plain.subarray(at, at + n);
  if (dice < 0.4) {
    const bytes = noise(1 + Math.floor(random() * 2 ** 30), n);
    const flags = random() < 0.05 ? FUA : 0;
    await client.request(CMD.WRITE, at, n, bytes, flags);
    plain.set(bytes, at);
  } else if (dice < 0.55) {
    await client.request(CMD.ZEROES, at, n);
    plain.fill(0, at, at + n);
  } else if (dice < 0.62) {
    await client.request(CMD.TRIM, at, n);
    // A trim promises nothing on a sparse upper: what is there now stays.
    const got = await client.read(at, n);
    for (let i = 0; i < n; i += SECTOR) {
      const sector = got.subarray(i, i + SECTOR);
      const zero = sector.every((byte) => byte === 0);
      const kept = equalBytes(sector, plain.subarray(at + i, at + i + SECTOR));
      ok(zero || (sparse && kept), `trim: sector ${lba + i / SECTOR}`);
    }
    plain.set(got, at);
  } else if (dice < 0.64) {
    await client.flush();
  } else {
    const got = await client.read(at, n);
    ok(equalBytes(got, expected()), `read of ${lba}+${sectors}`);
  }
  free();
}

for (const sparse of [false, true]) {
  const kind = sparse ? "sparse" : "log";
  Deno.test(`${REQUESTS} requests in flight over ${CONNECTIONS} connections, ${kind} upper`, async () => {
    const seed = chooseSeed();
    console.log(`SEED=${seed}`);
    const random = generator(seed);
    using dir = tempDir();
    const plain = noise(9, SECTORS * SECTOR).slice();
    Deno.writeFileSync(dir.file("low"), encodeFullLayer(plain));
    const lowers = [dir.file("low")];
    const upper = await newUpper(dir.file("u"), { size: 0, sparse });
    const config = writeConfig(dir, { lowers, upper });
    const busy = new Uint8Array(SECTORS);
    {
      await using server = await startServer(dir.file("s"), [config]);
      const clients = await Promise.all(
        Array.from({ length: CONNECTIONS }, () => connectNbd(dir.file("s"))),
      );
      let left = REQUESTS;
      const worker = async (client: NbdClient) => {
        while (left-- > 0) {
          await request(client, plain, busy, random, sparse);
        }
      };
      await Promise.all(
        clients.flatMap((it) =>
          Array.from({ length: DEPTH }, () => worker(it))
        ),
      );
      clients.forEach((client) => client.close());
      equal((await server.stop()).code, 0);
    }
    using spec = readDisk(lowers, upper);
    equal(spec.size, plain.length);
    ok(equalBytes(spec.read(0, spec.size), plain), "after the server's end");
  });
}
