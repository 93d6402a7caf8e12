// SPDX-License-Identifier: Apache-2.0
/**
 * Devices whose events were lost: what sysfs has is compared with what is
 * known.  An event that is on its way is no lost one: what is found at two
 * looks is so.
 *
 * A minor and a name may be given again between two looks; the kernel's
 * number of a device is not.
 *
 * @module
 */
import {
  deviceIndex,
  type KernelPaths,
  parseDeviceConfig,
  readUio,
  type UioDevice,
  uioMinors,
  uioName,
} from "./kernel.ts";

/** A device that is known. */
export interface Known {
  readonly device: { readonly uio: UioDevice };
  /** the kernel's number of it */
  readonly index: number | undefined;
}

/** What is known, and what is done about the rest. */
export interface Comparison<K extends Known> {
  kernel: KernelPaths;
  known(): K[];
  /** still */
  isKnown(one: K): boolean;
  /** nobody else is looked for at this minor */
  isTaken(minor: number): boolean;
  /** It came unheard; false: it could not be served. */
  add(uio: UioDevice, index: number | undefined): Promise<boolean>;
  /** It went unheard. */
  remove(one: K): void;
}

/**
 * Makes the function that looks.
 *
 * @returns `thorough`: also whether a known minor is another device's by now
 */
export function compareDevices<K extends Known>(
  { kernel, known, isKnown, isTaken, add, remove }: Comparison<K>,
): (thorough?: boolean) => Promise<void> {
  /** at the last look: unknown minors, with their names */
  let strangers = new Map<number, string>();
  /** and known ones that were not there */
  let missing = new Set<K>();
  /** found without an event, and could not be served: with their numbers */
  const refused = new Map<string, number | undefined>();

  /** Another device has the minor now. */
  const isReplaced = async (
    { device: { uio }, index }: K,
    now: UioDevice,
  ): Promise<boolean> => {
    const number = index === undefined
      ? undefined
      : await deviceIndex(kernel, now);
    return number === undefined
      ? uioName(now) !== uioName(uio)
      : number !== index;
  };

  const isGone = async (
    one: K,
    there: ReadonlySet<number>,
    uios: ReadonlyMap<number, UioDevice>,
  ): Promise<boolean> => {
    const { minor } = one.device.uio;
    const now = uios.get(minor);
    const gone = !there.has(minor) ||
      (now !== undefined && await isReplaced(one, now));
    return gone && isKnown(one);
  };

  const findGone = async (
    before: readonly K[],
    minors: readonly number[],
    uios: ReadonlyMap<number, UioDevice>,
  ) => {
    const there = new Set(minors);
    const found = await Promise.all(
      before.map((one) => isGone(one, there, uios)),
    );
    const gone = before.filter((_, i) => found[i]);
    for (const one of gone) if (missing.has(one)) remove(one);
    missing = new Set(gone);
  };

  /** Its image is not waited for: others may be lost meanwhile. */
  const come = async (uio: UioDevice): Promise<void> => {
    const name = uioName(uio);
    const index = await deviceIndex(kernel, uio);
    if (isTaken(uio.minor)) return;
    if (refused.has(name) && refused.get(name) === index) return;
    refused.delete(name);
    add(uio, index).then((served) => {
      if (!served) refused.set(name, index);
    });
  };

  const findCome = async (uios: ReadonlyMap<number, UioDevice>) => {
    const names = new Set([...uios.values()].map(uioName));
    for (const name of refused.keys()) {
      if (!names.has(name)) refused.delete(name);
    }
    const unknown = [...uios.values()].filter((uio) =>
      parseDeviceConfig(uio.config) !== undefined && !isTaken(uio.minor)
    );
    const twice = unknown.filter((uio) =>
      strangers.get(uio.minor) === uioName(uio)
    );
    strangers = new Map(unknown.map((uio) => [uio.minor, uioName(uio)]));
    await Promise.all(twice.map(come));
  };

  return async (thorough = false) => {
    const before = known();
    const minors = await uioMinors(kernel);
    const read = await Promise.all(
      minors.filter((minor) => thorough || !isTaken(minor))
        .map((minor) => readUio(kernel, minor)),
    );
    const uios = new Map(
      read.filter((uio) => uio !== undefined).map((uio) => [uio.minor, uio]),
    );
    await findGone(before, minors, uios);
    await findCome(uios);
  };
}
