/* SPDX-License-Identifier: Apache-2.0
 *
 * launcher.h - the base runtime that `deno compile` appends to.
 *
 * A static program that carries Deno's own binary, compressed.  It finds the
 * note that `deno compile --bundle` added to it (owner "SUI", name
 * "d3n0l4nd"), unpacks runtime and application once into a private directory
 * under names made of their SHA-256, and execs the one with the other.
 *
 * Everything is parsed from bytes in memory with every length checked, so
 * that the parsers can be tested and fuzzed apart.  Functions return 0 or
 * -errno; fatal() alone ends the process.
 */
#ifndef LAUNCHER_H
#define LAUNCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes {
	const uint8_t *at;
	size_t n;
};

#define KEY_HEX 64

/* ---- note.c --------------------------------------------------------- */
/* The data of the note in an ELF64 file. -ENOENT: there is none. */
int note_find(struct bytes elf, struct bytes *note);
/* Where the application's key stands in a stamped file: KEY_HEX bytes
 * behind the marker. -ENOENT */
int note_key_slot(struct bytes elf, size_t *at);

/* ---- json.c ---------------------------------------------------------- */
enum json_type { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING,
		 JSON_ARRAY, JSON_OBJECT };

struct json {
	enum json_type type;
	double number;
	char *text;           /* STRING, and the key of a member; NUL behind */
	struct json *first;   /* of ARRAY and OBJECT */
	struct json *next;
	char *key;
};

/* Parses one value. NULL: not JSON, or deeper than 64. */
struct json *json_parse(struct bytes text);
void json_free(struct json *value);
/* A member by name; NULL when there is none or value is no object. */
const struct json *json_get(const struct json *value, const char *key);
/* Text of a string member; NULL otherwise. */
const char *json_text(const struct json *value, const char *key);

/* ---- section.c --------------------------------------------------------- */
struct section {
	struct json *meta;    /* what deno compile knows: permissions, argv */
	struct json *files;   /* the tree of embedded files */
	struct bytes data;    /* their contents */
};

/* -EINVAL: not a section; -ENOTSUP: made without --bundle. */
int section_parse(struct bytes note, struct section *out);
void section_free(struct section *section);
/* Contents of one file entry. -EINVAL */
int section_file(const struct section *section, const struct json *file,
		 struct bytes *out);

/* ---- sha256.c -------------------------------------------------------- */
/* Lower-case hex and a NUL. */
void sha256_hex(struct bytes data, char hex[KEY_HEX + 1]);

/* ---- args.c ---------------------------------------------------------- */
/* argv for `deno run`, NULL-terminated; NULL: out of memory. The entry is
 * dir/entrypoint. */
char **args_build(const struct section *section, const char *dir, int argc,
		  char **argv);

/* ---- cache.c --------------------------------------------------------- */
/* Opens (and makes) a directory that only this user can write; where[] is
 * its path.  -EACCES: somebody else's; -ENOEXEC: mounted noexec. */
int cache_open(const char *path, bool make);
/* The first usable directory, with tmp also one in /tmp. Explains in why[]
 * when there is none. */
int cache_choose(bool tmp, char *where, size_t size, char *why,
		 size_t why_size);
void cache_remove(int root, const char *name);
/* True when a database in the directory has been locked for 100 ms by another
 * process: one that was stopped, for Deno's locks last a moment.  Deno would
 * wait for it, and so would every start from then on. */
bool cache_stuck(int dir);
/* Removes other versions, and what Deno kept for them, that no process
 * uses. */
void cache_sweep(int root, const char *keep_runtime, const char *keep_app);

/* ---- unpack.c -------------------------------------------------------- */
/* dir/deno and the embedded files; names are made at once, whole. */
bool unpack_runtime_there(int root, const char *name, uint64_t size);
int unpack_runtime(int root, const char *name, struct bytes packed,
		   uint64_t size);
bool unpack_app_there(int root, const char *name,
		      const struct section *section);
int unpack_app(int root, const char *name, const struct section *section);

#endif
