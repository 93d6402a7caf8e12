// SPDX-License-Identifier: Apache-2.0
/**
 * What the API is made of.  No other module imports these packages: they hold
 * on to all of zod, and so are bundled apart from the rest, which loads only
 * what it uses of `zod/mini`.
 *
 * @module
 */
export { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
export { HTTPException } from "hono/http-exception";
