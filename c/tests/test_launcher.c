/* SPDX-License-Identifier: Apache-2.0
 *
 * test_launcher.c - the launcher's parsers on what is right and wrong.
 */
#include <errno.h>
#include <string.h>

#include "../launcher/launcher.h"
#include "check.h"

static struct bytes text(const char *s)
{
	return (struct bytes){ (const uint8_t *)s, strlen(s) };
}

static void sha256_of_known_texts(void)
{
	static char many[1000];
	char hex[KEY_HEX + 1];

	sha256_hex(text(""), hex);
	CHECK(!strcmp(hex, "e3b0c44298fc1c149afbf4c8996fb924"
			   "27ae41e4649b934ca495991b7852b855"));
	sha256_hex(text("abc"), hex);
	CHECK(!strcmp(hex, "ba7816bf8f01cfea414140de5dae2223"
			   "b00361a396177a9cb410ff61f20015ad"));
	sha256_hex(text("abcdbcdecdefdefgefghfghighijhijk"
			"ijkljklmklmnlmnomnopnopq"), hex);
	CHECK(!strcmp(hex, "248d6a61d20638b8e5c026930c3e6039"
			   "a33ce45964ff2167f6ecedd419db06c1"));
	memset(many, 'a', sizeof(many));
	sha256_hex((struct bytes){ (uint8_t *)many, sizeof(many) }, hex);
	CHECK(!strcmp(hex, "41edece42d63e8d9bf515a9ba6932e1c"
			   "20cbc9f5a5d134645adb5db1b9737ea3"));
}

static void json_values_are_found_by_name(void)
{
	struct json *v = json_parse(text(
		" {\"a\": [1, -2.5e1, null], \"t\":true,\n\"s\": "
		"\"\\u00e9\\n\\\"\", \"o\": {\"x\": \"y\"}} "));
	const struct json *a = json_get(v, "a");

	CHECK(v && a && a->type == JSON_ARRAY);
	CHECK(a->first->number == 1 && a->first->next->number == -25);
	CHECK(json_get(v, "t")->type == JSON_TRUE);
	CHECK(!strcmp(json_text(v, "s"), "\xc3\xa9\n\""));
	CHECK(!strcmp(json_text(json_get(v, "o"), "x"), "y"));
	CHECK(!json_get(v, "none") && !json_text(v, "a"));
	json_free(v);
}

static void what_is_no_json_is_refused(void)
{
	static const char *const bad[] = {
		"", "{", "[1,]", "{\"a\"}", "{\"a\":1,}", "\"open", "nul",
		"1 2", "\"\\x\"", "\"\\u12g4\"", "\"\\u0000\"", "1e", "-",
		"{1:2}", "[1 2]",
	};
	char deep[200];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK_MSG(!json_parse(text(bad[i])), "accepted %s", bad[i]);
	memset(deep, '[', 100);
	memset(deep + 100, ']', 100);
	CHECK(!json_parse((struct bytes){ (uint8_t *)deep, 200 }));
}

/* magic, metadata, no npm, no modules, files, data */
static size_t make_section(uint8_t *to, const char *meta, const char *files,
			   uint64_t data_bytes, uint32_t remote)
{
	uint8_t *p = to;
	uint64_t n = strlen(meta);

	memcpy(p, "d3n0l4nd", 8);
	memcpy(p + 8, &n, 8);
	memcpy(p + 16, meta, n);
	p += 16 + n;
	memset(p, 0, 16);
	p += 16;
	memcpy(p, &remote, 4);
	n = strlen(files);
	memcpy(p + 4, &n, 8);
	memcpy(p + 12, files, n);
	p += 12 + n;
	memcpy(p, &data_bytes, 8);
	memset(p + 8, 'd', 16);
	return (size_t)(p + 8 + 16 - to);
}

static const char meta[] = "{\"entrypoint_key\":\"m\"}";
static const char files[] = "[{\"File\":{\"n\":\"f\",\"o\":[4,12]}}]";

static void a_section_gives_its_files(void)
{
	uint8_t raw[512];
	struct section s;
	struct bytes data;
	size_t n = make_section(raw, meta, files, 16, 0);

	CHECK_EQ(section_parse((struct bytes){ raw, n }, &s), 0);
	CHECK_EQ(section_file(&s, json_get(s.files->first, "File"), &data), 0);
	CHECK(data.n == 12 && data.at == raw + n - 12);
	section_free(&s);
	for (size_t cut = 0; cut < n; cut++)
		CHECK_EQ(section_parse((struct bytes){ raw, cut }, &s),
			 -EINVAL);
}

static void lengths_that_lie_are_refused(void)
{
	uint8_t raw[512];
	struct section s;
	struct bytes data;
	size_t n = make_section(raw, meta, files, 1 << 20, 0);

	CHECK_EQ(section_parse((struct bytes){ raw, n }, &s), -EINVAL);
	n = make_section(raw, meta, files, 16, 1);
	CHECK_EQ(section_parse((struct bytes){ raw, n }, &s), -ENOTSUP);
	n = make_section(raw, "{}", files, 16, 0);
	CHECK_EQ(section_parse((struct bytes){ raw, n }, &s), -EINVAL);
	n = make_section(raw, meta, "[{\"File\":{\"o\":[4,13]}}]", 16, 0);
	CHECK_EQ(section_parse((struct bytes){ raw, n }, &s), 0);
	CHECK_EQ(section_file(&s, json_get(s.files->first, "File"), &data),
		 -EINVAL);
	section_free(&s);
}

static void an_elf_without_note_has_none(void)
{
	struct bytes note;

	CHECK_EQ(note_find(text("#!/bin/sh"), &note), -ENOENT);
	CHECK_EQ(note_find((struct bytes){ NULL, 0 }, &note), -ENOENT);
}

int main(void)
{
	RUN(sha256_of_known_texts);
	RUN(json_values_are_found_by_name);
	RUN(what_is_no_json_is_refused);
	RUN(a_section_gives_its_files);
	RUN(lengths_that_lie_are_refused);
	RUN(an_elf_without_note_has_none);
	return check_done();
}
