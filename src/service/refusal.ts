// SPDX-License-Identifier: Apache-2.0
/**
 * Requests that the service does not do, and why.
 *
 * @module
 */

/** Why not: what an API makes its status of. */
export type Refusal =
  /** there is nothing of that name */
  | "not-found"
  /** the name is taken */
  | "exists"
  /** somebody uses it */
  | "busy"
  /** it makes no sense */
  | "invalid"
  /** this process, device or machine cannot */
  | "unsupported"
  /** the service ends */
  | "ending";

/** The message is a whole sentence for the one who asked. */
export class RequestError extends Error {
  override readonly name = "RequestError";
  readonly refusal: Refusal;

  constructor(refusal: Refusal, message: string, options?: ErrorOptions) {
    super(message, options);
    this.refusal = refusal;
  }
}
