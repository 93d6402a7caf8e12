// SPDX-License-Identifier: Apache-2.0
// The documentation says what the code says.
import { deepStrictEqual as equal, ok } from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import {
  IMAGE_FIELDS,
  SERVICE_FIELDS,
} from "../../scripts/reference/fields.ts";
import {
  imageFields,
  serviceFields,
} from "../../scripts/reference/described.ts";
import { withTables } from "../../scripts/reference/tables.ts";
import { ROOT } from "../lib/env.ts";

const DOCS = readdirSync(join(ROOT, "docs")).filter((name) =>
  name.endsWith(".md")
);

function textOf(name: string): string {
  return Deno.readTextFileSync(join(ROOT, name));
}

Deno.test("every field has a meaning, and every meaning a field", () => {
  for (
    const [fields, meanings] of [
      [serviceFields(), SERVICE_FIELDS],
      [imageFields(), IMAGE_FIELDS],
    ] as const
  ) {
    equal(
      fields.filter(({ says }) => says === "").map(({ key }) => key),
      [],
      "scripts/reference/fields.ts has no sentence for it",
    );
    const keys = fields.map(({ key }) => key);
    equal(Object.keys(meanings).filter((key) => !keys.includes(key)), []);
  }
});

Deno.test("tables are those of the code (make docs)", () => {
  for (const name of ["README.md", ...DOCS.map((name) => `docs/${name}`)]) {
    const text = textOf(name);
    equal(text, withTables(text), name);
  }
  ok(textOf("docs/configuration.md").includes("`cacheConfig.cacheDir`"));
  ok(textOf("docs/image.md").includes("`lowers[].digest`"));
  ok(textOf("README.md").includes("`overlaybd-create`"));
});

/** Links of a page to files of the project. */
function links(text: string): string[] {
  return [...text.matchAll(/\]\(([^)#:]+)(#[^)]*)?\)/g)]
    .map(([, path]) => path ?? "");
}

Deno.test("every link between the pages leads somewhere", () => {
  for (
    const [dir, name] of [[".", "README.md"], ...DOCS.map((n) => ["docs", n])]
  ) {
    for (const link of links(textOf(join(dir ?? "", name ?? "")))) {
      ok(Deno.statSync(join(ROOT, dir ?? "", link)).isFile, `${name}: ${link}`);
    }
  }
});

/** Every source as one text, with what lines and `+` cut joined again. */
function sourceText(): string {
  const files = (dir: string): string[] =>
    readdirSync(join(ROOT, dir), { withFileTypes: true }).flatMap((entry) =>
      entry.isDirectory()
        ? files(`${dir}/${entry.name}`)
        : /\.(ts|c)$/.test(entry.name)
        ? [`${dir}/${entry.name}`]
        : []
    );
  return ["src", "ffi", "c/launcher"].flatMap(files).map(textOf).join("\n")
    .replace(/["`] \+\s*["`]/g, "").replace(/"\s*\n\s*"/g, "")
    .replaceAll("\\`", "`");
}

Deno.test("what troubleshooting is keyed by is said somewhere", () => {
  const sources = sourceText();
  const keys = [
    ...textOf("docs/troubleshooting.md")
      .matchAll(/\*\*`([^`]+)`\*\*/g),
  ].map(([, key]) => key ?? "");
  ok(keys.length > 30);
  for (const key of keys) {
    const parts = key.split("…").map((part) => part.trim())
      .filter((part) => part.length > 1);
    for (const part of parts) ok(sources.includes(part), `${key}: ${part}`);
  }
});
