// SPDX-License-Identifier: Apache-2.0
// WWW-Authenticate: RFC 9110, sections 5.6 and 11; spec/registry.md, 11.1.
import { deepStrictEqual as equal } from "node:assert/strict";
import fc from "fast-check";
import { parseChallenges } from "../../src/source/registry/challenge.ts";

/** A challenge as plain values. */
const plain = (text: string) =>
  parseChallenges(text).map(({ scheme, token, params }) => ({
    scheme,
    ...(token === undefined ? {} : { token }),
    ...Object.fromEntries(params),
  }));

for (
  const [what, text, expected] of [
    [
      "the usual one",
      'Bearer realm="https://a/t",service="s",scope="repository:a/b:pull"',
      [{
        scheme: "bearer",
        realm: "https://a/t",
        service: "s",
        scope: "repository:a/b:pull",
      }],
    ],
    [
      "a scope with commas, spaces after commas, any case",
      'bEARER Realm="https://a/t?x=1" ,  SCOPE="repository:a:pull,push"',
      [{
        scheme: "bearer",
        realm: "https://a/t?x=1",
        scope: "repository:a:pull,push",
      }],
    ],
    [
      "two challenges in one header",
      'Basic realm="x, y", Bearer realm="https://a/t"',
      [{ scheme: "basic", realm: "x, y" }, {
        scheme: "bearer",
        realm: "https://a/t",
      }],
    ],
    [
      "a token68, then parameters of the next",
      "Negotiate YWJj==, Basic realm=x",
      [{ scheme: "negotiate", token: "YWJj==" }, {
        scheme: "basic",
        realm: "x",
      }],
    ],
    ["a scheme alone", "Negotiate", [{ scheme: "negotiate" }]],
    ["schemes alone", "Negotiate, NTLM", [{ scheme: "negotiate" }, {
      scheme: "ntlm",
    }]],
    [
      "spaces around =, escapes",
      'Basic realm = "a \\"b\\" \\\\c"',
      [{ scheme: "basic", realm: 'a "b" \\c' }],
    ],
    ["empty list elements", ", ,Basic realm=a,,", [{
      scheme: "basic",
      realm: "a",
    }]],
    [
      "a URL that nobody quoted",
      "Bearer realm=https://a/t?b,service=c",
      [{ scheme: "bearer", realm: "https://a/t?b", service: "c" }],
    ],
    ["no comma between", 'Bearer realm="a" service="b"', [{
      scheme: "bearer",
      realm: "a",
      service: "b",
    }]],
    ["the first of a name", "Basic realm=a, realm=b", [{
      scheme: "basic",
      realm: "a",
    }]],
    ["nothing", "", []],
    ["a quote that never ends", 'Basic realm="abc', [{ scheme: "basic" }, {
      scheme: "realm",
    }]],
  ] as const
) {
  Deno.test(`challenge: ${what}`, () => equal(plain(text), expected));
}

const token = fc.stringMatching(/^[A-Za-z][A-Za-z0-9!#$%&'*+.^_`|~-]{0,7}$/);
const value = fc.string({ maxLength: 12, unit: "grapheme-ascii" });
const challenge = fc.record({
  scheme: token,
  params: fc.uniqueArray(fc.tuple(token, value), {
    minLength: 1,
    maxLength: 4,
    selector: ([name]) => name.toLowerCase(),
  }),
});
const space = fc.constantFrom("", " ", "\t", "  ");

Deno.test("challenge: every way to write a list reads as that list", () => {
  fc.assert(fc.property(
    fc.array(challenge, { maxLength: 4 }),
    fc.array(space, { minLength: 1, maxLength: 30 }),
    fc.array(fc.boolean(), { minLength: 1, maxLength: 10 }),
    (list, spaces, flips) => {
      let turn = 0;
      const s = () => spaces[turn++ % spaces.length] ?? "";
      const flip = () => flips[turn++ % flips.length] ?? false;
      const write = (text: string) =>
        !flip() || !/^[A-Za-z0-9]+$/.test(text)
          ? `"${text.replace(/["\\]/g, "\\$&")}"`
          : text;
      const text = list.map(({ scheme, params }) =>
        `${flip() ? scheme.toUpperCase() : scheme} ${s()}` +
        params.map(([name, v]) =>
          `${flip() ? name.toUpperCase() : name}${s()}=${s()}${write(v)}`
        ).join(`${s()},${flip() ? "," : ""}${s()}`)
      ).join(`${s()},${s()}`);
      equal(
        parseChallenges(text).map(({ scheme, params }) => ({
          scheme,
          params: [...params],
        })),
        list.map(({ scheme, params }) => ({
          scheme: scheme.toLowerCase(),
          params: params.map(([name, v]) => [name.toLowerCase(), v]),
        })),
      );
    },
  ));
});

Deno.test("challenge: no text makes it throw or run on", () => {
  fc.assert(fc.property(fc.string(), (text) => {
    parseChallenges(text);
    parseChallenges(`Bearer ${text}`);
  }));
});
