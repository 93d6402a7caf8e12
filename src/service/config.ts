// SPDX-License-Identifier: Apache-2.0
/**
 * `overlaybd.json`, the service's configuration: what it says, what that
 * means, and where each value came from (spec/service-config.md, section 3).
 *
 * @module
 */
import * as z from "zod/mini";
import { EngineError, errnoText } from "../../ffi/errors.ts";
import { type ParsedJson, parseJson } from "../format/json.ts";
import { ConfigError, expectation, keyName, valueAt } from "../image/config.ts";
import { readWhole } from "../layer/files.ts";
import { type ServiceConfig, serviceSchema } from "./config_schema.ts";
import { PATHS } from "./paths.ts";

export type { ServiceConfig };

/** Read when no other file is named; it need not exist. */
export const DEFAULT_SERVICE_CONFIG: string = PATHS.config;

/** Files that a log is rotated through, the original's limit. */
const MAX_LOG_FILES = 30;

/** One effective value. */
export interface Setting {
  /** `cacheConfig.cacheDir` */
  key: string;
  value: unknown;
  /** `default`, `file`, or the older key that decided */
  from: string;
}

/** A configuration as it was read. */
export interface LoadedConfig {
  /** the file, whether it exists or not */
  path: string;
  config: ServiceConfig;
  /** every field, in the schema's order */
  settings: Setting[];
  /** to be logged once: unknown keys, values that were bent */
  warnings: string[];
}

type Json = Readonly<Record<string, unknown>>;

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Calls `visit` for every member that is no object, depth first. */
function eachLeaf(
  value: Json,
  visit: (key: string, value: unknown) => void,
  prefix = "",
): void {
  for (const [name, member] of Object.entries(value)) {
    if (isObject(member)) eachLeaf(member, visit, `${prefix}${name}.`);
    else visit(`${prefix}${name}`, member);
  }
}

/** Keys of the file that no field has. */
function unknownKeys(raw: Json, known: Json, prefix = ""): string[] {
  return Object.entries(raw).flatMap(([name, member]) => {
    const expected = known[name];
    if (expected === undefined) return [`${prefix}${name}`];
    return isObject(expected) && isObject(member)
      ? unknownKeys(member, expected, `${prefix}${name}.`)
      : [];
  });
}

/** Values that older keys decide, by the key that they end up in. */
type Folded = Map<string, { from: string; value: unknown }>;

/**
 * Which older keys count: a group does only when its selector is not empty.
 * `refillSize` and the log's rotation are the group's either way.
 */
function foldLegacy(config: ServiceConfig): Folded {
  const folded: Folded = new Map();
  const { cacheConfig, credentialConfig, logConfig } = config;
  const put = (key: string, from: string, value: unknown) =>
    folded.set(key, { from, value });
  if (cacheConfig.cacheType === "") {
    const type = config.cacheType === "" ? "file" : config.cacheType;
    put("cacheConfig.cacheType", "cacheType", type);
    put("cacheConfig.cacheDir", "registryCacheDir", config.registryCacheDir);
    put(
      "cacheConfig.cacheSizeGB",
      "registryCacheSizeGB",
      config.registryCacheSizeGB,
    );
  }
  if (credentialConfig.mode === "") {
    put("credentialConfig.mode", "credentialFilePath", "file");
    put(
      "credentialConfig.path",
      "credentialFilePath",
      config.credentialFilePath,
    );
  }
  if (logConfig.logPath === "") {
    put("logConfig.logPath", "logPath", config.logPath);
    put("logConfig.logLevel", "logLevel", config.logLevel);
  }
  return folded;
}

/** The configuration with a value put at `key`, "group.member". */
function withValue(
  config: ServiceConfig,
  key: string,
  value: unknown,
): ServiceConfig {
  const [group = "", member = ""] = key.split(".");
  const members = config[group];
  return {
    ...config,
    [group]: { ...(isObject(members) ? members : {}), [member]: value },
  };
}

function bend(config: ServiceConfig, warnings: string[]): ServiceConfig {
  const { logRotateNum, logSizeMB } = config.logConfig;
  const files = Math.min(Math.max(logRotateNum, 1), MAX_LOG_FILES);
  if (files !== logRotateNum) {
    warnings.push(
      `logConfig.logRotateNum: ${logRotateNum} is not 1..${MAX_LOG_FILES}: ` +
        `${files} is used`,
    );
  }
  if (logSizeMB === 0) {
    warnings.push("logConfig.logSizeMB: 0 is less than 1: 1 is used");
  }
  const { uriPrefix } = config.exporterConfig;
  const prefix = uriPrefix.startsWith("/") ? uriPrefix : `/${uriPrefix}`;
  if (prefix !== uriPrefix) {
    warnings.push(
      `exporterConfig.uriPrefix: "${uriPrefix}" does not begin with "/": ` +
        `"${prefix}" is used`,
    );
  }
  const { mode, path } = config.credentialConfig;
  if (!["file", "http", "https", "uds"].includes(mode)) {
    warnings.push(
      "credentialConfig.mode: invalid mode for authentication: " +
        `"${mode}" is not file, http, https or uds: every request is anonymous`,
    );
  } else if (path === "") {
    warnings.push(
      "credentialConfig.path: empty authentication path: " +
        "every request is anonymous",
    );
  }
  const bent = {
    "logConfig.logRotateNum": files,
    "logConfig.logSizeMB": Math.max(logSizeMB, 1),
    "exporterConfig.uriPrefix": prefix,
  };
  return Object.entries(bent).reduce(
    (all, [key, value]) => withValue(all, key, value),
    config,
  );
}

function refusal(
  issue: z.core.$ZodIssue | undefined,
  value: unknown,
  path: string,
): ConfigError {
  const key = keyName(issue?.path ?? []);
  const at = key === "" ? "the file" : key;
  if (issue?.code === "custom") {
    return new ConfigError(`cannot use ${path}: ${at}: ${issue.message}`);
  }
  const text = JSON.stringify(valueAt(value, issue?.path ?? [])) ?? "nothing";
  const got = text.length > 60 ? `${text.slice(0, 57)}...` : text;
  const expected = issue === undefined ? "an object" : expectation(issue);
  return new ConfigError(
    `cannot use ${path}: ${at}: got ${got}, expected ${expected}`,
  );
}

/**
 * Checks parsed JSON and works out what it means.
 *
 * @param value what `JSON.parse` gave
 * @param path the file, for messages
 * @throws {ConfigError} a wrong type or value: names the key
 */
export function parseServiceConfig(value: unknown, path: string): LoadedConfig {
  const parsed = z.safeParse(serviceSchema, value);
  if (!parsed.success) throw refusal(parsed.error.issues[0], value, path);
  const raw = isObject(value) ? value : {};
  const known = z.parse(serviceSchema, {});
  const warnings = unknownKeys(raw, known)
    .map((key) => `${path}: unknown key ${key} is ignored`);
  const folded = foldLegacy(parsed.data);
  let config = parsed.data;
  for (const [key, { value }] of folded) {
    config = withValue(config, key, value);
  }
  config = bend(config, warnings);
  const given = new Set<string>();
  eachLeaf(raw, (key) => given.add(key));
  const settings: Setting[] = [];
  eachLeaf(known, (key) => {
    const older = folded.get(key)?.from;
    const from = !given.has(older ?? key) ? "default" : older ?? "file";
    settings.push({ key, value: valueAt(config, key.split(".")), from });
  });
  return { path, config, settings, warnings };
}

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
 * Reads the service's configuration, and says where its values came from.
 *
 * @param path undefined: the default file, or defaults where that is missing
 * @throws {ConfigError} it cannot be read, is no JSON, or has a wrong value
 */
export async function loadServiceConfig(
  path: string | undefined,
): Promise<LoadedConfig> {
  const name = path ?? DEFAULT_SERVICE_CONFIG;
  const text = await readText(name) ?? "{}";
  let parsed: ParsedJson;
  try {
    parsed = parseJson(text);
  } catch (cause) {
    throw new ConfigError(
      `error parse global config json: ${name}: ${(cause as Error).message}`,
      { cause },
    );
  }
  const loaded = parseServiceConfig(parsed.value, name);
  const warnings = parsed.repeated
    .map((key) => `${name}: key ${key} is there twice: the first counts`);
  return { ...loaded, warnings: [...warnings, ...loaded.warnings] };
}

/**
 * Reads the service's configuration: older keys are folded into the groups.
 *
 * @throws {ConfigError} as {@link loadServiceConfig}
 */
export async function readServiceConfig(
  path: string | undefined,
): Promise<ServiceConfig> {
  return (await loadServiceConfig(path)).config;
}

/** What the service logs of its configuration when it starts (section 4). */
export function configLines({ path, config }: LoadedConfig): string[] {
  const { logConfig, cacheConfig, certConfig } = config;
  const group = (members: Readonly<Record<string, unknown>>) =>
    Object.entries(members).map(([name, value]) => `[${name}=${value}]`)
      .join("");
  return [
    `using config ${path}`,
    `set log_level: ${logConfig.logLevel}`,
    `set log_path: ${logConfig.logPath}`,
    `log config: ${
      group({
        log_size_MB: logConfig.logSizeMB,
        log_rotate_num: logConfig.logRotateNum,
        format: logConfig.format,
      })
    }`,
    `cache config: ${
      group({
        cache_type: cacheConfig.cacheType,
        cache_dir: cacheConfig.cacheDir,
        cache_size_GB: cacheConfig.cacheSizeGB,
        refill_size: cacheConfig.refillSize,
      })
    }`,
    `create registryfs with cafile:${certConfig.caFile}, version:${config.registryFsVersion}`,
  ];
}
