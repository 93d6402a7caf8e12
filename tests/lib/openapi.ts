// SPDX-License-Identifier: Apache-2.0
/**
 * A client made from an OpenAPI document: what it may send, what may come
 * back.  Only the keywords that our document uses are known; any other is an
 * error, so that none is passed over.
 *
 * @module
 */
import fc from "fast-check";

/** JSON Schema, as far as it is known here. */
export type Schema = Readonly<Record<string, unknown>>;

/** A value in the path or the query. */
export interface Parameter {
  name: string;
  in: "path" | "query";
  required: boolean;
  schema: Schema;
}

/** One method of one path. */
export interface Operation {
  method: string;
  path: string;
  parameters: Parameter[];
  /** of the body */
  body: Schema | undefined;
  /** by status or `default`: media type and schema; undefined: no body */
  answers: Map<string, { type: string; schema: Schema } | undefined>;
}

function object(value: unknown): Schema {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    return { ...value };
  }
  throw new Error(`no object: ${JSON.stringify(value)}`);
}

function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

/** A document, with its references followed. */
export interface Document {
  operations: Operation[];
  resolve(schema: Schema): Schema;
}

/** Reads a document. */
export function readDocument(json: unknown): Document {
  const root = object(json);
  const resolve = (schema: Schema): Schema => {
    const ref = schema["$ref"];
    if (typeof ref !== "string") return schema;
    let at: unknown = root;
    for (const part of ref.replace(/^#\//, "").split("/")) {
      at = object(at)[part];
    }
    return resolve(object(at));
  };
  const content = (value: unknown) => {
    const [entry] = Object.entries(object(object(value)["content"] ?? {}));
    if (entry === undefined) return undefined;
    return { type: entry[0], schema: object(object(entry[1])["schema"]) };
  };
  const operations = Object.entries(object(root["paths"])).flatMap(
    ([path, methods]) =>
      Object.entries(object(methods)).map(([method, value]): Operation => {
        const operation = object(value);
        return {
          method: method.toUpperCase(),
          path,
          parameters: list(operation["parameters"]).map((one) => {
            const { name, in: where, required, schema } = object(one);
            return {
              name: String(name),
              in: where === "path" ? "path" : "query",
              required: required === true,
              schema: object(schema),
            };
          }),
          body: operation["requestBody"] === undefined
            ? undefined
            : content(operation["requestBody"])?.schema,
          answers: new Map(
            Object.entries(object(operation["responses"]))
              .map(([status, answer]) => [status, content(answer)]),
          ),
        };
      }),
  );
  return { operations, resolve };
}

const KNOWN = new Set([
  ..."$ref type enum const anyOf properties required items".split(" "),
  ..."additionalProperties minimum maximum exclusiveMinimum".split(" "),
  ..."minItems maxItems multipleOf pattern maxLength default description example"
    .split(
      " ",
    ),
]);

function refuseUnknown(schema: Schema): void {
  for (const key of Object.keys(schema)) {
    if (!KNOWN.has(key)) throw new Error(`schema keyword ${key} is not known`);
  }
}

function typesOf(schema: Schema): string[] {
  const { type } = schema;
  return Array.isArray(type) ? type.map(String) : [String(type)];
}

function typeOf(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  return typeof value;
}

/** The first thing in which a value is not what the schema says. */
export function wrongIn(
  document: Document,
  given: Schema,
  value: unknown,
  at = "$",
): string | undefined {
  const schema = document.resolve(given);
  refuseUnknown(schema);
  const say = (what: string) => `${at}: ${JSON.stringify(value)} ${what}`;
  if (schema["anyOf"] !== undefined) {
    const every = list(schema["anyOf"]).map((one) =>
      wrongIn(document, object(one), value, at)
    );
    return every.includes(undefined) ? undefined : say("is none of them");
  }
  if (schema["const"] !== undefined && value !== schema["const"]) {
    return say(`is not ${schema["const"]}`);
  }
  if (schema["enum"] !== undefined && !list(schema["enum"]).includes(value)) {
    return say(`is none of ${schema["enum"]}`);
  }
  if (schema["type"] === undefined) return undefined;
  const types = typesOf(schema);
  const whole = typeof value === "number" && Number.isInteger(value);
  const fits = types.includes(typeOf(value)) ||
    (types.includes("integer") && whole);
  if (!fits) return say(`is no ${types}`);
  if (typeof value === "number") {
    const { minimum, maximum, exclusiveMinimum } = schema;
    if (typeof minimum === "number" && value < minimum) return say("is low");
    if (typeof maximum === "number" && value > maximum) return say("is high");
    if (typeof exclusiveMinimum === "number" && value <= exclusiveMinimum) {
      return say("is low");
    }
  }
  if (typeof value === "string") {
    const { pattern, maxLength } = schema;
    if (typeof maxLength === "number" && value.length > maxLength) {
      return say("is long");
    }
    if (typeof pattern === "string" && !new RegExp(pattern, "u").test(value)) {
      return say(`does not match ${pattern}`);
    }
  }
  if (Array.isArray(value)) {
    const { minItems = 0, maxItems = Infinity } = schema;
    if (value.length < Number(minItems) || value.length > Number(maxItems)) {
      return say(`has ${value.length} items`);
    }
    const items = object(schema["items"] ?? {});
    return value.map((item, i) => wrongIn(document, items, item, `${at}[${i}]`))
      .find((wrong) => wrong !== undefined);
  }
  if (typeof value !== "object" || value === null) return undefined;
  const properties = object(schema["properties"] ?? {});
  for (const name of list(schema["required"])) {
    if (!Object.hasOwn(value, String(name))) return say(`lacks ${name}`);
  }
  for (const [name, member] of Object.entries(value)) {
    const property = properties[name];
    if (property === undefined) {
      if (schema["additionalProperties"] === false) return say(`has ${name}`);
      continue;
    }
    const wrong = wrongIn(document, object(property), member, `${at}.${name}`);
    if (wrong !== undefined) return wrong;
  }
  return undefined;
}

/** Values that a schema allows. */
export function allowed(
  document: Document,
  given: Schema,
): fc.Arbitrary<unknown> {
  const schema = document.resolve(given);
  refuseUnknown(schema);
  if (schema["anyOf"] !== undefined) {
    return fc.oneof(
      ...list(schema["anyOf"]).map((one) => allowed(document, object(one))),
    );
  }
  if (schema["const"] !== undefined) return fc.constant(schema["const"]);
  if (schema["enum"] !== undefined) {
    return fc.constantFrom(...list(schema["enum"]));
  }
  const number = (name: string, otherwise: number) =>
    typeof schema[name] === "number" ? schema[name] : otherwise;
  const ofType: Record<string, () => fc.Arbitrary<unknown>> = {
    null: () => fc.constant(null),
    boolean: () => fc.boolean(),
    integer: () => {
      const step = number("multipleOf", 1);
      const most = number("maximum", Number.MAX_SAFE_INTEGER);
      return fc.integer({
        min: Math.ceil(number("minimum", 0) / step),
        max: Math.min(Math.floor(most / step), 2 ** 31 - 1),
      }).map((n) => n * step);
    },
    number: () => fc.double({ noNaN: true, noDefaultInfinity: true }),
    string: () => {
      const maxLength = number("maxLength", 40);
      return typeof schema["pattern"] === "string"
        ? fc.stringMatching(new RegExp(schema["pattern"], "u"))
          .filter((text) => text.length <= maxLength)
        : fc.string({ maxLength: Math.min(maxLength, 40) });
    },
    array: () =>
      fc.array(allowed(document, object(schema["items"])), {
        minLength: number("minItems", 0),
        maxLength: 3,
      }),
    object: () => {
      const required = list(schema["required"]).map(String);
      const members = Object.fromEntries(
        Object.entries(object(schema["properties"] ?? {}))
          .map(([name, one]) => [name, allowed(document, object(one))]),
      );
      return fc.record(members, { requiredKeys: required });
    },
  };
  return fc.oneof(
    ...typesOf(schema).map((type) => {
      const make = ofType[type];
      if (make === undefined) throw new Error(`type ${type} is not known`);
      return make();
    }),
  );
}

/** Values that are like those, and nearly always wrong. */
export function spoiled(value: fc.Arbitrary<unknown>): fc.Arbitrary<unknown> {
  const members = value.filter((v) => typeof v === "object" && v !== null)
    .map(object);
  return fc.oneof(
    fc.jsonValue({ maxDepth: 3 }),
    fc.constantFrom(null, "", 0, -1, 1e308, [], {}, "\0", "x".repeat(5000)),
    fc.tuple(members, fc.nat(), fc.jsonValue({ maxDepth: 1 })).map(
      ([given, nr, other]) => {
        const names = Object.keys(given);
        const name = names[nr % (names.length || 1)] ?? "x";
        return { ...given, [name]: other };
      },
    ),
    fc.tuple(members, fc.string({ maxLength: 8 })).map(([given, name]) => ({
      ...given,
      [name]: 1,
    })),
  );
}
