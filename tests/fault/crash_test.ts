// SPDX-License-Identifier: Apache-2.0
/**
 * Power loss and sudden death at every point of an append run, a commit, a
 * seal and a create.  The order of writes and syncs is recorded from the
 * library itself; every prefix of it, with every legal reordering since the
 * last syncs, is put on a disk and opened by the product.
 */
import { equal, fail, ok } from "node:assert/strict";
import { existsSync } from "node:fs";
import { traceIo } from "../../ffi/files.ts";
import { commitLayer, sealLayer } from "../../src/layer/commit.ts";
import { run, sha256, type TempDir, tempDir } from "../lib/env.ts";
import {
  CHANGING,
  checkSectors,
  crashImage,
  deadImage,
  eachState,
  type FileHistory,
  type FileImage,
  historiesAt,
  loadImage,
  playOp,
  readTrace,
  storeImage,
  traceLength,
  type TraceOp,
} from "../lib/crash.ts";
import {
  growClosed,
  newUpper,
  type OpenDisk,
  openDisk,
} from "../lib/product.ts";
import { chooseSeed, generator, noise, numberFromEnv } from "../lib/random.ts";
import { readDisk, type UpperPaths } from "../lib/spec_reader.ts";
import { encodeFullLayer } from "../lib/spec_writer.ts";

const SECTOR = 512;
/** Of the small disk that all runs here use. */
const SECTORS = 64;
const SIZE = SECTORS * SECTOR;
/** States of one prefix: all of them, or this many, half of them random. */
const STATES = numberFromEnv("STATES", 60);

const seed = chooseSeed();

// ---- a run, recorded ------------------------------------------------

type RangeChange = {
  kind: "write" | "zero" | "discard";
  lba: number;
  sectors: number;
};
type Change = RangeChange | { kind: "flush" } | { kind: "reopen" };

/** One change of the disk, and where it stands in the trace. */
interface Step {
  change: Change;
  /** lines of the trace before it began and when it was acknowledged */
  began: number;
  acked: number;
  /** the disk after it */
  after: Uint8Array;
}

interface Recorded {
  initial: Map<number, FileImage>;
  trace: TraceOp[];
  steps: Step[];
  before: Uint8Array;
  inodes: { data: number; index: number };
}

function inode(path: string): number {
  return Deno.statSync(path).ino ?? fail("no inode");
}

function apply(
  disk: OpenDisk,
  change: RangeChange,
  nr: number,
  to: Uint8Array,
) {
  const { lba, sectors } = change;
  const [at, n] = [lba * SECTOR, sectors * SECTOR];
  if (change.kind === "write") {
    const bytes = noise(1000 + nr, n);
    disk.write(at, bytes);
    to.set(bytes, at);
  } else if (change.kind === "zero") {
    disk.zero(at, n);
    to.fill(0, at, at + n);
  } else {
    disk.discard(at, n);
    to.set(disk.read(at, n), at);
  }
}

/** Plays changes on an upper over a lower, tracing all file operations. */
async function record(
  dir: TempDir,
  lower: string,
  upper: UpperPaths,
  changes: readonly Change[],
): Promise<Recorded> {
  const inodes = { data: inode(upper.data), index: inode(upper.index) };
  const initial = new Map([
    [inodes.data, loadImage(upper.data)],
    [inodes.index, loadImage(upper.index)],
  ]);
  const steps: Step[] = [];
  const trace = dir.file("trace");
  traceIo(trace);
  try {
    let disk = await openDisk({ lowers: [lower], upper });
    const before = disk.read(0, SIZE);
    const now = before.slice();
    for (const [nr, change] of changes.entries()) {
      const began = traceLength(trace);
      if (change.kind === "flush") await disk.flush();
      else if (change.kind === "reopen") {
        await disk.close();
        disk = await openDisk({ lowers: [lower], upper });
      } else apply(disk, change, nr, now);
      steps.push({
        change,
        began,
        acked: traceLength(trace),
        after: now.slice(),
      });
    }
    traceIo(null);
    await disk.close();
    return {
      initial,
      trace: readTrace(trace).filter((op) => op.op !== "pread"),
      steps: steps.map((step) => step),
      before,
      inodes,
    };
  } finally {
    traceIo(null);
  }
}

// ---- states ---------------------------------------------------------

/** What each file may hold after the first lines of the trace. */
function histories(
  { initial, trace, inodes }: Recorded,
  until: number,
  log: boolean,
): Map<number, FileHistory> {
  return historiesAt(
    initial,
    trace,
    until,
    (ino) => log && ino === inodes.data ? "coupled" : "free",
  );
}

/** Disks that power loss may leave by sector: the last flushed and later. */
function powerCandidates(recorded: Recorded, until: number): Uint8Array[] {
  let flushed = -1;
  recorded.steps.forEach(({ change, acked }, nr) => {
    const synced = change.kind === "flush" || change.kind === "reopen";
    if (synced && acked <= until) flushed = nr;
  });
  const base = recorded.steps[flushed]?.after ?? recorded.before;
  const later = recorded.steps.slice(flushed + 1)
    .filter((step) => step.began < until)
    .map((step) => step.after);
  return [base, ...later];
}

/** Disks that death of the process may leave: acknowledged, or in flight. */
function deathCandidates(recorded: Recorded, until: number): Uint8Array[] {
  const acked = recorded.steps.filter((step) => step.acked <= until);
  const flying = recorded.steps.find((step) =>
    step.began < until && step.acked > until
  );
  const base = acked.at(-1)?.after ?? recorded.before;
  return flying === undefined ? [base] : [base, flying.after];
}

async function openState(
  dir: TempDir,
  lower: string,
  images: Map<number, FileImage>,
  { inodes }: Recorded,
  candidates: readonly Uint8Array[],
  what: string,
  deep: boolean,
): Promise<void> {
  const upper = { data: dir.file("c.data"), index: dir.file("c.index") };
  for (
    const [ino, path] of [
      [inodes.data, upper.data],
      [inodes.index, upper.index],
    ] as const
  ) {
    storeImage(images.get(ino) ?? fail("no image"), path);
  }
  let disk: OpenDisk;
  try {
    disk = await openDisk({ lowers: [lower], upper });
  } catch (error) {
    fail(`${what}: does not open: ${error}`);
  }
  ok(disk.warnings.length <= 1, `${what}: ${disk.warnings.join("; ")}`);
  try {
    const got = disk.read(0, SIZE);
    checkSectors(got, candidates, what);
    if (!deep) return;
    // It goes on as if nothing had happened.
    const more = noise(77, 3 * SECTOR);
    disk.write(5 * SECTOR, more);
    got.set(more, 5 * SECTOR);
    await disk.flush();
    await disk.close();
    disk = await openDisk({ lowers: [lower], upper });
    equal(disk.warnings.length, 0, `${what}: warned twice`);
    equal(sha256(disk.read(0, SIZE)), sha256(got), `${what}: written after`);
    using spec = readDisk([lower], upper);
    equal(sha256(spec.read(0, SIZE)), sha256(got), `${what}: other reader`);
  } finally {
    await disk.close();
  }
}

/** All states of all prefixes of a run. */
async function replay(
  dir: TempDir,
  lower: string,
  recorded: Recorded,
  log: boolean,
): Promise<number> {
  const random = generator(seed);
  let states = 0;
  const last = (recorded.trace.at(-1)?.seq ?? 0) + 1;
  const changing = new Set(
    recorded.trace.filter((op) => CHANGING.has(op.op) || op.op === "sync")
      .map((op) => op.seq + 1),
  );
  const acks = new Set(recorded.steps.map((step) => step.acked));
  for (let until = 0; until <= last; until++) {
    if (!changing.has(until) && !acks.has(until) && until !== 0) continue;
    const now = histories(recorded, until, log);
    const dead = new Map([...now].map(([ino, it]) => [ino, deadImage(it)]));
    const death = deathCandidates(recorded, until);
    const dying = `killed after line ${until} (SEED=${seed})`;
    await openState(dir, lower, dead, recorded, death, dying, true);
    const power = powerCandidates(recorded, until);
    const build = (choose: (options: number) => number) =>
      new Map([...now].map(([ino, it]) => [ino, crashImage(it, choose)]));
    for (const images of eachState(build, STATES, random)) {
      const what = `power lost after line ${until}, state ${states} ` +
        `(SEED=${seed})`;
      const deep = states % 7 === 0;
      await openState(dir, lower, images, recorded, power, what, deep);
      states++;
    }
  }
  return states;
}

/** A lower whose every sector holds something. */
function fullLower(dir: TempDir): string {
  Deno.writeFileSync(dir.file("lower"), encodeFullLayer(noise(3, SIZE)));
  return dir.file("lower");
}

const RUNS: Record<string, Change[]> = {
  "whole blocks, one flush": [
    { kind: "write", lba: 8, sectors: 8 },
    { kind: "write", lba: 0, sectors: 8 },
    { kind: "flush" },
    { kind: "write", lba: 8, sectors: 16 },
  ],
  "single sectors, overwritten": [
    { kind: "write", lba: 3, sectors: 1 },
    { kind: "flush" },
    { kind: "write", lba: 3, sectors: 2 },
    { kind: "write", lba: 4, sectors: 1 },
    { kind: "flush" },
    { kind: "write", lba: 3, sectors: 1 },
  ],
  "zeros and discards between writes": [
    { kind: "write", lba: 0, sectors: 32 },
    { kind: "flush" },
    { kind: "zero", lba: 4, sectors: 9 },
    { kind: "discard", lba: 24, sectors: 16 },
    { kind: "write", lba: 6, sectors: 2 },
    { kind: "flush" },
  ],
  "a reopen between": [
    { kind: "write", lba: 10, sectors: 3 },
    { kind: "reopen" },
    { kind: "write", lba: 11, sectors: 9 },
    { kind: "zero", lba: 10, sectors: 1 },
  ],
};

for (const sparse of [false, true]) {
  const kind = sparse ? "sparse" : "log";
  for (const [name, changes] of Object.entries(RUNS)) {
    Deno.test(`power loss, ${kind} upper, ${name}: every state keeps its promises`, async () => {
      using dir = tempDir("memory");
      const lower = fullLower(dir);
      const upper = await newUpper(dir.file("u"), { size: SIZE, sparse });
      const recorded = await record(dir, lower, upper, changes);
      ok(recorded.trace.some((op) => op.op === "sync"), "no sync recorded");
      ok(recorded.trace.some((op) => op.op === "pwrite"), "nothing written");
      const states = await replay(dir, lower, recorded, !sparse);
      console.log(`${states} states, SEED=${seed}`);
      ok(states > 20);
    });
  }
}

/** Changes at random, a flush or reopen among every four. */
function randomChanges(random: () => number): Change[] {
  const below = (n: number) => Math.floor(random() * n);
  return Array.from({ length: 4 + below(6) }, (): Change => {
    const dice = below(12);
    if (dice < 2) return { kind: "flush" };
    if (dice === 2) return { kind: "reopen" };
    const lba = below(SECTORS - 1);
    const sectors = 1 + below(Math.min(24, SECTORS - lba));
    const kind = dice < 9 ? "write" : dice < 11 ? "zero" : "discard";
    return { kind, lba, sectors };
  });
}

Deno.test("power loss, random runs: every state keeps its promises", async () => {
  const random = generator(seed);
  let states = 0;
  const runs = numberFromEnv("RUNS", 24);
  for (let run = 0; run < runs; run++) {
    using dir = tempDir("memory");
    const sparse = run % 2 === 1;
    const lower = fullLower(dir);
    const upper = await newUpper(dir.file("u"), { size: SIZE, sparse });
    const changes = randomChanges(random);
    const recorded = await record(dir, lower, upper, changes);
    try {
      states += await replay(dir, lower, recorded, !sparse);
    } catch (cause) {
      throw new Error(`run ${run}, ${JSON.stringify(changes)}: ${cause}`, {
        cause,
      });
    }
  }
  console.log(`${runs} runs, ${states} states, SEED=${seed}`);
});

// ---- files that appear or change as a whole ------------------------

/** Records one call; what it left has the names it gave. */
async function trace(
  dir: TempDir,
  call: () => Promise<unknown>,
): Promise<TraceOp[]> {
  const path = dir.file("trace");
  traceIo(path);
  try {
    await call();
  } finally {
    traceIo(null);
  }
  return readTrace(path).filter((op) => op.op !== "pread");
}

/** Everything that was written to an inode is synced before it is named. */
function checkNamedWhole(ops: readonly TraceOp[], ino: number): void {
  const mine = ops.filter((op) => op.inode === ino && op.result >= 0);
  const named = mine.findIndex((op) => op.op === "link");
  ok(named > 0, "it is linked");
  const before = mine.slice(0, named);
  const synced = before.findLastIndex((op) => op.op === "sync");
  const written = before.findLastIndex((op) => CHANGING.has(op.op));
  ok(written >= 0 && synced > written, "it is synced before it is named");
  equal(
    mine.slice(named).some((op) => CHANGING.has(op.op)),
    false,
    "nothing is written after it is named",
  );
}

/**
 * Opens every state that power loss may leave of a file that has its name:
 * `look` must find it whole each time.
 */
async function replayNamed(
  dir: TempDir,
  ops: readonly TraceOp[],
  ino: number,
  look: (path: string) => Promise<void>,
): Promise<number> {
  const random = generator(seed);
  const history: FileHistory = {
    durable: { size: 0, blocks: new Map() },
    pending: [],
    tail: "free",
  };
  let named = false;
  let states = 0;
  for (const op of ops.filter((it) => it.inode === ino && it.result >= 0)) {
    if (CHANGING.has(op.op)) history.pending.push(op);
    else if (op.op === "link") named = true;
    else if (op.op === "sync") {
      for (const it of history.pending.splice(0)) playOp(history.durable, it);
    }
    if (!named) continue;
    const build = (choose: (options: number) => number) =>
      crashImage(history, choose);
    for (const image of eachState(build, STATES, random)) {
      const path = dir.file("state");
      storeImage(image, path);
      await look(path);
      states++;
    }
  }
  return states;
}

function syncedAfter(
  ops: readonly TraceOp[],
  dir: string,
  what: "link" | "rename",
): boolean {
  const last = ops.findLastIndex((op) => op.op === what);
  const ino = inode(dir);
  return ops.slice(last).some((op) =>
    op.op === "sync" && op.inode === ino && op.result === 0
  );
}

async function filledUpper(dir: TempDir, base: string, sparse = false) {
  const upper = await newUpper(dir.file(base), { size: SIZE, sparse });
  await using disk = await openDisk({ lowers: [], upper });
  disk.write(8 * SECTOR, noise(5, 24 * SECTOR));
  disk.zero(10 * SECTOR, 3 * SECTOR);
  return upper;
}

Deno.test("a commit is durable before it has a name, in every form", async () => {
  using dir = tempDir();
  const upper = await filledUpper(dir, "u");
  using spec = readDisk([], upper);
  const want = sha256(spec.read(0, SIZE));
  const forms = [
    {},
    { zfile: { algorithm: "lz4" as const, blockSize: 4096 } },
    { zfile: { algorithm: "zstd" as const, blockSize: 65536 }, threads: 3 },
    {
      zfile: { algorithm: "lz4" as const, blockSize: 4096 },
      tar: true,
    },
  ];
  for (const [nr, form] of forms.entries()) {
    const output = dir.file(`out${nr}`);
    const ops = await trace(
      dir,
      () => commitLayer({ ...upper, ...form, output }),
    );
    checkNamedWhole(ops, inode(output));
    ok(syncedAfter(ops, dir.path, "link"), "the name is synced");
    const states = await replayNamed(dir, ops, inode(output), async (path) => {
      await using disk = await openDisk({ lowers: [path] });
      equal(sha256(disk.read(0, SIZE)), want);
    });
    ok(states > 0);
    const inputs = [inode(upper.data), inode(upper.index)];
    equal(
      ops.some((op) => CHANGING.has(op.op) && inputs.includes(op.inode)),
      false,
      "inputs are left alone",
    );
  }
});

Deno.test("replacing keeps the old file until the new one is durable", async () => {
  using dir = tempDir();
  const upper = await filledUpper(dir, "u");
  const output = dir.file("out");
  Deno.writeTextFileSync(output, "old");
  const old = inode(output);
  const ops = await trace(
    dir,
    () => commitLayer({ ...upper, output, replace: true }),
  );
  checkNamedWhole(ops, inode(output));
  ok(syncedAfter(ops, dir.path, "rename"), "the rename is synced");
  equal(ops.some((op) => op.inode === old && CHANGING.has(op.op)), false);
  equal(ops.some((op) => op.op === "unlink"), false);
});

Deno.test("create names durable files, the index first", async () => {
  for (const sparse of [false, true]) {
    using dir = tempDir();
    const ops = await trace(
      dir,
      () => newUpper(dir.file("u"), { size: SIZE, sparse }),
    );
    const [data, index] = ["u.data", "u.index"].map((name) =>
      inode(dir.file(name))
    );
    const order = ops.filter((op) => op.op === "link").map((op) => op.inode);
    equal(order.at(-1), data, "the data file is named last");
    ok(order.includes(index ?? -1));
    checkNamedWhole(ops, data ?? -1);
    if (!sparse) checkNamedWhole(ops, index ?? -1);
    const states = await replayNamed(dir, ops, data ?? -1, async (path) => {
      const upper = { data: path, index: dir.file("u.index") };
      await using disk = await openDisk({ lowers: [], upper });
      equal(disk.size, SIZE);
    });
    ok(states > 0);
    ok(syncedAfter(ops, dir.path, "link"), "the names are synced");
  }
});

Deno.test("what a killed create leaves is taken over by the next one", async () => {
  for (const sparse of [false, true]) {
    using dir = tempDir();
    await newUpper(dir.file("u"), { size: SIZE, sparse });
    // Killed between the two links: the index alone.
    Deno.removeSync(dir.file("u.data"));
    const upper = await newUpper(dir.file("u"), { size: SIZE, sparse });
    await using disk = await openDisk({ lowers: [], upper });
    equal(disk.size, SIZE);
  }
});

/** An upper whose index takes more than one block of its file. */
async function fragmentedUpper(dir: TempDir, base: string, sparse: boolean) {
  const upper = await newUpper(dir.file(base), { size: 600 * 4096, sparse });
  await using disk = await openDisk({ lowers: [], upper });
  for (let i = 0; i < 300; i++) disk.write(i * 8192, noise(i + 1, 4096));
  return upper;
}

Deno.test("a seal cut short anywhere leaves the upper as it was, or sealed", async () => {
  for (const sparse of [false, true]) {
    for (const make of [filledUpper, fragmentedUpper]) {
      using dir = tempDir("memory");
      await sealStates(dir, await make(dir, "u", sparse));
    }
  }
});

/** Seals, and opens what power loss may leave at every point of it. */
async function sealStates(dir: TempDir, upper: UpperPaths): Promise<void> {
  const before = loadImage(upper.data);
  const indexBefore = Deno.readFileSync(upper.index);
  using spec = readDisk([], upper);
  const want = sha256(spec.read(0, spec.size));
  const ops = await trace(dir, () => sealLayer(upper.data, upper.index));
  const ino = inode(upper.data);
  const mine = ops.filter((op) => op.inode === ino && op.result >= 0);
  equal(mine.at(-1)?.op, "sync", "a seal ends with a sync");
  const random = generator(seed);
  const history: FileHistory = { durable: before, pending: [], tail: "free" };
  let states = 0;
  for (const op of mine) {
    if (CHANGING.has(op.op)) history.pending.push(op);
    else if (op.op === "sync") {
      for (const it of history.pending.splice(0)) playOp(history.durable, it);
    }
    const build = (choose: (options: number) => number) =>
      crashImage(history, choose);
    for (const image of eachState(build, STATES, random)) {
      const cut = { data: dir.file("c.data"), index: dir.file("c.index") };
      storeImage(image, cut.data);
      Deno.writeFileSync(cut.index, indexBefore);
      const what = `seal state ${states} (SEED=${seed})`;
      const disk = await openDisk({ lowers: [], upper: cut })
        .catch((error) => {
          // All of it reached the disk: it is a sealed layer now.
          ok(/is sealed/.test(String(error)), `${what}: ${error}`);
          return openDisk({ lowers: [cut.data] });
        });
      equal(sha256(disk.read(0, spec.size)), want, what);
      await disk.close();
      states++;
    }
  }
  ok(states > 3);
  await using sealed = await openDisk({ lowers: [upper.data] });
  equal(sha256(sealed.read(0, spec.size)), want);
}

// The host block that the old end splits holds data of a lower, behind it.
async function cutGrowth(sparse: boolean, used: boolean): Promise<void> {
  using dir = tempDir("memory");
  const lower = fullLower(dir);
  const [from, to] = [13 * SECTOR, 29 * SECTOR];
  const upper = await newUpper(dir.file("u"), { size: from, sparse });
  const inodes = { data: inode(upper.data), index: inode(upper.index) };
  const stack = { lowers: [lower], upper };
  const disk = await openDisk(stack);
  disk.write(12 * SECTOR, noise(9, SECTOR));
  await disk.flush();
  if (!used) await disk.close();
  const want = noise(3, SIZE).slice(0, to);
  want.set(noise(9, SECTOR), 12 * SECTOR);
  const recorded: Recorded = {
    initial: new Map([
      [inodes.data, loadImage(upper.data)],
      [inodes.index, loadImage(upper.index)],
    ]),
    trace: await trace(
      dir,
      () => used ? disk.grow(to) : growClosed(stack, to),
    ),
    steps: [],
    before: want,
    inodes,
  };
  if (used) equal(sha256(disk.read(0, to)), sha256(want));
  if (used) await disk.close();
  const random = generator(seed);
  const last = (recorded.trace.at(-1)?.seq ?? 0) + 1;
  const sizes = new Set<number>();
  for (let until = 0; until <= last; until++) {
    const now = histories(recorded, until, false);
    const build = (choose: (options: number) => number) =>
      new Map([...now].map(([ino, it]) => [ino, crashImage(it, choose)]));
    for (const images of eachState(build, STATES, random)) {
      const cut = { data: dir.file("c.data"), index: dir.file("c.index") };
      storeImage(images.get(inodes.data) ?? fail(), cut.data);
      storeImage(images.get(inodes.index) ?? fail(), cut.index);
      await using after = await openDisk({ lowers: [lower], upper: cut });
      ok(after.size === from || after.size === to, `${after.size}`);
      sizes.add(after.size);
      equal(
        sha256(after.read(0, after.size)),
        sha256(want.slice(0, after.size)),
        `${sparse ? "sparse" : "log"}, line ${until} (SEED=${seed})`,
      );
    }
  }
  equal(sizes.size, 2, "both sizes were seen");
}

for (const used of [true, false]) {
  Deno.test(`a growth ${used ? "while it is used" : "of a closed disk"}, cut short anywhere, shows the old size or the new one`, async () => {
    for (const sparse of [false, true]) await cutGrowth(sparse, used);
  });
}

// ---- kill -9 of a server under load --------------------------------

Deno.test("kill -9 of serve under NBD writes loses nothing acknowledged", async () => {
  const { killLoop } = await import("./kill_loop.ts");
  await killLoop({ rounds: numberFromEnv("KILLS", 4), seed });
});

Deno.test("a killed commit leaves nothing behind", async () => {
  using dir = tempDir();
  const upper = await newUpper(dir.file("u"), { size: 64 << 20 });
  {
    await using disk = await openDisk({ lowers: [], upper });
    for (let i = 0; i < 64; i++) disk.write(i << 20, noise(i + 1, 1 << 20));
  }
  const { toolCommand } = await import("../lib/env.ts");
  const before = [...Deno.readDirSync(dir.path)].length;
  let killed = 0;
  for (let delay = 30; delay < 400 && killed < 4; delay += 50) {
    const call = toolCommand("overlaybd-commit", [
      "-z",
      "--algorithm",
      "zstd",
      upper.data,
      upper.index,
      dir.file("out"),
    ]);
    const child = new Deno.Command(call.command, {
      args: call.args,
      env: call.env,
      stdout: "null",
      stderr: "null",
    }).spawn();
    await new Promise((done) => setTimeout(done, delay));
    try {
      child.kill("SIGKILL");
    } catch {
      // It was done already.
    }
    const { signal } = await child.status;
    if (signal === "SIGKILL") killed++;
    if (existsSync(dir.file("out"))) {
      const checked = await run("true", []);
      equal(checked.code, 0);
      using whole = readDisk([dir.file("out")]);
      equal(whole.size, 64 << 20);
      Deno.removeSync(dir.file("out"));
    }
    equal([...Deno.readDirSync(dir.path)].length, before, "nothing is left");
  }
  ok(killed > 0, "no commit was caught alive");
});
