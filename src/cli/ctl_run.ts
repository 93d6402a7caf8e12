// SPDX-License-Identifier: Apache-2.0
/**
 * What each action of `ctl` asks for, and how its answer is shown.
 *
 * @module
 */
import { fullPath } from "../layer/files.ts";
import { parseServed } from "../service/served.ts";
import type { CtlAction } from "./ctl_actions.ts";
import { askCache, PULLS } from "./ctl_cache.ts";
import {
  type Ask,
  type Json,
  line,
  list,
  object,
  parseBytes,
  type Result,
  shown,
  text,
  type Work,
} from "./ctl_show.ts";
import { EXIT, UsageError } from "./exit.ts";
import { printTable } from "./print.ts";
import { formatBytes } from "./progress.ts";

function showDevices(devices: readonly Json[]): void {
  printTable(
    ["ID", "NAME", "KIND", "SIZE", "MODE", "CLIENTS", "ADDRESS"],
    devices.map((device) => [
      text(device["id"]),
      text(device["name"]),
      text(device["transport"]),
      formatBytes(Number(device["bytes"])),
      device["readonly"] === true ? "ro" : "rw",
      text(device["clients"]),
      text(device["address"]),
    ]),
  );
}

/** The device of that name, dev_id, configuration or id. */
async function find(ask: Ask, name: string): Promise<Json> {
  const devices = list((await ask("GET", "/v1/devices"))["devices"]);
  const by = (test: (device: Json) => boolean) => devices.find(test);
  const device = by((one) => one["devId"] === name) ??
    by((one) => one["name"] === name || one["name"] === fullPath(name)) ??
    by((one) => String(one["id"]) === name) ??
    by((one) => one["config"] === fullPath(name));
  if (device !== undefined) return device;
  throw new Error(`there is no device ${name}`);
}

async function pathOf(ask: Ask, name: string | undefined): Promise<string> {
  const device = await find(ask, name ?? "");
  return `/v1/devices/${String(device["id"])}`;
}

/** By their names. */
export const RUN: Readonly<Record<CtlAction, (work: Work) => Promise<Result>>> =
  {
    async devices({ ask }) {
      const value = await ask("GET", "/v1/devices");
      return { value, show: () => showDevices(list(value["devices"])) };
    },
    async device({ ask, words: [name] }) {
      return shown(await find(ask, name ?? ""));
    },
    async attach({ ask, args, words: [word = ""] }) {
      const { path, devId } = parseServed(word);
      const value = await ask("POST", "/v1/devices", {
        config: fullPath(path),
        devId,
        ...(args.transport === undefined ? {} : { transport: args.transport }),
      });
      return { value, show: line(text(value["address"])) };
    },
    async detach({ ask, args, words: [name] }) {
      const path = await pathOf(ask, name);
      await ask("DELETE", `${path}?force=${args.force}`);
      return { value: {}, show: line(`${name} is detached`) };
    },
    async flush({ ask, words: [name] }) {
      await ask("POST", `${await pathOf(ask, name)}/flush`);
      return { value: {}, show: line(`${name} is on disk`) };
    },
    async resize({ ask, words: [name, size = ""] }) {
      const bytes = parseBytes(size);
      const value = await ask("POST", `${await pathOf(ask, name)}/resize`, {
        bytes,
      });
      const now = formatBytes(Number(value["bytes"]));
      return { value, show: line(`${name} has ${now}`) };
    },
    async snapshot({ ask, words: [name, config = ""] }) {
      const value = await ask("POST", `${await pathOf(ask, name)}/snapshot`, {
        config: fullPath(config),
      });
      const pause = Number(value["pauseUs"]).toFixed(0);
      return { value, show: line(`${name}: writes waited ${pause} us`) };
    },
    cache: ({ ask, words: [what = "stat", ...rest] }) =>
      askCache(ask, what, rest),
    ...PULLS,
    async downloads({ ask }) {
      const value = await ask("GET", "/v1/downloads");
      const rows = list(value["downloads"]).flatMap((download) =>
        list(download["layers"]).map((layer) => [
          text(download["device"]),
          text(layer["state"]),
          formatBytes(Number(layer["done"])),
          formatBytes(Number(layer["bytes"])),
          text(layer["dir"]),
        ])
      );
      const titles = ["DEVICE", "STATE", "DONE", "OF", "DIRECTORY"];
      return { value, show: () => printTable(titles, rows) };
    },
    async prefetches({ ask }) {
      const value = await ask("GET", "/v1/prefetches");
      const rows = list(value["prefetches"]).map((replay) =>
        ["device", "state", "done", "fetches", "failed", "trace"]
          .map((name) => text(replay[name]))
      );
      const titles = ["DEVICE", "STATE", "DONE", "OF", "FAILED", "TRACE"];
      return { value, show: () => printTable(titles, rows) };
    },
    async images({ ask }) {
      const value = await ask("GET", "/v1/images");
      const rows = list(value["images"]).flatMap((image) => {
        const device = text(image["device"]);
        const lowers = list(image["lowers"]).map((layer, position) => [
          ...[device, String(position), text(layer["origin"])],
          ...[text(layer["kind"]), text(layer["where"])],
        ]);
        if (image["upper"] === null) return lowers;
        const { kind, data } = object(image["upper"]);
        return [...lowers, [device, "upper", "local", text(kind), text(data)]];
      });
      const titles = ["DEVICE", "LAYER", "ORIGIN", "KIND", "WHERE"];
      return { value, show: () => printTable(titles, rows) };
    },
    async config({ ask, words: [what = "show"] }) {
      if (what === "reload") {
        return shown(await ask("POST", "/v1/config/reload"));
      }
      if (what !== "show") {
        throw new UsageError(EXIT.validation, `config: ${what} is not reload`);
      }
      const value = await ask("GET", "/v1/config");
      return {
        value,
        show: () =>
          printTable(
            ["KEY", "VALUE", "FROM"],
            list(value["settings"]).map((setting) => [
              text(setting["key"]),
              JSON.stringify(setting["value"]),
              text(setting["from"]),
            ]),
          ),
      };
    },
    async "log-level"({ ask, words: [level] }) {
      const value = level === undefined
        ? await ask("GET", "/v1/log-level")
        : await ask("PUT", "/v1/log-level", { level });
      return { value, show: line(text(value["level"])) };
    },
    async health({ ask }) {
      const value = await ask("GET", "/readyz");
      return { value, show: line(text(value["status"])) };
    },
    async version({ ask }) {
      return shown(await ask("GET", "/version"));
    },
  };
