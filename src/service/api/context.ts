// SPDX-License-Identifier: Apache-2.0
/**
 * What the API's routes work on.
 *
 * @module
 */
import { OpenAPIHono, z } from "./openapi.ts";
import { expectation, keyName } from "../../image/config.ts";
import type { Devices } from "../devices.ts";
import type { Reloaded } from "../reload.ts";
import type { Service } from "../service.ts";
import { problem, problemSchema } from "./problem.ts";

/** See the module's comment. */
export interface ApiContext {
  service: Service;
  devices: Devices;
  /** false: the service begins or ends, and other servers are asked instead */
  ready: () => boolean;
  /** @throws {ConfigError} the file cannot be used; nothing has changed */
  reload: () => Promise<Reloaded>;
}

/** Parts of a request, in words. */
const WHERE: Readonly<Record<string, string>> = { json: "body", param: "path" };

/** What is wrong with a part of a request: `body.bytes: expected ...`. */
function refusal(target: string, issue: z.core.$ZodIssue | undefined): string {
  const where = WHERE[target] ?? target;
  if (issue === undefined) return `${where}: invalid`;
  const at = keyName([where, ...issue.path]);
  return issue.code === "unrecognized_keys"
    ? `${at}: unknown: ${issue.keys.join(", ")}`
    : `${at}: expected ${expectation(issue)}`;
}

/** An application whose refusals of input are problems. */
export function createRoutes(): OpenAPIHono {
  return new OpenAPIHono({
    defaultHook: (result) => {
      if (result.success) return;
      const [issue] = result.error.issues;
      return problem(400, "invalid", refusal(result.target, issue));
    },
  });
}

/** An absolute path on the daemon's machine. */
export const configPath = z.string().regex(/^\/[^\0]*$/, "an absolute path")
  .max(4095)
  .openapi({ example: "/var/lib/image/config.v1.json" });

/** The number of something, in a route's path. */
export const idParam = z.strictObject({
  id: z.string().regex(/^[1-9][0-9]{0,14}$/, "a number from 1").transform(
    Number,
  )
    .openapi({ param: { name: "id", in: "path" }, example: "1" }),
});

/** A body of JSON, for a route's table. */
export function json<Schema extends z.ZodType>(
  schema: Schema,
  description: string,
) {
  return {
    content: { "application/json": { schema } },
    description,
  };
}

/** A body of JSON that has to be there. */
export function body<Schema extends z.ZodType>(schema: Schema) {
  return {
    body: { required: true, content: { "application/json": { schema } } },
  };
}

/** Every other answer of every route. */
export const otherwise = {
  default: {
    content: { "application/problem+json": { schema: problemSchema } },
    description: "It was not done; says why.",
  },
} as const;
