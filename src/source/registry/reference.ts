// SPDX-License-Identifier: Apache-2.0
/**
 * Names of images as people write them: `redis`, `reg.io/ns/app:1.2`,
 * `reg.io:5000/app@sha256:…` (the grammar of Docker and containerd).
 *
 * @module
 */
import { SourceError } from "../source.ts";

/** An image's name, whole. */
export interface Reference {
  /** as people say it: `docker.io/library/redis:latest` */
  name: string;
  /** `https://registry-1.docker.io/v2/library/redis`, without a last slash */
  repositoryUrl: string;
  /** tag or digest */
  version: string;
  digest: string | undefined;
  /** the scheme was not written, and may be http: a host of this machine */
  maybePlain: boolean;
}

const HOST = /^(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::\d+)?$/i;
const COMPONENT = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const TAG = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;
const DIGEST = /^sha256:[0-9a-f]{64}$/;
const LOOPBACK = /^(?:localhost|127\.\d+\.\d+\.\d+|\[::1\])(?::\d+)?$/i;

function isHost(component: string): boolean {
  return /[.:[]/.test(component) || component === "localhost";
}

/** The registry and the path below it. */
function split(rest: string): { host: string; path: string } {
  const cut = rest.indexOf("/");
  const first = cut < 0 ? "" : rest.slice(0, cut);
  if (isHost(first)) return { host: first, path: rest.slice(cut + 1) };
  return {
    host: "docker.io",
    path: rest.includes("/") ? rest : `library/${rest}`,
  };
}

/**
 * Reads a reference; without a tag or a digest it is `latest`.
 *
 * @param text may begin with `https://` or `http://`
 * @throws {SourceError} EINVAL: what is wrong with it
 */
export function parseReference(text: string): Reference {
  const bad = (why: string) =>
    new SourceError("EINVAL", `cannot use the image reference ${text}: ${why}`);
  const [, scheme, rest = ""] = /^(https?:\/\/)?(.*)$/is.exec(text) ?? [];
  const at = rest.indexOf("@");
  const digest = at < 0 ? undefined : rest.slice(at + 1);
  const named = at < 0 ? rest : rest.slice(0, at);
  // A colon behind the last slash: the others belong to a port.
  const colon = named.indexOf(":", named.lastIndexOf("/") + 1);
  const tag = colon < 0 ? undefined : named.slice(colon + 1);
  const { host, path } = split(colon < 0 ? named : named.slice(0, colon));
  if (digest !== undefined && !DIGEST.test(digest)) {
    throw bad("its digest is not sha256: and 64 hex digits");
  }
  if (tag !== undefined && !TAG.test(tag)) throw bad("its tag is bad");
  if (!HOST.test(host)) throw bad("its registry is bad");
  if (!path.split("/").every((part) => COMPONENT.test(part))) {
    throw bad("its name is bad: lower case letters, digits, . _ - and /");
  }
  const version = digest ?? tag ?? "latest";
  const server = /^(index\.)?docker\.io$/i.test(host)
    ? "registry-1.docker.io"
    : host;
  return {
    name: `${host}/${path}${digest === undefined ? ":" : "@"}${version}`,
    repositoryUrl: `${
      scheme?.toLowerCase() ?? "https://"
    }${server.toLowerCase()}/v2/${path}`,
    version,
    digest,
    maybePlain: scheme === undefined && LOOPBACK.test(host),
  };
}
