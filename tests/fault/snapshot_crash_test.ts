// SPDX-License-Identifier: Apache-2.0
/**
 * Power loss and sudden death at every point of live snapshots under writes:
 * the order of writes, syncs and renames is recorded from the library itself;
 * what may be on disk after each of them is opened by the product.
 */
import { equal, fail, ok } from "node:assert/strict";
import { existsSync } from "node:fs";
import {
  discardDevice,
  flushDevice,
  readDeviceSync,
  writeDevice,
  zeroDevice,
} from "../../ffi/device.ts";
import { traceIo } from "../../ffi/files.ts";
import { readImageConfig } from "../../src/image/config.ts";
import { openImage } from "../../src/image/image.ts";
import { finishSnapshot } from "../../src/image/intent.ts";
import { snapshotImage } from "../../src/image/snapshot.ts";
import {
  CHANGING,
  checkSectors,
  crashImage,
  deadImage,
  eachState,
  type FileImage,
  historiesAt,
  loadImage,
  readTrace,
  storeImage,
  traceLength,
  type TraceOp,
} from "../lib/crash.ts";
import { sha256, type TempDir, tempDir } from "../lib/env.ts";
import { chooseSeed, generator, noise, numberFromEnv } from "../lib/random.ts";
import { newSubject, onSwitch, type Subject } from "../lib/snapshots.ts";
import { readDisk, type UpperPaths } from "../lib/spec_reader.ts";

const SECTOR = 512;
const SECTORS = 64;
const SIZE = SECTORS * SECTOR;
const STATES = numberFromEnv("STATES", 12);
const seed = chooseSeed();

/** A change or a FLUSH, and where it stands in the trace. */
interface Step {
  flush: boolean;
  began: number;
  /** Infinity: never answered */
  acked: number;
  after: Uint8Array;
}

/** A configuration that took the place of another, in the end. */
interface Replaced {
  inode: number;
  text: string;
}

interface Recorded {
  dir: string;
  dirInode: number;
  first: string;
  files: Map<number, { name: string; image: FileImage; log: boolean }>;
  trace: TraceOp[];
  steps: Step[];
  before: Uint8Array;
  replaced: Replaced[];
}

function inode(path: string): number {
  return Deno.statSync(path).ino ?? fail("no inode");
}

/** What a run does, in order; a snapshot is taken under writes. */
type Act = "change" | "flush" | "snapshot to log" | "snapshot to sparse";

async function record(
  dir: TempDir,
  subject: Subject,
  acts: readonly Act[],
  random: () => number,
): Promise<Recorded> {
  const files: Recorded["files"] = new Map();
  const keep = ({ data, index }: UpperPaths, log: boolean) => {
    for (const [path, coupled] of [[data, log], [index, false]] as const) {
      const name = path.slice(dir.path.length + 1);
      files.set(inode(path), { name, image: loadImage(path), log: coupled });
    }
  };
  const isSparse = (upper: UpperPaths) => Deno.statSync(upper.index).size === 0;
  keep(subject.upper, !isSparse(subject.upper));
  const prepared: string[] = [];
  // Made before the recording begins: a client has them ready.
  const walk: Subject = { ...subject };
  for (const act of acts) {
    if (!act.startsWith("snapshot")) continue;
    prepared.push(await subject.next({ sparse: act.endsWith("sparse") }));
    subject.taken();
    keep(subject.upper, act.endsWith("log"));
  }
  Object.assign(subject, { lowers: walk.lowers, upper: walk.upper });
  const first = Deno.readTextFileSync(subject.config);
  const trace = dir.file("trace");
  const steps: Step[] = [];
  const replaced: Replaced[] = [];
  traceIo(trace);
  try {
    const image = await openImage(await readImageConfig(subject.config));
    const { device } = image;
    const now = new Uint8Array(SIZE);
    readDeviceSync(device, now, 0);
    const before = now.slice();
    let nr = 0;
    const change = () => {
      const began = traceLength(trace);
      const sectors = 1 + Math.floor(random() * 12);
      const lba = Math.floor(random() * (SECTORS - sectors));
      const [at, n] = [lba * SECTOR, sectors * SECTOR];
      const kind = random();
      if (kind < 0.7) writeDevice(device, noise(1000 + nr++, n), at);
      else if (kind < 0.9) zeroDevice(device, at, n);
      else discardDevice(device, at, n);
      readDeviceSync(device, now, 0);
      steps.push({
        flush: false,
        began,
        acked: traceLength(trace),
        after: now.slice(),
      });
    };
    const flush = async () => {
      const step: Step = {
        flush: true,
        began: traceLength(trace),
        acked: Infinity,
        after: now.slice(),
      };
      steps.push(step);
      await flushDevice(device);
      step.acked = traceLength(trace);
    };
    const flushes: Promise<void>[] = [];
    onSwitch(image, () => {
      for (let i = 0; i < 3; i++) change();
      flushes.push(flush());
      change();
    });
    for (const act of acts) {
      if (act === "change") change();
      else if (act === "flush") await flush();
      else {
        const next = prepared.shift() ?? fail();
        const text = Deno.readTextFileSync(next);
        await snapshotImage(image, subject.config, next);
        await Promise.all(flushes.splice(0));
        replaced.push({ inode: inode(subject.config), text });
      }
    }
    traceIo(null);
    await image.close();
    return {
      dir: dir.path,
      dirInode: inode(dir.path),
      first,
      files,
      trace: readTrace(trace).filter((op) => op.op !== "pread"),
      steps,
      before,
      replaced,
    };
  } finally {
    traceIo(null);
  }
}

/** How far the names have come: none, linked, renamed, linked, ... */
function namesAt(
  { trace, replaced, dirInode }: Recorded,
  until: number,
): { durable: number; now: number } {
  const inodes = new Set(replaced.map((it) => it.inode));
  let [durable, now] = [0, 0];
  for (const op of trace) {
    if (op.seq >= until) break;
    if (op.result < 0) continue;
    if ((op.op === "link" || op.op === "rename") && inodes.has(op.inode)) now++;
    else if (op.op === "sync" && op.inode === dirInode) durable = now;
  }
  return { durable, now };
}

/** Puts a state on disk; returns its configuration. */
function store(
  state: TempDir,
  { dir, files, first, replaced }: Recorded,
  images: ReadonlyMap<number, FileImage>,
  names: number,
): string {
  const moved = (text: string) =>
    text.replaceAll(`"${dir}/`, `"${state.path}/`);
  for (const [ino, image] of images) {
    storeImage(image, state.file(files.get(ino)?.name ?? fail()));
  }
  const lower = state.file("lower");
  if (!existsSync(lower)) Deno.copyFileSync(`${dir}/lower`, lower);
  const config = state.file("config.v1.json");
  const intent = `${config}.snap`;
  if (existsSync(intent)) Deno.removeSync(intent);
  const done = Math.floor(names / 2);
  const text = done === 0 ? first : replaced[done - 1]?.text ?? fail();
  Deno.writeTextFileSync(config, moved(text));
  if (names % 2 === 1) {
    Deno.writeTextFileSync(intent, moved(replaced[done]?.text ?? fail()));
  }
  return config;
}

async function check(
  config: string,
  candidates: readonly Uint8Array[],
  what: string,
  deep: boolean,
): Promise<void> {
  const open = async () => {
    try {
      await finishSnapshot(config);
      return await openImage(await readImageConfig(config));
    } catch (error) {
      fail(`${what}: does not open: ${error}`);
    }
  };
  const bytes = new Uint8Array(SIZE);
  let image = await open();
  ok(!existsSync(`${config}.snap`), what);
  try {
    readDeviceSync(image.device, bytes, 0);
    checkSectors(bytes, candidates, what);
    if (!deep) return;
    writeDevice(image.device, noise(77, 3 * SECTOR), 5 * SECTOR);
    bytes.set(noise(77, 3 * SECTOR), 5 * SECTOR);
    await image.close();
    image = await open();
    equal(image.stack.warnings.length, 0, `${what}: warned twice`);
    const again = new Uint8Array(SIZE);
    readDeviceSync(image.device, again, 0);
    equal(sha256(again), sha256(bytes), `${what}: written after`);
    const { lowers, upper } = image.config;
    using spec = readDisk(
      lowers.map(({ file }) => file),
      { data: upper?.data ?? "", index: upper?.index ?? "" },
    );
    equal(sha256(spec.read(0, SIZE)), sha256(bytes), `${what}: other reader`);
  } finally {
    await image.close();
  }
}

/** Disks that power loss may leave by sector. */
function powerCandidates({ steps, before }: Recorded, until: number) {
  const flushed = steps.findLastIndex((it) => it.flush && it.acked <= until);
  return [
    steps[flushed]?.after ?? before,
    ...steps.slice(flushed + 1).filter((it) => it.began < until)
      .map((it) => it.after),
  ];
}

/** Disks that death may leave: what was acknowledged, or is in flight. */
function deathCandidates({ steps, before }: Recorded, until: number) {
  const changes = steps.filter((it) => !it.flush);
  const acked = changes.filter((it) => it.acked <= until).at(-1);
  const flying = changes.find((it) => it.began < until && it.acked > until);
  const base = acked?.after ?? before;
  return flying === undefined ? [base] : [base, flying.after];
}

async function replay(recorded: Recorded, random: () => number) {
  using state = tempDir("memory");
  const initial = new Map(
    [...recorded.files].map(([ino, { image }]) => [ino, image]),
  );
  const points = new Set(
    recorded.trace.filter(({ op }) =>
      CHANGING.has(op) || ["sync", "link", "rename"].includes(op)
    ).map(({ seq }) => seq + 1),
  );
  for (const { acked } of recorded.steps) points.add(acked);
  points.add(0);
  points.delete(Infinity);
  const seen = { states: 0, pending: 0 };
  for (const until of [...points].toSorted((a, b) => a - b)) {
    const now = historiesAt(
      initial,
      recorded.trace,
      until,
      (ino) => recorded.files.get(ino)?.log === true ? "coupled" : "free",
    );
    const names = namesAt(recorded, until);
    const at = `after line ${until} (SEED=${seed})`;
    const dead = new Map([...now].map(([ino, it]) => [ino, deadImage(it)]));
    seen.pending += names.now % 2;
    await check(
      store(state, recorded, dead, names.now),
      deathCandidates(recorded, until),
      `killed ${at}`,
      true,
    );
    const power = powerCandidates(recorded, until);
    const build = (choose: (options: number) => number) => ({
      names: names.durable + choose(names.now - names.durable + 1),
      images: new Map(
        [...now].map(([ino, it]) => [ino, crashImage(it, choose)]),
      ),
    });
    for (const it of eachState(build, STATES, random)) {
      await check(
        store(state, recorded, it.images, it.names),
        power,
        `power lost ${at}, state ${seen.states}, names ${it.names}`,
        seen.states % 7 === 0,
      );
      seen.states++;
    }
  }
  return seen;
}

const RUNS: Record<string, { sparse: boolean; acts: Act[] }> = {
  "log to log": {
    sparse: false,
    acts: ["change", "flush", "change", "snapshot to log", "change", "flush"],
  },
  "sparse to sparse": {
    sparse: true,
    acts: ["change", "flush", "change", "snapshot to sparse", "change"],
  },
  "log to sparse to log": {
    sparse: false,
    acts: [
      "change",
      "change",
      "snapshot to sparse",
      "change",
      "snapshot to log",
      "change",
      "flush",
    ],
  },
};

for (const [name, { sparse, acts }] of Object.entries(RUNS)) {
  Deno.test(`a snapshot from ${name}, cut short anywhere: every state keeps its promises`, async () => {
    using dir = tempDir("memory");
    const random = generator(seed);
    const subject = await newSubject(dir, { size: SIZE, sparse });
    const recorded = await record(dir, subject, acts, random);
    const { states, pending } = await replay(recorded, random);
    console.log(`${states} states, SEED=${seed}`);
    ok(pending > 5, "an unfinished snapshot was seen");
    ok(states > 100);
  });
}

Deno.test("random runs with snapshots, cut short anywhere", async () => {
  const random = generator(seed);
  const runs = numberFromEnv("RUNS", 2);
  let total = 0;
  for (let run = 0; run < runs; run++) {
    using dir = tempDir("memory");
    const acts = Array.from(
      { length: 3 + Math.floor(random() * 5) },
      (): Act => {
        const dice = random();
        if (dice < 0.45) return "change";
        if (dice < 0.6) return "flush";
        return dice < 0.8 ? "snapshot to log" : "snapshot to sparse";
      },
    );
    const sparse = random() < 0.5;
    const subject = await newSubject(dir, { size: SIZE, sparse });
    try {
      const recorded = await record(dir, subject, acts, random);
      total += (await replay(recorded, random)).states;
    } catch (cause) {
      throw new Error(`run ${run}, ${sparse}, ${acts.join()}: ${cause}`, {
        cause,
      });
    }
  }
  console.log(`${runs} runs, ${total} states, SEED=${seed}`);
});

// ---- kill -9 --------------------------------------------------------

Deno.test("kill -9 amid snapshots under NBD writes loses nothing acknowledged", async () => {
  const { snapshotKillLoop } = await import("./kill_loop.ts");
  await snapshotKillLoop({ rounds: numberFromEnv("KILLS", 6), seed });
});
