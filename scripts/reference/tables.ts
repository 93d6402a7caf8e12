// SPDX-License-Identifier: Apache-2.0
/**
 * Tables in the documentation that come from the code: commands, metrics,
 * and fields of configuration files.  `make docs` writes them between their marks; a
 * test finds what is out of date.
 *
 * @module
 */
import { commandNames, commandSpec } from "../../src/cli/table.ts";
import { createCounters } from "../../src/service/counters.ts";
import { createMeter } from "../../src/service/metrics.ts";
import { ownMetrics } from "../../src/service/own_metrics.ts";
import {
  type DescribedField,
  imageFields,
  serviceFields,
} from "./described.ts";

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

/** Names of the original's metrics, and what they are. */
const ORIGINAL_METRICS = [
  ["OverlayBD_Alive", "gauge", "Always 1."],
  ["OverlayBD_Read_Throughtput", "gauge", "Bytes read in the last second."],
  ["OverlayBD_QPS", "gauge", "Reads in the last second."],
  ["OverlayBD_MaxLatency", "gauge", "µs, the longest read of five seconds."],
  ["OverlayBD_Count", "gauge", "Bytes read since the start."],
] as const;

const NOTHING = {
  meters: { pread: createMeter(), download: createMeter() },
  counters: createCounters(),
  devices: () => [],
};

function metricTable(): string {
  return markdownTable([
    ["metric", "type", "meaning"],
    ...ORIGINAL_METRICS.map((
      [name, type, help],
    ) => [`\`${name}\``, type, help]),
    ...ownMetrics(NOTHING).map(({ name, type, help }) => [
      `\`${name}\``,
      type,
      help,
    ]),
  ]);
}

const TABLES: Readonly<Record<string, () => string>> = {
  service: () => fieldTable(serviceFields()),
  image: () => fieldTable(imageFields()),
  commands: commandTable,
  metrics: metricTable,
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
