// SPDX-License-Identifier: Apache-2.0
/**
 * What an idle server holds in memory: a little for itself, 64 KiB a device,
 * 40 bytes a segment, 3 bytes a ZFile block.
 */
import { ok } from "node:assert/strict";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { flushDevice, writeDevice } from "../../ffi/device.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { openImage } from "../../src/image/image.ts";
import { commitLayer } from "../../src/layer/commit.ts";
import { createUpper } from "../../src/layer/create.ts";
import { type TempDir, tempDir } from "../lib/env.ts";
import { startServer } from "../lib/server.ts";

const MIB = 1 << 20;
const SERVER_BYTES = 24 * MIB;
const DEVICE_BYTES = 64 << 10;
const SEGMENT_BYTES = 40;
const BLOCK_BYTES = 3;

function config(dir: TempDir, name: string, layer: string): string {
  const path = dir.file(`${name}.json`);
  writeFileSync(path, JSON.stringify({ lowers: [{ file: layer }] }));
  return path;
}

/** Anonymous memory of a server that has nothing to do any more. */
async function idleBytes(
  dir: TempDir,
  configs: readonly string[],
): Promise<number> {
  await using server = await startServer(dir.file("socket"), configs);
  await new Promise((done) => setTimeout(done, 2000));
  const status = readFileSync(`/proc/${server.pid}/status`, "utf8");
  return Number(/RssAnon:\s+(\d+) kB/.exec(status)?.[1]) * 1024;
}

/** Commits a layer of `segments` segments that nothing can join. */
async function segmentsLayer(dir: TempDir, segments: number): Promise<string> {
  const [data, index, output] = ["d", "i", "segments"].map(dir.file);
  if (!data || !index || !output) throw new Error("no names");
  const virtualSize = BigInt(segments * 1024);
  await createUpper({ data, index, virtualSize, kind: "log" });
  const image = await openImage(
    parseImageConfig({ lowers: [], upper: { data, index } }, "segments"),
  );
  const sector = new Uint8Array(512).fill(1);
  for (let i = 0; i < segments; i++) {
    writeDevice(image.device, sector, i * 1024);
  }
  await flushDevice(image.device);
  await image.close();
  await commitLayer({ data, index, output });
  return output;
}

/** Commits a layer of `bytes` bytes of one value as 4 KiB ZFile blocks. */
async function blocksLayer(dir: TempDir, bytes: number): Promise<string> {
  const [data, index, output] = ["zd", "zi", "blocks"].map(dir.file);
  if (!data || !index || !output) throw new Error("no names");
  await createUpper({
    data,
    index,
    virtualSize: BigInt(bytes),
    kind: "log",
  });
  const image = await openImage(
    parseImageConfig({ lowers: [], upper: { data, index } }, "blocks"),
  );
  const chunk = new Uint8Array(MIB).fill(7);
  for (let at = 0; at < bytes; at += MIB) writeDevice(image.device, chunk, at);
  await flushDevice(image.device);
  await image.close();
  await commitLayer({
    data,
    index,
    output,
    zfile: { algorithm: "lz4", blockSize: 4096 },
  });
  truncateSync(data, 0);
  return output;
}

function report(what: string, used: number, bound: number): void {
  console.log(`${what}: ${used.toFixed(1)} bytes of ${bound}`);
  ok(used <= bound, `${what}: ${used} bytes, more than ${bound}`);
}

Deno.test("an idle server stays within its memory", async () => {
  using dir = tempDir("memory");
  const segments = 500_000;
  const blocks = 1 << 18;
  const small = config(dir, "small", await segmentsLayer(dir, 8));
  const one = await idleBytes(dir, [small]);
  report("a server of one device", one, SERVER_BYTES);

  // What a heap grows by once it is used is not a device's: few against many.
  const withDevices = async (count: number) =>
    await idleBytes(
      dir,
      Array.from({ length: count }, (_, i) => `${small};device-${i}`),
    );
  const few = 64;
  const many = 512;
  const grown = await withDevices(many) - await withDevices(few);
  report("a device", grown / (many - few), DEVICE_BYTES);

  using other = tempDir("memory");
  const full = config(other, "full", await segmentsLayer(other, segments));
  const indexed = await idleBytes(other, [full]);
  report("a segment", (indexed - one) / segments, SEGMENT_BYTES);

  const zfile = config(other, "zfile", await blocksLayer(other, blocks * 4096));
  const mapped = await idleBytes(other, [zfile]);
  report(
    "a server of a ZFile",
    mapped,
    SERVER_BYTES + DEVICE_BYTES + blocks * BLOCK_BYTES,
  );
});
