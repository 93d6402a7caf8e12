// SPDX-License-Identifier: Apache-2.0
/**
 * Where credentials come from, as `credentialConfig` says it: a file, a
 * service, and the programs that a file names (spec/service-config.md,
 * section 7).
 *
 * @module
 */
import { whyOf } from "../../../ffi/errors.ts";
import { parseJson } from "../../format/json.ts";
import { ANONYMOUS, type Credential, type Credentials } from "./credential.ts";
import { type CredentialStore, findIn, readStore } from "./docker.ts";

/** `credentialConfig`. */
export interface CredentialOptions {
  /** file, http, https, uds; anything else: every request is anonymous */
  mode: string;
  /** file, URL or socket; empty: every request is anonymous */
  path: string;
  /** s */
  timeout?: number;
  client_cert_path?: string;
  client_key_path?: string;
  server_ca_path?: string;
  log?: (line: string) => void;
}

/** An answer of a service or a program is good for this long. */
const GOOD_MS = 30_000;
/** Programs may ask somebody far away. */
const PROGRAM_MIN_MS = 10_000;
const ANSWERS_MAX = 1024;

/** Asks once for all who want to know, and keeps what the last answer was. */
interface Memory<T> {
  /** @param fresh the answer that is known is not good enough */
  get(key: string, fresh: boolean, ask: () => Promise<T>): Promise<T>;
}

function createMemory<T>(log: (line: string) => void): Memory<T> {
  const known = new Map<string, { value: T; at: number }>();
  const asking = new Map<string, Promise<T>>();
  return {
    async get(key, fresh, ask) {
      const last = known.get(key);
      if (
        !fresh && last !== undefined && performance.now() - last.at < GOOD_MS
      ) {
        return last.value;
      }
      let asked = asking.get(key);
      if (asked === undefined) {
        asked = ask().finally(() => asking.delete(key));
        asking.set(key, asked);
      }
      try {
        const value = await asked;
        known.delete(key);
        known.set(key, { value, at: performance.now() });
        const [oldest] = known.keys();
        if (known.size > ANSWERS_MAX && oldest !== undefined) {
          known.delete(oldest);
        }
        return value;
      } catch (error) {
        if (last === undefined) throw error;
        const why = error instanceof Error ? error.message : String(error);
        log(`WARNING ${why}: the last answer is used again`);
        return last.value;
      }
    },
  };
}

const NOTHING: CredentialStore = readStore({});

/** What a file has, read again when it changes. */
function fileStore(
  path: string,
  log: (line: string) => void,
): () => Promise<CredentialStore> {
  let stamp = "";
  let store = NOTHING;
  return async () => {
    let info: Deno.FileInfo;
    try {
      info = await Deno.stat(path);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) {
        stamp = "";
        return store = NOTHING;
      }
      throw error;
    }
    const now = `${info.ino} ${info.size} ${info.mtime?.getTime()} ` +
      `${info.ctime?.getTime()}`;
    if (now === stamp) return store;
    stamp = now;
    try {
      store = readStore(parseJson(await Deno.readTextFile(path)).value);
      for (const warning of store.warnings) {
        log(`WARNING credentials in ${path}: ${warning}`);
      }
    } catch (error) {
      // Parsers quote what they cannot read.
      const why = error instanceof SyntaxError ? "it is no JSON" : whyOf(error);
      const kept = store === NOTHING ? "" : ", what it had before still counts";
      log(`WARNING cannot read credentials from ${path}: ${why}${kept}`);
    }
    return store;
  };
}

/** The part of a URL that credentials depend on. */
function repositoryOf(url: string): string {
  return url.replace(/\/(blobs|manifests|referrers)\/.*$/s, "");
}

/** Makes what finds credentials; nothing is read or asked yet. */
export function createCredentials(options: CredentialOptions): Credentials {
  const { mode, path, log = () => {} } = options;
  const timeoutMs = Math.max(1, options.timeout ?? 1) * 1000;
  if (!["file", "http", "https", "uds"].includes(mode) || path === "") {
    return ANONYMOUS;
  }
  const fromFile = fileStore(path, log);
  const answers = createMemory<CredentialStore>(log);
  const programs = createMemory<Credential | undefined>(log);

  const fromService = async (url: string, fresh: boolean) => {
    const { askService } = await import("./service.ts");
    return await answers.get(repositoryOf(url), fresh, () =>
      askService({
        mode: mode as "http" | "https" | "uds",
        path,
        timeoutMs,
        client_cert_path: options.client_cert_path ?? "",
        client_key_path: options.client_key_path ?? "",
        server_ca_path: options.server_ca_path ?? "",
      }, url));
  };

  const find = async (
    url: string,
    fresh: boolean,
  ): Promise<Credential | undefined> => {
    const store = mode === "file"
      ? await fromFile()
      : await fromService(url, fresh);
    const match = findIn(store, url);
    if (match.kind === "credential") return match.credential;
    if (match.kind === "none") return undefined;
    const { helper, server } = match;
    const { askProgram } = await import("./program.ts");
    return await programs.get(
      `${helper} ${server}`,
      fresh,
      () => askProgram(helper, server, Math.max(PROGRAM_MIN_MS, timeoutMs)),
    );
  };

  return {
    where: path.replace(/\?.*/s, ""),
    async find(url, { fresh = false } = {}) {
      try {
        return await find(url, fresh);
      } catch (error) {
        const why = error instanceof Error ? error.message : String(error);
        log(`WARNING no credentials for ${new URL(url).host}: ${why}`);
        return undefined;
      }
    },
  };
}
