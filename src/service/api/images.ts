// SPDX-License-Identifier: Apache-2.0
/**
 * `/v1/images`: what devices are made of.
 *
 * @module
 */
import { createRoute, type OpenAPIHono, z } from "./openapi.ts";
import { localFile } from "../../image/lowers.ts";
import { fullPath } from "../../layer/files.ts";
import { withoutSecrets } from "../log.ts";
import type { ServedImage } from "../service.ts";
import { type ApiContext, createRoutes, json, otherwise } from "./context.ts";

const layerSchema = z.strictObject({
  kind: z.enum(["committed", "sealed", "sealed-sparse"]),
  origin: z.enum(["local", "remote"]),
  where: z.string().openapi({ description: "a path, or the blob's URL" }),
  digest: z.string().openapi({ description: "empty: not said" }),
  bytes: z.int().min(0).openapi({ description: "virtual size" }),
  fetchedBytes: z.int().min(0).openapi({
    description: "of this blob, by this process",
  }),
}).openapi("Layer");

const imageSchema = z.strictObject({
  device: z.int().min(1),
  config: z.string(),
  bytes: z.int().min(0).openapi({ description: "virtual size" }),
  lowers: z.array(layerSchema).openapi({ description: "bottom first" }),
  upper: z.strictObject({
    kind: z.enum(["log", "sparse"]),
    data: z.string(),
    index: z.string(),
  }).nullable(),
  resultFile: z.string(),
}).openapi("Image");

/** An image as the API shows it. */
export type ApiImage = z.infer<typeof imageSchema>;

function showImage({ id, path, config, image }: ServedImage): ApiImage {
  const { lowers, upper, virtualSize } = image.stack;
  return {
    device: id,
    config: fullPath(path),
    bytes: Number(virtualSize),
    lowers: lowers.map((layer, position) => {
      const named = config.lowers[position];
      const local = named === undefined ? undefined : localFile(named);
      return {
        kind: layer.kind,
        origin: layer.remote === undefined ? "local" : "remote",
        where: withoutSecrets(layer.remote?.url ?? local ?? ""),
        digest: named?.digest ?? "",
        bytes: Number(layer.virtualSize),
        fetchedBytes: layer.remote?.blob.stats.fetchedBytes ?? 0,
      };
    }),
    // What is open: after a snapshot that could not be ended not what the
    // configuration says.
    upper: upper === undefined ? null : { kind: upper.kind, ...upper.paths },
    resultFile: config.resultFile,
  };
}

const list = createRoute({
  method: "get",
  path: "/v1/images",
  summary: "Images that are open, and their layers",
  responses: {
    200: json(z.strictObject({ images: z.array(imageSchema) }), "All."),
    ...otherwise,
  },
});

/** The routes of images. */
export function imageRoutes({ service }: ApiContext): OpenAPIHono {
  const routes = createRoutes();
  routes.openapi(
    list,
    (c) => c.json({ images: service.images().map(showImage) }, 200),
  );
  return routes;
}
