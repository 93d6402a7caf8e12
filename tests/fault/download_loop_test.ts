// SPDX-License-Identifier: Apache-2.0
import { killDuringDownload } from "./download_loop.ts";

Deno.test("serve killed during a download goes on, and nothing comes twice", () =>
  killDuringDownload(5));
