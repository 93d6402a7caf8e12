/* SPDX-License-Identifier: Apache-2.0
 *
 * note.c - finds what `deno compile` appended in an ELF64 file.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "launcher.h"

#define NOTE_TYPE 0x53554901u
#define NAME "d3n0l4nd"

static bool inside(struct bytes all, uint64_t at, uint64_t n)
{
	return at <= all.n && n <= all.n - at;
}

static uint64_t align4(uint64_t n)
{
	return (n + 3) & ~3ull;
}

/* Looks through the notes of one segment. */
static int search(struct bytes notes, struct bytes *out)
{
	uint64_t at = 0;

	while (inside(notes, at, 12)) {
		uint32_t owner, length, type;
		uint64_t data;

		memcpy(&owner, notes.at + at, 4);
		memcpy(&length, notes.at + at + 4, 4);
		memcpy(&type, notes.at + at + 8, 4);
		data = at + 12 + align4(owner);
		if (!inside(notes, at + 12, align4(owner)) ||
		    !inside(notes, data, length))
			return -ENOENT;
		if (type == NOTE_TYPE && owner >= 3 && length >= 10 &&
		    !memcmp(notes.at + at + 12, "SUI", 3) &&
		    !memcmp(notes.at + data, "\x08\0" NAME, 10)) {
			*out = (struct bytes){ notes.at + data + 10,
					       length - 10 };
			return 0;
		}
		at = data + align4(length);
	}
	return -ENOENT;
}

int note_find(struct bytes elf, struct bytes *note)
{
	Elf64_Ehdr head;
	Elf64_Phdr segment;

	if (elf.n < sizeof(head))
		return -ENOENT;
	memcpy(&head, elf.at, sizeof(head));
	if (memcmp(head.e_ident, ELFMAG, SELFMAG) ||
	    head.e_ident[EI_CLASS] != ELFCLASS64 ||
	    head.e_phentsize != sizeof(segment))
		return -ENOENT;
	for (unsigned i = 0; i < head.e_phnum; i++) {
		uint64_t at = head.e_phoff + (uint64_t)i * sizeof(segment);

		if (at < head.e_phoff || !inside(elf, at, sizeof(segment)))
			return -ENOENT;
		memcpy(&segment, elf.at + at, sizeof(segment));
		if (segment.p_type != PT_NOTE ||
		    !inside(elf, segment.p_offset, segment.p_filesz))
			continue;
		if (!search((struct bytes){ elf.at + segment.p_offset,
					    segment.p_filesz }, note))
			return 0;
	}
	return -ENOENT;
}

int note_key_slot(struct bytes elf, size_t *at)
{
	/* In two halves, so that this code does not match itself. */
	static const char first[] = "overlaybd application ";
	static const char second[] = "key:";
	size_t n = strlen(first);
	const uint8_t *p = elf.at;

	while ((p = memmem(p, elf.n - (p - elf.at), first, n))) {
		size_t rest = elf.n - (p - elf.at);

		if (rest >= n + 4 + KEY_HEX && !memcmp(p + n, second, 4)) {
			*at = p - elf.at + n + 4;
			return 0;
		}
		p++;
	}
	return -ENOENT;
}
