// SPDX-License-Identifier: Apache-2.0
/**
 * `/v1/downloads` and `/v1/prefetches`: what images do on their own.
 *
 * @module
 */
import { createRoute, type OpenAPIHono, z } from "./openapi.ts";
import { withoutSecrets } from "../log.ts";
import { type ApiContext, createRoutes, json, otherwise } from "./context.ts";

const count = z.int().min(0);

const downloadSchema = z.strictObject({
  device: z.int().min(1),
  layers: z.array(z.strictObject({
    url: z.string(),
    dir: z.string(),
    bytes: count.openapi({ description: "of the whole layer" }),
    done: count.openapi({ description: "bytes that are here" }),
    state: z.enum(["waiting", "running", "done", "failed"]),
  })).openapi({ description: "in the order in which they are brought" }),
}).openapi("Download");

const prefetchSchema = z.strictObject({
  device: z.int().min(1),
  trace: z.string().openapi({ description: "or a list of files" }),
  fetches: count.nullable().openapi({
    description: "that it comes to; null: not known yet",
  }),
  done: count,
  failed: count,
  state: z.enum(["running", "done", "failed"]),
}).openapi("Prefetch");

const downloads = createRoute({
  method: "get",
  path: "/v1/downloads",
  summary: "Layers that are brought into their directories",
  responses: {
    200: json(
      z.strictObject({ downloads: z.array(downloadSchema) }),
      "All, of open images.",
    ),
    ...otherwise,
  },
});

const prefetches = createRoute({
  method: "get",
  path: "/v1/prefetches",
  summary: "Traces that are replayed",
  responses: {
    200: json(
      z.strictObject({ prefetches: z.array(prefetchSchema) }),
      "All, of open images.",
    ),
    ...otherwise,
  },
});

/** The routes of what goes on in the background. */
export function taskRoutes({ service }: ApiContext): OpenAPIHono {
  const routes = createRoutes();
  routes.openapi(downloads, (c) => {
    const all = service.images().flatMap(({ id, image }) => {
      const { download } = image.background;
      return download === undefined ? [] : [{
        device: id,
        layers: download.layers.map((layer) => ({
          ...layer,
          url: withoutSecrets(layer.url),
        })),
      }];
    });
    return c.json({ downloads: all }, 200);
  });
  routes.openapi(prefetches, (c) => {
    const all = service.images().flatMap(({ id, image }) => {
      const progress = image.background.replay?.progress;
      return progress === undefined ? [] : [{
        device: id,
        trace: progress.path,
        fetches: progress.fetches ?? null,
        done: progress.done,
        failed: progress.failed,
        state: progress.state,
      }];
    });
    return c.json({ prefetches: all }, 200);
  });
  return routes;
}
