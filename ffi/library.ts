// SPDX-License-Identifier: Apache-2.0
/**
 * Finds and opens the C library: the only module that knows where it lies.
 *
 * @module
 */
import { EngineError } from "./errors.ts";
import { symbols } from "./symbols.ts";

/** What `c/overlaybd.h` calls OBD_ABI. */
const ABI = 1;

// node:fs and node:path take longer to load than all of this program.
function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Above the bundle in the one executable, under build/ in a source tree. */
function libraryPath(): string {
  const named = Deno.env.get("OVERLAYBD_LIB");
  if (named !== undefined && named !== "") return named;
  const here = import.meta.dirname ?? ".";
  const tried = [
    `${here}/../liboverlaybd.so`,
    `${here}/../build/liboverlaybd.so`,
  ];
  for (const path of tried) if (exists(path)) return path;
  throw new Error(
    `cannot find liboverlaybd.so: not at ${tried.join(", ")}: ` +
      "run `make lib`, or set OVERLAYBD_LIB",
  );
}

/** A C string: UTF-8 and a NUL.  Refuses text with a NUL inside. */
export function cstring(text: string): Uint8Array<ArrayBuffer> {
  if (text.includes("\0")) {
    throw new TypeError(`cannot pass ${JSON.stringify(text)}: it has a NUL`);
  }
  return new TextEncoder().encode(text + "\0");
}

/** The functions of `c/overlaybd.h`, by name. */
type Calls = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** What every program calls: cheaper to look up together. */
const ALWAYS: readonly (keyof Calls)[] = [
  "obd_abi",
  "obd_engine_init",
  "obd_io_open",
  "obd_io_close",
  "obd_io_pwrite",
  "obd_io_sync_async",
  "obd_io_link",
];

/**
 * The library's functions, most of them looked up when they are first used:
 * preparing all of them takes as long as Deno takes to start.
 */
function lazyCalls(path: string): Calls {
  const calls = {};
  const lookUp = (names: readonly (keyof Calls)[]) => {
    const wanted: Deno.ForeignLibraryInterface = Object.fromEntries(
      names.map((name) => [name, symbols[name]]),
    );
    const found = Deno.dlopen(path, wanted).symbols;
    for (const name of names) {
      Object.defineProperty(calls, name, { value: found[name] });
    }
  };
  for (const name of Object.keys(symbols) as (keyof Calls)[]) {
    const get = () => {
      lookUp([name]);
      return Reflect.get(calls, name);
    };
    Object.defineProperty(calls, name, { get, configurable: true });
  }
  lookUp(ALWAYS);
  return calls as Calls;
}

function open(): Calls {
  const path = libraryPath();
  const calls = lazyCalls(path);
  const abi = calls.obd_abi();
  if (abi !== ABI) {
    throw new Error(`cannot use ${path}: its ABI is ${abi}, not ${ABI}`);
  }
  const isal = path.replace(/[^/]*$/, "libisal.so.2");
  const rc = calls.obd_engine_init(exists(isal) ? cstring(isal) : null);
  if (rc < 0) throw new EngineError(-rc, `cannot start the engine of ${path}`);
  return calls;
}

/** The library's functions, opened when this module is first imported. */
export const lib = open();
