// SPDX-License-Identifier: Apache-2.0
/**
 * User names and passwords, and where they come from
 * (spec/service-config.md, section 7).
 *
 * @module
 */

/** Who asks.  Nothing of it may reach a log but the user name. */
export interface Credential {
  username: string;
  /** base64 of `user:password` */
  basic: string;
  /** in place of a password: a token that is exchanged for others */
  identityToken?: string;
}

/** Finds the credential for a URL. */
export interface Credentials {
  /** for messages: `"/opt/overlaybd/cred.json"` */
  readonly where: string;
  /**
   * The best credential for a blob, manifest or upload URL; undefined: none,
   * the request is anonymous.  Never throws: what is wrong is logged.
   *
   * @param options `fresh`: the one known is refused: ask again
   */
  find(
    url: string,
    options?: { fresh?: boolean },
  ): Promise<Credential | undefined>;
}

/** Nobody in particular. */
export const ANONYMOUS: Credentials = {
  where: "no credentials are configured",
  find: () => Promise.resolve(undefined),
};

/** base64 of a text's UTF-8 bytes. */
function base64(text: string): string {
  const bytes = new TextEncoder().encode(text);
  return btoa(String.fromCharCode(...bytes));
}

/** A credential of a name and a password, either may be empty. */
export function newCredential(username: string, password: string): Credential {
  return { username, basic: base64(`${username}:${password}`) };
}
