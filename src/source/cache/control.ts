// SPDX-License-Identifier: Apache-2.0
/**
 * How a command asks the process that holds the cache: a socket in the state
 * directory, which is its owner's alone.  One request a connection: a line
 * of JSON, answered by lines `{progress}` and one `{result}` or `{error}`,
 * for a read by the bytes behind it.
 *
 * @module
 */
import * as z from "zod/mini";
import type { Progress } from "../../../ffi/pipelines.ts";
import { type createLender, readRequest } from "./lend.ts";
import type { Disk } from "./disk.ts";
import type { CacheManager } from "./manage.ts";

const names = z.array(z.string());

const requestSchema = z.discriminatedUnion("op", [
  z.object({ op: z.literal("list") }),
  z.object({ op: z.literal("stat") }),
  z.object({ op: z.literal("verify"), names }),
  z.object({ op: z.literal("prune"), names, target: z.optional(z.number()) }),
  z.object({ op: z.literal("pin"), names, on: z.boolean() }),
  z.object({
    op: z.literal("pull"),
    blobs: z.array(
      z.object({ url: z.string(), dir: z.string(), size: z.number() }),
    ),
  }),
  readRequest,
]);

type Request = Exclude<z.infer<typeof requestSchema>, { op: "read" }>;

/** What answers. */
interface Holder {
  manager: CacheManager;
  lender: ReturnType<typeof createLender>;
}

/** Longer requests are refused. */
const REQUEST_MAX = 1 << 20;

/** The socket of a cache's holder. */
export function controlPath(stateDir: string): string {
  return `${stateDir}/socket`;
}

function why(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The lines of a stream, each without its end. */
async function* linesOf(
  stream: ReadableStream<Uint8Array>,
  max: number,
): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of stream) {
    text += decoder.decode(chunk, { stream: true });
    if (text.length > max) throw new Error("the message is too long");
    const lines = text.split("\n");
    text = lines.pop() ?? "";
    yield* lines;
  }
}

async function answer(
  manager: CacheManager,
  request: Request,
  onProgress: (progress: Progress) => void,
): Promise<unknown> {
  switch (request.op) {
    case "list":
      return await manager.list();
    case "stat":
      return await manager.stat();
    case "verify":
      return await manager.verify(request.names);
    case "prune":
      return await manager.prune(request.names, request.target);
    case "pin":
      return await manager.pin(request.names, request.on);
    case "pull":
      return await manager.pull(request.blobs, onProgress);
  }
}

async function serveOne(
  connection: Deno.UnixConn,
  { manager, lender }: Holder,
): Promise<void> {
  const writer = connection.writable.getWriter();
  const encoder = new TextEncoder();
  const send = (message: unknown) =>
    writer.write(encoder.encode(`${JSON.stringify(message)}\n`));
  try {
    for await (const line of linesOf(connection.readable, REQUEST_MAX)) {
      try {
        const request = z.parse(requestSchema, JSON.parse(line));
        if (request.op === "read") {
          await lender.lend(request, (bytes) => writer.write(bytes));
          break;
        }
        const result = await answer(manager, request, (progress) => {
          send({ progress }).catch(() => {});
        });
        await send({ result });
      } catch (error) {
        await send({ error: why(error) });
      }
      break;
    }
  } catch {
    // The other side has left.
  } finally {
    await writer.close().catch(() => {});
  }
}

/**
 * Answers commands until it is closed.  Only who holds the directory may
 * call it: a socket of that name is one that was left behind.
 */
export async function serveControl(
  disk: Disk,
  path: string,
  holder: Holder,
): Promise<{ close(): Promise<void> }> {
  await disk.remove(path).catch((error) => {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  });
  const listener = Deno.listen({ transport: "unix", path });
  listener.unref();
  const accept = async () => {
    for await (const connection of listener) {
      serveOne(connection, holder);
    }
  };
  accept().catch(() => {});
  return {
    async close() {
      // Gone with its directory, or left to the next one.
      await disk.remove(path).catch(() => {});
      listener.close();
      holder.lender.close();
    },
  };
}

/**
 * Asks the process that holds a cache.
 *
 * @throws what it met, as it says it; {Error} it does not answer
 */
async function ask(
  path: string,
  request: Request,
  onProgress?: (progress: Progress) => void,
): Promise<unknown> {
  let connection: Deno.UnixConn;
  try {
    connection = await Deno.connect({ transport: "unix", path });
  } catch (cause) {
    throw new Error(
      `cannot ask the process that holds the cache: ${why(cause)}`,
      { cause },
    );
  }
  try {
    const writer = connection.writable.getWriter();
    await writer.write(
      new TextEncoder().encode(`${JSON.stringify(request)}\n`),
    );
    for await (const line of linesOf(connection.readable, Infinity)) {
      const message = JSON.parse(line);
      if (message.progress !== undefined) onProgress?.(message.progress);
      else if (message.error !== undefined) throw new Error(message.error);
      else return message.result;
    }
  } finally {
    try {
      connection.close();
    } catch {
      // The stream's end has closed it.
    }
  }
  throw new Error("the process that holds the cache ended before it answered");
}

/** The manager of a cache that another process holds. */
export function remoteManager(path: string): CacheManager {
  const call = async <T>(
    request: Request,
    onProgress?: (progress: Progress) => void,
  ): Promise<T> => await ask(path, request, onProgress) as T;
  return {
    list: () => call({ op: "list" }),
    stat: () => call({ op: "stat" }),
    verify: (names) => call({ op: "verify", names: [...names] }),
    prune: (names, target) =>
      call({
        op: "prune",
        names: [...names],
        ...(target === undefined ? {} : { target }),
      }),
    pin: (names, on) => call({ op: "pin", names: [...names], on }),
    pull: (blobs, onProgress) =>
      call({ op: "pull", blobs: [...blobs] }, onProgress),
  };
}
