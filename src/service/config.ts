// SPDX-License-Identifier: Apache-2.0
/**
 * `overlaybd.json`, the service's configuration: the part that local images
 * need (spec/service-config.md, section 3).
 *
 * @module
 */
import * as z from "zod/mini";
import { EngineError, errnoText } from "../../ffi/errors.ts";
import { ConfigError } from "../image/config.ts";
import { readWhole } from "../layer/files.ts";

/** Read when no other file is named; it need not exist. */
export const DEFAULT_SERVICE_CONFIG = "/etc/overlaybd/overlaybd.json";

const serviceSchema = z.looseObject({
  /** how long a request may wait for data that cannot be fetched */
  readDeadlineSeconds: z._default(z.int().check(z.gte(1)), 604_800),
});

/** A parsed service configuration; keys of others are kept as they are. */
export type ServiceConfig = z.infer<typeof serviceSchema>;

async function readText(path: string): Promise<string | undefined> {
  try {
    return new TextDecoder().decode(await readWhole(path));
  } catch (cause) {
    if (!(cause instanceof EngineError)) throw cause;
    const missing = cause.code === "ENOENT";
    if (path === DEFAULT_SERVICE_CONFIG && missing) return undefined;
    throw new ConfigError(
      `cannot read service config ${path}: ${errnoText(cause.errno)}`,
      { cause },
    );
  }
}

/**
 * Reads the service's configuration.
 *
 * @param path undefined: the default file, or defaults where that is missing
 * @throws {ConfigError} it cannot be read, is no JSON, or has a wrong type
 */
export async function readServiceConfig(
  path: string | undefined,
): Promise<ServiceConfig> {
  const name = path ?? DEFAULT_SERVICE_CONFIG;
  const text = await readText(name) ?? "{}";
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(
      `error parse global config json: ${name}: ${(cause as Error).message}`,
      { cause },
    );
  }
  const parsed = z.safeParse(serviceSchema, value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const key = issue?.path.map(String).join(".") ?? "";
  const got = key === "" ? value : (value as Record<string, unknown>)[key];
  throw new ConfigError(
    `cannot use ${name}: ${key === "" ? "the file" : key}: got ${
      JSON.stringify(got)
    }, expected ${key === "" ? "an object" : "a whole number of at least 1"}`,
  );
}
