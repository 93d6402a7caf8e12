// SPDX-License-Identifier: Apache-2.0
/**
 * An open image as TCMU shows it, and why one cannot be opened as an errno
 * (spec/client.md, section 10).
 *
 * @module
 */
import { EngineError } from "../../ffi/errors.ts";
import type { TcmuImage } from "../device/tcmu/around.ts";
import { DeviceError, ERRNO } from "../device/tcmu/error.ts";
import type { DeviceArgument } from "../device/tcmu/kernel.ts";
import { FormatError } from "../format/error.ts";
import { ConfigError } from "../image/config.ts";
import { growImage } from "../image/grow.ts";
import { ImageError } from "../image/error.ts";
import { BusyError } from "../layer/upper.ts";
import { SourceError } from "../source/source.ts";
import { DuplicateError, type ServedImage, type Service } from "./service.ts";

/** The errno of one error of a chain; undefined: its cause knows better. */
function errnoOf(error: Error): number | undefined {
  if (error instanceof DeviceError || error instanceof EngineError) {
    return error.errno;
  }
  if (error instanceof DuplicateError) return ERRNO.EEXIST;
  if (error instanceof BusyError) return ERRNO.EBUSY;
  if (error instanceof FormatError) return ERRNO.EUCLEAN;
  if (error instanceof SourceError) return ERRNO[error.code];
  if (error.cause instanceof Error) return undefined;
  if (error instanceof ImageError) {
    return error.resultText === "empty repoBlobUrl"
      ? ERRNO.ENOENT
      : ERRNO.EINVAL;
  }
  return error instanceof ConfigError ? ERRNO.EINVAL : undefined;
}

/** Why an image cannot be opened, with what the kernel is told. */
export function openFailure(error: unknown): DeviceError {
  const message = error instanceof Error ? error.message : String(error);
  for (let at = error; at instanceof Error; at = at.cause) {
    const errno = errnoOf(at);
    // A config that is no JSON has a cause, but none that says more.
    if (errno !== undefined) {
      return new DeviceError(errno, message, { cause: error });
    }
  }
  const errno = error instanceof ConfigError ? ERRNO.EINVAL : ERRNO.EIO;
  return new DeviceError(errno, message, { cause: error });
}

function showImage(served: ServedImage, service: Service): TcmuImage {
  const { image } = served;
  return {
    id: served.id,
    name: served.name,
    device: image.device,
    readonly: image.readonly,
    get size() {
      return image.stack.virtualSize;
    },
    get discardsReadZero() {
      return image.stack.upper?.kind !== "sparse";
    },
    writeCache: service.settings.writeCache &&
      served.config.writeCache !== false,
    async grow(to) {
      try {
        await growImage(image, to);
      } catch (error) {
        throw openFailure(error);
      }
    },
    writeResult: served.writeResult,
    close: served.close,
  };
}

/**
 * Opens an image for TCMU.
 *
 * @throws {DeviceError}
 */
export async function openTcmuImage(
  service: Service,
  { path, devId }: DeviceArgument,
  signal?: AbortSignal,
): Promise<TcmuImage> {
  try {
    return showImage(
      await service.open({ path, devId, transport: "tcmu" }, signal),
      service,
    );
  } catch (error) {
    throw openFailure(error);
  }
}
