// SPDX-License-Identifier: Apache-2.0
// JSON in which the first of repeated keys counts: spec/image.md, section 1.
import { deepStrictEqual as equal, throws } from "node:assert/strict";
import fc from "fast-check";
import { parseJson } from "../../src/format/json.ts";

Deno.test("of a repeated key the first counts, in every object", () => {
  equal(
    parseJson('{"a":{"b":1,"b":[2]},"c":[{"d":"}","d":","}],"\\u0061":3}'),
    { value: { a: { b: 1 }, c: [{ d: "}" }] }, repeated: ["b", "d", "a"] },
  );
});

Deno.test("property: what has no key twice is what JSON.parse makes of it", () => {
  fc.assert(fc.property(fc.json(), fc.nat(4), (text, indent) => {
    const value: unknown = JSON.parse(text);
    const spaced = JSON.stringify(value, null, indent);
    equal(parseJson(spaced), { value, repeated: [] });
  }));
  const depth = 100_000;
  parseJson("[".repeat(depth) + "]".repeat(depth));
});

Deno.test("property: what is no JSON is refused as by JSON.parse", () => {
  fc.assert(fc.property(
    fc.array(fc.constantFrom(...'{}[]:,"\\ 1e-.tn\n/'.split("")), {
      maxLength: 12,
    }),
    (pieces) => {
      const text = pieces.join("");
      let valid = true;
      try {
        JSON.parse(text);
      } catch {
        valid = false;
      }
      if (valid) parseJson(text);
      else throws(() => parseJson(text), SyntaxError);
    },
  ));
});
