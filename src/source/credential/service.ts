// SPDX-License-Identifier: Apache-2.0
/**
 * Credentials from a service of the node: http, https or a unix socket
 * (spec/service-config.md, section 7).
 *
 * @module
 */
import { smallBody } from "../registry/body.ts";
import { transportError } from "../registry/errors.ts";
import { clientThrough } from "../registry/proxies.ts";
import { createTransport } from "../registry/transport.ts";
import { type CredentialStore, readStore } from "./docker.ts";

/** Which service, and how it is reached. */
export interface ServiceOptions {
  mode: "http" | "https" | "uds";
  /** URL or socket */
  path: string;
  timeoutMs: number;
  /** PEM files; empty: none */
  client_cert_path: string;
  client_key_path: string;
  server_ca_path: string;
}

const BODY_MAX = 1 << 20;

/** A query of the original, who escapes nothing: only what would break it. */
function escapeQuery(text: string): string {
  return encodeURIComponent(text).replace(
    /%(3A|2F|40)/g,
    (escape) => decodeURIComponent(escape),
  );
}

function requestUrl({ mode, path }: ServiceOptions, url: string): URL {
  const base = mode === "uds" ? "http://localhost/auth" : path;
  const joint = base.includes("?") ? "&" : "?";
  return new URL(`${base}${joint}remote_url=${escapeQuery(url)}`);
}

function pem(path: string): Promise<string | undefined> {
  return path === "" ? Promise.resolve(undefined) : Deno.readTextFile(path);
}

/** Over the socket, one request a connection. */
async function sendToSocket(
  path: string,
  url: URL,
  signal: AbortSignal,
): Promise<Uint8Array> {
  using client = clientThrough({ transport: "unix", path }, {
    poolMaxIdlePerHost: 0,
  });
  return await wholeAnswer(
    await fetch(url, { client, redirect: "manual", signal }),
  );
}

async function send(
  options: ServiceOptions,
  url: URL,
  signal: AbortSignal,
): Promise<Uint8Array> {
  // Read again each time: certificates are replaced while we run.
  const cert = await pem(options.client_cert_path);
  const key = await pem(options.client_key_path) ?? cert;
  const ca = await pem(options.server_ca_path);
  using transport = createTransport({ userAgent: "overlaybd", cert, key, ca });
  return await wholeAnswer(
    await transport.send({ url, headers: {}, signal }),
  );
}

/** Says what is wrong with an answer, and nothing that it contains. */
class AnswerError extends Error {}

async function wholeAnswer(response: Response): Promise<Uint8Array> {
  if (response.status !== 200) {
    await response.body?.cancel();
    throw new AnswerError(`HTTP status ${response.status}`);
  }
  return await smallBody(response, BODY_MAX);
}

/** `{"success": true, "data": {"auths": …}}` */
function parseAnswer(bytes: Uint8Array): CredentialStore {
  let answer: unknown;
  try {
    answer = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new AnswerError("the answer is no JSON");
  }
  const member = (name: string): unknown =>
    typeof answer === "object" && answer !== null
      ? Reflect.get(answer, name)
      : undefined;
  // It answered: there is nothing for this registry.
  if (member("success") !== true) return readStore({});
  try {
    return readStore(member("data"));
  } catch {
    throw new AnswerError("the answer has no `data`");
  }
}

/**
 * Asks the service about a URL.
 *
 * @throws {Error} it did not answer; nothing secret in it
 */
export async function askService(
  options: ServiceOptions,
  url: string,
): Promise<CredentialStore> {
  const what = `ask ${options.path.replace(/\?.*/s, "")} for credentials`;
  const late = AbortSignal.timeout(options.timeoutMs);
  let target: URL;
  try {
    target = requestUrl(options, url);
  } catch {
    throw new Error(`cannot ${what}: credentialConfig.path is no URL`);
  }
  try {
    const bytes = options.mode === "uds"
      ? await sendToSocket(options.path, target, late)
      : await send(options, target, late);
    return parseAnswer(bytes);
  } catch (cause) {
    if (cause instanceof AnswerError || cause instanceof RangeError) {
      throw new Error(`cannot ${what}: ${cause.message}`);
    }
    if (late.aborted) {
      const seconds = options.timeoutMs / 1000;
      throw new Error(`cannot ${what}: no answer within ${seconds} s`);
    }
    if (cause instanceof Deno.errors.NotFound) throw cause;
    throw new Error(
      transportError(what, target, cause).message
        .replace("certConfig.caFile", "credentialConfig.server_ca_path")
        .replace(/; "[^"]*" in insecureRegistries.*/, ""),
    );
  }
}
