// SPDX-License-Identifier: Apache-2.0
/**
 * What a device is to show, and whether its name was cut: the kernel keeps
 * 255 bytes of a `dev_config` and says nothing of the rest (spec/tcmu.md,
 * section 3.1).
 *
 * All that can be known is that the room is full.  A path of 245 bytes fills
 * it and is whole, as may be the beginning of a longer one: served it is when
 * nothing speaks for that.
 *
 * @module
 */
import { directoryOf, fileInfo, fullPath, nameOf } from "../../layer/files.ts";
import { DeviceError, ERRNO } from "./error.ts";
import {
  CONFIG_MAX,
  type DeviceArgument,
  parseDeviceConfig,
  type TcmuName,
} from "./kernel.ts";

function fillsRoom({ config }: TcmuName): boolean {
  return new TextEncoder().encode(config).length >= CONFIG_MAX;
}

function cutError(name: TcmuName, why = "", cause?: unknown): DeviceError {
  return new DeviceError(
    ERRNO.EINVAL,
    `cannot serve dev_config "${name.config}": it fills the ${CONFIG_MAX} ` +
      `bytes that the kernel keeps, the rest was cut off${why}`,
    { cause },
  );
}

/** A file beside `path` whose name begins like its; undefined: none. */
async function longerName(path: string): Promise<string | undefined> {
  const name = nameOf(path);
  try {
    for await (const entry of Deno.readDir(directoryOf(fullPath(path)))) {
      if (entry.name.startsWith(name) && entry.name !== name) return entry.name;
    }
  } catch {
    // Opening the configuration says what is wrong.
  }
  return undefined;
}

/**
 * What a device is to show.
 *
 * @throws {DeviceError} nothing, or its name was cut
 */
export async function argumentOf(name: TcmuName): Promise<DeviceArgument> {
  const argument = parseDeviceConfig(name.config);
  if (argument === undefined || argument.path === "") {
    throw new DeviceError(
      ERRNO.EINVAL,
      `cannot serve dev_config "${name.config}": it names no image ` +
        "configuration",
    );
  }
  if (!fillsRoom(name)) return argument;
  if (argument.devId !== "") throw cutError(name);
  const other = await longerName(argument.path);
  if (other !== undefined) throw cutError(name, `: ${other} may be meant`);
  return argument;
}

/** False: certainly no file, as where a directory's name was cut. */
function mayBeFile(path: string): boolean {
  try {
    return fileInfo(path)?.isFile === true;
  } catch {
    return true;
  }
}

/** Why an image cannot be opened: that its path is no file may be the cut. */
export function explainCut(
  name: TcmuName,
  { path }: DeviceArgument,
  error: unknown,
): unknown {
  if (!fillsRoom(name)) return error;
  const missing = error instanceof DeviceError && error.errno === ERRNO.ENOENT;
  return missing || !mayBeFile(path) ? cutError(name, "", error) : error;
}
