// SPDX-License-Identifier: Apache-2.0
/**
 * A container's start from a registry that is 20 ms away over 100 Mbit/s: an
 * image of 1 GiB, 15 MB of it read in 120 files, one after the other.
 *
 * @module
 */
import { closeSync, openSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import { readDevice } from "../../ffi/device.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { openImage } from "../../src/image/image.ts";
import { createPace } from "../../src/image/pace.ts";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import { createSources } from "../../src/source/sources.ts";
import { makeDiskLayer, sampleBytes } from "./images.ts";
import { random, type Result } from "./measure.ts";

const MIB = 1 << 20;
const DISK = 1024 * MIB;
const FILES = 120;
const FILE = 125 * 1024;
const RTT_MS = 20;
const BYTES_PER_S = 100e6 / 8;
const PIECE = 16384;
const DIGEST = `sha256:${"0".repeat(64)}`;

/** A server of one file at the far end of a slow line. */
function serveFar(path: string) {
  const { size } = statSync(path);
  const fd = openSync(path, "r");
  const line = createPace();
  const never = new AbortController().signal;
  const sent = { bytes: 0, requests: 0 };
  const server = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen: () => {} },
    async ({ headers }) => {
      const [, a, b] = /(\d+)-(\d+)/.exec(headers.get("range") ?? "") ?? [];
      let at = Number(a);
      const end = Math.min(Number(b) + 1, size);
      const range = `bytes ${at}-${end - 1}/${size}`;
      sent.requests++;
      await new Promise((done) => setTimeout(done, RTT_MS));
      const body = new ReadableStream<Uint8Array>({
        async pull(into) {
          const bytes = new Uint8Array(Math.min(PIECE, end - at));
          readSync(fd, bytes, 0, bytes.length, at);
          await line.take(bytes.length, BYTES_PER_S, never);
          at += bytes.length;
          sent.bytes += bytes.length;
          into.enqueue(bytes);
          if (at === end) into.close();
        },
      }, { highWaterMark: 0 });
      return new Response(body, {
        status: 206,
        headers: {
          "content-range": range,
          "content-length": `${end - Number(a)}`,
        },
      });
    },
  );
  return {
    sent,
    size,
    url: `http://127.0.0.1:${server.addr.port}/v2/a/b/blobs`,
    async close() {
      await server.shutdown();
      closeSync(fd);
    },
  };
}

/** Opens the image and reads the files; ms to the last byte. */
async function start(
  url: string,
  cacheDir: string,
  trace: string,
): Promise<number> {
  const began = performance.now();
  const client = createRegistryClient();
  const sources = createSources({
    openBlob: client.openBlob,
    cacheDir,
    refillSize: 262144,
    log: console.error,
  });
  const config = parseImageConfig({
    ...{ repoBlobUrl: url, lowers: [{ digest: DIGEST }] },
    recordTracePath: trace,
  }, "bench");
  const image = await openImage(config, { sources, prefetchConcurrency: 16 });
  const next = random(7);
  const into = new Uint8Array(FILE);
  for (let file = 0; file < FILES; file++) {
    const at = next() % ((DISK - FILE) / 4096) * 4096;
    await readDevice(image.device, into, at);
  }
  const ms = performance.now() - began;
  await image.close();
  await sources.close();
  client.close();
  return ms;
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`;
}

/** Lazy, lazy with a trace, and warm, beside a pull of the whole layer. */
export async function benchCold(dir: string): Promise<Result[]> {
  const layer = await makeDiskLayer(dir, DISK, sampleBytes(4 * MIB, 9));
  const far = serveFar(layer);
  const trace = join(dir, "trace");
  Deno.writeTextFileSync(trace, "");
  const lazy = await start(far.url, join(dir, "lazy"), trace);
  far.sent.bytes = far.sent.requests = 0;
  const traced = await start(far.url, join(dir, "traced"), trace);
  const { bytes, requests } = { ...far.sent };
  const warm = await start(far.url, join(dir, "traced"), join(dir, "none"));
  await far.close();
  const pull = far.size / BYTES_PER_S * 1000;
  const least = bytes / BYTES_PER_S * 1000 + 4 * RTT_MS;
  const against = (what: string, ms: number, aim: number): Result => ({
    what: `cold start of 120 files, ${what}`,
    reference: `pull of ${Math.round(far.size / MIB)} MiB at the line's rate`,
    ratio: ms / pull,
    aim,
    most: true,
    ours: seconds(ms),
    theirs: seconds(pull),
  });
  return [
    against("lazy", lazy, 0.2),
    against("with its trace", traced, 0.05),
    against("warm", warm, 0.05),
    {
      what: `the same with its trace, ${requests} requests`,
      reference: `${(bytes / MIB).toFixed(1)} MiB at the line's rate, 4 RTT`,
      ratio: traced / least,
      aim: 1.5,
      most: true,
      ours: seconds(traced),
      theirs: seconds(least),
    },
  ];
}
