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
import { VIRTUAL_SIZE_AT, writeVirtualSize } from "./upper.ts";

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
