// SPDX-License-Identifier: Apache-2.0
/**
 * The service itself: configuration, log level, health, version.
 *
 * @module
 */
import { createRoute, type OpenAPIHono, z } from "./openapi.ts";
import { VERSION } from "../../format/version.ts";
import { withoutSecrets } from "../log.ts";
import { RequestError } from "../refusal.ts";
import {
  type ApiContext,
  body,
  createRoutes,
  json,
  otherwise,
} from "./context.ts";

const settingSchema = z.strictObject({
  key: z.string(),
  value: z.unknown(),
  from: z.string().openapi({
    description: "default, file, or the older key that decides",
  }),
}).openapi("Setting");

const configSchema = z.strictObject({
  path: z.string(),
  settings: z.array(settingSchema),
  warnings: z.array(z.string()),
}).openapi("Config");

const reloadedSchema = z.strictObject({
  applied: z.array(z.string()).openapi({
    description: "keys that have changed and count from now on",
  }),
  needsRestart: z.array(z.string()).openapi({
    description: "keys that have changed and count after a restart",
  }),
  warnings: z.array(z.string()),
}).openapi("Reloaded");

/** By the numbers of `logLevel`; above them nothing is logged. */
const LEVELS = ["debug", "info", "warn", "error", "off"] as const;

const levelSchema = z.strictObject({ level: z.enum(LEVELS) })
  .openapi("LogLevel");

const status = z.strictObject({ status: z.literal("ok") });

const getConfig = createRoute({
  method: "get",
  path: "/v1/config",
  summary: "Every value that counts, and where it came from",
  responses: { 200: json(configSchema, "As read last."), ...otherwise },
});

const reload = createRoute({
  method: "post",
  path: "/v1/config/reload",
  summary: "Read the configuration again, as SIGHUP does",
  responses: { 200: json(reloadedSchema, "What came of it."), ...otherwise },
});

const getLevel = createRoute({
  method: "get",
  path: "/v1/log-level",
  summary: "Which lines are logged",
  responses: { 200: json(levelSchema, "The least."), ...otherwise },
});

const setLevel = createRoute({
  method: "put",
  path: "/v1/log-level",
  summary: "Log more or less, until the configuration is read again",
  request: body(levelSchema),
  responses: { 200: json(levelSchema, "The least."), ...otherwise },
});

const health = createRoute({
  method: "get",
  path: "/healthz",
  summary: "It lives",
  responses: { 200: json(status, "Yes."), ...otherwise },
});

const ready = createRoute({
  method: "get",
  path: "/readyz",
  summary: "Its devices can be used",
  responses: { 200: json(status, "Yes."), ...otherwise },
});

const version = createRoute({
  method: "get",
  path: "/version",
  summary: "Which version runs",
  responses: {
    200: json(
      z.strictObject({ version: z.string(), pid: z.int().min(1) })
        .openapi("Version"),
      "It.",
    ),
    ...otherwise,
  },
});

/** The routes of the service itself. */
export function daemonRoutes(context: ApiContext): OpenAPIHono {
  const { service } = context;
  const routes = createRoutes();
  const level = () => LEVELS[Math.min(service.log.level, 4)] ?? "off";
  const safe = (value: unknown) =>
    typeof value === "string" ? withoutSecrets(value) : value;
  routes.openapi(getConfig, (c) => {
    const { path, settings, warnings } = service.loaded;
    return c.json({
      path,
      settings: settings.map((one) => ({ ...one, value: safe(one.value) })),
      warnings,
    }, 200);
  });
  routes.openapi(reload, async (c) => c.json(await context.reload(), 200));
  routes.openapi(getLevel, (c) => c.json({ level: level() }, 200));
  routes.openapi(setLevel, (c) => {
    service.log.level = LEVELS.indexOf(c.req.valid("json").level);
    return c.json({ level: level() }, 200);
  });
  routes.openapi(health, (c) => c.json({ status: "ok" as const }, 200));
  routes.openapi(ready, (c) => {
    if (context.ready()) return c.json({ status: "ok" as const }, 200);
    throw new RequestError("ending", "the service begins or ends");
  });
  routes.openapi(
    version,
    (c) => c.json({ version: VERSION, pid: Deno.pid }, 200),
  );
  return routes;
}
