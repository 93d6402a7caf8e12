// SPDX-License-Identifier: Apache-2.0
/**
 * A token server for Debian's docker-registry: it signs what it is asked for
 * (the registry's "token" authentication, JWT by RS256).
 *
 * @module
 */
import type { Certificate } from "./daemons.ts";
import { type FakeRegistry, startFake } from "./fake_registry.ts";

const base64 = (bytes: Uint8Array) => btoa(String.fromCharCode(...bytes));
const base64Url = (value: unknown) => {
  const bytes = value instanceof Uint8Array
    ? value
    : new TextEncoder().encode(JSON.stringify(value));
  return base64(bytes).replaceAll("+", "-").replaceAll("/", "_")
    .replaceAll("=", "");
};

/** DER of the first block of a PEM file. */
function der(path: string): Uint8Array<ArrayBuffer> {
  const text = Deno.readTextFileSync(path)
    .replace(/-----END[\s\S]*/, "").replace(/-----BEGIN.*-----/, "");
  return Uint8Array.from(atob(text.replace(/\s/g, "")), (c) => c.charCodeAt(0));
}

/** What tokens are for, and who gets them. */
export interface TokenOptions {
  signer: Certificate;
  issuer: string;
  service: string;
  /** what must be shown; undefined: nothing */
  basic?: string;
  seconds: number;
}

/** Starts one; its tokens are good for what was asked. */
export async function startTokenServer(
  options: TokenOptions,
): Promise<FakeRegistry> {
  const algorithm = { name: "RSASSA-PKCS1-v1_5", hash: "SHA-256" };
  const key = await crypto.subtle.importKey(
    "pkcs8",
    der(options.signer.key),
    algorithm,
    false,
    ["sign"],
  );
  const header = {
    typ: "JWT",
    alg: "RS256",
    x5c: [base64(der(options.signer.cert))],
  };
  return await startFake(async ({ url, headers, response }) => {
    if (
      options.basic !== undefined &&
      headers.authorization !== `Basic ${btoa(options.basic)}`
    ) {
      return response.writeHead(401).end();
    }
    const query = new URL(url, "http://x").searchParams;
    const access = query.getAll("scope").map((scope) => {
      const [type, name, actions = ""] = scope.split(":");
      return { type, name, actions: actions.split(",") };
    });
    const now = Math.floor(Date.now() / 1000);
    const claims = {
      iss: options.issuer,
      aud: options.service,
      sub: "test",
      nbf: now - 10,
      iat: now,
      exp: now + options.seconds,
      jti: crypto.randomUUID(),
      access,
    };
    const text = `${base64Url(header)}.${base64Url(claims)}`;
    const signature = new Uint8Array(
      await crypto.subtle.sign(
        algorithm,
        key,
        new TextEncoder().encode(text),
      ),
    );
    const token = `${text}.${base64Url(signature)}`;
    return response.end(
      JSON.stringify({ token, expires_in: options.seconds }),
    );
  });
}
