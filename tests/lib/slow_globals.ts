// SPDX-License-Identifier: Apache-2.0
/**
 * For `deno run --preload`: says on stderr, `loads NAME`, which globals a
 * program uses that Deno has to load modules of node: for, or tables of ICU.
 *
 * @module
 */
const SLOW = [
  "Buffer",
  "Intl",
  "Response",
  "btoa",
  "clearImmediate",
  "clearInterval",
  "clearTimeout",
  "process",
  "setImmediate",
  "setInterval",
  "setTimeout",
];

for (const name of SLOW) {
  const found = Object.getOwnPropertyDescriptor(globalThis, name);
  if (found === undefined) throw new Error(`there is no ${name}`);
  Object.defineProperty(globalThis, name, {
    configurable: true,
    get: () => {
      Object.defineProperty(globalThis, name, found);
      Deno.stderr.writeSync(new TextEncoder().encode(`loads ${name}\n`));
      return Reflect.get(globalThis, name);
    },
  });
}
