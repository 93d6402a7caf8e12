// SPDX-License-Identifier: Apache-2.0
/**
 * Results on stdout.
 *
 * @module
 */

const FLUSH_AT = 1 << 16;

/** Collects text and writes it in large pieces. */
export interface Printer {
  write(text: string): void;
  line(text: string): void;
  flush(): void;
}

/** stdout; @throws {Deno.errors.BrokenPipe} when the reader has left */
export function stdoutPrinter(): Printer {
  const encoder = new TextEncoder();
  let pending = "";
  const flush = () => {
    let bytes = encoder.encode(pending);
    pending = "";
    while (bytes.length > 0) {
      bytes = bytes.subarray(Deno.stdout.writeSync(bytes));
    }
  };
  const write = (text: string) => {
    pending += text;
    if (pending.length >= FLUSH_AT) flush();
  };
  return { write, line: (text) => write(`${text}\n`), flush };
}

/** JSON text; a bigint becomes a number, exact up to 2^53. */
export function jsonText(value: unknown, indent = 0): string {
  return JSON.stringify(
    value,
    (_key, item) => typeof item === "bigint" ? Number(item) : item,
    indent,
  );
}

/** Prints a result as JSON, indented. */
export function printJson(value: unknown): void {
  const out = stdoutPrinter();
  out.line(jsonText(value, 2));
  out.flush();
}

/** Prints rows under their titles, columns aligned. */
export function printTable(
  titles: readonly string[],
  rows: readonly (readonly string[])[],
): void {
  const all = [titles, ...rows];
  const widths = titles.map((_, i) =>
    Math.max(...all.map((cells) => cells[i]?.length ?? 0))
  );
  const out = stdoutPrinter();
  for (const cells of all) {
    const padded = cells.map((cell, i) => cell.padEnd(widths[i] ?? 0));
    out.line(padded.join("  ").trimEnd());
  }
  out.flush();
}

/**
 * Prints a list of unknown length as a JSON array, an item a line, without
 * holding it in memory.
 */
export async function printJsonList(
  items: Iterable<unknown> | AsyncIterable<unknown>,
): Promise<number> {
  const out = stdoutPrinter();
  let count = 0;
  out.write("[");
  for await (const item of items) {
    out.write(`${count++ === 0 ? "\n" : ",\n"}  ${jsonText(item)}`);
  }
  out.line(count === 0 ? "]" : "\n]");
  out.flush();
  return count;
}
