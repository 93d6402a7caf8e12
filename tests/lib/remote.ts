// SPDX-License-Identifier: Apache-2.0
/**
 * A layer behind a server of ranges.
 *
 * @module
 */
import type { Bytes } from "../../ffi/handle.ts";
import { mustTool, type TempDir } from "./env.ts";
import { newUpper, openDisk } from "./product.ts";
import { noise } from "./random.ts";

/** Bytes of the disk that `makeLayer()` commits. */
export const SIZE = 8 << 20;

/** Serves one file by range, as told; on a free port where none is named. */
export function serveBlob(path: string, port = 0) {
  const bytes = Deno.readFileSync(path);
  const state = {
    requests: 0,
    bytes: 0,
    status: 206,
    damage: 0,
    /** answers wait for it */
    hold: Promise.resolve(),
  };
  const server = Deno.serve(
    { port, hostname: "127.0.0.1", onListen: () => {} },
    async (request) => {
      state.requests++;
      await state.hold;
      if (state.status !== 206) {
        return new Response("no", { status: state.status });
      }
      const [, a, b] =
        /bytes=(\d+)-(\d+)/.exec(request.headers.get("range") ?? "") ?? [];
      const from = Number(a);
      const to = Math.min(Number(b), bytes.length - 1);
      const body = bytes.slice(from, to + 1);
      state.bytes += body.length;
      if (state.damage > 0 && body.length > 1) {
        state.damage--;
        body.fill(0xaa);
      }
      return new Response(body, {
        status: 206,
        headers: { "content-range": `bytes ${from}-${to}/${bytes.length}` },
      });
    },
  );
  return {
    state,
    url: `http://127.0.0.1:${server.addr.port}/v2/a/b/blobs`,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

/** A committed layer with pseudo-random data, and what its disk holds. */
export async function makeLayer(
  dir: TempDir,
  options: { zfile: boolean; tar: boolean },
): Promise<{ path: string; content: Bytes }> {
  const upper = await newUpper(dir.file("up"), { size: SIZE });
  const content = noise(1, SIZE);
  {
    await using disk = await openDisk({ lowers: [], upper });
    for (let at = 0; at < SIZE; at += 1 << 20) {
      disk.write(at, content.slice(at, at + (1 << 20)));
    }
  }
  const path = dir.file("layer");
  await mustTool("overlaybd-commit", [
    ...(options.zfile ? ["-z"] : []),
    ...(options.tar ? ["-t"] : []),
    upper.data,
    upper.index,
    path,
  ]);
  return { path, content };
}
