// SPDX-License-Identifier: Apache-2.0
/**
 * Credentials as Docker's `config.json` has them, and the original's
 * `cred.json`, which is a part of it (spec/service-config.md, section 7).
 *
 * @module
 */
import { type Credential, newCredential } from "./credential.ts";

/** A file, or the `data` of a service's answer, ready to be searched. */
export interface CredentialStore {
  /** longest name first */
  readonly entries: readonly Entry[];
  /** programs by registry name, longest name first */
  readonly helpers: readonly { name: Name; helper: string }[];
  /** the program for every other registry */
  readonly fallback: string | undefined;
  /** sentences for the log, without secrets */
  readonly warnings: readonly string[];
}

/** A registry, or a part of one: `reg.io`, `reg.io/ns/repo`. */
interface Name {
  /** as it is written in the file */
  key: string;
  host: string;
  /** components behind the host */
  path: readonly string[];
}

interface Entry {
  name: Name;
  credential: Credential;
}

/** The names of Docker Hub. */
const HUB = new Set(["docker.io", "index.docker.io", "registry-1.docker.io"]);

/** What Docker itself calls it. */
const HUB_KEY = "https://index.docker.io/v1/";

function nameOf(key: string): Name {
  const rest = key.replace(/^https?:\/\//i, "").replace(/\/+$/, "");
  const [host = "", ...path] = rest.split("/");
  const lower = host.toLowerCase();
  // `https://index.docker.io/v1/`, `reg.io/v2`: the whole registry.
  const version = path.length === 1 && /^v[12]$/.test(path[0] ?? "");
  return {
    key,
    host: HUB.has(lower) ? "docker.io" : lower,
    path: version ? [] : path,
  };
}

/** Where a blob, a manifest or an upload is. */
interface Place {
  /** as URLs have it, and with the port always */
  hosts: readonly string[];
  path: readonly string[];
}

function placeOf(url: string): Place {
  const { host, hostname, port, pathname, protocol } = new URL(url);
  const parts = pathname.split("/").filter((part) => part !== "");
  const end = parts.findLastIndex((part) =>
    ["blobs", "manifests", "referrers"].includes(part)
  );
  const usual = protocol === "http:" ? "80" : "443";
  return {
    hosts: HUB.has(host)
      ? ["docker.io"]
      : [host, `${hostname}:${port === "" ? usual : port}`],
    // Behind `v2`.
    path: end < 0 ? [] : parts.slice(1, end),
  };
}

/** True when a name covers a place. */
function covers(name: Name, place: Place): boolean {
  return place.hosts.includes(name.host) &&
    name.path.every((part, i) => part === place.path[i]);
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function text(value: unknown): string | undefined {
  return typeof value === "string" && value !== "" ? value : undefined;
}

/** What `auth` says: base64 of `user:password`. */
function decodeAuth(auth: string): Credential | undefined {
  const packed = auth.replace(/\s+/g, "");
  let bytes: string;
  try {
    bytes = atob(packed);
  } catch {
    return undefined;
  }
  const cut = bytes.indexOf(":");
  if (cut < 0) return undefined;
  const name = Uint8Array.from(bytes.slice(0, cut), (c) => c.charCodeAt(0));
  // The bytes are passed on as they are, whatever their encoding.
  return { username: new TextDecoder().decode(name), basic: btoa(bytes) };
}

/** One value of `auths`; undefined: it says nothing; text: what is wrong. */
function readEntry(value: unknown): Credential | undefined | string {
  if (!isObject(value)) return "is no object";
  const auth = text(value["auth"]);
  const identityToken = text(value["identitytoken"]);
  const username = text(value["username"]);
  const password = typeof value["password"] === "string"
    ? value["password"]
    : "";
  let found: Credential | undefined;
  if (auth !== undefined) {
    found = decodeAuth(auth);
    if (found === undefined) return "has an `auth` that is no user:password";
  } else if (username !== undefined) {
    found = newCredential(username, password);
  } else if (identityToken !== undefined) found = newCredential("", "");
  if (found === undefined) return undefined;
  if (identityToken !== undefined) return { ...found, identityToken };
  return found.basic === btoa(":") ? undefined : found;
}

/** Longest first; among equals the first of the file. */
function longestFirst<T extends { name: Name }>(list: T[]): T[] {
  return list.toSorted((a, b) => b.name.path.length - a.name.path.length);
}

/**
 * Reads parsed JSON.
 *
 * @throws {TypeError} it is no object
 */
export function readStore(value: unknown): CredentialStore {
  if (!isObject(value)) throw new TypeError("it is no JSON object");
  const warnings: string[] = [];
  const entries: Entry[] = [];
  const auths = value["auths"];
  if (isObject(auths)) {
    for (const [key, member] of Object.entries(auths)) {
      const found = readEntry(member);
      if (typeof found === "string") warnings.push(`auths["${key}"] ${found}`);
      else if (found) entries.push({ name: nameOf(key), credential: found });
    }
  } else if (auths !== undefined && auths !== null) {
    warnings.push("`auths` is no object");
  }
  const helpers: { name: Name; helper: string }[] = [];
  const programs = value["credHelpers"];
  if (isObject(programs)) {
    for (const [key, member] of Object.entries(programs)) {
      const helper = text(member);
      if (helper !== undefined) helpers.push({ name: nameOf(key), helper });
    }
  }
  return {
    entries: longestFirst(entries),
    helpers: longestFirst(helpers),
    fallback: text(value["credsStore"]),
    warnings,
  };
}

/** What a store has for a URL. */
export type Match =
  | { kind: "credential"; credential: Credential }
  /** the program to ask, and for which registry */
  | { kind: "helper"; helper: string; server: string }
  | { kind: "none" };

/**
 * The longest match: a registry's own program, then what is written down, then
 * the program for all.
 *
 * @param url of a blob, manifest or upload
 */
export function findIn(store: CredentialStore, url: string): Match {
  const place = placeOf(url);
  const program = store.helpers.find(({ name }) => covers(name, place));
  const entry = store.entries.find(({ name }) => covers(name, place));
  const longer = (entry?.name.path.length ?? -1) >
    (program?.name.path.length ?? -1);
  if (program !== undefined && !longer) {
    const { helper, name } = program;
    return { kind: "helper", helper, server: name.key };
  }
  if (entry !== undefined) {
    return { kind: "credential", credential: entry.credential };
  }
  if (store.fallback === undefined) return { kind: "none" };
  const [host = ""] = place.hosts;
  const server = host === "docker.io" ? HUB_KEY : host;
  return { kind: "helper", helper: store.fallback, server };
}
