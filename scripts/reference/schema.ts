// SPDX-License-Identifier: Apache-2.0
/**
 * The fields of a zod schema: names, types and defaults as JSON has them.
 *
 * @module
 */
import type * as z from "zod/mini";

/** One field that is no object. */
export interface Field {
  /** `cacheConfig.cacheDir`, `lowers[].file` */
  key: string;
  /** `text`, `whole number`, `true or false`, `list of text`, `"a" or "b"` */
  type: string;
  /** as JSON; undefined where there is none */
  initial: string | undefined;
}

type Schema = z.core.$ZodType;
type Def = z.core.$ZodTypes["_zod"]["def"];

/** Of a schema that is a text, a number and so on. */
function typeName(def: Def): string {
  switch (def.type) {
    case "string":
      return "text";
    case "number":
      return "whole number";
    case "boolean":
      return "true or false";
    case "array":
      return `list of ${typeName((def.element as z.core.$ZodTypes)._zod.def)}`;
    case "enum":
      return Object.values(def.entries).map((e) => `"${e}"`).join(" or ");
    default:
      throw new Error(`cannot describe a schema: no words for ${def.type}`);
  }
}

/** All fields, in the schema's order. */
export function schemaFields(
  schema: Schema,
  key = "",
  initial?: string,
): Field[] {
  const { def } = (schema as z.core.$ZodTypes)._zod;
  switch (def.type) {
    case "default":
      return schemaFields(
        def.innerType,
        key,
        JSON.stringify(def.defaultValue),
      );
    case "prefault":
    case "optional":
    case "nullable":
      return schemaFields(def.innerType, key, initial);
    case "pipe":
      return schemaFields(def.in, key, initial);
    case "object":
      return Object.entries(def.shape).flatMap(([name, member]) =>
        schemaFields(member, key === "" ? name : `${key}.${name}`)
      );
    case "array": {
      const element = (def.element as z.core.$ZodTypes)._zod.def;
      if (element.type === "object") {
        return schemaFields(def.element, `${key}[]`);
      }
      return [{ key, type: typeName(def), initial }];
    }
    default:
      return [{ key, type: typeName(def), initial }];
  }
}
