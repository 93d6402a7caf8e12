// SPDX-License-Identifier: Apache-2.0
/**
 * What `ioEngine` asks for, and what this machine has of it.
 *
 * @module
 */
import { errnoText } from "../../ffi/errors.ts";
import { uringError } from "../../ffi/engine.ts";
import type { EngineKind } from "../layer/engine.ts";

/**
 * How local layers are read here; undefined: through the page cache, by
 * threads.
 *
 * @param ioEngine 0, 1 or 2 (spec/service-config.md, section 3)
 * @param say told when there is no io_uring here
 */
export function pickEngine(
  ioEngine: number,
  say: (line: string) => void,
): EngineKind | undefined {
  if (ioEngine === 0) return undefined;
  const direct = ioEngine === 1;
  const errno = uringError();
  if (errno !== 0) {
    say(
      `ioEngine ${ioEngine}: local layers are read by threads` +
        `${direct ? " with O_DIRECT" : ""}: io_uring: ${errnoText(errno)}`,
    );
  }
  return { direct, uring: errno === 0 };
}
