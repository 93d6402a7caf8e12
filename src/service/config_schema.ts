// SPDX-License-Identifier: Apache-2.0
/**
 * The fields of `overlaybd.json` (spec/service-config.md, section 3), with
 * their types and defaults.
 *
 * @module
 */
import * as z from "zod/mini";
import { VERSION } from "../format/version.ts";
import { downloadSchema } from "../image/config.ts";
import { PATHS } from "./paths.ts";

const text = (value: string) => z._default(z.string(), value);
const flag = (value: boolean) => z._default(z.boolean(), value);
const UINT32_MAX = 2 ** 32 - 1;
const uint = (value: number) =>
  z._default(z.int().check(z.gte(0), z.lte(UINT32_MAX)), value);
const port = (value: number) =>
  z._default(z.int().check(z.gte(0), z.lte(65535)), value);

/** A message that does not need "expected": it begins with the value. */
function refusal(says: string) {
  return { error: (issue: { input?: unknown }) => `${issue.input} ${says}` };
}

const refill = (value: number) =>
  z._default(
    z.int().check(z.refine(
      (size) =>
        size >= 4096 && size <= 2 ** 31 && Number.isInteger(Math.log2(size)),
      refusal("is not a power of two multiple of 4096"),
    )),
    value,
  );

/** File, download or ocf; empty where another key decides. */
const CACHE_TYPES = ["", "file", "ocf", "download"];
const cacheType = (value: string) =>
  z._default(
    z.string().check(z.refine(
      (name) => CACHE_TYPES.includes(name),
      {
        error: (issue) =>
          `unknown cache type: ${issue.input}: it is not file, download or ocf`,
      },
    )),
    value,
  );

/** An object that may be absent, whose members have defaults. */
function group<Shape extends z.core.$ZodLooseShape>(shape: Shape) {
  return z.prefault(z.looseObject(shape), {} as never);
}

/** Every field; keys of others are kept as they are. */
export const serviceSchema = z.looseObject({
  registryCacheDir: text(PATHS.registryCache),
  /** GiB */
  registryCacheSizeGB: uint(4),
  cacheType: cacheType("file"),
  cacheConfig: group({
    /** not empty: this group counts, not the three keys above */
    cacheType: cacheType(""),
    cacheDir: text(PATHS.registryCache),
    /** GiB */
    cacheSizeGB: uint(4),
    /** bytes fetched at once */
    refillSize: refill(262144),
    /** bytes; of the original's `ocf` only */
    blockSize: z._default(
      z.int().check(z.refine(
        (size) => [4096, 8192, 16384, 32768, 65536].includes(size),
        refusal("is not 4096, 8192, 16384, 32768 or 65536"),
      )),
      65536,
    ),
  }),
  gzipCacheConfig: group({
    enable: flag(false),
    cacheDir: text(PATHS.gzipCache),
    /** GiB */
    cacheSizeGB: uint(4),
    /** bytes */
    refillSize: refill(1048576),
  }),
  credentialFilePath: text(PATHS.credentials),
  credentialConfig: group({
    /** file, http, https, uds; empty: `credentialFilePath` counts */
    mode: text(""),
    /** file, URL or socket */
    path: text(""),
    /** s */
    timeout: z._default(z.int().check(z.gte(0)), 1),
    client_cert_path: text(""),
    client_key_path: text(""),
    server_ca_path: text(""),
  }),
  /** 0 psync, 1 io_uring with O_DIRECT, 2 io_uring */
  ioEngine: z._default(
    z.int().check(z.refine(
      (engine) => engine >= 0 && engine <= 2,
      {
        error: (issue) => `unknown io_engine: ${issue.input}: it is not 0 to 2`,
      },
    )),
    0,
  ),
  /** 0 debug, 1 info, 2 warning, 3 error, 4..6 nothing but those */
  logLevel: uint(1),
  logPath: text(PATHS.log),
  logConfig: group({
    logLevel: uint(1),
    /** not empty: this group counts, not the two keys above */
    logPath: text(""),
    /** MiB of one file */
    logSizeMB: uint(10),
    /** files in total */
    logRotateNum: z._default(z.int(), 3),
    /** `text`, the original's lines, or `json` */
    format: z._default(z.enum(["text", "json"]), "text"),
  }),
  download: z.prefault(downloadSchema, {}),
  enableAudit: flag(true),
  auditPath: text(PATHS.audit),
  /** accepted: threads are always used */
  enableThread: flag(false),
  p2pConfig: group({
    enable: flag(false),
    address: text("http://localhost:9731/accelerator"),
  }),
  exporterConfig: group({
    enable: flag(false),
    uriPrefix: text("/metrics"),
    port: port(9863),
    /** who may connect: an address of this machine */
    address: text("127.0.0.1"),
    /** us; accepted, without effect, as ever */
    updateInterval: z._default(z.int().check(z.gte(0)), 60_000_000),
  }),
  /** accepted: one client serves both */
  registryFsVersion: text("v2"),
  prefetchConfig: group({
    /** workers; 0 or less: traces are not replayed */
    concurrency: z._default(z.int(), 16),
  }),
  certConfig: group({
    certFile: text(""),
    keyFile: text(""),
    /** PEM: the only CAs that registries are checked with */
    caFile: text(""),
  }),
  /** `host:port` of registries whose certificates are not checked */
  insecureRegistries: z._default(z.array(z.string()), []),
  userAgent: text(`overlaybd/${VERSION}`),
  serviceConfig: group({
    enable: flag(false),
    address: text("http://127.0.0.1:9862"),
  }),
  /** the API of `overlaybd ctl` */
  apiConfig: group({
    enable: flag(false),
    /** path of a unix socket, or HOST:PORT */
    address: text(`${PATHS.run}/api.sock`),
    /** its first line has to come with every request: `Bearer TOKEN` */
    tokenFile: text(""),
    /** PEM: with both, HTTPS */
    certFile: text(""),
    keyFile: text(""),
    /** PEM: clients must have a certificate of one of these CAs */
    clientCaFile: text(""),
  }),
  /** s that a request may wait for data that cannot be fetched */
  readDeadlineSeconds: z._default(z.int().check(z.gte(1)), 604_800),
  /** tell the kernel of a write cache, and mean FLUSH */
  writeCache: flag(true),
});

/** A parsed service configuration; see {@link serviceSchema}. */
export type ServiceConfig = z.infer<typeof serviceSchema>;
