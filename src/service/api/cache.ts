// SPDX-License-Identifier: Apache-2.0
/**
 * `/v1/cache`: what of remote layers is here.
 *
 * @module
 */
import { createRoute, type OpenAPIHono, z } from "./openapi.ts";
import { cacheManager } from "../cache.ts";
import { RequestError } from "../refusal.ts";
import {
  type ApiContext,
  body,
  createRoutes,
  json,
  otherwise,
} from "./context.ts";

const bytes = z.int().min(0);
const name = z.string().regex(/^[a-z0-9]+:[0-9a-f]{32,128}$/, "a digest")
  .openapi({ description: "a digest" });
const names = z.array(name).max(1000).default([])
  .openapi({ description: "none: all of them" });
const someNames = z.strictObject({ names: z.array(name).min(1).max(1000) })
  .openapi("Pin");

const statSchema = z.strictObject({
  dir: z.string(),
  stateDir: z.string(),
  pid: z.int().min(1),
  capacity: bytes.nullable().openapi({ description: "null: no limit" }),
  waterMark: bytes.nullable().openapi({
    description: "bytes above which something is evicted",
  }),
  used: bytes,
  free: bytes,
  blobs: bytes,
  openBlobs: bytes,
  pinned: bytes,
  foreignBytes: z.int(),
  fetches: bytes.openapi({ description: "of blobs that are open now" }),
  fetchedBytes: bytes,
  corrupt: bytes,
  evictedUnits: bytes,
}).openapi("Cache");

const entrySchema = z.strictObject({
  name: z.string(),
  size: bytes,
  bytes: bytes.openapi({ description: "that are here" }),
  whole: z.boolean(),
  verified: z.boolean(),
  open: z.boolean(),
  pinned: z.boolean(),
  lastUsed: z.string(),
}).openapi("CachedBlob");

const verifiedSchema = z.strictObject({
  name: z.string(),
  state: z.enum(["right", "wrong", "partial", "missing"]).openapi({
    description: "wrong: it was dropped; partial: not all of it is here",
  }),
}).openapi("VerifiedBlob");

const pinsSchema = z.strictObject({
  names: z.array(z.string()).openapi({
    description: "blobs that are never evicted, here or not",
  }),
}).openapi("Pins");

const stat = createRoute({
  method: "get",
  path: "/v1/cache",
  summary: "The cache as a whole",
  responses: { 200: json(statSchema, "It."), ...otherwise },
});

const list = createRoute({
  method: "get",
  path: "/v1/cache/blobs",
  summary: "Every blob, and how much of it is here",
  responses: {
    200: json(z.strictObject({ blobs: z.array(entrySchema) }), "All."),
    ...otherwise,
  },
});

const prune = createRoute({
  method: "post",
  path: "/v1/cache/prune",
  summary: "Drop blobs that are not in use",
  request: body(
    z.strictObject({
      names,
      target: bytes.max(Number.MAX_SAFE_INTEGER).optional().openapi({
        description: "without names: bytes that may stay",
      }),
    }).openapi("Prune"),
  ),
  responses: {
    200: json(
      z.strictObject({ freed: bytes, used: bytes }).openapi("Pruned"),
      "Bytes.",
    ),
    ...otherwise,
  },
});

const verify = createRoute({
  method: "post",
  path: "/v1/cache/verify",
  summary: "Check the sha256 of blobs that are whole",
  request: body(z.strictObject({ names }).openapi("Verify")),
  responses: {
    200: json(
      z.strictObject({ blobs: z.array(verifiedSchema) }),
      "What was found.",
    ),
    ...otherwise,
  },
});

const pins = createRoute({
  method: "get",
  path: "/v1/cache/pins",
  summary: "Blobs that are never evicted",
  responses: { 200: json(pinsSchema, "All."), ...otherwise },
});

const pin = createRoute({
  method: "post",
  path: "/v1/cache/pin",
  summary: "Never evict blobs",
  request: body(someNames),
  responses: { 200: json(pinsSchema, "All that are pinned."), ...otherwise },
});

const unpin = createRoute({
  method: "post",
  path: "/v1/cache/unpin",
  summary: "Evict blobs as any other",
  request: body(someNames),
  responses: { 200: json(pinsSchema, "All that are pinned."), ...otherwise },
});

/** The routes of the cache. */
export function cacheRoutes({ service }: ApiContext): OpenAPIHono {
  const routes = createRoutes();
  const manager = () =>
    cacheManager(service.settings, service.sources, { mustExist: true });
  /** What a manager throws is about what it was asked. */
  const asked = async <T>(work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (cause) {
      if (!(cause instanceof Error) || cause.name !== "Error") throw cause;
      throw new RequestError("invalid", cause.message, { cause });
    }
  };
  routes.openapi(
    stat,
    async (c) => c.json(await (await manager()).stat(), 200),
  );
  routes.openapi(
    list,
    async (c) => c.json({ blobs: await (await manager()).list() }, 200),
  );
  routes.openapi(prune, async (c) => {
    const { names, target } = c.req.valid("json");
    return c.json(
      await asked(async () => (await manager()).prune(names, target)),
      200,
    );
  });
  routes.openapi(
    pins,
    async (c) => c.json({ names: await (await manager()).pin([], true) }, 200),
  );
  for (const [route, on] of [[pin, true], [unpin, false]] as const) {
    routes.openapi(route, async (c) => {
      const { names } = c.req.valid("json");
      return c.json(
        { names: await asked(async () => (await manager()).pin(names, on)) },
        200,
      );
    });
  }
  routes.openapi(verify, async (c) => {
    const { names } = c.req.valid("json");
    return c.json({
      blobs: await asked(async () => (await manager()).verify(names)),
    }, 200);
  });
  return routes;
}
