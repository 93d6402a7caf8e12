// SPDX-License-Identifier: Apache-2.0
/**
 * `/v1/pulls`: remote layers that are brought into the cache by request.
 *
 * @module
 */
import { createRoute, type OpenAPIHono, z } from "./openapi.ts";
import type { Pull } from "../pulls.ts";
import {
  type ApiContext,
  body,
  configPath,
  createRoutes,
  idParam,
  json,
  otherwise,
} from "./context.ts";

const count = z.int().min(0);

const pullSchema = z.strictObject({
  id: z.int().min(1),
  config: z.string(),
  layers: count.openapi({ description: "that no local file has" }),
  bytes: count.openapi({
    description: "of the layers whose size is known by now",
  }),
  done: count.openapi({ description: "bytes of them that are here" }),
  fetched: count.nullable().openapi({
    description: "bytes that had to be fetched; null: it is not done",
  }),
  state: z.enum(["running", "done", "failed"]),
  error: z.string().openapi({ description: "empty: it has not failed" }),
}).openapi("Pull");

function show({ fetched, ...pull }: Pull): z.infer<typeof pullSchema> {
  return { ...pull, fetched: fetched ?? null };
}

const start = createRoute({
  method: "post",
  path: "/v1/pulls",
  summary: "Bring all of an image into the cache, without opening it",
  request: body(z.strictObject({ config: configPath }).openapi("StartPull")),
  responses: { 202: json(pullSchema, "It has begun."), ...otherwise },
});

const list = createRoute({
  method: "get",
  path: "/v1/pulls",
  summary: "Pulls that run, and the last that have ended",
  responses: {
    200: json(z.strictObject({ pulls: z.array(pullSchema) }), "Oldest first."),
    ...otherwise,
  },
});

const get = createRoute({
  method: "get",
  path: "/v1/pulls/{id}",
  summary: "One pull",
  request: { params: idParam },
  responses: { 200: json(pullSchema, "It."), ...otherwise },
});

const end = createRoute({
  method: "delete",
  path: "/v1/pulls/{id}",
  summary: "End a pull and forget it",
  request: { params: idParam },
  responses: { 204: { description: "What is here stays." }, ...otherwise },
});

/** The routes of pulls. */
export function pullRoutes({ service: { pulls } }: ApiContext): OpenAPIHono {
  const routes = createRoutes();
  routes.openapi(start, async (c) => {
    const pull = await pulls.start(c.req.valid("json").config);
    c.header("location", `/v1/pulls/${pull.id}`);
    return c.json(show(pull), 202);
  });
  routes.openapi(list, (c) => c.json({ pulls: pulls.list().map(show) }, 200));
  routes.openapi(
    get,
    (c) => c.json(show(pulls.get(c.req.valid("param").id)), 200),
  );
  routes.openapi(end, async (c) => {
    await pulls.end(c.req.valid("param").id);
    return c.body(null, 204);
  });
  return routes;
}
