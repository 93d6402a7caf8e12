// SPDX-License-Identifier: Apache-2.0
/**
 * Manual pages from the table that `--help` is made from: `overlaybd(1)`,
 * and `overlaybd-NAME` for every command.
 *
 *     deno run -A scripts/reference/man.ts DIRECTORY
 *
 * @module
 */
import { optionHelp, optionTerm, positionalTerm } from "../../src/cli/help.ts";
import {
  type CommandName,
  commandNames,
  type CommandSpec,
  commandSpec,
} from "../../src/cli/table.ts";
import { VERSION } from "../../src/format/version.ts";
import {
  type DescribedField,
  imageFields,
  serviceFields,
} from "./described.ts";
import {
  bold,
  entry,
  escapeRoff,
  literal,
  page,
  type PageHead,
  paragraph,
  section,
} from "./roff.ts";

/** One file of a manual. */
export interface ManPage {
  /** `overlaybd-create.1` */
  file: string;
  text: string;
}

/** Commands for whoever runs the machine, by the section they are in. */
const ADMINISTRATION: readonly string[] = [
  "tcmu",
  "attach",
  "detach",
  "ls",
  "doctor",
];

function sectionOf(name: CommandName): 1 | 8 {
  return ADMINISTRATION.includes(name) ? 8 : 1;
}

function reference(name: CommandName): string {
  return `${bold(`overlaybd-${name}`)}(${sectionOf(name)})`;
}

function synopsis(spec: CommandSpec, program: string): string {
  const words = Object.entries(spec.positionals)
    .map(([key, p]) => `\\fI${escapeRoff(positionalTerm(key, p))}\\fR`);
  const required = Object.values(spec.options).flatMap((option) =>
    option.kind !== "flag" && option.required === true
      ? [escapeRoff(optionTerm(option))]
      : []
  );
  const options = Object.keys(spec.options).length > 0
    ? ["[\\fIOPTIONS\\fR]"]
    : [];
  return [bold(program), ...options, ...required, ...words].join(" ");
}

/** What every command ends with. */
const STATUS = [
  ["0", "It did what was asked."],
  ["104", "A value cannot be converted, such as a text for a number."],
  ["105", "A value is not allowed: a missing file, a number out of range."],
  ["106", "A required option or argument is missing."],
  ["109", "An argument that nobody expects."],
  ["114", "An option without its value, or given twice."],
  [
    "255",
    "It could not be done; one line on standard error says why, and no " +
    "output is left behind.",
  ],
] as const;

const FILES = entry(
  bold("/etc/overlaybd/overlaybd.json"),
  "The service's configuration; it need not exist.",
);

function seeAlso(names: readonly string[]): string[] {
  return section("SEE ALSO", [names.join(",\n")]);
}

function commandPage(name: CommandName, head: PageHead): string {
  const spec = commandSpec(name);
  const programs = [
    `overlaybd ${name}`,
    ...spec.original === undefined ? [] : [spec.original],
  ];
  return page(head, [
    ...section(
      "SYNOPSIS",
      programs.flatMap((program, i) => [
        ...i === 0 ? [] : [".br"],
        synopsis(spec, program),
      ]),
    ),
    ...section("DESCRIPTION", [
      ...paragraph(
        spec.details ??
          `${spec.summary.slice(0, 1).toUpperCase()}${spec.summary.slice(1)}.`,
      ),
      ...spec.original === undefined ? [] : paragraph(
        `Called as ${spec.original}, it takes the arguments of the ` +
          "original's program of that name, prints its texts and ends with " +
          "its exit codes.",
      ),
    ]),
    ...section(
      "ARGUMENTS",
      Object.entries(spec.positionals).flatMap(([key, p]) =>
        entry(`\\fI${escapeRoff(positionalTerm(key, p))}\\fR`, p.help)
      ),
    ),
    ...section("OPTIONS", [
      ...entry("\\fB\\-h\\fR, \\fB\\-\\-help\\fR", "print help and exit"),
      ...Object.values(spec.options).flatMap((option) =>
        entry(
          option.names.map(bold).join(", ") +
            (option.kind === "flag"
              ? ""
              : ` \\fI${escapeRoff(option.value)}\\fR`),
          optionHelp(option),
        )
      ),
    ]),
    // Some say in their details what they end with.
    ...spec.details?.includes("Exit code") === true ? [] : section(
      "EXIT STATUS",
      STATUS.flatMap(([code, means]) => entry(bold(code), means)),
    ),
    ...section(
      "EXAMPLES",
      spec.examples.flatMap(([line, says]) => [
        ...paragraph(`${says.slice(0, 1).toUpperCase()}${says.slice(1)}:`),
        ...literal([`overlaybd ${line}`]),
      ]),
    ),
    ...seeAlso([`${bold("overlaybd")}(1)`, `${bold("overlaybd.json")}(5)`]),
  ]);
}

function overviewPage(head: PageHead): string {
  const names = commandNames();
  return page(head, [
    ...section("SYNOPSIS", [
      `${
        bold("overlaybd")
      } \\fICOMMAND\\fR [\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]`,
    ]),
    ...section("DESCRIPTION", [
      ...paragraph(
        "An image is a stack of read-only layers with, if you like, a " +
          "writable one on top. overlaybd shows the stack as one block " +
          "device and reads only the blocks that are asked for, from files " +
          "or from a registry.",
      ),
      ...paragraph(
        "Results are on standard output, everything else is on standard " +
          "error; --json prints results as JSON. Under the original's names " +
          "it is the original's programs.",
      ),
    ]),
    ...section(
      "COMMANDS",
      names.flatMap((name) =>
        entry(reference(name), `${commandSpec(name).summary}.`)
      ),
    ),
    ...section("ENVIRONMENT", [
      ...entry(
        bold("OVERLAYBD_CACHE_DIR"),
        "A private directory for what makes the next start faster, and that " +
          "the executable unpacks itself to where it was not installed with " +
          "its runtime beside it.",
      ),
      ...entry(
        bold("DENO_TLS_CA_STORE"),
        "Whose certificate authorities count: system,mozilla by default.",
      ),
    ]),
    ...section("FILES", FILES),
    ...seeAlso([
      ...names.map(reference),
      `${bold("overlaybd.json")}(5)`,
      `${bold("overlaybd-image.json")}(5)`,
    ]),
  ]);
}

/** Fields of a configuration file, a paragraph each. */
function fieldEntries(fields: readonly DescribedField[]): string[] {
  return fields.flatMap(({ key, type, initial, says }) =>
    entry(
      `${bold(key)}: ${escapeRoff(type)}${
        initial === undefined ? "" : `, ${bold(initial)}`
      }`,
      says,
    )
  );
}

function servicePage(head: PageHead): string {
  return page(head, [
    ...section("DESCRIPTION", [
      ...paragraph(
        "One JSON object. Every field may be missing and then has the " +
          "default that is shown here; the file itself need not exist. " +
          "Unknown fields are ignored with a warning; a wrong type or value " +
          "is refused with a message that names the field.",
      ),
      ...paragraph(
        "`overlaybd config check` says what is wrong in a file, and " +
          "`overlaybd config show` prints every value that counts and where " +
          "it came from.",
      ),
    ]),
    ...section("FIELDS", fieldEntries(serviceFields())),
    ...section("FILES", FILES),
    ...seeAlso([
      `${bold("overlaybd-config")}(1)`,
      `${bold("overlaybd-image.json")}(5)`,
    ]),
  ]);
}

const IMAGE_EXAMPLE = [
  "{",
  '  "repoBlobUrl": "https://registry.example/v2/app/blobs",',
  '  "lowers": [',
  '    {"file": "/srv/base.layer"},',
  '    {"digest": "sha256:...", "size": 4739584, "dir": "/srv/app"}',
  "  ],",
  '  "upper": {"data": "/srv/upper.data", "index": "/srv/upper.index"}',
  "}",
];

function imagePage(head: PageHead): string {
  return page(head, [
    ...section("DESCRIPTION", [
      ...paragraph(
        "One JSON object that says which layers make an image, from the " +
          "bottom to the top, 255 at most. containerd's snapshotter writes " +
          "it as `config.v1.json`. Unknown fields are ignored.",
      ),
    ]),
    ...section("FIELDS", fieldEntries(imageFields())),
    ...section("EXAMPLES", [
      ...paragraph("A local layer, one in a registry, and a writable one:"),
      ...literal(IMAGE_EXAMPLE),
    ]),
    ...seeAlso([
      `${bold("overlaybd-serve")}(1)`,
      `${bold("overlaybd.json")}(5)`,
    ]),
  ]);
}

/**
 * Every page.
 *
 * @param date of the sources, `2026-11-29`
 */
export function manPages(date: string): ManPage[] {
  const head = { date, version: VERSION };
  return [
    {
      file: "overlaybd.1",
      text: overviewPage({
        ...head,
        name: "overlaybd",
        section: 1,
        summary: "block-device images from stacked layers",
      }),
    },
    {
      file: "overlaybd.json.5",
      text: servicePage({
        ...head,
        name: "overlaybd.json",
        section: 5,
        summary: "configuration of the overlaybd service",
      }),
    },
    {
      file: "overlaybd-image.json.5",
      text: imagePage({
        ...head,
        name: "overlaybd-image.json",
        section: 5,
        summary: "which layers make an overlaybd image",
      }),
    },
    ...commandNames().map((name) => {
      const number = sectionOf(name);
      return {
        file: `overlaybd-${name}.${number}`,
        text: commandPage(name, {
          ...head,
          name: `overlaybd-${name}`,
          section: number,
          summary: commandSpec(name).summary,
        }),
      };
    }),
  ];
}

/** The day of the sources: SOURCE_DATE_EPOCH, or today. */
function sourceDate(): string {
  const epoch = Deno.env.get("SOURCE_DATE_EPOCH");
  const at = epoch === undefined ? new Date() : new Date(Number(epoch) * 1000);
  return at.toISOString().slice(0, 10);
}

if (import.meta.main) {
  const [to = "."] = Deno.args;
  for (const { file, text } of manPages(sourceDate())) {
    const dir = `${to}/man${file.slice(-1)}`;
    Deno.mkdirSync(dir, { recursive: true });
    Deno.writeTextFileSync(`${dir}/${file}`, text);
  }
}
