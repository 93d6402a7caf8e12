/* SPDX-License-Identifier: Apache-2.0
 *
 * json.c - JSON as `deno compile` writes it.
 */
#include <stdlib.h>
#include <string.h>

#include "launcher.h"

#define DEPTH_MAX 64

struct cursor {
	const uint8_t *p, *end;
};

static struct json *parse_value(struct cursor *c, int depth);

static void skip_space(struct cursor *c)
{
	while (c->p < c->end && (*c->p == ' ' || *c->p == '\n' ||
				 *c->p == '\t' || *c->p == '\r'))
		c->p++;
}

static bool take(struct cursor *c, char want)
{
	skip_space(c);
	if (c->p == c->end || *c->p != (uint8_t)want)
		return false;
	c->p++;
	return true;
}

static bool take_word(struct cursor *c, const char *word)
{
	size_t n = strlen(word);

	if ((size_t)(c->end - c->p) < n || memcmp(c->p, word, n))
		return false;
	c->p += n;
	return true;
}

/* Four hex digits as UTF-8 (the basic plane); -1: no digits. */
static int put_escape(struct cursor *c, char *to)
{
	unsigned u = 0;

	if (c->end - c->p < 4)
		return -1;
	for (int i = 0; i < 4; i++) {
		uint8_t d = *c->p++;

		if (d >= '0' && d <= '9')
			u = u * 16 + d - '0';
		else if ((d | 32) >= 'a' && (d | 32) <= 'f')
			u = u * 16 + (d | 32) - 'a' + 10;
		else
			return -1;
	}
	if (u == 0)
		return -1; /* a NUL would end the text early */
	if (u < 0x80) {
		to[0] = (char)u;
		return 1;
	}
	if (u < 0x800) {
		to[0] = (char)(0xc0 | u >> 6);
		to[1] = (char)(0x80 | (u & 63));
		return 2;
	}
	to[0] = (char)(0xe0 | u >> 12);
	to[1] = (char)(0x80 | (u >> 6 & 63));
	to[2] = (char)(0x80 | (u & 63));
	return 3;
}

/* What follows a backslash; how many bytes it is, -1: nothing legal. */
static int parse_escape(struct cursor *c, char *to)
{
	static const char from[] = "\"\\/bfnrt", is[] = "\"\\/\b\f\n\r\t";
	const char *simple;

	if (c->p == c->end)
		return -1;
	if (*c->p == 'u') {
		c->p++;
		return put_escape(c, to);
	}
	simple = *c->p ? strchr(from, *c->p) : NULL;
	if (!simple)
		return -1;
	c->p++;
	*to = is[simple - from];
	return 1;
}

static char *parse_string(struct cursor *c)
{
	char *text, *w;
	int n = 0;

	if (!take(c, '"'))
		return NULL;
	/* Text never grows by being unescaped. */
	text = w = malloc((size_t)(c->end - c->p) + 1);
	while (text && n >= 0 && c->p < c->end && *c->p != '"' && *c->p) {
		if (*c->p != '\\') {
			*w++ = (char)*c->p++;
			continue;
		}
		c->p++;
		n = parse_escape(c, w);
		if (n > 0)
			w += n;
	}
	if (!text || n < 0 || c->p == c->end || *c->p != '"') {
		free(text);
		return NULL;
	}
	c->p++;
	*w = 0;
	return realloc(text, (size_t)(w - text) + 1);
}

static bool parse_number(struct cursor *c, double *out)
{
	char buf[40], *end;
	size_t n = 0;

	while (c->p + n < c->end && n < sizeof(buf) - 1 &&
	       strchr("+-.eE0123456789", c->p[n]) && c->p[n])
		n++;
	memcpy(buf, c->p, n);
	buf[n] = 0;
	*out = strtod(buf, &end);
	c->p += n;
	return n > 0 && *end == 0;
}

/* Members up to the closing bracket. */
static bool parse_members(struct cursor *c, struct json *in, int depth)
{
	char close = in->type == JSON_OBJECT ? '}' : ']';
	struct json **tail = &in->first;

	if (take(c, close))
		return true;
	do {
		char *key = NULL;

		if (in->type == JSON_OBJECT) {
			key = parse_string(c);
			if (!key || !take(c, ':')) {
				free(key);
				return false;
			}
		}
		*tail = parse_value(c, depth + 1);
		if (!*tail) {
			free(key);
			return false;
		}
		(*tail)->key = key;
		tail = &(*tail)->next;
	} while (take(c, ','));
	return take(c, close);
}

static struct json *parse_value(struct cursor *c, int depth)
{
	struct json *v = calloc(1, sizeof(*v));
	bool ok = true;

	if (!v || depth > DEPTH_MAX) {
		free(v);
		return NULL;
	}
	skip_space(c);
	if (take_word(c, "null")) {
		v->type = JSON_NULL;
	} else if (take_word(c, "true")) {
		v->type = JSON_TRUE;
	} else if (take_word(c, "false")) {
		v->type = JSON_FALSE;
	} else if (take(c, '{')) {
		v->type = JSON_OBJECT;
		ok = parse_members(c, v, depth);
	} else if (take(c, '[')) {
		v->type = JSON_ARRAY;
		ok = parse_members(c, v, depth);
	} else if (c->p < c->end && *c->p == '"') {
		v->type = JSON_STRING;
		v->text = parse_string(c);
		ok = v->text;
	} else {
		v->type = JSON_NUMBER;
		ok = parse_number(c, &v->number);
	}
	if (ok)
		return v;
	json_free(v);
	return NULL;
}

struct json *json_parse(struct bytes text)
{
	struct cursor c = { text.at, text.at + text.n };
	struct json *v = parse_value(&c, 0);

	skip_space(&c);
	if (v && c.p == c.end)
		return v;
	json_free(v);
	return NULL;
}

void json_free(struct json *value)
{
	while (value) {
		struct json *next = value->next;

		json_free(value->first);
		free(value->text);
		free(value->key);
		free(value);
		value = next;
	}
}

const struct json *json_get(const struct json *value, const char *key)
{
	const struct json *m;

	if (!value || value->type != JSON_OBJECT)
		return NULL;
	for (m = value->first; m; m = m->next)
		if (!strcmp(m->key, key))
			return m;
	return NULL;
}

const char *json_text(const struct json *value, const char *key)
{
	const struct json *m = json_get(value, key);

	return m && m->type == JSON_STRING ? m->text : NULL;
}
