// SPDX-License-Identifier: Apache-2.0
/**
 * What TCMU devices need of the rooms above, and of the kernel.
 *
 * @module
 */
import type { Device } from "../../../ffi/handle.ts";
import type { Ring, ScsiCommand } from "../../../ffi/tcmu.ts";
import type { DeviceArgument, KernelPaths } from "./kernel.ts";

/** Where lines about devices go. */
export interface Lines {
  debug(text: string): void;
  info(text: string): void;
  warn(text: string): void;
  error(text: string): void;
}

/** An open image, to be shown as a disk. */
export interface TcmuImage {
  /** of the service's image */
  readonly id: number;
  /** for lines about it */
  readonly name: string;
  readonly device: Device;
  readonly readonly: boolean;
  /** bytes, a multiple of 512 */
  readonly size: bigint;
  /** false on a sparse upper, which cannot record a discard */
  readonly discardsReadZero: boolean;
  /** tell the kernel of a write cache, and mean FLUSH */
  readonly writeCache: boolean;
  /**
   * Makes it larger, for good.
   *
   * @throws {DeviceError} it cannot grow
   */
  grow(size: bigint): Promise<void>;
  /** Writes its result file: it is shown, or why it is not. */
  writeResult(error?: unknown): Promise<void>;
  /** Flushes what was written, then lets it go. */
  close(): Promise<void>;
}

/** See the module's comment. */
export interface Around {
  kernel: KernelPaths;
  log: Lines;
  /**
   * Opens an image; its result file says why when that fails.
   *
   * @param signal the device goes: nobody wants the image any more
   * @throws {DeviceError}
   */
  openImage(argument: DeviceArgument, signal: AbortSignal): Promise<TcmuImage>;
  /** Serves `/dev/uioN`; `id` comes back with every command. */
  openRing(
    minor: number,
    device: Device,
    options: { writeCache: boolean; id: number },
  ): Promise<Ring>;
  /** A ring made no sense, and is begun anew: it is counted. */
  ringBroken(): void;
  /** Calls `answer` for what comes from the ring with this id, until then. */
  route(id: number, answer: (command: ScsiCommand) => void): Disposable;
}
