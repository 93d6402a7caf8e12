// SPDX-License-Identifier: Apache-2.0
/**
 * `resultFile`: how opening an image ended (spec/image.md, section 7).
 *
 * @module
 */
import { whyOf } from "../../ffi/errors.ts";
import { closeFd, O, openFd, renamePath, writeFd } from "../../ffi/files.ts";
import { ImageError } from "../image/error.ts";
import { fileInfo } from "../layer/files.ts";

/** Where log lines go. */
export type Log = (line: string) => void;

const toStderr: Log = (line) => console.error(line);

/** Clients read it into a message of their own (spec/client.md, section 10). */
const MAX_BYTES = 1024;

/** One line of at most 1 KiB. */
function short(text: string): string {
  const line = text.replace(/\p{Cc}+/gu, " ");
  const into = new Uint8Array(MAX_BYTES);
  const { read } = new TextEncoder().encodeInto(line, into);
  return line.slice(0, read);
}

/** What the file says about an outcome. */
export function resultText(error: unknown): string {
  if (error === undefined) return "success";
  const text = error instanceof ImageError
    ? error.resultText
    : error instanceof Error
    ? error.message
    : String(error);
  return short(`failed:${text}`);
}

/** Into a device or a pipe, which nobody may be reading. */
async function writeInto(path: string, text: string): Promise<void> {
  const fd = openFd(path, O.WRONLY | O.NONBLOCK);
  try {
    await writeFd(fd, new TextEncoder().encode(text));
  } finally {
    closeFd(fd);
  }
}

/**
 * Writes the outcome, whole or not at all.  A file that cannot be written is
 * logged; the image is served all the same.
 *
 * @param path empty: no result file is wanted
 * @param error undefined when the image is open
 */
export async function writeResult(
  path: string,
  error: unknown,
  log: Log = toStderr,
): Promise<void> {
  if (path === "") return;
  const text = resultText(error);
  try {
    const existing = fileInfo(path);
    if (existing?.isFile === false) return await writeInto(path, text);
    const temporary = `${path}.${Deno.pid}`;
    try {
      await Deno.writeTextFile(temporary, text);
      renamePath(temporary, path);
    } catch (cause) {
      await Deno.remove(temporary).catch(() => {});
      // A file that is mounted by itself, a directory that is read-only.
      if (existing === undefined) throw cause;
      await Deno.writeTextFile(path, text, { create: false });
    }
  } catch (cause) {
    log(`WARNING cannot write result file ${path}: ${whyOf(cause)}`);
  }
}

/** Opens an image and writes how that ended. */
export async function withResultFile<T>(
  path: string,
  open: () => Promise<T>,
): Promise<T> {
  try {
    const opened = await open();
    await writeResult(path, undefined);
    return opened;
  } catch (error) {
    await writeResult(path, error);
    throw error;
  }
}
