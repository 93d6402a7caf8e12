// SPDX-License-Identifier: Apache-2.0
/**
 * Errors as `application/problem+json` (RFC 9457).
 *
 * @module
 */
import { z } from "./openapi.ts";
import { EngineError } from "../../../ffi/errors.ts";
import { FormatError } from "../../format/error.ts";
import { ConfigError } from "../../image/config.ts";
import { ImageError } from "../../image/error.ts";
import { BusyError } from "../../layer/upper.ts";
import { type Refusal, RequestError } from "../refusal.ts";
import { DuplicateError } from "../service.ts";

/** What goes wrong, for programs; `detail` says it for people. */
const CODES = [
  "not-found",
  "exists",
  "busy",
  "invalid",
  "unsupported",
  "ending",
  "image",
  "io",
  "unauthorized",
  "forbidden",
  "method-not-allowed",
  "too-large",
  "media-type",
  "internal",
] as const;

/** One of the codes. */
export type ProblemCode = (typeof CODES)[number];

/** The body of every answer that is no success. */
export const problemSchema = z.strictObject({
  type: z.literal("about:blank"),
  title: z.string().openapi({ description: "of the status" }),
  status: z.int().min(400).max(599),
  code: z.enum(CODES),
  detail: z.string(),
}).openapi("Problem");

/** A problem as a value. */
export type Problem = z.infer<typeof problemSchema>;

const TITLES: Readonly<Record<number, string>> = {
  400: "Bad Request",
  401: "Unauthorized",
  403: "Forbidden",
  404: "Not Found",
  405: "Method Not Allowed",
  409: "Conflict",
  408: "Request Timeout",
  411: "Length Required",
  413: "Content Too Large",
  415: "Unsupported Media Type",
  422: "Unprocessable Content",
  431: "Request Header Fields Too Large",
  500: "Internal Server Error",
  501: "Not Implemented",
  503: "Service Unavailable",
};

const STATUS: Readonly<Record<Refusal, number>> = {
  "not-found": 404,
  exists: 409,
  busy: 409,
  invalid: 422,
  unsupported: 501,
  ending: 503,
};

/** A problem. */
export function problemBody(
  status: number,
  code: ProblemCode,
  detail: string,
): Problem {
  const title = TITLES[status] ?? "Error";
  return { type: "about:blank", title, status, code, detail };
}

/** A problem's answer. */
export function problem(
  status: number,
  code: ProblemCode,
  detail: string,
  headers: Readonly<Record<string, string>> = {},
): Response {
  return new Response(JSON.stringify(problemBody(status, code, detail)), {
    status,
    headers: { ...headers, "content-type": "application/problem+json" },
  });
}

/**
 * The answer to what was thrown; undefined: nobody has expected it, and the
 * text is for the log alone.
 */
export function problemOf(error: unknown): Response | undefined {
  if (error instanceof RequestError) {
    return problem(STATUS[error.refusal], error.refusal, error.message);
  }
  if (error instanceof DuplicateError) {
    return problem(409, "exists", error.message);
  }
  if (error instanceof BusyError) return problem(409, "busy", error.message);
  if (
    error instanceof ImageError || error instanceof ConfigError ||
    error instanceof FormatError
  ) {
    return problem(422, "image", error.message);
  }
  if (error instanceof EngineError) return problem(500, "io", error.message);
  return undefined;
}
