// SPDX-License-Identifier: Apache-2.0
/**
 * Images as SCSI disks of this host, by request: the way through configfs
 * that `overlaybd attach` takes.
 *
 * @module
 */
import pLimit from "p-limit";
import {
  type AttachError,
  HBA,
  HOST,
  type Host,
} from "../device/tcmu/configfs.ts";
import type { TcmuDevices } from "../device/tcmu/devices.ts";
import type { Disk } from "../device/tcmu/disk.ts";
import type { UioDevice } from "../device/tcmu/kernel.ts";
import type { ScsiDevices } from "../device/tcmu/scsi_devices.ts";
import { fullPath } from "../layer/files.ts";
import { attach, detach } from "./attach.ts";
import type { DeviceKind } from "./devices.ts";
import { RequestError } from "./refusal.ts";
import type { ServedImage, Service } from "./service.ts";

/**
 * Writing to configfs waits, on one of the process's blocking threads, for
 * what this same process does on others: it must not have all of them.
 */
const limit = pLimit(4);

/** A device as `overlaybd detach` is told it. */
function idOf({ hba, name }: UioDevice): string {
  return hba === HBA && name.startsWith("dev_")
    ? name.slice("dev_".length)
    : `user_${hba}/${name}`;
}

function refused(cause: AttachError): RequestError {
  return new RequestError("invalid", cause.message, { cause });
}

/** See the module's comment. */
export interface TcmuKind extends DeviceKind {
  /** What is being taken away has gone: until then it needs its disk. */
  detached(): Promise<void>;
  /** Nothing is being taken away or made, which needs somebody to answer. */
  idle(): Promise<void>;
}

/** What is being done, each until it has ended. */
function createPending() {
  const pending = new Set<Promise<unknown>>();
  return {
    add<T>(work: Promise<T>): Promise<T> {
      const ended = work.then(() => {}, () => {});
      pending.add(ended);
      ended.then(() => pending.delete(ended));
      return work;
    },
    ended: () => Promise.all(pending),
  };
}

/**
 * Shows images of a service through the kernel.
 *
 * @param signal the daemon ends: nothing is made any more
 */
export function tcmuKind(
  service: Pick<Service, "images" | "log">,
  devices: Pick<TcmuDevices, "list">,
  scsi: ScsiDevices,
  { signal, host = HOST }: { signal: AbortSignal; host?: Host },
): TcmuKind {
  const attaching = createPending();
  const detaching = createPending();
  const find = (
    served: ServedImage,
  ): { uio: UioDevice; disk: Disk } | undefined => {
    for (const { uio, disk } of devices.list()) {
      if (disk?.image.id === served.id) return { uio, disk };
    }
    return undefined;
  };
  const log = (line: string) => service.log.info(line);
  return {
    transport: "tcmu",
    async attach({ path, devId }) {
      const config = devId === "" ? path : `${path};${devId}`;
      const work = limit(() =>
        attach(host, { config, id: undefined, signal, log })
      );
      const made = await attaching.add(work).catch((error) => {
        if (signal.aborted) {
          throw new RequestError("ending", "the service ends");
        }
        throw refused(error);
      });
      scsi.changed();
      const served = service.images().find((image) =>
        image.transport === "tcmu" && image.devId === devId &&
        fullPath(image.path) === made.config
      );
      if (served !== undefined) return served;
      throw new RequestError("ending", `${made.disk} has gone already`);
    },
    async detach(served) {
      const found = find(served);
      if (found === undefined) return;
      const work = limit(() => detach(host, idOf(found.uio), log));
      await detaching.add(work).catch((error) => {
        throw refused(error);
      });
    },
    shown: (served) => {
      const disk = find(served)?.disk;
      return {
        address: disk === undefined ? undefined : scsi.disk(disk.serial),
        clients: undefined,
      };
    },
    resized: (served) => find(served)?.disk.grown(),
    async detached() {
      await detaching.ended();
    },
    async idle() {
      await Promise.all([attaching.ended(), detaching.ended()]);
    },
  };
}
