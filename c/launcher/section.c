/* SPDX-License-Identifier: Apache-2.0
 *
 * section.c - what `deno compile` appends: metadata, npm snapshot, modules,
 * and a tree of embedded files.
 */
#include <errno.h>
#include <string.h>

#include "launcher.h"

static int take(struct bytes *in, uint64_t n, struct bytes *out)
{
	if (n > in->n)
		return -EINVAL;
	*out = (struct bytes){ in->at, (size_t)n };
	in->at += n;
	in->n -= (size_t)n;
	return 0;
}

static int take_u32(struct bytes *in, uint32_t *out)
{
	struct bytes raw;

	if (take(in, 4, &raw))
		return -EINVAL;
	memcpy(out, raw.at, 4);
	return 0;
}

/* A u64 length and as many bytes. */
static int take_block(struct bytes *in, struct bytes *out)
{
	struct bytes raw;
	uint64_t n;

	if (take(in, 8, &raw))
		return -EINVAL;
	memcpy(&n, raw.at, 8);
	return take(in, n, out);
}

/* Specifier ids, redirects and remote modules: with --bundle there is
 * nothing in them that is needed, and no remote module. */
static int skip_modules(struct bytes *in)
{
	struct bytes raw;
	uint32_t count, length, remote;

	if (take_u32(in, &count))
		return -EINVAL;
	while (count--)
		if (take_u32(in, &length) ||
		    take(in, (uint64_t)length + 4, &raw))
			return -EINVAL;
	if (take_u32(in, &count) || take(in, (uint64_t)count * 8, &raw) ||
	    take_u32(in, &remote))
		return -EINVAL;
	return remote ? -ENOTSUP : 0;
}

int section_parse(struct bytes note, struct section *out)
{
	struct bytes magic, meta, npm, files;
	int rc;

	*out = (struct section){ 0 };
	if (take(&note, 8, &magic) || take_block(&note, &meta) ||
	    take_block(&note, &npm))
		return -EINVAL;
	rc = skip_modules(&note);
	if (rc || npm.n)
		return rc ? rc : -ENOTSUP;
	if (take_block(&note, &files) || take_block(&note, &out->data))
		return -EINVAL;
	out->meta = json_parse(meta);
	out->files = json_parse(files);
	if (!out->meta || !out->files || out->files->type != JSON_ARRAY ||
	    !json_text(out->meta, "entrypoint_key")) {
		section_free(out);
		return -EINVAL;
	}
	return 0;
}

void section_free(struct section *section)
{
	json_free(section->meta);
	json_free(section->files);
	section->meta = section->files = NULL;
}

int section_file(const struct section *section, const struct json *file,
		 struct bytes *out)
{
	const struct json *range = json_get(file, "o");
	const struct json *at = range ? range->first : NULL;
	const struct json *n = at ? at->next : NULL;

	if (!n || at->type != JSON_NUMBER || n->type != JSON_NUMBER ||
	    !(at->number >= 0) || !(n->number >= 0) ||
	    at->number + n->number > (double)section->data.n)
		return -EINVAL;
	*out = (struct bytes){ section->data.at + (size_t)at->number,
			       (size_t)n->number };
	return 0;
}
