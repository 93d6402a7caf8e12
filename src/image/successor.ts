// SPDX-License-Identifier: Apache-2.0
/**
 * What makes a configuration the one that follows another after a snapshot:
 * the same lowers, what was the upper on top of them, and a fresh upper
 * (spec/api.md, sections 1.2 and 1.3).
 *
 * @module
 */
import { fileInfo } from "../layer/files.ts";
import { dataLowers, type ImageConfig, type LowerConfig } from "./config.ts";
import { ImageError } from "./error.ts";
import { localFile, MAX_LOWERS } from "./lowers.ts";

/** A live snapshot cannot be taken; the image is as it was. */
export class SnapshotError extends ImageError {}

/** The files of a writable layer. */
export interface UpperFiles {
  data: string;
  index: string;
}

/**
 * The upper that a configuration names.
 *
 * @throws {SnapshotError} it names none, or one with a target
 */
export function configuredUpper(
  config: ImageConfig,
  whose: string,
): UpperFiles {
  const { data = "", index = "", target = "", gzipIndex = "" } = config.upper ??
    {};
  if (data === "" || index === "") {
    throw new SnapshotError(`${whose} has no upper`);
  }
  if (target !== "" || gzipIndex !== "") {
    throw new SnapshotError(
      `${whose} has an upper with a target (turboOCI), of which no snapshot ` +
        "can be taken",
    );
  }
  return { data, index };
}

/** True when both names lead to one file. */
export function isSameFile(a: string, b: string): boolean {
  const [one, other] = [fileInfo(a), fileInfo(b)];
  return one !== undefined && one.dev === other?.dev && one.ino === other.ino;
}

function isSameLower(old: LowerConfig, next: LowerConfig): boolean {
  const { targetFile, targetDigest, gzipIndex } = old;
  if (
    next.targetFile !== targetFile || next.targetDigest !== targetDigest ||
    next.gzipIndex !== gzipIndex
  ) return false;
  if (old.digest !== "" && next.digest === old.digest) return true;
  const [from, to] = [localFile(old), localFile(next)];
  return from !== undefined && to !== undefined && isSameFile(from, to);
}

/** A lower that nobody has here comes from `repoBlobUrl`. */
function checkRemote(next: ImageConfig): void {
  const remote = next.lowers.findIndex((lower) =>
    localFile(lower) === undefined
  );
  if (remote >= 0 && next.repoBlobUrl === "") {
    throw new SnapshotError(
      `lowers[${remote}] is not here, and \`repoBlobUrl\` is empty`,
    );
  }
}

/**
 * Checks that `next` follows `old` after a snapshot.
 *
 * @throws {SnapshotError} what differs
 */
export function checkSuccessor(old: ImageConfig, next: ImageConfig): void {
  const { data } = configuredUpper(old, "the image");
  configuredUpper(next, "the new config");
  if (next.accelerationLayer) {
    throw new SnapshotError(
      "the new config has an acceleration layer: its last lower would not " +
        "be opened",
    );
  }
  const lowers = dataLowers(old);
  if (lowers.length + 1 > MAX_LOWERS) {
    throw new SnapshotError(
      `the image has ${lowers.length} lowers, and at most ${MAX_LOWERS} can ` +
        "be stacked",
    );
  }
  if (next.lowers.length !== lowers.length + 1) {
    throw new SnapshotError(
      `the new config has ${next.lowers.length} lowers, not the image's ` +
        `${lowers.length} and its upper`,
    );
  }
  for (const [nr, lower] of lowers.entries()) {
    const other = next.lowers[nr];
    if (other === undefined || !isSameLower(lower, other)) {
      throw new SnapshotError(
        `lowers[${nr}] of the new config is not the image's`,
      );
    }
  }
  const top = sealedFile(next);
  if (top === undefined || !isSameFile(top, data)) {
    throw new SnapshotError(
      `lowers[${lowers.length}] of the new config is not the image's upper, ` +
        data,
    );
  }
  checkRemote(next);
}

/** The file that a successor's topmost lower is; undefined: there is none. */
export function sealedFile(next: ImageConfig): string | undefined {
  const last = next.lowers.at(-1);
  return last === undefined || last.targetFile !== "" ||
      last.targetDigest !== "" || last.gzipIndex !== ""
    ? undefined
    : localFile(last);
}
