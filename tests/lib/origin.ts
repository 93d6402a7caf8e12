// SPDX-License-Identifier: Apache-2.0
/**
 * A registry's blob in memory that does as it is told, and a disk that shows
 * a cached blob as it is, byte for byte.
 *
 * @module
 */
import { closeDevice, newDevice, readDevice } from "../../ffi/device.ts";
import type { Bytes } from "../../ffi/handle.ts";
import { newIndex } from "../../ffi/index.ts";
import { newView } from "../../ffi/view.ts";
import type { CachedBlob } from "../../src/source/cache/blob.ts";
import {
  type Blob,
  type RangeBody,
  readInto,
  SourceError,
} from "../../src/source/source.ts";
import {
  createSources,
  type SourceSet,
  type SourceSetOptions,
} from "../../src/source/sources.ts";

const SECTOR = 512;

/** What a blob's origin does, to be changed at any time. */
export interface Origin {
  content: Bytes;
  /** every range that was asked for */
  requests: { at: number; length: number }[];
  /** bytes that were delivered */
  delivered: number;
  /** ms before an answer */
  delay: number;
  /** how many requests fail from now on */
  failures: number;
  /** after how many bytes an answer ends in an error; undefined: never */
  cut: number | undefined;
  /** bytes that come at once, at most */
  chunk: number;
  /** how many requests bring wrong bytes from now on */
  damage: number;
  /** called before an answer */
  before: (at: number) => Promise<void>;
  openBlob(url: string): Blob;
}

/** Makes an origin for every URL alike. */
export function makeOrigin(content: Bytes): Origin {
  const origin: Origin = {
    content,
    requests: [],
    delivered: 0,
    delay: 0,
    failures: 0,
    cut: undefined,
    chunk: 100_000,
    damage: 0,
    before: () => Promise.resolve(),
    openBlob: (url) => blobOf(origin, url),
  };
  return origin;
}

function aborted(signal: AbortSignal | undefined): Promise<never> {
  return new Promise((_, reject) => {
    const end = () => reject(new SourceError("EIO", "cannot read: aborted"));
    if (signal?.aborted === true) end();
    else signal?.addEventListener("abort", end, { once: true });
  });
}

function blobOf(origin: Origin, name: string): Blob {
  const range = async (
    at: number,
    length: number,
    signal?: AbortSignal,
  ): Promise<RangeBody> => {
    origin.requests.push({ at, length });
    const over = aborted(signal);
    over.catch(() => {});
    await Promise.race([origin.before(at), over]);
    if (origin.delay > 0) {
      await Promise.race([
        new Promise((done) => setTimeout(done, origin.delay)),
        over,
      ]);
    }
    if (origin.failures > 0) {
      origin.failures--;
      throw new SourceError("EIO", `cannot read ${name}: told to fail`, {
        retryable: true,
      });
    }
    const { content, cut } = origin;
    const bytes = content.slice(at, at + length);
    if (origin.damage > 0) {
      origin.damage--;
      bytes.fill(0xaa);
    }
    let done = 0;
    const body: RangeBody = {
      total: content.length,
      length: bytes.length,
      async next(max) {
        await Promise.race([Promise.resolve(), over]);
        const n = Math.min(
          max,
          origin.chunk,
          Math.min(bytes.length, cut ?? Infinity) - done,
        );
        if (n === 0 && done < bytes.length) {
          throw new SourceError("EIO", `cannot read ${name}: cut`);
        }
        done += n;
        origin.delivered += n;
        return bytes.subarray(done - n, done);
      },
      read: (into) => readInto(body, into),
      cancel() {},
    };
    return body;
  };
  return {
    name,
    range,
    size: async (signal) => (await range(0, 1, signal)).total,
  };
}

/** A set of sources over one origin. */
export function sourcesOf(
  origin: Origin,
  cacheDir: string,
  options: Partial<SourceSetOptions> = {},
): SourceSet {
  return createSources({
    openBlob: origin.openBlob,
    cacheDir,
    refillSize: 65536,
    log: () => {},
    ...options,
  });
}

/** A blob's whole sectors as a disk; waits for what is not here. */
export interface BlobDisk extends Disposable {
  /** bytes, a multiple of 512 */
  readonly size: number;
  /** @param memory to be used, if it is large enough */
  read(at: number, n: number, memory?: Bytes): Promise<Bytes>;
  /** Ends what waits, as a detach does. */
  close(): void;
}

/** Shows a blob; closes it with the disk. */
export function diskOf(blob: CachedBlob, deadlineMs = 30_000): BlobDisk {
  const sectors = Math.floor(blob.size / SECTOR);
  const MAX = 16383;
  const records = new BigUint64Array(2 * Math.ceil(sectors / MAX));
  for (let i = 0; i * MAX < sectors; i++) {
    const lba = BigInt(i * MAX);
    const n = BigInt(Math.min(MAX, sectors - i * MAX));
    records[2 * i] = lba | n << 50n;
    records[2 * i + 1] = lba;
  }
  using index = newIndex(new Uint8Array(records.buffer));
  const size = sectors * SECTOR;
  using view = newView(index, [blob.source], size);
  const device = newDevice(view, undefined, size, {
    readonly: true,
    deadlineMs,
  });
  const ESHUTDOWN = 108;
  let closed = false;
  const close = () => {
    if (closed) return;
    closed = true;
    closeDevice(device, ESHUTDOWN);
    device.close();
    blob.close();
  };
  return {
    size,
    async read(at, n, memory) {
      const from = at - at % SECTOR;
      const to = Math.min(size, Math.ceil((at + n) / SECTOR) * SECTOR);
      const into = memory?.subarray(0, to - from) ?? new Uint8Array(to - from);
      await readDevice(device, into, from);
      return into.subarray(at - from, at - from + n);
    },
    close,
    [Symbol.dispose]: close,
  };
}
