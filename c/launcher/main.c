/* SPDX-License-Identifier: Apache-2.0
 *
 * main.c - finds or unpacks runtime and application, then execs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher.h"
#include "runtime.h" /* RUNTIME_KEY, RUNTIME_SIZE: made by the build */

extern const uint8_t runtime_start[], runtime_end[];

/* stamp writes the key here; volatile: the compiler must not know it. */
static volatile const char app_key[] =
	"overlaybd application key:"
	"................................................................";
#define KEY_AT (sizeof(app_key) - 1 - KEY_HEX)

struct place {
	char path[PATH_MAX];
	int fd;
};

__attribute__((format(printf, 2, 3), noreturn))
static void fatal(int rc, const char *format, ...)
{
	va_list ap;

	fprintf(stderr, "overlaybd: ");
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	if (rc)
		fprintf(stderr, ": %s", strerror(-rc));
	fputc('\n', stderr);
	exit(125);
}

static struct bytes map_self(char *self, size_t size)
{
	ssize_t n = readlink("/proc/self/exe", self, size - 1);
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *map;

	if (n < 0 || fd < 0 || fstat(fd, &st))
		fatal(-errno, "cannot read /proc/self/exe");
	self[n] = 0;
	map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (map == MAP_FAILED)
		fatal(-errno, "cannot map %s", self);
	close(fd);
	return (struct bytes){ map, (size_t)st.st_size };
}

static void read_key(struct bytes note, char hex[KEY_HEX + 1])
{
	for (size_t i = 0; i < KEY_HEX; i++)
		hex[i] = app_key[KEY_AT + i];
	hex[KEY_HEX] = 0;
	if (hex[0] == '.')
		sha256_hex(note, hex);
}

/* Runtime and application unpacked beside an installed executable, by its
 * owner: BIN/../lib/overlaybd. */
static bool installed(const char *self, const char *rt, const char *app,
		      const struct section *section, struct place *place)
{
	char copy[PATH_MAX];
	struct stat st;

	snprintf(copy, sizeof(copy), "%s", self);
	if (snprintf(place->path, sizeof(place->path), "%s/../lib/overlaybd",
		     dirname(copy)) >= (int)sizeof(place->path))
		return false;
	place->fd = open(place->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (place->fd < 0)
		return false;
	if (!fstat(place->fd, &st) && st.st_uid == 0 &&
	    !(st.st_mode & 022) &&
	    unpack_runtime_there(place->fd, rt, RUNTIME_SIZE) &&
	    unpack_app_there(place->fd, app, section))
		return true;
	close(place->fd);
	return false;
}

/* Unpacks what is missing. */
static void ensure(struct place *place, const char *rt, const char *app,
		   const char *key, struct bytes note,
		   const struct section *section)
{
	char hex[KEY_HEX + 1];
	bool swept = true;
	int rc;

	if (!unpack_runtime_there(place->fd, rt, RUNTIME_SIZE)) {
		struct bytes packed = { runtime_start,
					(size_t)(runtime_end - runtime_start) };

		rc = unpack_runtime(place->fd, rt, packed, RUNTIME_SIZE);
		if (rc && !unpack_runtime_there(place->fd, rt, RUNTIME_SIZE))
			fatal(rc, "cannot unpack the runtime into %s",
			      place->path);
		swept = false;
	}
	if (!unpack_app_there(place->fd, app, section)) {
		sha256_hex(note, hex);
		if (strcmp(hex, key))
			fatal(0, "this executable is damaged: its "
			      "application does not match its key");
		rc = unpack_app(place->fd, app, section);
		if (rc && !unpack_app_there(place->fd, app, section))
			fatal(rc, "cannot unpack the application into %s",
			      place->path);
		swept = false;
	}
	if (!swept)
		cache_sweep(place->fd, rt, app);
}

static void choose(struct place *place)
{
	char why[1024];

	place->fd = cache_choose(true, place->path, sizeof(place->path), why,
				 sizeof(why));
	if (place->fd < 0)
		fatal(0, "no private directory to unpack to (%s): set "
		      "OVERLAYBD_CACHE_DIR to one", why);
}

/* A shared lock that lives as long as the process: nobody sweeps it. */
static int hold(int root, const char *name)
{
	int fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);

	if (fd >= 0)
		flock(fd, LOCK_SH);
	return fd;
}

/* Where Deno keeps what it found out about the application: start takes 10 ms
 * more without.  In a cache directory also of an installed executable, whose
 * own may be read-only; a new one tells that older ones can go.  Deno does
 * without one that it cannot make. */
static void choose_deno_dir(bool tmp, const char *rt, const char *app,
			    char *path, size_t size)
{
	char root[PATH_MAX], why[16], name[96];
	int fd = cache_choose(tmp, root, sizeof(root), why, sizeof(why)), dir;

	snprintf(path, size, "/dev/null");
	if (fd < 0)
		return;
	snprintf(name, sizeof(name), "deno-%s", app + strlen("app-"));
	if (!mkdirat(fd, name, 0700))
		cache_sweep(fd, rt, app);
	dir = hold(fd, name);
	if (dir >= 0 && !cache_stuck(dir))
		snprintf(path, size, "%s/%s", root, name);
	close(fd);
}

static void set_environment(const char *deno_dir, const char *self,
			    const char *argv0)
{
	const char *slash = strrchr(argv0, '/');

	setenv("DENO_DIR", deno_dir, 1);
	setenv("DENO_NO_UPDATE_CHECK", "1", 1);
	setenv("DENO_TLS_CA_STORE", "system,mozilla", 0);
	setenv("OVERLAYBD_EXE", self, 1);
	setenv("OVERLAYBD_ARGV0", slash ? slash + 1 : argv0, 1);
}

/* A daemon that the kernel's dirty pages go through must not wait for them
 * while it allocates.  Threads and exec inherit it; only root may. */
static void flush_io(int argc, char **argv)
{
	const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
	const char *name = argc > 0 ? slash ? slash + 1 : argv[0] : "";
	const char *command = argc > 1 ? argv[1] : "";

	if (!strcmp(name, "overlaybd-tcmu") || !strcmp(command, "tcmu") ||
	    !strcmp(command, "serve"))
		prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
}

int main(int argc, char **argv)
{
	char self[PATH_MAX], key[KEY_HEX + 1], rt[80], app[80];
	const char *unpack_to = getenv("OVERLAYBD_UNPACK_TO");
	char path[PATH_MAX + 128], deno_dir[PATH_MAX + 128], **args;
	struct section section;
	struct place place;
	struct bytes note;
	bool unpacked;
	int rc;

	rc = note_find(map_self(self, sizeof(self)), &note);
	if (rc)
		fatal(0, "no application in %s: this is the base runtime for "
		      "`deno compile --bundle`", self);
	rc = section_parse(note, &section);
	if (rc == -ENOTSUP)
		fatal(0, "%s was compiled without --bundle", self);
	if (rc)
		fatal(0, "%s is damaged: its application cannot be read",
		      self);
	read_key(note, key);
	snprintf(rt, sizeof(rt), "rt-%.32s", RUNTIME_KEY);
	snprintf(app, sizeof(app), "app-%.32s", key);
	if (unpack_to && unpack_to[0]) {
		/* `make install`: into an existing directory, and that is
		 * all. */
		snprintf(place.path, sizeof(place.path), "%s", unpack_to);
		place.fd = cache_open(place.path, false);
		if (place.fd < 0)
			fatal(place.fd, "cannot unpack to %s", place.path);
		ensure(&place, rt, app, key, note, &section);
		return 0;
	}
	unpacked = !installed(self, rt, app, &section, &place);
	if (unpacked) {
		choose(&place);
		ensure(&place, rt, app, key, note, &section);
	}
	hold(place.fd, rt);
	hold(place.fd, app);
	snprintf(path, sizeof(path), "%s/%s", place.path, app);
	args = args_build(&section, path, argc, argv);
	if (!args)
		fatal(-ENOMEM, "cannot start");
	flush_io(argc, argv);
	choose_deno_dir(unpacked, rt, app, deno_dir, sizeof(deno_dir));
	set_environment(deno_dir, self, argc > 0 ? argv[0] : "overlaybd");
	snprintf(path, sizeof(path), "%s/%s/deno", place.path, rt);
	execv(path, args);
	fatal(-errno, "cannot run %s", path);
}
