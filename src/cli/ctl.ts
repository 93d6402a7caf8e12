// SPDX-License-Identifier: Apache-2.0
/**
 * `ctl`: asks a running service.
 *
 * @module
 */
import { type ApiTarget, askApi } from "../service/api/client.ts";
import { CTL_ACTIONS, type CtlAction, type Words } from "./ctl_actions.ts";
import { EXIT, UsageError } from "./exit.ts";
import { RUN } from "./ctl_run.ts";
import { object } from "./ctl_show.ts";
import { printJson } from "./print.ts";
import type { Args } from "./table.ts";

function readFile(path: string | undefined): string | undefined {
  return path === undefined ? undefined : Deno.readTextFileSync(path);
}

type Place = Pick<ApiTarget, "address" | "secure"> & { tokenFile?: string };

/** Where a configuration says that the service is. */
async function configured(path: string | undefined): Promise<Place> {
  // The schema takes as long to load as all else of this command.
  const { loadServiceConfig } = await import("../service/config.ts");
  const { address, certFile, tokenFile } =
    (await loadServiceConfig(path)).config.apiConfig;
  return {
    address,
    secure: certFile !== "",
    ...(tokenFile === "" ? {} : { tokenFile }),
  };
}

/** The service that is meant: by the options, else by its configuration. */
async function targetOf(args: Args<"ctl">): Promise<ApiTarget> {
  const { api } = args;
  const place: Place = api === undefined
    ? await configured(args.serviceConfig)
    : { address: api, secure: api.startsWith("https:") };
  const from = args.tokenFile ?? place.tokenFile;
  return {
    address: place.address.replace(/^https?:\/\//, "").replace(/^unix:/, ""),
    secure: place.secure,
    token: readFile(from)?.split("\n")[0]?.trim(),
    ca: readFile(args.caFile),
    cert: readFile(args.certFile),
    key: readFile(args.keyFile),
  };
}

function isAction(name: string): name is CtlAction {
  return Object.hasOwn(CTL_ACTIONS, name);
}

/** @throws {UsageError} it has too few words, or too many */
function checkWords(action: CtlAction, words: readonly string[]): void {
  const { needs, takes, many = false }: Words = CTL_ACTIONS[action];
  const [missing] = needs.slice(words.length);
  if (missing !== undefined) {
    throw new UsageError(EXIT.required, `${missing} is required`);
  }
  const extra = many ? [] : words.slice(needs.length + takes.length);
  if (extra.length === 0) return;
  throw new UsageError(
    EXIT.unexpected,
    `The following argument${
      extra.length > 1 ? "s were" : " was"
    } not expected: ${extra.join(" ")}`,
  );
}

/** Runs `overlaybd ctl ACTION [ARGUMENT...]`. */
export async function run(args: Args<"ctl">): Promise<number> {
  const { action } = args;
  if (!isAction(action)) {
    throw new UsageError(
      EXIT.validation,
      `action: ${action} is none of ${Object.keys(CTL_ACTIONS).join(", ")}`,
    );
  }
  checkWords(action, args.argument);
  const target = await targetOf(args);
  const { value, show } = await RUN[action]({
    ask: async (...request) => object(await askApi(target, ...request)),
    args,
    words: args.argument,
  });
  if (args.json) printJson(value);
  else show();
  return EXIT.ok;
}
