// SPDX-License-Identifier: Apache-2.0
/**
 * API v1: its routes, its document, and what becomes of everything else.
 *
 * @module
 */
import type { OpenAPIHono } from "./openapi.ts";
import { HTTPException } from "./openapi.ts";
import { VERSION } from "../../format/version.ts";
import { type ApiContext, createRoutes } from "./context.ts";
import { cacheRoutes } from "./cache.ts";
import { daemonRoutes } from "./daemon.ts";
import { deviceRoutes } from "./devices.ts";
import { imageRoutes } from "./images.ts";
import { problem, problemOf } from "./problem.ts";
import { pullRoutes } from "./pulls.ts";
import { taskRoutes } from "./tasks.ts";

/** Bytes of a request's body: none needs more. */
const BODY_MAX = 64 << 10;

/** Methods that a path knows; empty: there is no such path. */
function methodsOf(app: OpenAPIHono, path: string): string[] {
  return app.openAPIRegistry.definitions.flatMap((definition) => {
    if (definition.type !== "route") return [];
    const { method, path: pattern } = definition.route;
    const expression = `^${pattern.replaceAll(/\{\w+\}/g, "[^/]+")}$`;
    return new RegExp(expression).test(path) ? [method.toUpperCase()] : [];
  });
}

/** Why a body is not even read; undefined: it is, or there is none. */
function refuseBody(headers: Headers): Response | undefined {
  if (headers.has("transfer-encoding")) {
    return problem(411, "invalid", "a body comes with its Content-Length");
  }
  const length = Number(headers.get("content-length") ?? 0);
  if (length > BODY_MAX) {
    return problem(413, "too-large", `a body has at most ${BODY_MAX} bytes`);
  }
  const type = headers.get("content-type") ?? "";
  if (length > 0 && !/^application\/json *(;|$)/i.test(type)) {
    return problem(415, "media-type", "a body is application/json");
  }
  return undefined;
}

/** Makes the application. */
export function createApi(context: ApiContext): OpenAPIHono {
  const app = createRoutes();
  const { log } = context.service;
  app.use(async (c, next) => {
    const { method, path } = c.req;
    const refused = refuseBody(c.req.raw.headers);
    if (refused !== undefined) return refused;
    await next();
    log.debug(`api ${method} ${path} ${c.res.status}`);
    return;
  });
  app.route("/", deviceRoutes(context));
  app.route("/", imageRoutes(context));
  app.route("/", cacheRoutes(context));
  app.route("/", pullRoutes(context));
  app.route("/", taskRoutes(context));
  app.route("/", daemonRoutes(context));
  app.doc31("/openapi.json", {
    openapi: "3.1.0",
    info: {
      title: "overlaybd",
      version: VERSION,
      description: "Images as block devices, on one host.",
    },
  });
  app.notFound((c) => {
    const allow = methodsOf(app, c.req.path);
    if (allow.length === 0) {
      return problem(404, "not-found", `there is no ${c.req.path}`);
    }
    return problem(
      405,
      "method-not-allowed",
      `${c.req.path} knows ${allow.join(", ")}`,
      { allow: allow.join(", ") },
    );
  });
  app.onError((error, c) => {
    if (error instanceof HTTPException) {
      return problem(error.status, "invalid", error.message || "bad request");
    }
    const known = problemOf(error);
    if (known === undefined || known.status >= 500) {
      log.error(`api ${c.req.method} ${c.req.path}: ${String(error)}`);
    }
    return known ?? problem(500, "internal", "failed; the log says why");
  });
  return app;
}
