// SPDX-License-Identifier: Apache-2.0
/**
 * From an image's name to the configuration that opens it: manifest or index,
 * platform, layers (spec/client.md, section 5; spec/image.md, section 2).
 *
 * @module
 */
import * as z from "zod/mini";
import type { RegistryClient } from "../source/registry/client.ts";
import {
  getDocument,
  type RegistryDocument,
} from "../source/registry/document.ts";
import {
  parseReference,
  type Reference,
} from "../source/registry/reference.ts";
import { SourceError } from "../source/source.ts";

/** An image cannot be opened by what its manifest says. */
export class ManifestError extends Error {
  override readonly name = "ManifestError";
}

/** `linux/amd64`, `linux/arm64/v8`. */
export interface Platform {
  os: string;
  architecture: string;
  variant?: string | undefined;
}

/** One lower as clients write it. */
export interface ResolvedLower {
  digest: string;
  /** bytes */
  size: number;
  dir?: string;
}

/** What a name leads to. */
export interface ResolvedImage {
  /** the whole name, `docker.io/library/redis:latest` */
  reference: string;
  /** of the manifest */
  digest: string;
  /** a `config.v1.json` in the field order of other clients */
  config: {
    repoBlobUrl: string;
    lowers: ResolvedLower[];
    upper: Record<never, never>;
    resultFile: string;
  };
  /** sentences for the user */
  warnings: string[];
}

const INDEX_TYPES = [
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFEST_TYPES = [
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
];

const LABEL = "containerd.io/snapshot/overlaybd";

const digest = z.string().check(z.regex(/^sha256:[0-9a-f]{64}$/));
const size = z.int().check(z.gte(0));
const layerSchema = z.looseObject({
  mediaType: z._default(z.string(), ""),
  digest,
  size,
  annotations: z._default(z.record(z.string(), z.string()), {}),
});
const manifestSchema = z.looseObject({
  layers: z.array(layerSchema),
});
const indexSchema = z.looseObject({
  manifests: z.array(z.looseObject({
    digest,
    platform: z.optional(z.looseObject({
      os: z.string(),
      architecture: z.string(),
      variant: z.optional(z.string()),
    })),
  })),
});

type Layer = z.infer<typeof layerSchema>;

const ARCHITECTURES: Readonly<Record<string, string>> = {
  x86_64: "amd64",
  aarch64: "arm64",
};

/** The platform of this machine. */
export function hostPlatform(): Platform {
  const { arch } = Deno.build;
  return {
    os: "linux",
    architecture: ARCHITECTURES[arch] ?? arch,
  };
}

/**
 * `os/architecture[/variant]`.
 *
 * @throws {ManifestError} it is none
 */
export function parsePlatform(text: string): Platform {
  const [os = "", architecture = "", variant, ...more] = text.split("/");
  if (os === "" || architecture === "" || variant === "" || more.length > 0) {
    throw new ManifestError(
      `cannot use the platform ${text}: expected OS/ARCHITECTURE[/VARIANT]`,
    );
  }
  return { os, architecture, variant };
}

function platformText({ os, architecture, variant }: Platform): string {
  return [os, architecture, ...variant === undefined ? [] : [variant]]
    .join("/");
}

/** Checks a document's shape. */
function parse<Schema extends z.core.$ZodType>(
  schema: Schema,
  document: RegistryDocument,
  name: string,
): z.infer<Schema> {
  const parsed = z.safeParse(schema, document.json);
  if (parsed.success) return parsed.data;
  const at = parsed.error.issues[0]?.path.join(".") ?? "";
  throw new ManifestError(`cannot read the manifest of ${name}: bad ${at}`);
}

/** The digest of the manifest for a platform. */
function choose(
  document: RegistryDocument,
  platform: Platform,
  name: string,
): string {
  const { manifests } = parse(indexSchema, document, name);
  type Offered = NonNullable<(typeof manifests)[number]["platform"]>;
  const fits = (one: Offered) =>
    one.os === platform.os && one.architecture === platform.architecture &&
    (platform.variant === undefined || one.variant === platform.variant);
  const found = manifests.find((one) =>
    one.platform !== undefined && fits(one.platform)
  );
  if (found !== undefined) return found.digest;
  const there = manifests.flatMap(({ platform }) =>
    platform === undefined ? [] : [platformText(platform)]
  );
  throw new ManifestError(
    `cannot use ${name}: it has no manifest for ${platformText(platform)}` +
      (there.length === 0 ? "" : `, only for ${there.join(", ")}`),
  );
}

function isIndex({ mediaType, json }: RegistryDocument): boolean {
  return INDEX_TYPES.includes(mediaType) ||
    (typeof json === "object" && json !== null && "manifests" in json);
}

/** A layer as a lower; undefined: it holds no data of the disk. */
function lowerOf(
  { digest, size, annotations, mediaType }: Layer,
  position: number,
  name: string,
): ResolvedLower | undefined {
  const label = (key: string) => annotations[`${LABEL}/${key}`];
  if (label("acceleration-layer") === "yes") return undefined;
  const turbo = label("turbo-oci/target-digest") ??
    label("fastoci/target-digest");
  if (turbo !== undefined) {
    throw new ManifestError(
      `cannot use ${name}: layers[${position}] is a turboOCI layer, whose ` +
        "metadata the snapshotter unpacks",
    );
  }
  const blob = label("blob-digest");
  if (blob === undefined) {
    throw new ManifestError(
      `cannot use ${name}: layers[${position}] (${mediaType}) is no ` +
        `overlaybd layer: convert the image first`,
    );
  }
  if (blob !== digest) {
    throw new ManifestError(
      `cannot use ${name}: layers[${position}] is ${digest}, ` +
        `its annotation says ${blob}`,
    );
  }
  return { digest, size };
}

async function getManifest(
  client: RegistryClient,
  reference: Reference,
  version: string,
  signal: AbortSignal | undefined,
): Promise<RegistryDocument> {
  const url = new URL(`${reference.repositoryUrl}/manifests/${version}`);
  const wanted = version.startsWith("sha256:") ? version : undefined;
  const accept = [...INDEX_TYPES, ...MANIFEST_TYPES];
  return await getDocument(client, url, accept, wanted, signal);
}

/** The first document; a registry of this machine may speak plain http. */
async function getFirst(
  client: RegistryClient,
  reference: Reference,
  signal: AbortSignal | undefined,
): Promise<{ document: RegistryDocument; reference: Reference }> {
  const { version } = reference;
  try {
    const document = await getManifest(client, reference, version, signal);
    return { document, reference };
  } catch (error) {
    const plain = error instanceof SourceError && error.code === "ENOTCONN" &&
      reference.maybePlain && /does not answer in TLS/.test(error.message);
    if (!plain) throw error;
    const { repositoryUrl } = reference;
    const other = {
      ...reference,
      repositoryUrl: repositoryUrl.replace("https:", "http:"),
    };
    const document = await getManifest(client, other, version, signal);
    return { document, reference: other };
  }
}

/**
 * Resolves an image's name.
 *
 * @param options `dir`: each lower gets a directory of its own below it, by
 *   its digest; `platform`: of an index
 * @throws {SourceError | ManifestError} it cannot be had, or is no image of
 *   overlaybd
 */
export async function resolveImage(
  client: RegistryClient,
  text: string,
  options: { dir?: string; platform?: Platform; signal?: AbortSignal } = {},
): Promise<ResolvedImage> {
  const { dir, platform = hostPlatform(), signal } = options;
  const first = await getFirst(client, parseReference(text), signal);
  const { reference } = first;
  const { name } = reference;
  let { document } = first;
  if (isIndex(document)) {
    const chosen = choose(document, platform, name);
    document = await getManifest(client, reference, chosen, signal);
  }
  const { layers } = parse(manifestSchema, document, name);
  const lowers = layers.flatMap((layer, position) => {
    const lower = lowerOf(layer, position, name);
    if (lower === undefined) return [];
    return dir === undefined
      ? [lower]
      : [{ ...lower, dir: `${dir}/${lower.digest}` }];
  });
  if (lowers.length === 0) {
    throw new ManifestError(`cannot use ${name}: it has no layers`);
  }
  const skipped = layers.length - lowers.length;
  return {
    reference: name,
    digest: document.digest,
    config: {
      repoBlobUrl: `${reference.repositoryUrl}/blobs`,
      lowers,
      upper: {},
      resultFile: "",
    },
    warnings: skipped === 0
      ? []
      : [`the acceleration layer of ${name} is left out`],
  };
}
