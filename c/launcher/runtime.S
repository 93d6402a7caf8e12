/* SPDX-License-Identifier: Apache-2.0
 *
 * runtime.S - Deno's binary, compressed, as bytes of the program.
 */
	.section .rodata.runtime, "a"
	.balign 16
	.globl runtime_start
	.globl runtime_end
runtime_start:
	.incbin RUNTIME_FILE
runtime_end:
	.section .note.GNU-stack, "", @progbits
