// SPDX-License-Identifier: Apache-2.0
/**
 * Devices that come and go by request, however they are shown.
 *
 * @module
 */
import { flushDevice } from "../../ffi/device.ts";
import type { SnapshotReport } from "../image/snapshot.ts";
import { RequestError } from "./refusal.ts";
import { resizeServed } from "./resize.ts";
import type { ServedImage, Service, Transport } from "./service.ts";

/** What a transport says of an image that it shows. */
export interface Shown {
  /** where it is found: an NBD URI, a path below /dev; undefined: not yet */
  address: string | undefined;
  /** who uses it; undefined: the transport cannot tell */
  clients: number | undefined;
}

/** One way to show images. */
export interface DeviceKind {
  readonly transport: Transport;
  /**
   * Opens an image and shows it.  Its result file tells how that went.
   *
   * @throws {ConfigError | ImageError | EngineError | RequestError}
   */
  attach(request: { path: string; devId: string }): Promise<ServedImage>;
  /** Takes it away from its users and closes it. */
  detach(served: ServedImage): Promise<void>;
  shown(served: ServedImage): Shown;
  /** The disk has grown: tells who can be told. */
  resized?(served: ServedImage): void;
}

/** All devices of a service. */
export interface Devices {
  list(): ServedImage[];
  /** @throws {RequestError} not-found */
  get(id: number): ServedImage;
  shown(served: ServedImage): Shown;
  /** @throws {RequestError} unsupported; and as {@link DeviceKind.attach} */
  attach(
    request: { path: string; devId: string; transport?: Transport | undefined },
  ): Promise<ServedImage>;
  /**
   * @param force also while somebody uses it
   * @throws {RequestError} not-found, busy
   */
  detach(id: number, force: boolean): Promise<void>;
  /** Everything that was written is on disk. */
  flush(id: number): Promise<void>;
  /** @throws {RequestError | SnapshotError} */
  snapshot(id: number, newPath: string): Promise<SnapshotReport>;
  /** @throws {RequestError} not-found, invalid, unsupported */
  resize(id: number, bytes: number): Promise<void>;
}

/**
 * The devices of a service.
 *
 * @param kinds the first is meant where a request names none
 */
export function createDevices(
  service: Service,
  kinds: readonly DeviceKind[],
): Devices {
  /** Devices with a change under way: one at a time. */
  const changing = new Set<number>();

  const kindOf = (transport: Transport | undefined): DeviceKind => {
    const kind = transport === undefined
      ? kinds[0]
      : kinds.find((one) => one.transport === transport);
    if (kind !== undefined) return kind;
    throw new RequestError(
      "unsupported",
      transport === undefined
        ? "this service attaches no devices by request"
        : `this service attaches no ${transport} devices by request`,
    );
  };
  const get = (id: number): ServedImage => {
    const served = service.images().find((image) => image.id === id);
    if (served !== undefined) return served;
    throw new RequestError("not-found", `there is no device ${id}`);
  };
  const change = async <T>(
    id: number,
    work: (served: ServedImage) => Promise<T>,
  ): Promise<T> => {
    const served = get(id);
    if (changing.has(id)) {
      throw new RequestError(
        "busy",
        `device ${id} (${served.name}) is being changed by another request`,
      );
    }
    changing.add(id);
    try {
      return await work(served);
    } finally {
      changing.delete(id);
    }
  };
  const shown = (served: ServedImage): Shown =>
    kinds.find((kind) => kind.transport === served.transport)
      ?.shown(served) ?? { address: undefined, clients: undefined };

  // By a request, or because a snapshot's new layer is larger.
  service.grown.add((served) =>
    kinds.find((kind) => kind.transport === served.transport)
      ?.resized?.(served)
  );

  return {
    list: () => service.images(),
    get,
    shown,
    attach: ({ path, devId, transport }) =>
      kindOf(transport).attach({ path, devId }),
    detach: (id, force) =>
      change(id, async (served) => {
        const kind = kindOf(served.transport);
        const { clients = 0 } = kind.shown(served);
        if (clients > 0 && !force) {
          throw new RequestError(
            "busy",
            `device ${id} (${served.name}) is used by ${clients} ` +
              `client${clients === 1 ? "" : "s"}: force detaches it`,
          );
        }
        await kind.detach(served);
      }),
    flush: (id) => flushDevice(get(id).image.device),
    snapshot: (id, newPath) =>
      change(id, (served) => service.snapshot(served, newPath)),
    resize: (id, bytes) => change(id, (served) => resizeServed(served, bytes)),
  };
}
