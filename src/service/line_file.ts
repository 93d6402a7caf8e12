// SPDX-License-Identifier: Apache-2.0
/**
 * A file of lines that is rotated by size: `log`, `log.1`, `log.2`...
 * (spec/service-config.md, sections 4 and 5).
 *
 * @module
 */
import { whyOf } from "../../ffi/errors.ts";
import { renamePath } from "../../ffi/files.ts";

/** Where lines go. */
export interface LineFile extends Disposable {
  /** Appends a line, given without its end; never throws. */
  write(line: string): void;
}

/** How a file of lines is kept. */
export interface LineFileOptions {
  /** bytes that one file may have; not less than {@link MIN_BYTES} */
  limitBytes: number;
  /** files in total, the current one included */
  files: number;
  /** told once for each outage that lines are lost, and why */
  onTrouble: (text: string) => void;
}

/** The original's smallest limit. */
export const MIN_BYTES = 1 << 20;

const encoder = new TextEncoder();

function writeWhole(file: Deno.FsFile, text: string): number {
  const bytes = encoder.encode(text);
  let at = 0;
  while (at < bytes.length) at += file.writeSync(bytes.subarray(at));
  return bytes.length;
}

function openEnd(path: string): Deno.FsFile {
  return Deno.openSync(path, { append: true, create: true, mode: 0o644 });
}

/** Moves `path.1` to `path.2` and so on; the last one is replaced. */
function shift(path: string, files: number): void {
  for (let n = files - 1; n > 0; n--) {
    const from = n === 1 ? path : `${path}.${n - 1}`;
    try {
      renamePath(from, `${path}.${n}`);
    } catch {
      // Not there yet: there is nothing to keep.
    }
  }
  // Only one file is kept: it begins again.
  if (files === 1) Deno.truncateSync(path);
}

/**
 * Opens a file of lines for appending, 0644 when new.
 *
 * @throws {Error} it cannot be opened
 */
export function openLineFile(path: string, options: LineFileOptions): LineFile {
  const limit = Math.max(options.limitBytes, MIN_BYTES);
  let file: Deno.FsFile | undefined = openEnd(path);
  let size = file.statSync().size;
  let lost = 0;
  const rotate = () => {
    file?.close();
    file = undefined;
    shift(path, options.files);
    file = openEnd(path);
    size = file.statSync().size;
  };
  const append = (line: string) => {
    file ??= openEnd(path);
    if (size >= limit) rotate();
    // What a full disk cut off stands on a line of its own.
    if (lost > 0) size += writeWhole(file, `\n`);
    size += writeWhole(file, `${line}\n`);
  };
  return {
    write(line) {
      try {
        append(line);
        if (lost > 0) options.onTrouble(`${path}: written again, ${lost} lost`);
        lost = 0;
      } catch (error) {
        if (lost++ === 0) {
          options.onTrouble(`cannot write ${path}: ${whyOf(error)}`);
        }
      }
    },
    [Symbol.dispose]() {
      file?.close();
      file = undefined;
    },
  };
}
