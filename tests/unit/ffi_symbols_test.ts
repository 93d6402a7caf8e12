// SPDX-License-Identifier: Apache-2.0
import { deepStrictEqual as assertEquals } from "node:assert/strict";
import { symbols } from "../../ffi/symbols.ts";

const HANDLES =
  /^struct obd_(source|index|view|upper|device|plan|nbd|ring|buffer) \*$/;
const SCALARS: Readonly<Record<string, string>> = {
  int32_t: "i32",
  uint32_t: "u32",
  int64_t: "i64",
  uint64_t: "u64",
  void: "void",
};

/** A C type as the table writes it: `"pointer"` for handles and results. */
function ffiType(ctype: string, isResult: boolean): string {
  const type = ctype.replace(/\s+/g, " ").trim();
  if (!type.endsWith("*")) return SCALARS[type] ?? `unknown ${type}`;
  return isResult || HANDLES.test(type) ? "pointer" : "buffer";
}

/** `name -> [parameter types, result type]` of every prototype. */
function prototypes(header: string): Map<string, [string[], string]> {
  const code = header.replace(/\/\*[\s\S]*?\*\//g, "");
  const found = new Map<string, [string[], string]>();
  for (
    const [, head = "", args = ""] of code.matchAll(
      /OBD_API\s+([^;(]+)\(([^)]*)\)\s*;/g,
    )
  ) {
    const name = /(\w+)\s*$/.exec(head)?.[1] ?? "";
    const result = head.trim().slice(0, -name.length);
    const list = args.trim() === "void" ? [] : args.split(",");
    found.set(name, [
      list.map((a) => ffiType(a.replace(/\w+\s*$/, ""), false)),
      ffiType(result, true),
    ]);
  }
  return found;
}

const header = Deno.readTextFileSync(
  new URL("../../c/overlaybd.h", import.meta.url),
);

Deno.test("ffi/symbols.ts names every function of overlaybd.h, and no other", () => {
  assertEquals(
    Object.keys(symbols).filter((key) => !key.endsWith("_async")).sort(),
    [...prototypes(header).keys()].sort(),
  );
});

Deno.test("ffi/symbols.ts has each function's arity and widths", () => {
  const inHeader = prototypes(header);
  for (const [key, entry] of Object.entries(symbols)) {
    const name = "name" in entry ? entry.name : key;
    assertEquals(
      [[...entry.parameters], entry.result],
      inHeader.get(name),
      key,
    );
  }
});

Deno.test("an _async entry is its function, marked nonblocking", () => {
  for (const [key, entry] of Object.entries(symbols)) {
    const alias = key.endsWith("_async");
    assertEquals("nonblocking" in entry, alias, key);
    if ("name" in entry) assertEquals(`${entry.name}_async`, key);
  }
});
