// SPDX-License-Identifier: Apache-2.0
/**
 * What tests of live snapshots share: an image with a configuration, and the
 * configurations that follow it.
 *
 * @module
 */
import type { OpenImage } from "../../src/image/image.ts";
import { type UpperPaths } from "./spec_reader.ts";
import { encodeFullLayer } from "./spec_writer.ts";
import { newUpper } from "./product.ts";
import { noise } from "./random.ts";
import type { TempDir } from "./env.ts";

/** An image on disk, and how a client goes on from it. */
export interface Subject {
  /** path of its configuration */
  readonly config: string;
  /** bytes of its disk */
  readonly size: number;
  lowers: string[];
  upper: UpperPaths;
  /** Writes a configuration of these layers. */
  write(path: string, lowers: readonly string[], upper: UpperPaths): void;
  /** Makes a fresh upper, and a configuration with it; returns its path. */
  next(options?: { sparse?: boolean; size?: number }): Promise<string>;
  /** To be called once a snapshot is taken. */
  taken(): void;
}

/** Bytes of the lower: one record, whatever the disk's size. */
const LOWER_MAX = 4 << 20;

/** An image of one lower, full up to 4 MiB, and an empty upper. */
export async function newSubject(
  dir: TempDir,
  { size, sparse = false }: { size: number; sparse?: boolean },
): Promise<Subject> {
  const lower = dir.file("lower");
  const full = Math.min(size, LOWER_MAX);
  Deno.writeFileSync(lower, encodeFullLayer(noise(3, full)));
  let nr = 0;
  let fresh: UpperPaths | undefined;
  const write: Subject["write"] = (path, lowers, upper) =>
    Deno.writeTextFileSync(
      path,
      JSON.stringify({
        repoBlobUrl: "",
        lowers: lowers.map((file) => ({ file })),
        upper,
      }),
    );
  const subject: Subject = {
    config: dir.file("config.v1.json"),
    size,
    lowers: [lower],
    upper: await newUpper(dir.file("u0"), { size, sparse }),
    write,
    async next(options = {}) {
      nr++;
      fresh = await newUpper(dir.file(`u${nr}`), {
        size: options.size ?? size,
        sparse: options.sparse ?? sparse,
      });
      const path = dir.file(`next${nr}.json`);
      write(path, [...subject.lowers, subject.upper.data], fresh);
      return path;
    },
    taken() {
      if (fresh === undefined) throw new Error("no snapshot was prepared");
      subject.lowers = [...subject.lowers, subject.upper.data];
      subject.upper = fresh;
    },
  };
  write(subject.config, subject.lowers, subject.upper);
  return subject;
}

/**
 * Calls `work` at each snapshot, in the moment in which changes go to the new
 * upper and nothing else of it has happened.
 */
export function onSwitch(image: OpenImage, work: () => void): void {
  let pauseUs: number | undefined;
  Object.defineProperty(image, "snapshotPauseUs", {
    get: () => pauseUs,
    set: (value: number) => {
      pauseUs = value;
      work();
    },
  });
}
