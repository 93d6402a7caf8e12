// SPDX-License-Identifier: Apache-2.0
/**
 * `overlaybd serve` as a child process of a test.
 *
 * @module
 */
import { toolCommand } from "./env.ts";

/** A running server. */
export interface Server extends AsyncDisposable {
  /** what `ready` printed: the default export */
  readonly uri: string;
  /** where API v1 is; empty: nowhere */
  readonly api: string;
  /** what it has said on stderr so far */
  said(): string;
  readonly pid: number;
  /** a unix socket's URI for another export */
  export(name: string): string;
  /** SIGTERM (or another signal), then the exit status and stderr. */
  stop(
    signal?: Deno.Signal,
  ): Promise<{ code: number; signal: string | null; stderr: string }>;
}

/** The server ended before it was ready. */
export class ServeError extends Error {
  override readonly name = "ServeError";
  readonly code: number;
  readonly stderr: string;

  constructor(code: number, stderr: string) {
    super(`serve ended with ${code}: ${stderr}`);
    this.code = code;
    this.stderr = stderr;
  }
}

/** Nobody waits for it but on a machine that is busy with other things. */
const READY_TIMEOUT_MS = 120_000;

/** Reads a stream to its end as text, always, so that nobody blocks. */
function collect(stream: ReadableStream<Uint8Array>): {
  text(): string;
  done: Promise<void>;
} {
  let text = "";
  const decoder = new TextDecoder();
  const done = (async () => {
    for await (const chunk of stream) {
      text += decoder.decode(chunk, { stream: true });
    }
  })();
  return { text: () => text, done };
}

/**
 * Starts `serve` on a unix socket and waits for its `ready` line.
 *
 * @throws {ServeError} when it ends instead
 */
export async function startServer(
  socket: string,
  configs: readonly string[],
  options: {
    args?: readonly string[];
    env?: Record<string, string>;
    /** a command that runs the rest of its arguments */
    under?: readonly string[];
  } = {},
): Promise<Server> {
  const call = toolCommand("overlaybd", [
    "serve",
    "--nbd",
    socket,
    ...(options.args ?? []),
    ...configs,
  ]);
  const [command, ...args] = [
    ...(options.under ?? []),
    call.command,
    ...call.args,
  ] as [string, ...string[]];
  const child = new Deno.Command(command, {
    args,
    env: { ...call.env, ...options.env },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const stdout = collect(child.stdout);
  const stderr = collect(child.stderr);
  const status = child.status;
  let ended: Deno.CommandStatus | undefined;
  status.then((value) => ended = value);
  const deadline = Date.now() + READY_TIMEOUT_MS;
  let uri: string | undefined;
  while (uri === undefined) {
    uri = /^ready (\S+)$/m.exec(stdout.text())?.[1];
    if (uri !== undefined) break;
    if (ended !== undefined) {
      await Promise.all([stdout.done, stderr.done]);
      throw new ServeError(ended.code, stderr.text());
    }
    if (Date.now() > deadline) {
      child.kill("SIGKILL");
      await status;
      throw new Error(`serve is not ready: ${stdout.text()}${stderr.text()}`);
    }
    await new Promise((done) => setTimeout(done, 5));
  }
  const stop = async (signal: Deno.Signal = "SIGTERM") => {
    if (ended === undefined) {
      try {
        child.kill(signal);
      } catch {
        // Ended between the look and the signal: its status tells.
      }
    }
    const { code, signal: by } = await status;
    await Promise.all([stdout.done, stderr.done]);
    return { code, signal: by, stderr: stderr.text() };
  };
  return {
    uri,
    api: /^api (\S+)$/m.exec(stdout.text())?.[1] ?? "",
    said: stderr.text,
    pid: child.pid,
    export: (name) =>
      `nbd+unix:///${encodeURIComponent(name)}?socket=${socket}`,
    stop,
    [Symbol.asyncDispose]: async () => {
      await stop();
    },
  };
}
