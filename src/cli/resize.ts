// SPDX-License-Identifier: Apache-2.0
/**
 * `resize`: another size for an image's disk (spec/tools.md, section 7).
 *
 * @module
 */
import { type ImageConfig, readImageConfig } from "../image/config.ts";
import { growClosedImage } from "../image/grow.ts";
import { hasUpper, openStack } from "../image/image.ts";
import { readServiceConfig, type ServiceConfig } from "../service/config.ts";
import { withResultFile } from "../service/result.ts";
import type { SourceSet } from "../source/sources.ts";
import { ExitError, reason } from "./exit.ts";
import type { Call } from "./program.ts";
import { withSources } from "./sources.ts";
import { type Args, MAX_GIB } from "./table.ts";

/** What `resize` exits with when it cannot. */
const FAILED = 1;

const GIB = 1n << 30n;

/** Why a size is none; undefined when it is one. */
function sizeFault(text: string): string | undefined {
  if (/^-\d+$/.test(text)) return `size must be positive: ${text}`;
  if (!/^\d+$/.test(text)) {
    return `invalid size (expected integer in GB): ${text}`;
  }
  const value = BigInt(text);
  if (value === 0n) return "size must be greater than 0";
  if (value >= 1n << 64n) return `size value out of range: ${text}`;
  if (value > BigInt(MAX_GIB)) return `size overflow: ${text} GB`;
  return undefined;
}

/** Bytes of an image's disk; nothing is touched. */
async function diskSize(
  config: ImageConfig,
  sources: SourceSet | undefined,
): Promise<bigint> {
  return await withResultFile(config.resultFile, async () => {
    using stack = await openStack(config, { readonly: true, sources });
    return stack.virtualSize;
  });
}

/** GiB where it is a whole number of them, else bytes. */
function sizeText(bytes: bigint): string {
  return bytes % GIB === 0n ? `${bytes / GIB} GiB` : `${bytes} bytes`;
}

function resizeFailure(call: Call, what: string, error: unknown): ExitError {
  const why = reason(error);
  return new ExitError(
    FAILED,
    call.original ? `${what}: ${why}` : `${call.program}: ${why}`,
    { cause: error },
  );
}

async function readConfig(
  args: Args<"resize">,
  call: Call,
): Promise<{ config: ImageConfig; settings: ServiceConfig }> {
  const settings = await readServiceConfig(args.serviceConfig).catch(
    (error) => {
      throw resizeFailure(call, "failed to create image service", error);
    },
  );
  const config = await readImageConfig(args.config).catch((error) => {
    throw resizeFailure(call, "failed to open overlaybd image", error);
  });
  return { config, settings };
}

/** Runs `overlaybd-resize --config F --size N`. */
export async function run(args: Args<"resize">, call: Call): Promise<number> {
  const fault = sizeFault(args.size);
  if (fault !== undefined) {
    throw new ExitError(
      FAILED,
      call.original
        ? `${fault}\ninvalid size: ${args.size}`
        : `${call.program}: ${fault}`,
    );
  }
  const { config, settings } = await readConfig(args, call);
  const { upper } = config;
  if (upper === undefined || !hasUpper(config)) {
    throw resizeFailure(call, "resize failed", "the image has no upper");
  }
  const to = BigInt(args.size) * GIB;
  const notOpened = (error: unknown) => {
    throw resizeFailure(call, "failed to open overlaybd image", error);
  };
  const from = await withSources(settings, async (sourcesOf) => {
    const sources = await sourcesOf(config).catch(notOpened);
    const from = await diskSize(config, sources).catch(notOpened);
    if (to < from) {
      const why = `cannot shrink ${upper.data} from ${from} to ${to} bytes: ` +
        "the file system on it must be shrunk first, which this version " +
        "does not do";
      throw resizeFailure(call, "resize failed", why);
    }
    await growClosedImage(config, to, { sources }).catch((error) => {
      throw resizeFailure(call, "resize failed", error);
    });
    return from;
  });
  const did = from === to
    ? `the disk already has ${sizeText(to)}`
    : `the disk grew from ${sizeText(from)} to ${sizeText(to)}`;
  // The original resizes the file system too, and succeeds only then.
  if (call.original) {
    throw new ExitError(
      FAILED,
      `resize failed: ${did}, but the file system on it was not resized`,
    );
  }
  console.log(did);
  console.error(
    "the file system on it did not grow: grow it from inside, for example " +
      "with resize2fs",
  );
  return 0;
}
