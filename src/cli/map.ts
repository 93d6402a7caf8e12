// SPDX-License-Identifier: Apache-2.0
/**
 * `map`: which layer serves which range.
 *
 * @module
 */
import { readImageConfig } from "../image/config.ts";
import { type OpenStack, openStack } from "../image/image.ts";
import { type MapEntry, mapStack } from "../image/map.ts";
import { EXIT } from "./exit.ts";
import { printJsonList, stdoutPrinter } from "./print.ts";
import { withSources } from "./sources.ts";
import type { Args } from "./table.ts";

const COLUMNS = [16, 16, 7, 5, 16] as const;

function row(cells: readonly string[]): string {
  return cells.map((cell, i) => cell.padStart(COLUMNS[i] ?? 0)).join(" ");
}

function layerName({ layer }: MapEntry): string {
  return layer === null ? "-" : String(layer);
}

async function printMap(stack: OpenStack, json: boolean): Promise<void> {
  for (const warning of stack.warnings) console.error(`WARNING ${warning}`);
  if (json) {
    await printJsonList(mapStack(stack));
    return;
  }
  const out = stdoutPrinter();
  out.line(row(["offset", "length", "layer", "kind", "at"]));
  for (const entry of mapStack(stack)) {
    out.line(row([
      String(entry.offset),
      String(entry.length),
      layerName(entry),
      entry.kind,
      entry.at === null ? "-" : String(entry.at),
    ]));
  }
  out.flush();
}

/** Runs `overlaybd map CONFIG [--json]`. */
export async function run(args: Args<"map">): Promise<number> {
  const config = await readImageConfig(args.config);
  await withSources(args.serviceConfig, async (sourcesOf) => {
    const sources = await sourcesOf(config);
    using stack = await openStack(config, { readonly: true, sources });
    await printMap(stack, args.json);
  });
  return EXIT.ok;
}
