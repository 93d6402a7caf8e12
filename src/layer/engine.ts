// SPDX-License-Identifier: Apache-2.0
/**
 * How the files of local read-only layers are read: what `ioEngine` picks
 * (spec/service-config.md, section 3).
 *
 * @module
 */
import { EngineError, errnoText } from "../../ffi/errors.ts";
import { closeFd, O, openFd } from "../../ffi/files.ts";
import type { Source } from "../../ffi/handle.ts";
import { directSource, uringSource } from "../../ffi/sources.ts";
import { fileInfo } from "./files.ts";

/** What an engine does. */
export interface EngineKind {
  /** past the page cache, with O_DIRECT */
  readonly direct: boolean;
  /** by io_uring, where a thread would have to wait for the disk */
  readonly uring: boolean;
}

/** Without one a file is read through the page cache, by threads. */
export interface IoEngine extends EngineKind {
  /** a file cannot be read with O_DIRECT, and is read without */
  buffered(path: string, why: string): void;
}

/** An engine that tells of a file system without O_DIRECT once. */
export function createIoEngine(
  kind: EngineKind,
  say: (line: string) => void,
): IoEngine {
  const told = new Set<number | undefined>();
  return {
    ...kind,
    buffered(path, why) {
      const dev = fileInfo(path)?.dev;
      if (told.has(dev)) return;
      told.add(dev);
      say(
        `ioEngine 1: ${path} and other layers on its file system are read ` +
          `through the page cache: O_DIRECT: ${why}`,
      );
    },
  };
}

/** Reads a layer's file, which is open as `file`, by `engine` from now on. */
export function useEngine(file: Source, path: string, engine: IoEngine): void {
  if (engine.uring) uringSource(file);
  if (!engine.direct) return;
  let fd = -1;
  try {
    fd = openFd(path, O.RDONLY | O.DIRECT);
    directSource(file, fd);
  } catch (error) {
    if (!(error instanceof EngineError)) throw error;
    if (fd >= 0) closeFd(fd);
    engine.buffered(path, errnoText(error.errno));
  }
}
