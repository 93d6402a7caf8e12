// SPDX-License-Identifier: Apache-2.0
/**
 * Shell examples of the documentation: those behind `<!-- run -->` are run,
 * in the page's order, in one shell.
 *
 * @module
 */
import { join } from "node:path";
import { freePort } from "./daemons.ts";
import { type Ended, ROOT, run, type TempDir, toolCommand } from "./env.ts";

/** The default ports of the documentation, and free ones in their place. */
const PORTS = /\b986[234]\b/g;

/** The marked blocks of a page. */
export function examples(page: string): string[] {
  const text = Deno.readTextFileSync(join(ROOT, page));
  return [...text.matchAll(/<!-- run -->\n\n```sh\n([^]*?)```/g)]
    .map(([, block]) => block ?? "");
}

/** Waits for the sockets that a block's servers were told to listen on. */
function untilListening(block: string): string {
  return [...block.matchAll(/--(?:nbd|listen) (\S+\.sock)/g)]
    .map(([, path]) => `until [ -S ${path} ]; do sleep 0.05; done\n`)
    .join("");
}

/**
 * Runs a page's examples, with `overlaybd` in PATH, in a directory of their
 * own; what they started is ended, what they mounted nobody else sees.
 */
export async function runExamples(page: string, dir: TempDir): Promise<Ended> {
  const { command, args, env } = toolCommand("overlaybd", []);
  const bin = dir.file("bin");
  Deno.mkdirSync(bin);
  const call = [command, ...args].map((word) => `'${word}'`).join(" ");
  Deno.writeTextFileSync(
    `${bin}/overlaybd`,
    `#!/bin/sh\nexec ${call} "$@"\n`,
    { mode: 0o755 },
  );
  const cwd = dir.file("here");
  Deno.mkdirSync(cwd);
  const ports = new Map<string, string>();
  const free = (port: string) => {
    const given = ports.get(port) ?? `${freePort()}`;
    ports.set(port, given);
    return given;
  };
  const script = [
    "set -eu",
    "end() { c=$?; set +e; kill $(jobs -p) 2>/dev/null; wait; exit $c; }",
    "trap end EXIT",
    ...examples(page).map((block) =>
      block.replace(PORTS, free) + untilListening(block)
    ),
  ].join("\n");
  const path = `${bin}:${Deno.env.get("PATH") ?? ""}:/usr/sbin:/sbin`;
  const apart = Deno.uid() === 0 ? ["unshare", "-m"] : [];
  return await run(
    "timeout",
    ["120", ...apart, "bash", "-c", script],
    { cwd, env: { ...env, PATH: path } },
  );
}
