// SPDX-License-Identifier: Apache-2.0
/**
 * The kernel's side of TCMU: events over generic netlink, one ring for each
 * device, and the SCSI commands that are answered here (`c/overlaybd.h`,
 * section TCMU).
 *
 * @module
 */
import { type Device, type U64, u64 } from "./handle.ts";
import { check } from "./errors.ts";
import { cstring, lib } from "./library.ts";

/** What happened to a device. */
export type TcmuEvent =
  & {
    /** N of `/dev/uioN` */
    minor: number;
    /** the kernel's number, for the answer */
    deviceId: number;
    /** `tcm-user/<hba>/<dev>/<config>` */
    name: string;
    /** somebody waits for an answer */
    wantsReply: boolean;
  }
  & (
    | { command: "added" | "removed" }
    | {
      command: "reconfig";
      change:
        | { kind: "config"; config: string }
        | { kind: "size"; size: bigint }
        | { kind: "writeCache"; on: boolean }
        | { kind: "unknown" };
    }
  );

const COMMANDS = ["added", "removed", "reconfig"] as const;
const EVENT_BYTES = 800;

/**
 * Listens to the family TCM-USER; events come with queue `"event"` of
 * `wake.ts`.
 *
 * @throws {EngineError} ENOENT: the module is not loaded; EPERM; EBUSY
 */
export function openNetlink(): void {
  check(lib.obd_netlink_open(), "cannot listen to the kernel's TCM-USER");
}

export function closeNetlink(): void {
  check(lib.obd_netlink_close(), "cannot stop listening to TCM-USER");
}

/**
 * The multicast group that handlers of TCMU devices are in.
 *
 * @throws {EngineError} ENOENT: the module is not loaded, or this is not the
 *   host's network namespace
 */
export function netlinkGroup(): number {
  const out = new Uint32Array(1);
  check(
    lib.obd_netlink_group(new Uint8Array(out.buffer)),
    "cannot find the kernel's TCM-USER",
  );
  return out[0] ?? 0;
}

function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(
    end < 0 ? bytes : bytes.subarray(0, end),
  );
}

function change(
  raw: Uint8Array,
  v: DataView,
): (TcmuEvent & { command: "reconfig" })["change"] {
  switch (v.getUint32(16, true)) {
    case 4:
      return { kind: "config", config: text(raw.subarray(544, 800)) };
    case 5:
      return { kind: "size", size: v.getBigUint64(24, true) };
    case 6:
      return { kind: "writeCache", on: v.getUint32(20, true) !== 0 };
    default:
      return { kind: "unknown" };
  }
}

function event(raw: Uint8Array): TcmuEvent {
  const v = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  const common = {
    minor: v.getUint32(4, true),
    deviceId: v.getUint32(8, true),
    wantsReply: v.getUint32(12, true) !== 0,
    name: text(raw.subarray(32, 544)),
  };
  const command = COMMANDS[v.getUint32(0, true) - 1] ?? "reconfig";
  return command === "reconfig"
    ? { ...common, command, change: change(raw, v) }
    : { ...common, command };
}

/** Every event that has come, oldest first. */
export function drainEvents(): TcmuEvent[] {
  const max = 32;
  const raw = new Uint8Array(max * EVENT_BYTES);
  const events: TcmuEvent[] = [];
  for (;;) {
    const got = check(lib.obd_netlink_drain(raw, max), "cannot take events");
    for (let i = 0; i < got; i++) {
      events.push(event(raw.subarray(i * EVENT_BYTES, (i + 1) * EVENT_BYTES)));
    }
    if (got < max) return events;
  }
}

/** Running totals of what came from the kernel. */
export interface NetlinkStats {
  events: number;
  /** dropped: an attribute was missing */
  malformed: number;
  /** dropped: too many at once */
  lost: number;
}

export function netlinkStats(): NetlinkStats {
  const raw = new BigUint64Array(3);
  check(lib.obd_netlink_stat(new Uint8Array(raw.buffer)), "cannot count");
  const [events = 0n, malformed = 0n, lost = 0n] = raw;
  return {
    events: Number(events),
    malformed: Number(malformed),
    lost: Number(lost),
  };
}

/** Answers an event: 0, or the errno (positive) that its writer sees. */
export function replyEvent(
  { command, deviceId }: Pick<TcmuEvent, "command" | "deviceId">,
  errno: number,
): void {
  check(
    // Not -errno: a negative zero is no integer to the FFI.
    lib.obd_netlink_reply(COMMANDS.indexOf(command) + 1, deviceId, 0 - errno),
    "cannot answer the kernel",
  );
}

/** A SCSI command that the C library leaves to us. */
export interface ScsiCommand {
  /** the id given to {@linkcode newRing} */
  ring: number;
  /** names it until it is complete */
  tag: number;
  /** 6, 10, 12 or 16 bytes */
  cdb: Uint8Array<ArrayBuffer>;
  /** bytes that the initiator sends or has room for */
  length: number;
}

const COMMAND_BYTES = 48;

/** Every SCSI command that waits for an answer, oldest first. */
export function drainCommands(): ScsiCommand[] {
  const max = 64;
  const raw = new Uint8Array(max * COMMAND_BYTES);
  const v = new DataView(raw.buffer);
  const commands: ScsiCommand[] = [];
  for (;;) {
    const got = check(lib.obd_scsi_drain(raw, max), "cannot take commands");
    for (let at = 0; at < got * COMMAND_BYTES; at += COMMAND_BYTES) {
      const length = v.getUint32(at + 20, true);
      commands.push({
        ring: Number(v.getBigUint64(at, true)),
        length: Number(v.getBigUint64(at + 8, true)),
        tag: v.getUint32(at + 16, true),
        cdb: raw.slice(at + 24, at + 24 + length),
      });
    }
    if (got < max) return commands;
  }
}

/** Running totals of a ring; `depth` and `broken` are now. */
export interface RingStats {
  commands: bigint;
  asked: bigint;
  kicks: bigint;
  refused: bigint;
  depth: bigint;
  depthMax: bigint;
  /** what the kernel's side says that makes no sense; nothing is served then */
  broken: string | undefined;
}

/** Why a ring has stopped, from the last members of its figures. */
function brokenText(
  [bad = 0n, at = 0n, value = 0n]: BigUint64Array,
): string | undefined {
  switch (bad) {
    case 0n:
      return undefined;
    case 1n:
      return `its head is at ${value}, where no entry can begin`;
    case 3n:
      return `somebody has reset it: its tail was at ${at}, and is at ${value}`;
    default:
      return `the entry at ${at} begins with 0x${
        value.toString(16)
      }, a length that it cannot have`;
  }
}

/** The command ring of one device, being served. */
export interface Ring {
  /** FLUSH and FUA mean it, from the next command on. */
  setWriteCache(on: boolean): void;
  /** The next command says what has changed: `0x2a09` is the capacity. */
  attention(ascAscq: number): void;
  /**
   * Also takes up what there was no memory for: to be called now and then.
   */
  stats(): RingStats;
  /** What the initiator sent with a command, at most `bytes` of it. */
  data(tag: number, bytes: number): Uint8Array<ArrayBuffer>;
  /**
   * Ends a command.
   *
   * @param status SAM status
   * @param sense 18 bytes of fixed-format sense
   * @param data for the initiator, cut at what it has room for
   */
  complete(
    tag: number,
    status: number,
    sense?: Uint8Array<ArrayBuffer>,
    data?: Uint8Array<ArrayBuffer>,
  ): void;
  /**
   * Goes on until the ring is empty, for at most `graceMs`; then closes the
   * device, and what is left ends with BUSY.
   */
  close(graceMs: number): Promise<void>;
}

/**
 * Serves a device on the ring of an open `/dev/uioN`, which is taken over.
 *
 * @param uioFd opened read-write and non-blocking
 * @param mapSize bytes, as `maps/map0/size` says
 * @param id reported with every command
 * @throws {EngineError} EPROTO: not mailbox version 2; ERANGE: it makes no
 * sense
 */
export function newRing(
  uioFd: number,
  mapSize: U64,
  device: Device,
  { writeCache, id }: { writeCache: boolean; id: number },
): Ring {
  const out = new BigUint64Array(1);
  check(
    lib.obd_ring_new(
      uioFd,
      u64(mapSize),
      device.pointer,
      writeCache ? 1 : 0,
      BigInt(id),
      out,
    ),
    "cannot serve the ring",
  );
  let pointer = Deno.UnsafePointer.create(out[0] ?? 0n);
  const open = () => {
    if (pointer === null) throw new TypeError("this ring is closed");
    return pointer;
  };
  return {
    setWriteCache(on) {
      check(lib.obd_ring_set(open(), on ? 1 : 0), "cannot set the ring");
    },
    attention(ascAscq) {
      check(lib.obd_ring_attention(open(), ascAscq), "cannot tell");
    },
    stats() {
      const raw = new BigUint64Array(9);
      check(
        lib.obd_ring_stat(open(), new Uint8Array(raw.buffer)),
        "cannot count",
      );
      const [commands, asked, kicks, refused, depth, depthMax] = raw;
      return {
        commands: commands ?? 0n,
        asked: asked ?? 0n,
        kicks: kicks ?? 0n,
        refused: refused ?? 0n,
        depth: depth ?? 0n,
        depthMax: depthMax ?? 0n,
        broken: brokenText(raw.subarray(6)),
      };
    },
    data(tag, bytes) {
      const buffer = new Uint8Array(bytes);
      const got = check(
        lib.obd_ring_data(open(), tag, buffer, BigInt(bytes), 0n),
        "cannot read a command's data",
      );
      return buffer.subarray(0, got);
    },
    complete(tag, status, sense, data) {
      check(
        lib.obd_ring_complete(
          open(),
          tag,
          status,
          sense ?? null,
          data ?? null,
          BigInt(data?.length ?? 0),
        ),
        "cannot end a command",
      );
    },
    async close(graceMs) {
      const last = pointer;
      pointer = null;
      if (last === null) return;
      check(
        await lib.obd_ring_close_async(last, graceMs),
        "cannot close the ring",
      );
    },
  };
}

/** sd_notify(3): one datagram to the service manager's socket. */
export function notify(socket: string, state: string): void {
  check(
    lib.obd_io_notify(cstring(socket), cstring(state)),
    `cannot notify ${socket}`,
  );
}
