// SPDX-License-Identifier: Apache-2.0
/**
 * Images for commands that read all of them: remote lowers are fetched to
 * their end before.
 *
 * @module
 */
import type { ImageConfig } from "../image/config.ts";
import { type OpenStack, openStack } from "../image/image.ts";
import type { ServiceConfig } from "../service/config.ts";
import { showProgress } from "./progress.ts";
import { interruptible } from "./signals.ts";

/** A stack, and what its bytes come from. */
export interface WholeStack extends AsyncDisposable {
  stack: OpenStack;
}

function warn(line: string): void {
  console.error(line);
}

/** Fetches what is not here yet. */
async function fetchAll(stack: OpenStack): Promise<void> {
  const blobs = stack.lowers.flatMap(({ remote }) =>
    remote === undefined ? [] : [remote.blob]
  );
  const PIECE = 4 << 20;
  const total = blobs.reduce((sum, { size }) => sum + size, 0);
  let done = 0;
  using bar = showProgress("fetch");
  await interruptible(async (signal) => {
    for (const blob of blobs) {
      for (let at = 0; at < blob.size; at += PIECE) {
        signal.throwIfAborted();
        await blob.need(at, PIECE);
        done += Math.min(PIECE, blob.size - at);
        bar.onProgress?.({ done, total, written: done });
      }
    }
  });
}

/**
 * Opens an image's layers; nothing of them is missing.
 *
 * @throws {ImageError | SourceError} which layer cannot be had, and why
 */
export async function openWhole(
  config: ImageConfig,
  settings: ServiceConfig,
): Promise<WholeStack> {
  const parts = new AsyncDisposableStack();
  try {
    const open = async () => {
      if (config.repoBlobUrl === "") {
        return await openStack(config, { readonly: true });
      }
      const { openRegistry } = await import("../service/registry.ts");
      const { createSources } = await import("../source/sources.ts");
      const { cacheDir, refillSize } = settings.cacheConfig;
      const client = parts.use(openRegistry(() => settings, warn));
      const sources = parts.use(createSources({
        openBlob: client.openBlob,
        cacheDir,
        refillSize,
        log: warn,
      }));
      const stack = await openStack(config, { readonly: true, sources });
      const remote = stack.lowers.some(({ remote }) => remote !== undefined);
      if (remote && !sources.pool.hold()) {
        stack.close();
        throw new Error(
          `cannot fetch layers into ${cacheDir}: another process has it, or ` +
            "it cannot be written; name another cacheConfig.cacheDir",
        );
      }
      return stack;
    };
    const stack = parts.use(await open());
    await fetchAll(stack);
    const all = parts.move();
    return { stack, [Symbol.asyncDispose]: () => all.disposeAsync() };
  } catch (error) {
    await parts.disposeAsync();
    throw error;
  }
}
