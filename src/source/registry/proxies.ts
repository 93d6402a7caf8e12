// SPDX-License-Identifier: Apache-2.0
/**
 * The proxies that the environment names, and whom it excepts: read as curl
 * reads it, ranges of addresses too, for every way of sending a request.
 *
 * @module
 */

/** Reads `http_proxy`, `https_proxy` or `all_proxy`, in either case. */
function variable(name: string): string {
  const value = Deno.env.get(name) || Deno.env.get(name.toUpperCase()) || "";
  return value.trim();
}

/** An address in its one form, `[...]` taken off; undefined: it is none. */
function address(text: string): string | undefined {
  const bare = text.replace(/^\[(.*)\]$/, "$1");
  const url = bare.includes(":")
    ? URL.parse(`http://[${bare}]/`)
    : /^[\d.]+$/.test(bare)
    ? URL.parse(`http://${bare}/`)
    : null;
  return url?.hostname.replace(/^\[(.*)\]$/, "$1");
}

const family = (of: string) => of.includes(":") ? "ipv6" : "ipv4";

async function inRange(host: string, entry: string): Promise<boolean> {
  const [text = "", bits = ""] = entry.split("/");
  const net = address(text);
  const most = family(text) === "ipv6" ? 128 : 32;
  const valid = net !== undefined && /^\d+$/.test(bits) && Number(bits) <= most;
  if (!valid || family(net) !== family(host)) return false;
  const { BlockList } = await import("node:net");
  const list = new BlockList();
  list.addSubnet(net, Number(bits), family(net));
  return list.check(host, family(host));
}

/** `name`, `.name`, `*.name`, an address or a range, perhaps with a port. */
async function excepts(entry: string, url: URL): Promise<boolean> {
  if (entry === "*") return true;
  const host = url.hostname.replace(/^\[(.*)\]$/, "$1");
  const isAddress = address(host) !== undefined;
  if (entry.includes("/")) return isAddress && await inRange(host, entry);
  // The last `:` of an address of its own begins no port.
  const [, text = entry, port] =
    (address(entry) === undefined ? /^(.*):(\d+)$/.exec(entry) : null) ?? [];
  const standard = url.protocol === "https:" ? "443" : "80";
  if (port !== undefined && port !== (url.port || standard)) return false;
  if (isAddress) return address(text) === host;
  const name = text.replace(/^\*?\./, "");
  return name !== "" && (host === name || host.endsWith(`.${name}`));
}

/** The proxy for a URL; undefined: it is reached without. */
export async function proxyFor(url: URL): Promise<string | undefined> {
  const proxy =
    variable(url.protocol === "https:" ? "https_proxy" : "http_proxy") ||
    variable("all_proxy");
  if (proxy === "") return undefined;
  const entries = variable("no_proxy").toLowerCase().split(/[\s,]+/);
  for (const entry of entries) {
    if (entry !== "" && await excepts(entry, url)) return undefined;
  }
  return /^[a-z][a-z0-9+.-]*:\/\//i.test(proxy) ? proxy : `http://${proxy}`;
}

const VARIABLES = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"]
  .flatMap((name) => [name, name.toUpperCase()]);

/**
 * A client of fetch that goes through this proxy and no other; undefined:
 * through none.  Whatever the environment says would count as well: it is
 * looked at when a client is made, and only then.
 */
export function clientThrough(
  proxy: Deno.Proxy | undefined,
  options: Deno.CreateHttpClientOptions,
): Deno.HttpClient {
  const before = VARIABLES.flatMap((name) => {
    const value = Deno.env.get(name);
    return value === undefined ? [] : [[name, value] as const];
  });
  try {
    for (const [name] of before) Deno.env.delete(name);
    return Deno.createHttpClient(
      proxy === undefined ? options : { ...options, proxy },
    );
  } finally {
    for (const [name, value] of before) Deno.env.set(name, value);
  }
}

/** A proxy's URL as fetch takes it. */
export function fetchProxy(text: string): Deno.Proxy {
  const url = new URL(text);
  const { username, password } = url;
  url.username = url.password = "";
  const transport = /^socks5h?:$/.test(url.protocol)
    ? "socks5"
    : url.protocol === "https:"
    ? "https"
    : "http";
  return {
    transport,
    url: url.href,
    ...username === "" ? {} : {
      basicAuth: {
        username: decodeURIComponent(username),
        password: decodeURIComponent(password),
      },
    },
  };
}
