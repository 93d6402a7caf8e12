// SPDX-License-Identifier: Apache-2.0
/**
 * Changes the virtual size of a writable layer in place (spec/lsmt.md,
 * section 10, "Resize").
 *
 * @module
 */
import {
  closeFd,
  O,
  openFd,
  preadFd,
  sizeOfFd,
  syncFd,
  truncateFd,
} from "../../ffi/files.ts";
import { BLOCK_SIZE } from "../format/lsmt.ts";
import { openUpper, VIRTUAL_SIZE_AT, writeVirtualSize } from "./upper.ts";
import { LayerError } from "./write.ts";

/** What was changed, in bytes. */
export interface Resized {
  from: bigint;
  to: bigint;
}

/** The virtual size that stands in a header. */
function readVirtualSize(fd: number): bigint {
  const bytes = new Uint8Array(8);
  preadFd(fd, bytes, VIRTUAL_SIZE_AT);
  return new DataView(bytes.buffer).getBigUint64(0, true);
}

/** Writes the size into one header; the function returned takes it back. */
async function setSize(
  path: string,
  size: bigint,
  sparse: boolean,
): Promise<() => Promise<void>> {
  const fd = openFd(path, O.RDWR);
  const old = readVirtualSize(fd);
  const length = sizeOfFd(fd);
  const undo = async () => {
    if (sparse) truncateFd(fd, length);
    writeVirtualSize(fd, old);
    await syncFd(fd);
  };
  try {
    if (sparse) truncateFd(fd, BigInt(BLOCK_SIZE) + size);
    writeVirtualSize(fd, size);
    await syncFd(fd);
    closeFd(fd);
  } catch (error) {
    await undo().catch(() => {});
    closeFd(fd);
    throw error;
  }
  return async () => {
    await setSize(path, old, false);
    if (!sparse) return;
    const again = openFd(path, O.RDWR);
    truncateFd(again, length);
    closeFd(again);
  };
}

/**
 * Writes the size into a layer's headers and onto disk, all of them or none.
 * The caller has the layer open.
 *
 * @param index undefined for a sparse layer, which has no such file
 */
export async function setUpperSize(
  data: string,
  index: string | undefined,
  size: bigint,
): Promise<void> {
  const undo = await setSize(data, size, index === undefined);
  if (index === undefined) return;
  try {
    await setSize(index, size, false);
  } catch (error) {
    await undo();
    throw error;
  }
}

/**
 * Grows a writable layer.
 *
 * @param inherited gives the size of the stack below, for a layer without its
 *   own
 * @throws {LayerError} the new size is smaller; nothing was touched
 * @throws {BusyError | FormatError | EngineError} nothing was changed
 */
export async function resizeUpper(
  data: string,
  index: string,
  size: bigint,
  inherited: () => Promise<bigint>,
): Promise<Resized> {
  // Held open, and so locked, until both headers are changed.
  using upper = await openUpper({ data, index, readonly: false });
  const from = upper.virtualSize === 0n ? await inherited() : upper.virtualSize;
  if (size < from) {
    throw new LayerError(
      `cannot shrink ${data} from ${from} to ${size} bytes: the file system ` +
        "on it must be shrunk first, which this version does not do",
    );
  }
  await setUpperSize(data, upper.kind === "sparse" ? undefined : index, size);
  return { from, to: size };
}
