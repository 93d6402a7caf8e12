// SPDX-License-Identifier: Apache-2.0
/**
 * Finds and opens the C library: the only module that knows where it lies.
 *
 * @module
 */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { EngineError } from "./errors.ts";
import { symbols } from "./symbols.ts";

/** What `c/overlaybd.h` calls OBD_ABI. */
const ABI = 1;

/** Beside the bundle in the one executable, under build/ in a source tree. */
function libraryPath(): string {
  const named = Deno.env.get("OVERLAYBD_LIB");
  if (named !== undefined && named !== "") return named;
  const here = import.meta.dirname ?? ".";
  const tried = [
    join(here, "liboverlaybd.so"),
    join(here, "build", "liboverlaybd.so"),
    join(here, "..", "build", "liboverlaybd.so"),
  ];
  for (const path of tried) if (existsSync(path)) return path;
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

function open() {
  const path = libraryPath();
  const { symbols: calls } = Deno.dlopen(path, symbols);
  const abi = calls.obd_abi();
  if (abi !== ABI) {
    throw new Error(`cannot use ${path}: its ABI is ${abi}, not ${ABI}`);
  }
  const isal = join(dirname(path), "libisal.so.2");
  const rc = calls.obd_engine_init(existsSync(isal) ? cstring(isal) : null);
  if (rc < 0) throw new EngineError(-rc, `cannot start the engine of ${path}`);
  return calls;
}

/** The library's functions, opened when this module is first imported. */
export const lib = open();
