// SPDX-License-Identifier: Apache-2.0
/**
 * Tables in the documentation that come from the code: commands, and fields
 * of configuration files.  `make docs` writes them between their marks; a
 * test finds what is out of date.
 *
 * @module
 */
import { commandNames, commandSpec } from "../../src/cli/table.ts";
import { configSchema } from "../../src/image/config.ts";
import { serviceSchema } from "../../src/service/config_schema.ts";
import { defaultPaths, PATHS } from "../../src/service/paths.ts";
import { IMAGE_FIELDS, type Meanings, SERVICE_FIELDS } from "./fields.ts";
import { type Field, schemaFields } from "./schema.ts";

/** A field and what it means. */
export interface DescribedField extends Field {
  says: string;
}

/** Default paths are shown as root has them, whoever makes the tables. */
function asRoot(initial: string | undefined): string | undefined {
  if (initial === undefined) return undefined;
  const root = defaultPaths(0, () => undefined);
  const found = (Object.keys(root) as (keyof typeof root)[])
    .find((name) => initial.startsWith(`"${PATHS[name]}`));
  return found === undefined
    ? initial
    : initial.replace(PATHS[found], root[found]);
}

/** Fields with their meanings; a test finds those that have none. */
function describe(fields: Field[], meanings: Meanings): DescribedField[] {
  return fields.map((field) => ({
    ...field,
    initial: asRoot(field.initial),
    says: meanings[field.key] ?? "",
  }));
}

/** Fields of `overlaybd.json`. */
export function serviceFields(): DescribedField[] {
  return describe(schemaFields(serviceSchema), SERVICE_FIELDS);
}

/** Fields of `config.v1.json`. */
export function imageFields(): DescribedField[] {
  return describe(schemaFields(configSchema), IMAGE_FIELDS);
}

/** A table as `deno fmt` would have it: every column as wide as its widest. */
function markdownTable(rows: readonly (readonly string[])[]): string {
  const cells = rows.map((row) => row.map((c) => c.replaceAll("|", "\\|")));
  const widths = (cells[0] ?? []).map((_, i) =>
    Math.max(...cells.map((row) => row[i]?.length ?? 0))
  );
  const line = (row: readonly string[]) =>
    `| ${row.map((c, i) => c.padEnd(widths[i] ?? 0)).join(" | ")} |`;
  const [head = [], ...body] = cells;
  return [line(head), line(widths.map((w) => "-".repeat(w))), ...body.map(line)]
    .join("\n");
}

function fieldTable(fields: readonly DescribedField[]): string {
  return markdownTable([
    ["key", "type", "default", "meaning"],
    ...fields.map(({ key, type, initial, says }) => [
      `\`${key}\``,
      type,
      initial === undefined ? "" : `\`${initial}\``,
      says,
    ]),
  ]);
}

function commandTable(): string {
  const code = (text: string | undefined) =>
    text === undefined ? "" : `\`${text}\``;
  return markdownTable([
    ["command", "the original's name", "what it does"],
    ...commandNames().map((name) => {
      const { original, summary } = commandSpec(name);
      return [code(name), code(original), summary];
    }),
  ]);
}

const TABLES: Readonly<Record<string, () => string>> = {
  service: () => fieldTable(serviceFields()),
  image: () => fieldTable(imageFields()),
  commands: commandTable,
};

/** The text with the tables between its marks made again. */
export function withTables(text: string): string {
  return text.replace(
    /(<!-- table: (\w+) -->\n)[^]*?(<!-- end of table -->)/g,
    (_, begin, name, end) => {
      const table = TABLES[name];
      if (table === undefined) throw new Error(`there is no table ${name}`);
      return `${begin}\n${table()}\n\n${end}`;
    },
  );
}

if (import.meta.main) {
  for (const path of Deno.args) {
    Deno.writeTextFileSync(path, withTables(Deno.readTextFileSync(path)));
  }
}
