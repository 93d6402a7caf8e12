// SPDX-License-Identifier: Apache-2.0
/**
 * The fields of both configuration files with what they mean.
 *
 * @module
 */
import { configSchema } from "../../src/image/config.ts";
import { serviceSchema } from "../../src/service/config_schema.ts";
import { defaultPaths, PATHS } from "../../src/service/paths.ts";
import { IMAGE_FIELDS, type Meanings, SERVICE_FIELDS } from "./fields.ts";
import { type Field, schemaFields } from "./schema.ts";

/** A field and what it means. */
export interface DescribedField extends Field {
  says: string;
}

/** Default paths are shown as root has them, whoever makes the tables. */
function asRoot(initial: string | undefined): string | undefined {
  if (initial === undefined) return undefined;
  const root = defaultPaths(0, () => undefined);
  const found = (Object.keys(root) as (keyof typeof root)[])
    .find((name) => initial.startsWith(`"${PATHS[name]}`));
  return found === undefined
    ? initial
    : initial.replace(PATHS[found], root[found]);
}

/** Fields with their meanings; a test finds those that have none. */
function describe(fields: Field[], meanings: Meanings): DescribedField[] {
  return fields.map((field) => ({
    ...field,
    initial: asRoot(field.initial),
    says: meanings[field.key] ?? "",
  }));
}

/** Fields of `overlaybd.json`. */
export function serviceFields(): DescribedField[] {
  return describe(schemaFields(serviceSchema), SERVICE_FIELDS);
}

/** Fields of `config.v1.json`. */
export function imageFields(): DescribedField[] {
  return describe(schemaFields(configSchema), IMAGE_FIELDS);
}
