// SPDX-License-Identifier: Apache-2.0
/**
 * What every field of the configuration files means, in one sentence or two.
 * Names, types and defaults are the schemas'; a test holds the two together.
 *
 * @module
 */

/** What a field means, by its key. */
export type Meanings = Readonly<Record<string, string>>;

/** Fields of `overlaybd.json`. */
export const SERVICE_FIELDS: Meanings = {
  registryCacheDir:
    "Older form of `cacheConfig.cacheDir`; counts while `cacheConfig.cacheType` is empty.",
  registryCacheSizeGB:
    "GiB. Older form of `cacheConfig.cacheSizeGB`, under the same condition.",
  cacheType: "Older form of `cacheConfig.cacheType`, under the same condition.",
  "cacheConfig.cacheType":
    "`file`: blocks are kept in sparse files, one a blob; `download`: blocks are kept in the layer's own directory, where the background download finishes the layer; `ocf` means `file`, with a warning. Not empty: this group counts and not the three older keys.",
  "cacheConfig.cacheDir":
    "Where blocks are kept; made at the first remote layer.",
  "cacheConfig.cacheSizeGB": "GiB that the cache may take.",
  "cacheConfig.refillSize":
    "Bytes fetched at once: a power of two from 4096. Counts with the older keys too.",
  "cacheConfig.blockSize":
    "Bytes; 4096 to 65536. Of the original's `ocf` only.",
  "gzipCacheConfig.enable":
    "Keep decompressed data of turboOCI layers; without effect while those cannot be opened.",
  "gzipCacheConfig.cacheDir": "Where.",
  "gzipCacheConfig.cacheSizeGB": "GiB.",
  "gzipCacheConfig.refillSize": "Bytes decompressed at once.",
  credentialFilePath:
    "Older form of `credentialConfig.path` with mode `file`; counts while the mode is empty.",
  "credentialConfig.mode":
    "Where user names and passwords of registries come from: `file`, `http`, `https` or `uds`. Anything else: every request is anonymous, with a warning.",
  "credentialConfig.path": "The file, the URL or the socket.",
  "credentialConfig.timeout": "Seconds that a credential service may take.",
  "credentialConfig.client_cert_path":
    "PEM certificate shown to an https credential service.",
  "credentialConfig.client_key_path":
    "Its PEM key, unless it is in the certificate's file.",
  "credentialConfig.server_ca_path":
    "PEM: the only authorities that the credential service is checked with.",
  ioEngine:
    "How the files of local read-only layers are read. 0 (psync): through the page cache, by threads; 1: with O_DIRECT, by io_uring; 2: through the page cache, and by io_uring what it lacks. Where io_uring is not allowed threads read, and where a file system refuses O_DIRECT the page cache is used; the log says so.",
  logLevel:
    "0 debug, 1 info, 2 warning, 3 error, 4 to 6 nothing but those. Older form of `logConfig.logLevel`; counts while `logConfig.logPath` is empty.",
  logPath:
    "Older form of `logConfig.logPath`, under the same condition; explicitly empty: standard error, or the journal under systemd.",
  "logConfig.logLevel": "As `logLevel`.",
  "logConfig.logPath":
    "Not empty: this group counts and not the two older keys.",
  "logConfig.logSizeMB": "MiB at which the file is rotated, 1 at least.",
  "logConfig.logRotateNum": "Files in total, 1 to 30.",
  "logConfig.format":
    "`text`, the original's lines, or `json`, one object a line.",
  "download.enable":
    "Download layers whole in the background, for images without a `download` of their own.",
  "download.delay": "Seconds before it starts.",
  "download.delayExtra": "Seconds of a random addition; 0 means 30.",
  "download.maxMBps": "MiB/s; 0 or less: no limit.",
  "download.tryCnt": "Attempts for each layer.",
  "download.blockSize": "Bytes of one step.",
  enableAudit: "Write the audit log.",
  auditPath:
    "The audit log, 10 MiB in 3 files; if it cannot be opened, the service says so and goes on.",
  enableThread:
    "Accepted, either way the same: a worker thread for each processor, 4 at most, serves all devices, with or without it and with every cache.",
  "p2pConfig.enable":
    "Fetch through a proxy that shares blobs between machines, if it answers when an image is opened.",
  "p2pConfig.address": "The proxy; the blob's own URL is put behind it.",
  "exporterConfig.enable": "Show metrics.",
  "exporterConfig.uriPrefix": "Paths that begin with it are answered.",
  "exporterConfig.port": "Its port; 0: a free one.",
  "exporterConfig.address":
    "The address of this machine that it listens on; `0.0.0.0` for all.",
  "exporterConfig.updateInterval": "Microseconds; accepted, without effect.",
  registryFsVersion: "Accepted, without effect: one client serves both.",
  "prefetchConfig.concurrency":
    "Reads of a trace at once; 0 or less: traces are not replayed.",
  "certConfig.certFile": "PEM certificate shown to registries.",
  "certConfig.keyFile": "Its PEM key.",
  "certConfig.caFile":
    "PEM: the only authorities that registries are checked with.",
  insecureRegistries:
    "`host:port` of registries whose certificates are not checked.",
  userAgent: "What requests to registries say they come from.",
  "serviceConfig.enable": "Listen for live snapshots in the original's way.",
  "serviceConfig.address": "Where.",
  "apiConfig.enable":
    "Listen for the API, which `overlaybd ctl` and scripts use.",
  "apiConfig.address":
    "A unix socket, for its owner alone, or `HOST:PORT`; an address that other machines can reach needs `tokenFile` or `clientCaFile`.",
  "apiConfig.tokenFile":
    "A file whose first line every request has to bring, as `Authorization: Bearer TOKEN`.",
  "apiConfig.certFile": "PEM certificate; with `keyFile`, the API is HTTPS.",
  "apiConfig.keyFile": "Its PEM key.",
  "apiConfig.clientCaFile":
    "PEM: a client must have a certificate of one of these authorities.",
  readDeadlineSeconds:
    "Seconds that a read may wait for data that cannot be fetched, before it fails.",
  writeCache:
    "Tell the kernel of a write cache, so that a flush reaches the disk; `false`: the original's fast and forgetful way.",
};

/** Fields of an image's configuration, `config.v1.json`. */
export const IMAGE_FIELDS: Meanings = {
  repoBlobUrl:
    "What a blob's digest is appended to: `https://HOST/v2/NAME/blobs`.",
  "lowers[].file": "A layer's file: the first place where it is looked for.",
  "lowers[].dir":
    "A layer's directory: `overlaybd.commit`, `.commit` and `overlaybd.sealed` are looked for in it, and a background download ends there.",
  "lowers[].digest":
    "`sha256:` and 64 hex digits: the blob's name in the registry.",
  "lowers[].size": "Bytes of the blob.",
  "lowers[].targetFile": "turboOCI: the tar file that holds the data.",
  "lowers[].targetDigest": "turboOCI: the blob that holds the data.",
  "lowers[].gzipIndex": "turboOCI: the index of a gzip'ed target.",
  "upper.index": "The writable layer's index.",
  "upper.data":
    "The writable layer's data. Without both, the image is read-only.",
  "upper.target": "turboOCI: the data file of a writable layer.",
  "upper.gzipIndex": "turboOCI: the index of a gzip'ed `upper.target`.",
  resultFile:
    "Where `success`, or `failed:` and the cause, is written when the image is opened.",
  "download.enable":
    "Download the layers whole in the background. An image's `download` counts instead of the service's, whole.",
  "download.delay": "Seconds before it starts.",
  "download.delayExtra": "Seconds of a random addition; 0 means 30.",
  "download.maxMBps": "MiB/s; 0 or less: no limit.",
  "download.tryCnt": "Attempts for each layer.",
  "download.blockSize": "Bytes of one step.",
  accelerationLayer:
    "The last of `lowers` is no layer but the directory of a `trace` to replay.",
  recordTracePath:
    "A file: empty, what is read is recorded into it; not empty, it is replayed. Missing: ignored.",
  writeCache: "In place of the service's `writeCache`, for this image alone.",
};
