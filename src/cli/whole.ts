// SPDX-License-Identifier: Apache-2.0
/**
 * Images for work that reads all of them on threads of its own: remote lowers
 * are brought to their end before.
 *
 * @module
 */
import { whyOf } from "../../ffi/errors.ts";
import type { ImageConfig } from "../image/config.ts";
import type { SourcesOf } from "../image/disk.ts";
import { type OpenStack, openStack } from "../image/image.ts";
import type { SourceSet } from "../source/sources.ts";
import { showProgress } from "./progress.ts";
import { interruptible } from "./signals.ts";

/** A stack of which nothing is missing, and what its bytes lie in. */
export interface WholeStack extends Disposable {
  stack: OpenStack;
}

/** Brings the remote lowers of a stack; the same configuration without any. */
async function bringLowers(
  config: ImageConfig,
  stack: OpenStack,
  sources: SourceSet,
  files: DisposableStack,
): Promise<ImageConfig> {
  const { openWholeFile } = await import("../source/cache/whole.ts");
  const total = stack.lowers.reduce(
    (sum, { remote }) => sum + (remote?.blob.size ?? 0),
    0,
  );
  let done = 0;
  using bar = showProgress("fetch");
  const onBytes = (bytes: number) => {
    done += bytes;
    bar.onProgress?.({ done, total, written: done });
  };
  const lowers = [...config.lowers];
  await interruptible(async (signal) => {
    for (const [position, { remote }] of stack.lowers.entries()) {
      const lower = lowers[position];
      if (remote === undefined || lower === undefined) continue;
      const { url, dir, blob: { size } } = remote;
      const about = { dir, size, signal, onBytes };
      const whole = await openWholeFile(sources, url, about).catch((cause) => {
        throw new Error(
          `cannot fetch lowers[${position}]: ${whyOf(cause)}`,
          { cause },
        );
      });
      files.use(whole);
      lowers[position] = { ...lower, file: whole.path, dir: "", digest: "" };
    }
  });
  return { ...config, lowers };
}

/**
 * Opens an image's layers once more, with all of them here.
 *
 * @param stack the same, closed if there is another
 * @throws {Error | ImageError} which layer cannot be had, and why
 */
export async function makeWhole(
  config: ImageConfig,
  stack: OpenStack,
  sources: SourceSet | undefined,
): Promise<WholeStack> {
  using parts = new DisposableStack();
  parts.use(stack);
  if (
    sources === undefined ||
    stack.lowers.every(({ remote }) => remote === undefined)
  ) {
    const all = parts.move();
    return { stack, [Symbol.dispose]: () => all.dispose() };
  }
  const files = parts.use(new DisposableStack());
  const local = await bringLowers(config, stack, sources, files);
  const whole = files.use(await openStack(local, { readonly: true }));
  const kept = files.move();
  return { stack: whole, [Symbol.dispose]: () => kept.dispose() };
}

/**
 * Opens an image's layers; nothing of them is missing.
 *
 * @throws {Error | ImageError} which layer cannot be had, and why
 */
export async function openWhole(
  config: ImageConfig,
  sourcesOf: SourcesOf,
): Promise<WholeStack> {
  const sources = await sourcesOf(config);
  const stack = await openStack(config, { readonly: true, sources });
  return await makeWhole(config, stack, sources);
}
