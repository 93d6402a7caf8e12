// SPDX-License-Identifier: Apache-2.0
/**
 * The reference work of tests/bench/reference.cc.
 *
 * @module
 */
const path = new URL("../../build/libbench.so", import.meta.url).pathname;

/** build/libbench.so, made by `make bench`. */
export const reference = Deno.dlopen(path, {
  bench_lower_bound: {
    parameters: ["buffer", "u64", "buffer", "u64", "u32"],
    result: "u64",
  },
  bench_stable_sort: { parameters: ["buffer", "u64"], result: "u64" },
  bench_pread: {
    parameters: ["i32", "buffer", "u64", "u32"],
    result: "i64",
  },
  bench_decode: {
    parameters: ["i32", "buffer", "buffer", "u64", "u32", "i32"],
    result: "i64",
  },
  bench_compress: { parameters: ["buffer", "u64", "u32"], result: "i64" },
  bench_decompress: {
    parameters: ["buffer", "buffer", "u64", "u32", "buffer", "u32"],
    result: "i64",
  },
  bench_crc: { parameters: ["buffer", "u64"], result: "u32" },
  bench_crc_one_stream: { parameters: ["buffer", "u64"], result: "u32" },
  bench_memcpy: { parameters: ["buffer", "buffer", "u64"], result: "void" },
}).symbols;
