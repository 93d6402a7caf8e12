// SPDX-License-Identifier: Apache-2.0
/**
 * `/v1/devices`: images that are shown as disks.
 *
 * @module
 */
import { createRoute, type OpenAPIHono, z } from "./openapi.ts";
import { deviceStats } from "../../../ffi/device.ts";
import { fullPath } from "../../layer/files.ts";
import type { ServedImage } from "../service.ts";
import {
  type ApiContext,
  body,
  configPath as path,
  createRoutes,
  idParam,
  json,
  otherwise,
} from "./context.ts";

const transport = z.enum(["nbd", "tcmu"]);
const count = z.int().min(0);

const deviceSchema = z.strictObject({
  id: z.int().min(1),
  name: z.string().openapi({
    description: "its dev_id, else the path of its configuration",
  }),
  devId: z.string().openapi({ description: "empty: it has none" }),
  config: z.string(),
  transport,
  address: z.string().nullable().openapi({
    description: "an NBD URI or a path below /dev; null: not there yet",
  }),
  clients: count.nullable().openapi({
    description: "null: the transport cannot tell",
  }),
  readonly: z.boolean(),
  bytes: count.openapi({ description: "virtual size" }),
  lowers: count.openapi({ description: "read-only layers" }),
  upper: z.enum(["log", "sparse"]).nullable(),
  stats: z.strictObject({
    reads: count,
    readBytes: count,
    writes: count,
    writtenBytes: count,
    discards: count,
    discardedBytes: count,
    flushes: count,
    errors: count,
    misses: count,
    parked: count,
    corrupt: count,
    healed: count,
  }),
}).openapi("Device");

/** A device as the API shows it. */
export type ApiDevice = z.infer<typeof deviceSchema>;

const attachSchema = z.strictObject({
  config: path,
  devId: z.string().regex(/^[^\p{Cc}]*$/u, "text on one line").max(1024)
    .default(""),
  transport: transport.optional(),
}).openapi("Attach");

/** As {@link ApiDevice}. */
export function showDevice(
  { devices }: Pick<ApiContext, "devices">,
  served: ServedImage,
): ApiDevice {
  const { image, id, name, devId, transport } = served;
  const { address, clients } = devices.shown(served);
  const { allocations: _, ...stats } = deviceStats(image.device);
  return {
    id,
    name,
    devId,
    config: fullPath(served.path),
    transport,
    address: address ?? null,
    clients: clients ?? null,
    readonly: image.readonly,
    bytes: Number(image.stack.virtualSize),
    lowers: image.stack.lowers.length,
    upper: image.stack.upper?.kind ?? null,
    stats,
  };
}

const list = createRoute({
  method: "get",
  path: "/v1/devices",
  summary: "Open devices, in the order of opening",
  request: {
    query: z.object({
      devId: z.string().optional().openapi({ description: "only this one" }),
    }),
  },
  responses: {
    200: json(z.strictObject({ devices: z.array(deviceSchema) }), "All."),
    ...otherwise,
  },
});

const attach = createRoute({
  method: "post",
  path: "/v1/devices",
  summary: "Open an image and show it",
  request: body(attachSchema),
  responses: {
    201: json(deviceSchema, "It can be used."),
    ...otherwise,
  },
});

const get = createRoute({
  method: "get",
  path: "/v1/devices/{id}",
  summary: "One device",
  request: { params: idParam },
  responses: { 200: json(deviceSchema, "It."), ...otherwise },
});

const detach = createRoute({
  method: "delete",
  path: "/v1/devices/{id}",
  summary: "Take a device away and close its image",
  request: {
    params: idParam,
    query: z.object({
      force: z.enum(["true", "false"]).default("false")
        .openapi({ description: "also while clients use it" }),
    }),
  },
  responses: {
    204: { description: "It is gone; all that was written is on disk." },
    ...otherwise,
  },
});

const flush = createRoute({
  method: "post",
  path: "/v1/devices/{id}/flush",
  summary: "Write everything to disk",
  request: { params: idParam },
  responses: { 204: { description: "It is there." }, ...otherwise },
});

const resize = createRoute({
  method: "post",
  path: "/v1/devices/{id}/resize",
  summary: "Grow a device while it is used",
  request: {
    params: idParam,
    ...body(
      z.strictObject({
        bytes: z.int().min(512).max(Number.MAX_SAFE_INTEGER)
          .multipleOf(512),
      }).openapi("Resize"),
    ),
  },
  responses: { 200: json(deviceSchema, "It has grown."), ...otherwise },
});

const snapshot = createRoute({
  method: "post",
  path: "/v1/devices/{id}/snapshot",
  summary: "Seal the writable layer, and go on in a fresh one",
  request: {
    params: idParam,
    ...body(
      z.strictObject({
        config: path.openapi({
          description: "the image as it will be: the old upper is its " +
            "topmost lower; it takes the place of the old configuration",
        }),
      }).openapi("Snapshot"),
    ),
  },
  responses: {
    200: json(
      z.strictObject({
        pauseUs: z.number().min(0).openapi({
          description: "how long writes had to wait",
        }),
        warnings: z.array(z.string()),
      }).openapi("SnapshotDone"),
      "It is on disk.",
    ),
    ...otherwise,
  },
});

/** The routes of devices. */
export function deviceRoutes(context: ApiContext): OpenAPIHono {
  const { devices } = context;
  const routes = createRoutes();
  const show = (served: ServedImage) => showDevice(context, served);
  routes.openapi(list, (c) => {
    const { devId } = c.req.valid("query");
    const shown = devices.list()
      .filter((served) => devId === undefined || served.devId === devId);
    return c.json({ devices: shown.map(show) }, 200);
  });
  routes.openapi(attach, async (c) => {
    const { config, devId, transport } = c.req.valid("json");
    const served = await devices.attach({ path: config, devId, transport });
    c.header("location", `/v1/devices/${served.id}`);
    return c.json(show(served), 201);
  });
  routes.openapi(
    get,
    (c) => c.json(show(devices.get(c.req.valid("param").id)), 200),
  );
  routes.openapi(detach, async (c) => {
    const { force } = c.req.valid("query");
    await devices.detach(c.req.valid("param").id, force === "true");
    return c.body(null, 204);
  });
  routes.openapi(flush, async (c) => {
    await devices.flush(c.req.valid("param").id);
    return c.body(null, 204);
  });
  routes.openapi(resize, async (c) => {
    const { id } = c.req.valid("param");
    await devices.resize(id, c.req.valid("json").bytes);
    return c.json(show(devices.get(id)), 200);
  });
  routes.openapi(snapshot, async (c) => {
    const { id } = c.req.valid("param");
    const { pauseUs, warnings } = await devices.snapshot(
      id,
      c.req.valid("json").config,
    );
    return c.json({ pauseUs, warnings }, 200);
  });
  return routes;
}
