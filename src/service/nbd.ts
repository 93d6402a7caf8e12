// SPDX-License-Identifier: Apache-2.0
/**
 * Images as exports of an NBD server, by request.
 *
 * @module
 */
import { EngineError } from "../../ffi/errors.ts";
import type { RunningServer } from "../device/nbd/server.ts";
import { fullPath } from "../layer/files.ts";
import type { DeviceKind } from "./devices.ts";
import { RequestError } from "./refusal.ts";
import type { Service } from "./service.ts";

/** How long requests may take to end when their device or all ends. */
export const GRACE_MS = 5000;

/** Shows images of a service through a running server. */
export function nbdKind(service: Service, server: RunningServer): DeviceKind {
  return {
    transport: "nbd",
    async attach({ path, devId }) {
      const served = await service.open({ path, devId, transport: "nbd" });
      try {
        server.add({
          name: served.name,
          description: fullPath(path),
          device: served.image.device,
        });
      } catch (cause) {
        const error = cause instanceof EngineError && cause.code === "EEXIST"
          ? new RequestError(
            "exists",
            `cannot attach ${path}: the export ${served.name} exists: ` +
              "give it a dev_id of its own",
            { cause },
          )
          : cause;
        await served.writeResult(error);
        await served.close();
        throw error;
      }
      await served.writeResult();
      served.log.info(`attached as ${server.uriOf(served.name)}`);
      return served;
    },
    async detach(served) {
      await server.remove(served.name, GRACE_MS);
      await served.close();
      served.log.info("detached");
    },
    shown: ({ name }) => {
      const clients = server.users(name);
      return {
        address: clients === undefined ? undefined : server.uriOf(name),
        clients,
      };
    },
  };
}
