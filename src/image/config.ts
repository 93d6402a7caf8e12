// SPDX-License-Identifier: Apache-2.0
/**
 * `config.v1.json`: which layers make an image (spec/image.md, section 2).
 *
 * @module
 */
import * as z from "zod/mini";
import { EngineError, errnoText } from "../../ffi/errors.ts";
import { parseJson } from "../format/json.ts";
import { fileInfo, followLinks, linkInfo, readWhole } from "../layer/files.ts";

/** A configuration cannot be used; the message names file, key and value. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
  /** where an image's own says that the outcome goes; empty: nowhere */
  readonly resultFile: string;

  constructor(
    message: string,
    options: ErrorOptions & { resultFile?: string } = {},
  ) {
    super(message, options);
    this.resultFile = options.resultFile ?? "";
  }
}

const uint = z.int().check(z.gte(0));

const lowerSchema = z.looseObject({
  /** local layer file, the first candidate */
  file: z._default(z.string(), ""),
  /** local directory of the layer */
  dir: z._default(z.string(), ""),
  digest: z._default(z.string(), ""),
  /** compressed size of the blob in bytes */
  size: z._default(uint, 0),
  targetFile: z._default(z.string(), ""),
  targetDigest: z._default(z.string(), ""),
  gzipIndex: z._default(z.string(), ""),
});

const upperSchema = z.looseObject({
  index: z._default(z.string(), ""),
  data: z._default(z.string(), ""),
  target: z._default(z.string(), ""),
  gzipIndex: z._default(z.string(), ""),
});

/** Background download: of an image, or of all that do not have their own. */
export const downloadSchema = z.looseObject({
  enable: z._default(z.boolean(), false),
  /** s */
  delay: z._default(z.int(), 300),
  /** s */
  delayExtra: z._default(z.int(), 30),
  maxMBps: z._default(z.int(), 100),
  tryCnt: z._default(z.int(), 5),
  /** bytes */
  blockSize: z._default(uint, 262144),
});

/** How layers are brought to this machine. */
export type DownloadConfig = z.infer<typeof downloadSchema>;

/** Every field; keys of others are kept as they are. */
export const configSchema = z.looseObject({
  repoBlobUrl: z._default(z.string(), ""),
  lowers: z.pipe(
    z.nullish(z.array(lowerSchema)),
    z.transform((list) => list ?? []),
  ),
  upper: z.optional(upperSchema),
  resultFile: z._default(z.string(), ""),
  download: z.optional(downloadSchema),
  accelerationLayer: z._default(z.boolean(), false),
  recordTracePath: z._default(z.string(), ""),
  /** false: the kernel is told of no write cache, and never flushes */
  writeCache: z.optional(z.boolean()),
});

/** A parsed `config.v1.json`; keys of others are kept as they are. */
export type ImageConfig = z.infer<typeof configSchema>;

/** One entry of `lowers`. */
export type LowerConfig = z.infer<typeof lowerSchema>;

/** The lowers that hold data: the last may only carry a trace. */
export function dataLowers(config: ImageConfig): ImageConfig["lowers"] {
  const { lowers, accelerationLayer } = config;
  return accelerationLayer ? lowers.slice(0, -1) : lowers;
}

/** `["lowers", 1, "file"]` as `lowers[1].file`. */
export function keyName(path: readonly PropertyKey[]): string {
  return path.reduce<string>(
    (name, part) =>
      typeof part === "number"
        ? `${name}[${part}]`
        : name === ""
        ? String(part)
        : `${name}.${String(part)}`,
    "",
  );
}

/** The value at a path of parsed JSON, for messages. */
export function valueAt(root: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>(
    (value, part) =>
      typeof value === "object" && value !== null
        ? Reflect.get(value, part)
        : undefined,
    root,
  );
}

/** What a zod issue expected, in words of JSON. */
export function expectation(issue: z.core.$ZodIssue): string {
  if (issue.code === "invalid_type") {
    // Every number in our files is a whole one.
    const number = issue.expected === "int" || issue.expected === "number";
    return number ? "a whole number" : `${issue.expected}`;
  }
  if (issue.code === "too_small") {
    return `a number of at least ${issue.minimum}`;
  }
  if (issue.code === "too_big") {
    const { origin, maximum } = issue;
    if (origin === "string") return `at most ${maximum} characters`;
    if (origin === "array") return `at most ${maximum} of them`;
    return `a number of at most ${maximum}`;
  }
  if (issue.code === "not_multiple_of") return `a multiple of ${issue.divisor}`;
  if (issue.code === "invalid_value") {
    return issue.values.map((one) => JSON.stringify(one)).join(" or ");
  }
  return issue.message;
}

/**
 * Checks parsed JSON against the schema.
 *
 * @param value what `JSON.parse` gave
 * @param name the file, for messages
 * @throws {ConfigError} a key has the wrong type: names it, its value and
 *   what was expected
 */
export function parseImageConfig(value: unknown, name: string): ImageConfig {
  const parsed = z.safeParse(configSchema, value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  if (issue === undefined) throw new ConfigError(`cannot use ${name}`);
  const at = keyName(issue.path);
  const got = JSON.stringify(valueAt(value, issue.path)) ?? "nothing";
  const resultFile = valueAt(value, ["resultFile"]);
  throw new ConfigError(
    `cannot use ${name}: ${at === "" ? "the file" : at}: expected ${
      expectation(issue)
    }, got ${got.length > 60 ? `${got.slice(0, 57)}...` : got}`,
    typeof resultFile === "string" ? { resultFile } : {},
  );
}

/**
 * Checks the bytes of an image's configuration.
 *
 * @param path the file that they are from, for messages
 * @throws {ConfigError} no JSON, or a wrong type
 */
export function decodeImageConfig(
  bytes: Uint8Array<ArrayBuffer>,
  path: string,
): ImageConfig {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new ConfigError(`cannot read image config ${path}: not UTF-8`, {
      cause,
    });
  }
  let value: unknown;
  try {
    value = parseJson(text).value;
  } catch (cause) {
    const why = text === "" ? "the file is empty" : (cause as Error).message;
    throw new ConfigError(`cannot parse image config ${path}: ${why}`, {
      cause,
    });
  }
  return parseImageConfig(value, path);
}

/** Bytes: more than 255 layers can take. */
const MAX_CONFIG = 16 << 20;

/** A name that a request gives may be of something without an end. */
function refuseEndless(path: string): void {
  const info = fileInfo(path);
  const endless = info?.isCharDevice === true || info?.isFifo === true;
  if (endless || (info?.size ?? 0) > MAX_CONFIG) {
    throw new ConfigError(
      `cannot read image config ${path}: expected a file of at most ` +
        `${MAX_CONFIG} bytes`,
    );
  }
}

/**
 * All bytes of an image's configuration.
 *
 * @throws {ConfigError} it cannot be read
 */
export async function readConfigBytes(
  path: string,
): Promise<Uint8Array<ArrayBuffer>> {
  try {
    refuseEndless(path);
    return await readWhole(path);
  } catch (cause) {
    if (cause instanceof ConfigError) throw cause;
    const why = cause instanceof EngineError
      ? errnoText(cause.errno)
      : String(cause);
    throw new ConfigError(`cannot read image config ${path}: ${why}`, {
      cause,
    });
  }
}

/**
 * Where a snapshot of an image keeps the configuration that is to replace
 * `path`, until it does (see intent.ts).
 */
export function intentPath(path: string): string {
  return `${followLinks(path)}.snap`;
}

/**
 * Reads and checks an image's configuration.
 *
 * @param path the file, absolute or relative to the working directory
 * @throws {ConfigError} it cannot be read, is no JSON, has a wrong type, or
 *   is about to be replaced
 */
export async function readImageConfig(path: string): Promise<ImageConfig> {
  const bytes = await readConfigBytes(path);
  const intent = intentPath(path);
  if (linkInfo(intent) !== undefined) {
    throw new ConfigError(
      `cannot use ${path}: ${intent} tells of a snapshot that is not done; ` +
        "serving the image finishes it",
    );
  }
  return decodeImageConfig(bytes, path);
}
