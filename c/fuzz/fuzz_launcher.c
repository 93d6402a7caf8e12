/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_launcher.c - an executable that somebody bent: the note, the
 * sections in it, their JSON, and the command line made of it.
 */
#include <stdlib.h>

#include "../launcher/launcher.h"

static void free_args(char **args)
{
	for (char **a = args; a && *a; a++)
		free(*a);
	free(args);
}

static void try_section(struct bytes note)
{
	char arg[] = "x", *argv[] = { arg, NULL };
	const struct json *file;
	struct section section;
	struct bytes data;

	if (section_parse(note, &section))
		return;
	for (file = section.files->first; file; file = file->next)
		if (!section_file(&section, json_get(file, "File"), &data) &&
		    data.n && data.at + data.n > note.at + note.n)
			abort();
	free_args(args_build(&section, "/x", 1, argv));
	section_free(&section);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct bytes all = { data, size }, note;
	char hex[KEY_HEX + 1];
	size_t slot;

	if (!note_find(all, &note)) {
		try_section(note);
		sha256_hex(note, hex);
	}
	if (!note_key_slot(all, &slot) && slot + KEY_HEX > size)
		abort();
	try_section(all);
	json_free(json_parse(all));
	return 0;
}
