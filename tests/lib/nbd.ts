// SPDX-License-Identifier: Apache-2.0
/**
 * A small NBD client over a unix socket, written from the protocol alone:
 * simple replies, several requests in flight, and access to raw bytes for
 * tests that send nonsense.
 *
 * @module
 */

const NBDMAGIC = 0x4e42444d41474943n;
const IHAVEOPT = 0x49484156454f5054n;
const REPLY_MAGIC = 0x67446698;
const REQUEST_MAGIC = 0x25609513;
const OPT_EXPORT_NAME = 1;
const FIXED_NO_ZEROES = 3;

/** Commands of the transmission phase. */
export const CMD = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  ZEROES: 6,
} as const;

/** A connection in its transmission phase. */
export interface NbdClient extends Disposable {
  readonly size: number;
  readonly flags: number;
  /** one request; throws an error number the server gave, or on the end */
  request(
    command: number,
    at: number,
    n: number,
    data?: Uint8Array,
    flags?: number,
  ): Promise<Uint8Array>;
  read(at: number, n: number): Promise<Uint8Array>;
  write(at: number, data: Uint8Array): Promise<void>;
  flush(): Promise<void>;
  close(): void;
}

/** The server answered with an error number. */
export class NbdError extends Error {
  override readonly name = "NbdError";
  readonly errno: number;

  constructor(errno: number) {
    super(`the server answered error ${errno}`);
    this.errno = errno;
  }
}

async function readExact(conn: Deno.Conn, n: number): Promise<Uint8Array> {
  const out = new Uint8Array(n);
  let done = 0;
  while (done < n) {
    const got = await conn.read(out.subarray(done));
    if (got === null) throw new Error("the server closed the connection");
    done += got;
  }
  return out;
}

async function writeAll(conn: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += await conn.write(bytes.subarray(done));
  }
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Old-style option EXPORT_NAME: the shortest way in. */
async function negotiate(
  conn: Deno.Conn,
  name: string,
): Promise<{ size: number; flags: number }> {
  const hello = view(await readExact(conn, 18));
  if (
    hello.getBigUint64(0) !== NBDMAGIC || hello.getBigUint64(8) !== IHAVEOPT
  ) {
    throw new Error("no NBD server");
  }
  const text = new TextEncoder().encode(name);
  const ask = new Uint8Array(20 + text.length);
  const v = view(ask);
  v.setUint32(0, FIXED_NO_ZEROES);
  v.setBigUint64(4, IHAVEOPT);
  v.setUint32(12, OPT_EXPORT_NAME);
  v.setUint32(16, text.length);
  ask.set(text, 20);
  await writeAll(conn, ask);
  const answer = view(await readExact(conn, 10));
  return {
    size: Number(answer.getBigUint64(0)),
    flags: answer.getUint16(8),
  };
}

interface Waiting {
  read: number;
  done: (data: Uint8Array) => void;
  failed: (error: Error) => void;
}

/** Connects to an export of a server on a unix socket. */
export async function connectNbd(
  socket: string,
  name = "",
): Promise<NbdClient> {
  const conn = await Deno.connect({ transport: "unix", path: socket });
  const { size, flags } = await negotiate(conn, name);
  const waiting = new Map<bigint, Waiting>();
  let next = 1n;
  let gone: Error | undefined;
  let sending = Promise.resolve();
  const end = (error: Error) => {
    gone ??= error;
    for (const it of waiting.values()) it.failed(gone);
    waiting.clear();
  };
  const receive = async () => {
    for (;;) {
      const reply = view(await readExact(conn, 16));
      if (reply.getUint32(0) !== REPLY_MAGIC) throw new Error("bad reply");
      const errno = reply.getUint32(4);
      const cookie = reply.getBigUint64(8);
      const it = waiting.get(cookie);
      if (it === undefined) throw new Error("a reply to nothing");
      const data = await readExact(conn, errno === 0 ? it.read : 0);
      waiting.delete(cookie);
      if (errno === 0) it.done(data);
      else it.failed(new NbdError(errno));
    }
  };
  receive().catch((error) =>
    end(error instanceof Error ? error : new Error(String(error)))
  );
  const request: NbdClient["request"] = (command, at, n, data, bits = 0) => {
    if (gone !== undefined) return Promise.reject(gone);
    const cookie = next++;
    const head = new Uint8Array(28);
    const v = view(head);
    v.setUint32(0, REQUEST_MAGIC);
    v.setUint16(4, bits);
    v.setUint16(6, command);
    v.setBigUint64(8, cookie);
    v.setBigUint64(16, BigInt(at));
    v.setUint32(24, n);
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
    waiting.set(cookie, {
      read: command === CMD.READ ? n : 0,
      done: resolve,
      failed: reject,
    });
    sending = sending.then(async () => {
      await writeAll(conn, head);
      if (data !== undefined) await writeAll(conn, data);
    }).catch((error) => end(error));
    return promise;
  };
  const close = () => {
    end(new Error("closed"));
    try {
      conn.close();
    } catch {
      // The server was quicker.
    }
  };
  return {
    size,
    flags,
    request,
    read: (at, n) => request(CMD.READ, at, n),
    write: async (at, data) => {
      await request(CMD.WRITE, at, data.length, data);
    },
    flush: async () => {
      await request(CMD.FLUSH, 0, 0);
    },
    close,
    [Symbol.dispose]: close,
  };
}
