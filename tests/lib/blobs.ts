// SPDX-License-Identifier: Apache-2.0
/**
 * A registry's blobs as files behind ranged GETs, every request noted, and
 * layers to put there.
 *
 * @module
 */
import { readDevice } from "../../ffi/device.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import {
  type OpenImage,
  openImage,
  type OpenImageOptions,
} from "../../src/image/image.ts";
import type { ImageLog } from "../../src/image/log.ts";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import { createSources, type SourceSet } from "../../src/source/sources.ts";
import { mustTool, sha256File, type TempDir } from "./env.ts";
import { newUpper, openDisk } from "./product.ts";

/** One request for a part of a blob. */
export interface BlobRequest {
  /** `sha256:...` */
  digest: string;
  from: number;
  /** one past the last byte */
  to: number;
}

/** A server of blobs. */
export interface BlobServer extends AsyncDisposable {
  /** `repoBlobUrl` */
  readonly url: string;
  readonly requests: BlobRequest[];
  /** Adds a file; returns its digest, or the name that it is given. */
  add(path: string, name?: string): string;
  /** Called for each request; what it gives is the answer. */
  intercept:
    | ((request: BlobRequest) => Promise<Response | undefined>)
    | undefined;
}

/** Starts a server on a free port of the loopback interface. */
export function startBlobServer(): BlobServer {
  const blobs = new Map<string, Uint8Array<ArrayBuffer>>();
  const requests: BlobRequest[] = [];
  const stop = new AbortController();
  const http = Deno.serve(
    {
      port: 0,
      hostname: "127.0.0.1",
      onListen: () => {},
      signal: stop.signal,
    },
    async ({ url, headers }) => {
      const digest = url.slice(url.lastIndexOf("/") + 1);
      const bytes = blobs.get(digest);
      const [, a, b] = /bytes=(\d+)-(\d+)/.exec(headers.get("range") ?? "") ??
        [];
      const from = Number(a);
      const to = Math.min(Number(b) + 1, bytes?.length ?? 0);
      const request = { digest, from, to };
      requests.push(request);
      const other = await server.intercept?.(request);
      if (other !== undefined) return other;
      if (bytes === undefined) return new Response("no", { status: 404 });
      return new Response(bytes.slice(from, to), {
        status: 206,
        headers: {
          "content-range": `bytes ${from}-${to - 1}/${bytes.length}`,
        },
      });
    },
  );
  const server: BlobServer = {
    url: `http://127.0.0.1:${http.addr.port}/v2/a/b/blobs`,
    requests,
    add(path, name) {
      const digest = name ?? `sha256:${sha256File(path)}`;
      blobs.set(digest, Deno.readFileSync(path));
      return digest;
    },
    intercept: undefined,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await http.finished;
    },
  };
  return server;
}

/** Pseudo-random bytes, the same for the same seed. */
export function noise(seed: number, length: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(Math.ceil(length / 4));
  let x = (seed * 0x9e3779b9 + 1) >>> 0;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
  return new Uint8Array(words.buffer, 0, length);
}

/** Makes a committed layer of a disk that begins with `content`. */
export async function commitLayer(
  dir: TempDir,
  name: string,
  content: Uint8Array<ArrayBuffer>,
  options: readonly string[] = [],
  size = content.length,
): Promise<string> {
  const upper = await newUpper(dir.file(`${name}.up`), { size });
  const PIECE = 1 << 20;
  {
    await using disk = await openDisk({ lowers: [], upper });
    for (let at = 0; at < content.length; at += PIECE) {
      disk.write(at, content.slice(at, at + PIECE));
    }
  }
  const path = dir.file(`${name}.layer`);
  await mustTool("overlaybd-commit", [
    ...options,
    upper.data,
    upper.index,
    path,
  ]);
  Deno.removeSync(upper.data);
  Deno.removeSync(upper.index);
  return path;
}

/** Lines by level. */
export function logTo(lines: string[]): ImageLog {
  return {
    info: (text) => lines.push(text),
    warn: (text) => lines.push(`WARNING ${text}`),
    error: (text) => lines.push(`ERROR ${text}`),
  };
}

/** Sources over a cache directory, and images from them. */
export interface Host extends AsyncDisposable {
  readonly sources: SourceSet;
  /** what the sources say */
  readonly lines: string[];
  open(
    config: Record<string, unknown>,
    options?: OpenImageOptions,
  ): Promise<OpenImage>;
}

/** A host that has nothing but a cache. */
export function openHost(
  url: string,
  cacheDir: string,
  refillSize = 65536,
  cacheType = "file",
): Host {
  const client = createRegistryClient();
  const lines: string[] = [];
  const sources = createSources({
    openBlob: client.openBlob,
    cacheType,
    cacheDir,
    refillSize,
    log: (line) => lines.push(line),
  });
  return {
    sources,
    lines,
    open: (config, options) =>
      openImage(
        parseImageConfig({ repoBlobUrl: url, ...config }, "test"),
        { sources, deadlineMs: 20_000, ...options },
      ),
    async [Symbol.asyncDispose]() {
      await sources.close();
      client.close();
    },
  };
}

/** Reads a range of an open image. */
export async function readImage(
  image: OpenImage,
  at: number,
  length: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const into = new Uint8Array(length);
  await readDevice(image.device, into, at);
  return into;
}

/** Waits until something holds; fails after 20 s. */
export async function until(
  holds: () => boolean,
  what: string,
): Promise<void> {
  for (let i = 0; i < 4000; i++) {
    if (holds()) return;
    await new Promise((done) => setTimeout(done, 5));
  }
  throw new Error(`still not: ${what}`);
}
