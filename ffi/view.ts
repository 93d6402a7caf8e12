// SPDX-License-Identifier: Apache-2.0
/**
 * Views: an index with the sources of its layers.
 *
 * @module
 */
import { check } from "./errors.ts";
import {
  handle,
  type Index,
  pointers,
  slot,
  type Source,
  type U64,
  u64,
  type View,
} from "./handle.ts";
import { lib } from "./library.ts";

/** `sources[tag]` holds the data of the index's records with that tag. */
export function newView(
  index: Index,
  sources: readonly Source[],
  virtualSize: U64,
): View {
  const out = slot();
  check(
    lib.obd_view_new(
      index.pointer,
      pointers(sources),
      sources.length,
      u64(virtualSize),
      out,
    ),
    "cannot stack layers",
  );
  return handle("view", out, lib.obd_view_unref);
}

/** False once no device shows a view and no request reads through it. */
export function viewBusy(view: View): boolean {
  return check(lib.obd_view_busy(view.pointer), "cannot look at a view") === 1;
}
