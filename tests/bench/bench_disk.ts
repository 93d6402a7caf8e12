// SPDX-License-Identifier: Apache-2.0
/**
 * 4 KiB random reads of a disk past the page cache, over NBD: `ioEngine` 1 by
 * io_uring, against the same by threads, and what the disk itself gives.
 *
 * @module
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeDiskLayer, sampleBytes } from "./images.ts";
import { median, type Result } from "./measure.ts";
import { load, type Server, start } from "./bench_serve.ts";

const MIB = 1 << 20;
const DISK = 512 * MIB;
const ROUNDS = 5;
const NO_URING = new URL("../lib/no_uring.ts", import.meta.url).pathname;

type Run = ReturnType<typeof load>;

async function serve(
  dir: string,
  name: string,
  layer: string,
  under: readonly string[],
): Promise<Server> {
  const config = join(dir, `${name}.json`);
  const service = join(dir, "overlaybd.json");
  const socket = join(dir, `${name}.sock`);
  writeFileSync(config, JSON.stringify({ lowers: [{ file: layer }] }));
  writeFileSync(service, JSON.stringify({ ioEngine: 1 }));
  const line = [
    ...under,
    Deno.env.get("OVERLAYBD_BIN") ?? "build/overlaybd",
    ...["serve", "--nbd", socket, "--service_config_path", service],
    `${config};${name}`,
  ];
  return await start(line[0] ?? "", line.slice(1), socket, name);
}

/** Reads a second that the disk gives to fio. */
function fio(path: string, depth: number): number {
  const { stdout } = spawnSync("fio", [
    ...["--name=x", "--ioengine=io_uring", "--direct=1", "--rw=randread"],
    ...["--bs=4k", `--iodepth=${depth}`, "--runtime=2", "--time_based"],
    ...["--norandommap", "--output-format=json", `--filename=${path}`],
  ], { encoding: "utf8" });
  return JSON.parse(stdout.slice(stdout.indexOf("{"))).jobs[0].read.iops;
}

const thousands = (iops: readonly number[]) =>
  `${(median(iops) / 1000).toFixed(1)} k/s`;
const micros = (runs: readonly Run[]) =>
  `${(median(runs.map(({ cpu }) => cpu)) * 1e6).toFixed(1)} us`;

async function compare(
  dir: string,
  kind: string,
  depth: number,
  layer: string,
): Promise<Result[]> {
  const ours = await serve(dir, `uring${depth}`, layer, []);
  const theirs = await serve(dir, `threads${depth}`, layer, [
    ...[Deno.execPath(), "run", "-A", "-q", NO_URING],
  ]);
  const a: Run[] = [];
  const b: Run[] = [];
  const disk: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    a.push(load(ours, depth));
    b.push(load(theirs, depth));
    if (depth > 1) disk.push(fio(layer, depth));
  }
  await ours.stop();
  await theirs.stop();
  const ratio = (of: (run: Run, i: number) => number) => median(a.map(of));
  const what = `4 KiB random read past the page cache, QD ${depth}, ${kind}`;
  const iops = a.map((run) => run.iops);
  const results: Result[] = [{
    what: `${what}, by io_uring`,
    reference: "by threads",
    ratio: ratio((run, i) => run.iops / (b[i]?.iops ?? NaN)),
    aim: 1,
    ours: thousands(iops),
    theirs: thousands(b.map((run) => run.iops)),
  }, {
    what: `${what}, CPU of the server a request`,
    reference: "by threads",
    ratio: ratio((run, i) => run.cpu / (b[i]?.cpu ?? NaN)),
    aim: 0.7,
    most: true,
    ours: micros(a),
    theirs: micros(b),
  }];
  // One at a time, NBD's own way there and back would be compared.
  if (depth > 1) {
    results.push({
      what,
      reference: "fio's io_uring on the layer's file, without NBD",
      ratio: ratio((run, i) => run.iops / (disk[i] ?? NaN)),
      aim: 0.7,
      ours: thousands(iops),
      theirs: thousands(disk),
    });
  }
  return results;
}

/** Plain and lz4, one read at a time and 32. */
export async function benchDisk(): Promise<Result[]> {
  // Not in memory, as the other groups: it is about a disk.
  const dir = mkdtempSync(join(tmpdir(), "obd-bench-"));
  try {
    const results: Result[] = [];
    for (const kind of ["plain", "lz4"]) {
      const sample = sampleBytes(4 * MIB, 9);
      const layer = await makeDiskLayer(dir, DISK, sample, kind === "plain");
      for (const depth of [1, 32]) {
        results.push(...await compare(dir, kind, depth, layer));
      }
      Deno.removeSync(layer);
    }
    return results;
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}
