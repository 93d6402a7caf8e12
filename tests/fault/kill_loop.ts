// SPDX-License-Identifier: Apache-2.0
/**
 * Kills `serve` with SIGKILL under write load, again and again, on one image:
 * what a client was told is written is there after each restart.
 *
 * @module
 */
import { equal, fail, ok } from "node:assert/strict";
import { existsSync } from "node:fs";
import { tempDir } from "../lib/env.ts";
import { equalBytes } from "../lib/crash.ts";
import { connectNbd, type NbdClient } from "../lib/nbd.ts";
import { newUpper, writeConfig } from "../lib/product.ts";
import { generator, noise } from "../lib/random.ts";
import { startServer } from "../lib/server.ts";
import { newSubject } from "../lib/snapshots.ts";
import { DEV_ID, prepareNext, serveSnapshots } from "../lib/snapshot_server.ts";

const SECTOR = 512;
const SECTORS = 2048;
const DEPTH = 8;

/** A write as the client knows it. */
interface Sent {
  lba: number;
  bytes: Uint8Array;
}

/**
 * What each sector may hold: the last acknowledged bytes, and everything
 * that was sent after them and never answered.
 */
class Ledger {
  readonly known = new Uint8Array(SECTORS * SECTOR);
  readonly maybe = new Map<number, Uint8Array[]>();

  send({ lba, bytes }: Sent): void {
    for (let i = 0; i * SECTOR < bytes.length; i++) {
      const list = this.maybe.get(lba + i) ?? [];
      list.push(bytes.subarray(i * SECTOR, (i + 1) * SECTOR));
      this.maybe.set(lba + i, list);
    }
  }

  acknowledge({ lba, bytes }: Sent): void {
    this.known.set(bytes, lba * SECTOR);
    for (let i = 0; i * SECTOR < bytes.length; i++) this.maybe.delete(lba + i);
  }

  /** Compares a disk after a restart, and takes it as the new truth. */
  settle(disk: Uint8Array): void {
    for (let lba = 0; lba < SECTORS; lba++) {
      const [from, to] = [lba * SECTOR, (lba + 1) * SECTOR];
      const got = disk.subarray(from, to);
      const options = [
        this.known.subarray(from, to),
        ...(this.maybe.get(lba) ?? []),
      ];
      if (!options.some((bytes) => equalBytes(bytes, got))) {
        fail(`sector ${lba} lost an acknowledged write`);
      }
    }
    this.known.set(disk);
    this.maybe.clear();
  }
}

/** Writes at random until the server is gone; returns how many were acked. */
async function load(
  client: NbdClient,
  ledger: Ledger,
  random: () => number,
): Promise<number> {
  let acked = 0;
  const busy = new Set<number>();
  const worker = async () => {
    for (;;) {
      const sectors = 1 + Math.floor(random() * 16);
      const lba = Math.floor(random() * (SECTORS - sectors));
      const mine = Array.from({ length: sectors }, (_, i) => lba + i);
      // Two writes of one sector in flight have no order: avoid them.
      if (mine.some((at) => busy.has(at))) continue;
      mine.forEach((at) => busy.add(at));
      const sent = {
        lba,
        bytes: noise(1 + Math.floor(random() * 2 ** 30), sectors * SECTOR),
      };
      ledger.send(sent);
      try {
        await client.write(lba * SECTOR, sent.bytes);
      } catch {
        return;
      }
      ledger.acknowledge(sent);
      acked++;
      mine.forEach((at) => busy.delete(at));
    }
  };
  await Promise.all(Array.from({ length: DEPTH }, worker));
  return acked;
}

/** Runs the loop on a log and a sparse upper. */
export async function killLoop(
  { rounds, seed }: { rounds: number; seed: number },
): Promise<void> {
  const random = generator(seed);
  for (const sparse of [false, true]) {
    using dir = tempDir();
    const upper = await newUpper(dir.file("u"), {
      size: SECTORS * SECTOR,
      sparse,
    });
    const config = writeConfig(dir, { lowers: [], upper });
    const ledger = new Ledger();
    let acked = 0;
    for (let round = 0; round <= rounds; round++) {
      await using server = await startServer(dir.file("s"), [config]);
      using client = await connectNbd(dir.file("s"), config);
      ledger.settle(await client.read(0, SECTORS * SECTOR));
      if (round === rounds) break;
      const loading = load(client, ledger, random);
      await new Promise((done) => setTimeout(done, 20 + random() * 150));
      await server.stop("SIGKILL");
      acked += await loading;
    }
    ok(acked > rounds * 10, `only ${acked} writes were acknowledged`);
    console.log(`${rounds} kills, ${acked} acknowledged writes, SEED=${seed}`);
  }
}

/** Every snapshot is a layer, and an image has 255 at most. */
const ROUNDS_OF_AN_IMAGE = 20;

/**
 * The same with snapshots under way: each is taken whole or not at all, and
 * what was acknowledged is there in either case.
 */
export async function snapshotKillLoop(
  { rounds, seed }: { rounds: number; seed: number },
): Promise<void> {
  const random = generator(seed);
  for (let left = rounds; left > 0; left -= ROUNDS_OF_AN_IMAGE) {
    await killAmid(Math.min(left, ROUNDS_OF_AN_IMAGE), random);
  }
  console.log(`SEED=${seed}`);
}

async function killAmid(rounds: number, random: () => number): Promise<void> {
  using dir = tempDir();
  const size = SECTORS * SECTOR;
  const subject = await newSubject(dir, { size });
  const ledger = new Ledger();
  let [acked, taken, unfinished, nr] = [0, 0, 0, 0];
  for (let round = 0; round <= rounds; round++) {
    if (existsSync(`${subject.config}.snap`)) unfinished++;
    await using served = await serveSnapshots(dir, subject.config);
    using client = await connectNbd(served.socket, DEV_ID);
    const disk = await client.read(0, size);
    if (round === 0) ledger.known.set(disk);
    ledger.settle(disk);
    ok(!existsSync(`${subject.config}.snap`));
    if (round === rounds) break;
    const loading = load(client, ledger, random);
    const dying = { now: false };
    const snapshots = async () => {
      while (!dying.now) {
        const next = await prepareNext(
          subject.config,
          dir.file(`n${++nr}`),
          { size, sparse: random() < 0.5 },
        );
        const answer = await served.snapshot(next).catch(() => undefined);
        if (answer === undefined) return;
        equal(answer.status, 200, answer.text);
        taken++;
      }
    };
    const asking = snapshots();
    await new Promise((done) => setTimeout(done, 60 + random() * 160));
    // Most kills would miss the moments that matter.
    for (let i = 0; round % 3 > 0 && i < 400; i++) {
      if (existsSync(`${subject.config}.snap`)) break;
      await new Promise((done) => setTimeout(done, 1));
    }
    await new Promise((done) => setTimeout(done, random() * 10));
    dying.now = true;
    await served.server.stop("SIGKILL");
    acked += await loading;
    await asking;
  }
  ok(acked > rounds * 10, `only ${acked} writes were acknowledged`);
  console.log(
    `${rounds} kills, ${unfinished} of them amid a snapshot, ${taken} ` +
      `snapshots, ${acked} acknowledged writes`,
  );
}
