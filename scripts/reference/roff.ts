// SPDX-License-Identifier: Apache-2.0
/**
 * The little of man(7) that the manual pages need.
 *
 * @module
 */

/** Who the page belongs to, and when it was made. */
export interface PageHead {
  /** `overlaybd-create` */
  name: string;
  section: 1 | 5 | 8;
  /** one line, for `man -k` */
  summary: string;
  /** `2026-11-29` */
  date: string;
  version: string;
}

/** Text of anybody as roff that shows just that. */
export function escapeRoff(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll("`", "\\(ga")
    .replaceAll("'", "\\(aq")
    .replaceAll("^", "\\(ha")
    .replaceAll("~", "\\(ti")
    // A line that begins with a dot would be a request.
    .replace(/^\./gm, "\\&.");
}

/** Markdown's one mark that our tables have: `code` becomes bold. */
export function codeAsBold(text: string): string {
  return text.split("`").map((part, i) => i % 2 === 1 ? bold(part) : part)
    .map((part, i) => i % 2 === 1 ? part : escapeRoff(part)).join("");
}

/** Words in bold. */
export function bold(text: string): string {
  return `\\fB${escapeRoff(text)}\\fR`;
}

/** A paragraph, its sentences on lines of their own. */
export function paragraph(text: string): string[] {
  return [".PP", ...sentences(text)];
}

function sentences(text: string): string[] {
  return codeAsBold(text).split(/(?<=[.:]) (?=[A-Z(])/);
}

/** A term and what it means. */
export function entry(term: string, text: string): string[] {
  return [".TP", term, ...sentences(text)];
}

/** Lines shown as they are. */
export function literal(lines: readonly string[]): string[] {
  return [".PP", ".RS 4", ".nf", ...lines.map(escapeRoff), ".fi", ".RE"];
}

/** A section; nothing where it would be empty. */
export function section(title: string, lines: readonly string[]): string[] {
  if (lines.length === 0) return [];
  // A paragraph's space would come twice behind a heading.
  const body = lines[0] === ".PP" ? lines.slice(1) : lines;
  return [`.SH ${title}`, ...body];
}

/** The whole page. */
export function page(head: PageHead, body: readonly string[]): string {
  const { name, section: number, summary, date, version } = head;
  return [
    `.TH ${name.toUpperCase().replaceAll("-", "\\-")} ${number} ${date} ` +
    `"overlaybd ${version}" overlaybd`,
    ".SH NAME",
    `${escapeRoff(name)} \\- ${escapeRoff(summary)}`,
    ...body,
  ].join("\n") + "\n";
}
