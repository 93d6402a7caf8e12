/* SPDX-License-Identifier: Apache-2.0
 *
 * args.c - the command line of `deno run` for what was compiled.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher.h"

struct list {
	char **items;
	size_t n, room;
	bool failed;
};

/* Appends a copy, or with NULL notes that memory ran out. */
static void push(struct list *list, char *item)
{
	if (list->n + 1 >= list->room) {
		size_t room = list->room ? 2 * list->room : 64;
		char **items = realloc(list->items, room * sizeof(*items));

		if (!items) {
			list->failed = true;
			free(item);
			return;
		}
		list->items = items;
		list->room = room;
	}
	list->failed |= !item;
	list->items[list->n++] = item;
	list->items[list->n] = NULL;
}

__attribute__((format(printf, 2, 3)))
static void push_format(struct list *list, const char *format, ...)
{
	va_list ap;
	char *text;

	va_start(ap, format);
	if (vasprintf(&text, format, ap) < 0)
		text = NULL;
	va_end(ap);
	push(list, text);
}

/* --allow-read=a,b for an array of strings; nothing without one. */
static void push_joined(struct list *list, const char *flag,
			const struct json *values)
{
	char *text = strdup(flag);
	const struct json *v;
	char join = '=';

	for (v = values->first; text && v; v = v->next) {
		char *longer;

		if (v->type != JSON_STRING)
			continue;
		if (asprintf(&longer, "%s%c%s", text, join, v->text) < 0)
			longer = NULL;
		free(text);
		text = longer;
		join = ',';
	}
	push(list, text);
}

static void push_permissions(struct list *list, const struct json *meta)
{
	static const char *const verbs[] = { "allow", "deny", "ignore" };
	static const char *const things[] = { "env", "net", "ffi", "read",
					      "run", "sys", "write",
					      "import" };
	const struct json *all = json_get(meta, "permissions");
	const struct json *prompt = json_get(all, "prompt");

	for (size_t v = 0; v < 3; v++) {
		for (size_t t = 0; t < 8; t++) {
			char key[32], flag[32];
			const struct json *values;

			snprintf(key, sizeof(key), "%s_%s", verbs[v],
				 things[t]);
			snprintf(flag, sizeof(flag), "--%s-%s", verbs[v],
				 things[t]);
			values = json_get(all, key);
			if (values && values->type == JSON_ARRAY)
				push_joined(list, flag, values);
		}
	}
	if (prompt && prompt->type == JSON_FALSE)
		push_format(list, "--no-prompt");
}

static void push_unstable(struct list *list, const struct json *meta)
{
	const struct json *features =
		json_get(json_get(meta, "unstable_config"), "features");
	const struct json *f;

	for (f = features ? features->first : NULL; f; f = f->next)
		if (f->type == JSON_STRING)
			push_format(list, "--unstable-%s", f->text);
}

char **args_build(const struct section *section, const char *dir, int argc,
		  char **argv)
{
	static const char *const fixed[] = { "run", "--no-config", "--no-lock",
					     "--cached-only", "--quiet" };
	const struct json *baked = json_get(section->meta, "argv"), *a;
	struct list list = { 0 };

	push_format(&list, "%s", argc > 0 ? argv[0] : "overlaybd");
	for (size_t i = 0; i < sizeof(fixed) / sizeof(fixed[0]); i++)
		push_format(&list, "%s", fixed[i]);
	push_permissions(&list, section->meta);
	push_unstable(&list, section->meta);
	push_format(&list, "%s/%s", dir,
		    json_text(section->meta, "entrypoint_key"));
	for (a = baked ? baked->first : NULL; a; a = a->next)
		if (a->type == JSON_STRING)
			push_format(&list, "%s", a->text);
	for (int i = 1; i < argc; i++)
		push_format(&list, "%s", argv[i]);
	return list.failed ? NULL : list.items;
}
