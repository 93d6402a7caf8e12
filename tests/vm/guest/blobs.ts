// SPDX-License-Identifier: Apache-2.0
/**
 * A registry of one file, `blobs.ts PORT FILE HANG`: answers ranges of it
 * under every name, and never again once there is a file HANG.
 */
const [port = "", file = "", hang = ""] = Deno.args;

function isHanging(): boolean {
  try {
    return Deno.statSync(hang).isFile;
  } catch {
    return false;
  }
}

Deno.serve({ port: Number(port), hostname: "127.0.0.1" }, async (request) => {
  if (isHanging()) return await new Promise<never>(() => {});
  const bytes = await Deno.readFile(file);
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.get("range") ?? "");
  if (range === null) return new Response(bytes);
  const from = Number(range[1]);
  const to = range[2] === "" ? bytes.length - 1 : Number(range[2]);
  const last = Math.min(to, bytes.length - 1);
  return new Response(bytes.subarray(from, last + 1), {
    status: 206,
    headers: { "content-range": `bytes ${from}-${last}/${bytes.length}` },
  });
});
