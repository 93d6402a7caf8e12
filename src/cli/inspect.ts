// SPDX-License-Identifier: Apache-2.0
/**
 * `inspect`: everything that a file says about itself.
 *
 * @module
 */
import {
  type BlockReport,
  inspectFile,
  type InspectReport,
  type ZfileReport,
} from "../layer/inspect.ts";
import { EXIT } from "./exit.ts";
import { jsonText, printJson } from "./print.ts";
import { formatBytes } from "./progress.ts";
import type { Args } from "./table.ts";

const KINDS: Readonly<Record<InspectReport["kind"], string>> = {
  "committed": "committed layer",
  "sealed": "sealed layer",
  "sealed-sparse": "sealed sparse layer",
  "writable-log": "writable layer, append-only: data file",
  "writable-sparse": "writable layer, sparse: data file",
  "writable-index": "writable layer, append-only: index file",
  "zfile": "ZFile, not a layer",
};

type Row = readonly [name: string, value: string];

function bytes(value: number | bigint): string {
  const exact = `${value} bytes`;
  return value < 1024 ? exact : `${formatBytes(value)} (${exact})`;
}

/** Every field of an object as rows, as it stands in the file. */
function fieldRows(title: string, block: object): Row[] {
  return Object.entries(block).map(([key, value]): Row => [
    `${title}.${key}`,
    typeof value === "object" || typeof value === "string"
      ? jsonText(value)
      : String(value),
  ]);
}

function zfileRows(zfile: ZfileReport): Row[] {
  return [
    [
      "compression",
      `${zfile.algorithm}, blocks of ${formatBytes(zfile.blockSize)}, ${
        zfile.checksums ? "with" : "without"
      } checksums`,
    ],
    ["blocks", String(zfile.blocks)],
    ["stored", bytes(zfile.storedBytes)],
    ["original", bytes(zfile.originalBytes)],
    ["ratio", `${zfile.ratio.toFixed(2)} : 1`],
  ];
}

function indexRows(index: NonNullable<InspectReport["index"]>): Row[] {
  return [
    [
      "records",
      `${index.records}, ${index.padding} of padding besides`,
    ],
    ["data", `${index.dataRecords} records, ${bytes(index.dataBytes)}`],
    ["zeroed", `${index.zeroedRecords} records, ${bytes(index.zeroedBytes)}`],
    ["extent", bytes(index.extent)],
  ];
}

function rows(report: InspectReport): Row[] {
  const { tar, zfile, index, header, trailer } = report;
  const block = (name: string, value: BlockReport | null) =>
    value === null ? [] : fieldRows(name, value);
  return [
    ["file", report.path],
    ["kind", KINDS[report.kind]],
    ["size", bytes(report.fileSize)],
    ...tar === null ? [] : fieldRows("tar", tar),
    ...zfile === null ? [] : zfileRows(zfile),
    ...report.virtualSize === null
      ? []
      : [["virtual size", bytes(report.virtualSize)] as const],
    ...report.uuid === null ? [] : [["uuid", report.uuid] as const],
    ...report.parentUuid === null
      ? []
      : [["parent uuid", report.parentUuid] as const],
    ...report.userTag === null || report.userTag === ""
      ? []
      : [["user tag", JSON.stringify(report.userTag)] as const],
    ...index === null ? [] : indexRows(index),
    ...block("header", header),
    ...block("trailer", trailer),
    ...zfile === null ? [] : fieldRows("zfile header", zfile.header),
    ...zfile?.trailer === null || zfile === null
      ? []
      : fieldRows("zfile trailer", zfile.trailer),
  ];
}

/** Runs `overlaybd inspect FILE [--json]`. */
export async function run(args: Args<"inspect">): Promise<number> {
  const report = await inspectFile(args.file);
  if (args.json) {
    printJson(report);
    return EXIT.ok;
  }
  const lines = rows(report);
  const width = Math.max(...lines.map(([name]) => name.length));
  for (const [name, value] of lines) {
    console.log(`${name.padEnd(width)}  ${value}`);
  }
  return EXIT.ok;
}
