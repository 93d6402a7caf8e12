// SPDX-License-Identifier: Apache-2.0
/**
 * Remote layers while everything goes wrong: a network that misbehaves at
 * random, and SIGKILL again and again.
 *
 * @module
 */
import assert from "node:assert/strict";
import { readDevice } from "../../ffi/device.ts";
import { closeFd, O, openFd } from "../../ffi/files.ts";
import type { Bytes } from "../../ffi/handle.ts";
import { EngineError } from "../../ffi/errors.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { openImage } from "../../src/image/image.ts";
import { createDisk } from "../../src/source/cache/disk.ts";
import { presentUnits } from "../../src/source/cache/file.ts";
import { hasBit } from "../../src/source/cache/units.ts";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import { createSources } from "../../src/source/sources.ts";
import { sha256, tempDir } from "../lib/env.ts";
import {
  answerRange,
  answerStatus,
  type Asked,
  startFake,
} from "../lib/fake_registry.ts";
import { connectNbd } from "../lib/nbd.ts";
import { generator } from "../lib/random.ts";
import { makeLayer, SIZE } from "../lib/remote.ts";
import { startServer } from "../lib/server.ts";

const ATTEMPT_MS = 2000;

/** One misbehaviour after another, each as a real network has it. */
function misbehave(
  asked: Asked,
  blob: Bytes,
  damages: boolean,
  dice: number,
): void {
  const { response, range } = asked;
  const [from = 0, to = 0] = range ?? [];
  const last = Math.min(to, blob.length - 1);
  const head = (length = last - from + 1) =>
    response.writeHead(206, {
      "content-length": length,
      "content-range": `bytes ${from}-${last}/${blob.length}`,
    });
  const kinds: (() => void)[] = [
    () => answerStatus(asked, 500),
    () => answerStatus(asked, 503, { "retry-after": "0" }),
    () => answerStatus(asked, 429),
    // Nothing, until the other side has had enough.
    () => {},
    () => response.socket?.destroy(),
    () => {
      head();
      response.write(blob.subarray(from, from + ((last - from) >> 1)));
      setTimeout(() => response.socket?.destroy(), 5);
    },
    () => {
      head();
      response.write(blob.subarray(from, from + 1));
    },
    () => {
      head();
      const step = Math.max(1, (last - from) >> 2);
      let at = from;
      const more = () => {
        const end = Math.min(last + 1, at + step);
        response.write(blob.subarray(at, end));
        at = end;
        if (at > last) response.end();
        else setTimeout(more, 20);
      };
      more();
    },
    () => {
      head();
      response.end(blob.slice(from, last + 1).fill(0xaa));
    },
  ];
  if (!damages) kinds.pop();
  kinds[Math.floor(dice * kinds.length)]?.();
}

/**
 * Reads a remote layer in many places at once while the network misbehaves.
 *
 * @param options `zfile`: with checksums, so that bytes may be damaged, too;
 *   without them every mistake of ours would be seen
 * @returns how much was done, for who wants to print it
 */
export async function networkLoop(
  { ms, seed, zfile }: { ms: number; seed: number; zfile: boolean },
): Promise<{ reads: number; refused: number; requests: number }> {
  using dir = tempDir();
  const { path, content } = await makeLayer(dir, { zfile, tar: zfile });
  const blob = Deno.readFileSync(path);
  const random = generator(seed);
  const start = performance.now();
  let calm = true;
  let longest = 0;
  await using server = await startFake((asked) => {
    const began = performance.now();
    asked.response.on("close", () => {
      longest = Math.max(longest, performance.now() - began);
    });
    // A second of every five it is down, a second it is well.
    const phase = Math.floor((performance.now() - start) / 1000) % 5;
    if (calm || phase === 0) answerRange(asked, blob);
    else if (phase === 1 || random() < 0.4) {
      misbehave(asked, blob, zfile, random());
    } else answerRange(asked, blob);
  });
  using client = createRegistryClient({ attemptMs: ATTEMPT_MS });
  await using sources = createSources({
    openBlob: client.openBlob,
    cacheDir: dir.file("cache"),
    refillSize: 16384,
    // It evicts all the time, too.
    cacheSize: blob.length / 2,
    diskFloor: 0,
    log: () => {},
  });
  const config = parseImageConfig({
    repoBlobUrl: `${server.origin}/v2/a/b/blobs`,
    lowers: [{ digest: `sha256:${sha256(blob)}` }],
  }, "test");
  await using image = await openImage(config, { sources });
  calm = false;
  const read = async (at: number, n: number) => {
    const into = new Uint8Array(n);
    await readDevice(image.device, into, at);
    return into;
  };
  const counts = { reads: 0, refused: 0, requests: 0 };
  const rss: number[] = [];
  const reader = async (own: () => number) => {
    while (performance.now() - start < ms) {
      const n = 4096 * (1 + Math.floor(own() * 64));
      const at = 4096 * Math.floor(own() * ((SIZE - n) / 4096));
      try {
        const got = await read(at, n);
        const same = got.every((byte, i) => byte === content[at + i]);
        assert(same, `wrong bytes in ${at}+${n}, SEED=${seed}`);
        counts.reads++;
      } catch (error) {
        // Damaged or wrong three times in a row: an error, never bytes.
        if (!(error instanceof EngineError)) throw error;
        counts.refused++;
      }
      rss.push(Deno.memoryUsage().rss);
    }
  };
  await Promise.all(
    Array.from({ length: 8 }, (_, i) => reader(generator(seed + 1 + i))),
  );
  calm = true;
  for (let at = 0; at < SIZE; at += 1 << 20) {
    // A unit may have come damaged thrice before it was calm: an error once.
    const got = await read(at, 1 << 20).catch(() => read(at, 1 << 20));
    assert.deepEqual(got, content.subarray(at, at + (1 << 20)));
  }
  counts.requests = server.asked.length;
  assert(
    longest < ATTEMPT_MS + 1500,
    `a request was held for ${Math.round(longest)} ms`,
  );
  const early = Math.max(...rss.slice(0, Math.ceil(rss.length / 4)));
  const late = Math.max(...rss);
  const GROWTH_MAX = 192 << 20;
  assert(late - early < GROWTH_MAX, `memory grew by ${late - early}`);
  return counts;
}

/** The whole units of a cache file, all of which must be the blob's. */
async function flushedUnits(
  path: string,
  blob: Bytes,
  unit: number,
): Promise<Set<number>> {
  const units = new Set<number>();
  let info: Deno.FileInfo;
  try {
    info = Deno.statSync(path);
  } catch {
    return units;
  }
  if (info.size === 0) return units;
  const bytes = Deno.readFileSync(path);
  const fd = openFd(path, O.RDONLY);
  try {
    const bits = await presentUnits(createDisk(), fd, path, blob.length, unit);
    for (let i = 0; i * unit < blob.length; i++) {
      if (!hasBit(bits, i)) continue;
      const [from, to] = [i * unit, Math.min(blob.length, (i + 1) * unit)];
      const same = bytes.subarray(from, to).every((byte, k) =>
        byte === blob[from + k]
      );
      assert(same, `unit ${i} of the cache has wrong bytes`);
      units.add(i);
    }
  } finally {
    closeFd(fd);
  }
  return units;
}

/**
 * Kills a service that fills its cache, or evicts from it, again and again:
 * every byte that is served is right, and nothing that was written is
 * fetched again.
 */
export async function cacheKillLoop(
  { rounds, seed }: { rounds: number; seed: number },
): Promise<void> {
  const UNIT = 16384;
  using dir = tempDir();
  // Without checksums every mistake would be seen.
  const { path, content } = await makeLayer(dir, { zfile: false, tar: false });
  const blob = Deno.readFileSync(path);
  const random = generator(seed);
  const name = `sha256:${sha256(blob)}`;
  const asked: [number, number][] = [];
  await using registry = await startFake((one) => {
    if (one.range !== undefined) asked.push(one.range);
    answerRange(one, blob);
  });
  const config = dir.file("config.v1.json");
  Deno.writeTextFileSync(
    config,
    JSON.stringify({
      repoBlobUrl: `${registry.origin}/v2/a/b/blobs`,
      lowers: [{ digest: name }],
    }),
  );
  const cache = dir.file("cache");
  const service = dir.file("overlaybd.json");
  for (let round = 0; round < rounds; round++) {
    // One in three evicts whatever it has, as fast as it comes.
    const evicts = round % 3 === 2;
    if (round % 4 === 0) {
      for (const path of [cache, `${cache}.state`]) {
        try {
          Deno.removeSync(path, { recursive: true });
        } catch {
          // Not there yet.
        }
      }
    }
    Deno.writeTextFileSync(
      service,
      JSON.stringify({
        cacheConfig: {
          cacheType: "file",
          cacheDir: cache,
          cacheSizeGB: evicts ? 0 : 4,
          refillSize: UNIT,
        },
        logPath: "",
        enableAudit: false,
      }),
    );
    const before = await flushedUnits(`${cache}/${name}`, blob, UNIT);
    asked.length = 0;
    const server = await startServer(dir.file("nbd"), [config], {
      args: ["--service_config_path", service],
    });
    const client = await connectNbd(dir.file("nbd"), "");
    const until = performance.now() + 50 + random() * 250;
    const readers = Array.from({ length: 4 }, async () => {
      while (performance.now() < until + 1000) {
        const n = 4096 * (1 + Math.floor(random() * 16));
        const at = 4096 * Math.floor(random() * ((SIZE - n) / 4096));
        let got: Uint8Array;
        try {
          got = await client.read(at, n);
        } catch {
          return; // killed
        }
        const same = got.every((byte, i) => byte === content[at + i]);
        assert(same, `round ${round}: wrong bytes in ${at}+${n}`);
      }
    });
    await new Promise((done) => setTimeout(done, until - performance.now()));
    await server.stop("SIGKILL");
    client.close();
    await Promise.all(readers);
    if (!evicts) {
      for (const [from, to] of asked) {
        // A byte for the size, where nobody could know it.
        if (to === from) continue;
        for (let i = Math.floor(from / UNIT); i * UNIT <= to; i++) {
          assert(
            i * UNIT >= blob.length || !before.has(i),
            `round ${round}: unit ${i} was fetched again`,
          );
        }
      }
    }
    await flushedUnits(`${cache}/${name}`, blob, UNIT);
  }
}
