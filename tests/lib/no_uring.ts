// SPDX-License-Identifier: Apache-2.0
/**
 * Runs a command where io_uring is forbidden, as container runtimes do: by a
 * filter of system calls that answers EPERM.
 *
 *     deno run -A tests/lib/no_uring.ts COMMAND [ARGUMENT...]
 *
 * The process becomes the command: it keeps its id.
 *
 * @module
 */
const PR_SET_NO_NEW_PRIVS = 38;
const SECCOMP_SET_MODE_FILTER = 1n;
const SECCOMP_FILTER_FLAG_TSYNC = 1n;
const SYS_SECCOMP = Deno.build.arch === "aarch64" ? 277n : 317n;
const SYS_IO_URING = [425, 426, 427];
const EPERM = 1;

const libc = Deno.dlopen("libc.so.6", {
  prctl: { parameters: ["i32", "u64", "u64", "u64", "u64"], result: "i32" },
  syscall: { parameters: ["i64", "u64", "u64", "buffer"], result: "i64" },
  execvp: { parameters: ["buffer", "buffer"], result: "i32" },
}).symbols;

/** The filter's program: what is not io_uring's is allowed. */
function program(): BigUint64Array<ArrayBuffer> {
  const RET = 0x06;
  const instructions = [
    [0x20, 0, 0, 0], // the number of the call
    ...SYS_IO_URING.map((nr, i) => [0x15, SYS_IO_URING.length - i, 0, nr]),
    [RET, 0, 0, 0x7fff0000], // allow
    [RET, 0, 0, 0x00050000 | EPERM],
  ] as const;
  const bytes = new BigUint64Array(instructions.length);
  const view = new DataView(bytes.buffer);
  instructions.forEach(([code, yes, no, k], i) => {
    view.setUint16(i * 8, code, true);
    view.setUint8(i * 8 + 2, yes);
    view.setUint8(i * 8 + 3, no);
    view.setUint32(i * 8 + 4, k, true);
  });
  return bytes;
}

function address(memory: BufferSource): bigint {
  return Deno.UnsafePointer.value(Deno.UnsafePointer.of(memory));
}

function fail(what: string): never {
  console.error(`no_uring: cannot ${what}`);
  Deno.exit(127);
}

const filter = program();
const prog = new BigUint64Array([BigInt(filter.length), address(filter)]);
if (libc.prctl(PR_SET_NO_NEW_PRIVS, 1n, 0n, 0n, 0n) !== 0) {
  fail("give privileges up");
}
if (
  libc.syscall(
    SYS_SECCOMP,
    SECCOMP_SET_MODE_FILTER,
    SECCOMP_FILTER_FLAG_TSYNC,
    prog,
  ) !== 0n
) fail("set the filter");
const words = Deno.args.map((word) => new TextEncoder().encode(`${word}\0`));
const argv = new BigUint64Array([...words.map(address), 0n]);
libc.execvp(words[0] ?? fail("run nothing"), argv);
fail(`run ${Deno.args[0]}`);
