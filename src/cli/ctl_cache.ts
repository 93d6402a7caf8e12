// SPDX-License-Identifier: Apache-2.0
/**
 * The actions of `ctl` that are about the cache.
 *
 * @module
 */
import { fullPath } from "../layer/files.ts";
import {
  type Ask,
  type Json,
  line,
  list,
  parseBytes,
  type Result,
  shown,
  text,
  type Work,
} from "./ctl_show.ts";
import { EXIT, UsageError } from "./exit.ts";
import { printTable } from "./print.ts";
import { formatBytes, showProgress } from "./progress.ts";

/** What `cache` is asked for; `rest`: the words behind that. */
export async function askCache(
  ask: Ask,
  what: string,
  rest: readonly string[],
): Promise<Result> {
  const names = { names: rest };
  switch (what) {
    case "stat":
      return shown(await ask("GET", "/v1/cache"));
    case "ls": {
      const value = await ask("GET", "/v1/cache/blobs");
      return { value, show: () => showBlobs(list(value["blobs"])) };
    }
    case "pins":
      return shownNames(await ask("GET", "/v1/cache/pins"));
    case "pin":
    case "unpin":
      if (rest.length === 0) {
        throw new UsageError(EXIT.required, "BLOB is required");
      }
      return shownNames(await ask("POST", `/v1/cache/${what}`, names));
    case "prune": {
      const [size] = rest;
      const target = size !== undefined && /^\d/.test(size)
        ? { target: parseBytes(size) }
        : names;
      const value = await ask("POST", "/v1/cache/prune", target);
      const freed = formatBytes(Number(value["freed"]));
      const used = formatBytes(Number(value["used"]));
      return { value, show: line(`${freed} freed, ${used} used`) };
    }
    case "verify": {
      const value = await ask("POST", "/v1/cache/verify", names);
      const rows = list(value["blobs"])
        .map((blob) => [text(blob["state"]), text(blob["name"])]);
      return { value, show: () => printTable(["STATE", "BLOB"], rows) };
    }
    default:
      throw new UsageError(
        EXIT.validation,
        `cache: ${what} is none of ls, pins, pin, unpin, verify, prune`,
      );
  }
}

function showBlobs(blobs: readonly Json[]): void {
  printTable(
    ["BLOB", "SIZE", "HERE", "MARKS"],
    blobs.map((blob) => [
      text(blob["name"]),
      formatBytes(Number(blob["size"])),
      formatBytes(Number(blob["bytes"])),
      text(
        ["open", "pinned", "whole", "verified"].filter((mark) =>
          blob[mark] === true
        ).join(" "),
      ),
    ]),
  );
}

function shownNames(value: Json): Result {
  const names = Array.isArray(value["names"]) ? value["names"] : [];
  return { value, show: line(names.join("\n")) };
}

/** Between looks at how far a pull is. */
const PULL_POLL_MS = 500;

/** Waits until a pull has ended, and shows how far it is. */
async function pullEnd(ask: Ask, path: string): Promise<Json> {
  using bar = showProgress("pull");
  for (;;) {
    const pull = await ask("GET", path);
    if (pull["state"] !== "running") return pull;
    const done = Number(pull["done"]);
    bar.onProgress?.({ total: Number(pull["bytes"]), done, written: done });
    await new Promise((resolve) => setTimeout(resolve, PULL_POLL_MS));
  }
}

/** By their names. */
export const PULLS = {
  async pull({ ask, args, words: [config = ""] }: Work): Promise<Result> {
    const begun = await ask("POST", "/v1/pulls", {
      config: fullPath(config),
    });
    const path = `/v1/pulls/${String(begun["id"])}`;
    if (args.noWait) return { value: begun, show: line(path.slice(10)) };
    const value = await pullEnd(ask, path);
    if (value["state"] !== "done") throw new Error(text(value["error"]));
    const fetched = formatBytes(Number(value["fetched"]));
    return { value, show: line(`${config}: ${fetched} fetched`) };
  },
  async pulls({ ask }: Work): Promise<Result> {
    const value = await ask("GET", "/v1/pulls");
    const rows = list(value["pulls"]).map((pull) => [
      text(pull["id"]),
      text(pull["state"]),
      formatBytes(Number(pull["done"])),
      formatBytes(Number(pull["bytes"])),
      text(pull["config"]),
      String(pull["error"]),
    ]);
    const titles = ["PULL", "STATE", "DONE", "OF", "CONFIG", "ERROR"];
    return { value, show: () => printTable(titles, rows) };
  },
  async cancel({ ask, words: [id = ""] }: Work): Promise<Result> {
    await ask("DELETE", `/v1/pulls/${encodeURIComponent(id)}`);
    return { value: {}, show: line(`pull ${id} is ended`) };
  },
};
