// SPDX-License-Identifier: Apache-2.0
/**
 * 4 KiB random reads over NBD against nbdkit, and an idle server's memory.
 *
 * @module
 */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { makeFlat, makeLayers } from "./images.ts";
import { median, type Result } from "./measure.ts";

const LOAD = new URL("../../build/nbd_load", import.meta.url).pathname;
const ROUNDS = 5;
const SECONDS = 1.5;
const TICKS_PER_SECOND = 100;
const PAGE_KIB = 1024;

/** A server of one export. */
export interface Server {
  pid: number;
  socket: string;
  name: string;
  stop(): Promise<void>;
}

/** CPU of a process so far, in seconds. */
function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/** Starts a server, and waits for its socket. */
export async function start(
  command: string,
  args: readonly string[],
  socket: string,
  name: string,
): Promise<Server> {
  const child = spawn(command, args, {
    stdio: ["ignore", "ignore", "inherit"],
  });
  for (let i = 0; i < 200 && !existsSync(socket); i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return {
    pid: child.pid ?? 0,
    socket,
    name,
    stop: async () => {
      child.kill();
      await once(child, "exit");
    },
  };
}

/** One run: requests a second, and CPU seconds a request. */
export function load(
  server: Server,
  depth = 32,
): { iops: number; cpu: number } {
  const before = cpuSeconds(server.pid);
  const { status, stdout, stderr } = spawnSync(LOAD, [
    server.socket,
    server.name,
    String(SECONDS),
    String(depth),
  ], { encoding: "utf8" });
  if (status !== 0) throw new Error(`nbd_load ${server.name}: ${stderr}`);
  const { requests, seconds } = JSON.parse(stdout);
  const cpu = cpuSeconds(server.pid) - before;
  return { iops: requests / seconds, cpu: cpu / requests };
}

async function compare(
  what: string,
  aim: number,
  ours: Server,
  theirs: Server,
): Promise<Result[]> {
  load(ours);
  load(theirs);
  const a: ReturnType<typeof load>[] = [];
  const b: typeof a = [];
  for (let round = 0; round < ROUNDS; round++) {
    a.push(load(ours));
    b.push(load(theirs));
  }
  await ours.stop();
  const reference = "nbdkit file plugin on the flat image, same client";
  const ratio = (of: "iops" | "cpu") =>
    median(a.map((run, i) => run[of] / (b[i]?.[of] ?? NaN)));
  const iops = (runs: typeof a) =>
    `${(median(runs.map((run) => run.iops)) / 1000).toFixed(0)} k/s`;
  const cpu = (runs: typeof a) =>
    `${(median(runs.map((run) => run.cpu)) * 1e6).toFixed(1)} us`;
  return [{
    what: `4 KiB random read over NBD, QD 32, ${what}`,
    reference,
    ratio: ratio("iops"),
    aim,
    ours: iops(a),
    theirs: iops(b),
  }, {
    what: `CPU of the server a request, ${what}`,
    reference,
    ratio: ratio("cpu"),
    aim: 0.6,
    most: true,
    ours: cpu(a),
    theirs: cpu(b),
  }];
}

function rssAnonMib(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return Number(/RssAnon:\s+(\d+) kB/.exec(status)?.[1]) / PAGE_KIB;
}

/** Serves layers with build/overlaybd; waits until it is idle. */
async function serve(
  dir: string,
  name: string,
  layers: readonly string[],
): Promise<Server> {
  const exe = Deno.env.get("OVERLAYBD_BIN") ?? "build/overlaybd";
  const config = join(dir, `${name}.json`);
  const socket = join(dir, `${name}.sock`);
  writeFileSync(
    config,
    JSON.stringify({ lowers: layers.map((file) => ({ file })) }),
  );
  return await start(
    exe,
    ["serve", "--nbd", socket, `${config};${name}`],
    socket,
    name,
  );
}

/** Plain and lz4 layers against nbdkit, and memory. */
export async function benchServe(dir: string): Promise<Result[]> {
  const plain = await makeLayers(dir, "p", undefined);
  const lz4 = await makeLayers(dir, "z", {
    algorithm: "lz4",
    blockSize: 4096,
  });
  const flat = join(dir, "flat.img");
  await makeFlat(flat, plain);
  const socket = join(dir, "nbdkit.sock");
  const nbdkit = await start(
    "nbdkit",
    ["-f", "-U", socket, "file", flat],
    socket,
    "",
  );
  const idle = await serve(dir, "idle", plain);
  await new Promise((resolve) => setTimeout(resolve, 3000));
  const memory = rssAnonMib(idle.pid);
  await idle.stop();
  const results = [
    ...await compare("plain", 1, await serve(dir, "plain", plain), nbdkit),
    ...await compare("lz4", 0.95, await serve(dir, "lz4", lz4), nbdkit),
  ];
  await nbdkit.stop();
  results.push({
    what: "memory of an idle server (RssAnon)",
    reference: "24 MiB",
    ratio: memory / 24,
    aim: 1,
    most: true,
    ours: `${memory.toFixed(1)} MiB`,
    theirs: "24 MiB",
  });
  return results;
}
