// SPDX-License-Identifier: Apache-2.0
/**
 * What typed calls of the C library share: handles instead of pointers, C
 * arrays of them, numbers of 64 bits.  Nothing is decided in these calls;
 * `c/overlaybd.h` says what each does.
 *
 * @module
 */

/** A size or offset in bytes or sectors; a bigint past 2^53. */
export type U64 = number | bigint;

/** Bytes that C may read or fill while a call runs. */
export type Bytes = Uint8Array<ArrayBuffer>;

/** A reference to an object of the C library; `close()` may be repeated. */
export interface Handle<Kind extends string> extends Disposable {
  readonly kind: Kind;
  /** @throws {TypeError} after `close()` */
  readonly pointer: Deno.PointerObject;
  close(): void;
  /** Closed from now on, but for who has taken it; null: it was before. */
  take(): Deno.PointerValue;
}
export type Source = Handle<"source">;
export type Index = Handle<"index">;
export type View = Handle<"view">;
export type Upper = Handle<"upper">;
export type Device = Handle<"device">;
export type Plan = Handle<"plan">;
export type Buffer = Handle<"buffer">;

export function u64(value: U64): bigint {
  return typeof value === "bigint" ? value : BigInt(value);
}

export function handle<Kind extends string>(
  kind: Kind,
  out: BigUint64Array,
  unref: (pointer: Deno.PointerValue) => void,
): Handle<Kind> {
  let pointer = Deno.UnsafePointer.create(out[0] ?? 0n);
  const take = () => {
    const last = pointer;
    pointer = null;
    return last;
  };
  const close = () => {
    const last = take();
    if (last !== null) unref(last);
  };
  return {
    kind,
    get pointer() {
      if (pointer === null) throw new TypeError(`this ${kind} is closed`);
      return pointer;
    },
    close,
    take,
    [Symbol.dispose]: close,
  };
}

export function slot(): BigUint64Array<ArrayBuffer> {
  return new BigUint64Array(1);
}

/** Handles as a C array of pointers. */
export function pointers(
  list: readonly Handle<string>[],
): BigUint64Array<ArrayBuffer> {
  return BigUint64Array.from(
    list,
    (item) => Deno.UnsafePointer.value(item.pointer),
  );
}

export function view(bytes: ArrayBufferView): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
