// SPDX-License-Identifier: Apache-2.0
/**
 * Docker's credential helpers: `docker-credential-NAME get`.
 *
 * @module
 */
import { type Credential, newCredential } from "./credential.ts";

/** What a program calls a user name in front of an identity token. */
const TOKEN_USER = "<token>";

const OUTPUT_MAX = 1 << 20;

/**
 * Asks a program for a registry's credential; undefined: it has none.
 *
 * @param helper NAME
 * @param server the registry as the program knows it
 * @throws {Error} why it did not answer, without what it printed
 */
export async function askProgram(
  helper: string,
  server: string,
  timeoutMs: number,
): Promise<Credential | undefined> {
  const name = `docker-credential-${helper}`;
  // It is looked up in PATH: a slash would name any file.
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(helper)) {
    throw new Error(`cannot run ${name}: bad name`);
  }
  const late = AbortSignal.timeout(timeoutMs);
  let output: Deno.CommandOutput;
  try {
    const child = new Deno.Command(name, {
      args: ["get"],
      stdin: "piped",
      stdout: "piped",
      stderr: "null",
      signal: late,
    }).spawn();
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(server)).catch(() => {});
    await writer.close().catch(() => {});
    output = await child.output();
  } catch (cause) {
    const why = cause instanceof Deno.errors.NotFound
      ? "there is no such program"
      : cause instanceof Error
      ? cause.message
      : String(cause);
    throw new Error(`cannot run ${name}: ${why}`);
  }
  if (late.aborted) {
    throw new Error(`${name} did not answer within ${timeoutMs / 1000} s`);
  }
  const text = new TextDecoder().decode(output.stdout.subarray(0, OUTPUT_MAX));
  if (!output.success) {
    // The only failure that is an answer; the protocol has no code for it.
    if (/credentials not found/i.test(text)) return undefined;
    throw new Error(`${name} ended with code ${output.code}`);
  }
  let answer: unknown;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Error(`${name} did not print JSON`);
  }
  const member = (key: string): string => {
    const value: unknown = typeof answer === "object" && answer !== null
      ? Reflect.get(answer, key)
      : undefined;
    return typeof value === "string" ? value : "";
  };
  const username = member("Username");
  const secret = member("Secret");
  if (username === TOKEN_USER) {
    return { ...newCredential("", ""), identityToken: secret };
  }
  return username === "" && secret === ""
    ? undefined
    : newCredential(username, secret);
}
