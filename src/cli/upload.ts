// SPDX-License-Identifier: Apache-2.0
/**
 * `--upload` of `commit` and `merge` (spec/tools.md, sections 3 and 5).
 *
 * @module
 */
import type { WriteOptions } from "../layer/write.ts";
import { EXIT, ExitError, reason } from "./exit.ts";
import { warnWithout } from "./original.ts";
import type { Call } from "./program.ts";
import { showProgress } from "./progress.ts";
import type { Args } from "./table.ts";

type UploadArgs = Pick<
  Args<"merge">,
  "upload" | "upload_bs" | "cred_file_path" | "tls_key_path" | "tls_cert_path"
>;

const CHUNK_KIB = 262144;

/** The output cannot be uploaded. */
export class UploadError extends Error {
  override readonly name = "UploadError";

  /** As the end of a command. */
  asExit(call: Call, original: string): ExitError {
    const what = call.original ? original : call.program;
    return new ExitError(EXIT.failure, `${what}: ${this.message}`, {
      cause: this.cause,
    });
  }
}

/** One upload of a command. */
export interface Upload extends Disposable {
  /** @throws {UploadError} */
  send(fd: number, size: number, signal: AbortSignal): Promise<void>;
  /** The digest: on stderr by the original's names, where callers read it. */
  print(call: Call): void;
}

/** How a layer is written: uploaded, where that is asked for, and then there. */
export function uploadFirst(
  upload: Upload | undefined,
  bar: Disposable,
  signal: AbortSignal,
): Pick<WriteOptions, "beforePublish"> {
  return upload === undefined ? {} : {
    beforePublish(fd, size) {
      bar[Symbol.dispose]();
      return upload.send(fd, size, signal);
    },
  };
}

/** Says which options have no effect without `--upload`. */
export function warnUpload(args: UploadArgs): void {
  if (args.upload !== undefined) return;
  const names = [
    "upload_bs",
    "cred_file_path",
    "tls_key_path",
    "tls_cert_path",
  ];
  warnWithout(
    names.filter((name) => Reflect.get(args, name) !== undefined)
      .map((name) => `--${name}`),
    "without '--upload'",
  );
}

/** What registries are spoken to with: options, else the configuration. */
async function openClient(args: UploadArgs, config: string | undefined) {
  const { readServiceConfig } = await import("../service/config.ts");
  const { openRegistry } = await import("../service/registry.ts");
  const { readIdentity, readPem } = await import("../service/certificates.ts");
  const settings = await readServiceConfig(config);
  const { cred_file_path: path, tls_cert_path, tls_key_path } = args;
  const given = tls_cert_path !== undefined || tls_key_path !== undefined;
  const chosen = {
    ...settings,
    ...path === undefined ? {} : {
      credentialConfig: { ...settings.credentialConfig, mode: "file", path },
    },
    ...given
      ? { certConfig: { ...settings.certConfig, certFile: "", keyFile: "" } }
      : {},
  };
  const log = (line: string) => console.error(line);
  if (!given) return openRegistry(() => chosen, log);
  const certificates = {
    ...readIdentity(
      "--tls_cert_path",
      tls_cert_path ?? "",
      "--tls_key_path",
      tls_key_path ?? "",
    ),
    ca: readPem("certConfig.caFile", settings.certConfig.caFile),
  };
  return openRegistry(() => chosen, log, { certificates: () => certificates });
}

/**
 * Prepares an upload; undefined: none is asked for.
 *
 * @param serviceConfig its path; undefined: the default one
 * @throws {UploadError} the options are wrong
 */
export async function newUpload(
  args: UploadArgs,
  serviceConfig?: string,
): Promise<Upload | undefined> {
  const { upload: url } = args;
  if (url === undefined) return undefined;
  const chunk = (args.upload_bs ?? CHUNK_KIB) * 1024;
  const fail = (cause: unknown): never => {
    throw new UploadError(reason(cause), { cause });
  };
  const { parseHttpUrl } = await import("../source/registry/client.ts");
  const { uploadBlob } = await import("../source/registry/upload.ts");
  const client = await openClient(args, serviceConfig).catch(fail);
  let digest = "";
  try {
    parseHttpUrl(url);
  } catch (error) {
    client.close();
    fail(error);
  }
  return {
    async send(fd, size, signal) {
      using bar = showProgress("upload");
      const onProgress = (done: number) =>
        bar.onProgress?.({ done, total: size, written: done });
      const options = { url, fd, size, chunk, signal, onProgress };
      try {
        digest = await uploadBlob(client, options);
      } catch (error) {
        throw signal.aborted ? error : fail(error);
      }
    },
    print({ original }) {
      if (original) console.error(digest);
      else console.log(digest);
    },
    [Symbol.dispose]: () => client.close(),
  };
}
