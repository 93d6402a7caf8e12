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

const EPROTO = 71;

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
function libraryPaths(): string[] {
  const named = Deno.env.get("OVERLAYBD_LIB");
  if (named !== undefined && named !== "") return [named];
  const here = import.meta.dirname ?? ".";
  return [`${here}/../liboverlaybd.so`, `${here}/../build/liboverlaybd.so`];
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

type Name = keyof Calls;

/** What making a file takes: cheaper to look up together. */
const FILE_CALLS: readonly Name[] = [
  "obd_io_open",
  "obd_io_close",
  "obd_io_pwrite",
  "obd_io_sync_async",
  "obd_io_link",
];

function isName(name: PropertyKey): name is Name {
  return Object.hasOwn(symbols, name);
}

/**
 * The library's functions, each looked up when it is first used: Deno compiles
 * a way into each of them, and for all takes as long as it takes to start.
 */
function lazyCalls(path: string): Calls {
  const lookUp = (names: readonly Name[]) => {
    const wanted: Deno.ForeignLibraryInterface = Object.fromEntries(
      names.map((name) => [name, symbols[name]]),
    );
    const found = Deno.dlopen(path, wanted).symbols;
    for (const name of names) {
      Object.defineProperty(calls, name, { value: found[name] });
    }
  };
  // It is asked for what `calls` itself does not have yet.
  const rest = new Proxy({}, {
    get: (_, name) => {
      if (!isName(name)) return undefined;
      lookUp(FILE_CALLS.includes(name) ? FILE_CALLS : [name]);
      return Reflect.get(calls, name);
    },
  });
  const calls: Calls = Object.create(rest);
  return calls;
}

function start(path: string): Calls {
  const calls = lazyCalls(path);
  const isal = path.replace(/[^/]*$/, "libisal.so.2");
  const rc = calls.obd_engine_init(ABI, cstring(isal));
  if (rc === -EPROTO) {
    throw new Error(`cannot use ${path}: its ABI is not ${ABI}`);
  }
  if (rc < 0) throw new EngineError(-rc, `cannot start the engine of ${path}`);
  return calls;
}

function open(): Calls {
  const paths = libraryPaths();
  for (const path of paths) {
    try {
      return start(path);
    } catch (error) {
      if (exists(path)) throw error;
    }
  }
  throw new Error(
    `cannot find liboverlaybd.so: not at ${paths.join(", ")}: ` +
      "run `make lib`, or set OVERLAYBD_LIB",
  );
}

/** The library's functions, opened when this module is first imported. */
export const lib = open();
