// SPDX-License-Identifier: Apache-2.0
/**
 * `/v1/cache`: what of remote layers is here.
 *
 * @module
 */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import { fileInfo } from "../../layer/files.ts";
import type { CacheManager } from "../../source/cache/manage.ts";
import { RequestError } from "../refusal.ts";
import type { Service } from "../service.ts";
import {
  type ApiContext,
  body,
  createRoutes,
  json,
  otherwise,
} from "./context.ts";

const bytes = z.int().min(0);
const name = z.string().regex(/^[a-z0-9]+:[0-9a-f]{32,128}$/)
  .openapi({ description: "a digest" });
const names = z.array(name).max(1000).default([])
  .openapi({ description: "none: all of them" });

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

/** @throws {RequestError} there is no cache, or it is another process's */
function managerOf({ settings, sources }: Service): CacheManager {
  const { cacheDir, cacheType } = settings.cacheConfig;
  if (fileInfo(cacheDir) === undefined) {
    throw new RequestError(
      "not-found",
      `there is no directory ${cacheDir}: the first remote layer makes it`,
    );
  }
  if (cacheType !== "download" && !sources.pool.hold()) {
    throw new RequestError("busy", `another process uses ${cacheDir}`);
  }
  return sources.manager;
}

/** The routes of the cache. */
export function cacheRoutes({ service }: ApiContext): OpenAPIHono {
  const routes = createRoutes();
  const manager = () => managerOf(service);
  /** What a manager throws is about what it was asked. */
  const asked = async <T>(work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (cause) {
      if (!(cause instanceof Error) || cause.name !== "Error") throw cause;
      throw new RequestError("invalid", cause.message, { cause });
    }
  };
  routes.openapi(stat, async (c) => c.json(await manager().stat(), 200));
  routes.openapi(
    list,
    async (c) => c.json({ blobs: await manager().list() }, 200),
  );
  routes.openapi(prune, async (c) => {
    const { names, target } = c.req.valid("json");
    return c.json(await asked(() => manager().prune(names, target)), 200);
  });
  routes.openapi(verify, async (c) => {
    const { names } = c.req.valid("json");
    return c.json({ blobs: await asked(() => manager().verify(names)) }, 200);
  });
  return routes;
}
