/* SPDX-License-Identifier: Apache-2.0
 *
 * cache.c - the private directory that runtime and application are unpacked
 * into, and the removal of old ones.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "launcher.h"

#define REMOVE_DEPTH 16
#define IN_TMP 3

int cache_open(const char *path, bool make)
{
	struct statvfs fs;
	struct stat st;
	int fd;

	if (make && mkdir(path, 0700) && errno != EEXIST)
		return -errno;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) || fstatvfs(fd, &fs)) {
		int err = -errno;

		close(fd);
		return err;
	}
	if (st.st_uid == geteuid() && !(st.st_mode & 022)) {
		if (!(fs.f_flag & ST_NOEXEC))
			return fd;
		close(fd);
		return -ENOEXEC;
	}
	close(fd);
	return -EACCES;
}

/* The nth place to try; false: no more. Empty: not applicable here. */
static bool candidate(int n, char *path, size_t size)
{
	const char *named = getenv("OVERLAYBD_CACHE_DIR");
	const char *xdg = getenv("XDG_CACHE_HOME");
	const char *home = getenv("HOME");

	path[0] = 0;
	switch (n) {
	case 0:
		if (named && named[0] == '/')
			snprintf(path, size, "%s", named);
		return true;
	case 1:
		if (geteuid() == 0)
			snprintf(path, size, "/var/cache/overlaybd");
		else if (xdg && xdg[0] == '/')
			snprintf(path, size, "%s/overlaybd", xdg);
		return true;
	case 2:
		if (geteuid() != 0 && home && home[0] == '/') {
			snprintf(path, size, "%s/.cache", home);
			mkdir(path, 0700);
			snprintf(path, size, "%s/.cache/overlaybd", home);
		}
		return true;
	case IN_TMP:
		snprintf(path, size, "/tmp/.overlaybd-%u", geteuid());
		return true;
	default:
		return false;
	}
}

int cache_choose(bool tmp, char *where, size_t size, char *why,
		 size_t why_size)
{
	size_t used = 0;

	why[0] = 0;
	for (int n = 0; candidate(n, where, size); n++) {
		int fd;

		if (!where[0] || (n == IN_TMP && !tmp))
			continue;
		fd = cache_open(where, true);
		if (fd >= 0 && !faccessat(fd, ".", W_OK, AT_EACCESS))
			return fd;
		if (fd >= 0) {
			close(fd);
			fd = -errno;
		}
		if (used < why_size)
			used += (size_t)snprintf(
				why + used, why_size - used, "%s%s: %s",
				used ? ", " : "", where,
				fd == -ENOEXEC ? "mounted noexec" :
				fd == -EACCES ? "not ours alone" :
				strerror(-fd));
	}
	return -ENOENT;
}

/* Removes a directory and what is in it, not deeper than anything that is
 * unpacked. */
static void remove_tree(int at, const char *name, int depth)
{
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW |
			O_CLOEXEC);
	struct dirent *e;
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);

	if (!dir && fd >= 0)
		close(fd);
	while (dir && (e = readdir(dir))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (unlinkat(dirfd(dir), e->d_name, 0) && depth > 0)
			remove_tree(dirfd(dir), e->d_name, depth - 1);
	}
	if (dir)
		closedir(dir);
	unlinkat(at, name, AT_REMOVEDIR);
}

void cache_remove(int root, const char *name)
{
	remove_tree(root, name, REMOVE_DEPTH);
}

/* SQLite's lock bytes. */
static bool locked(int dir, const char *name)
{
	struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET,
			      .l_start = 0x40000000, .l_len = 512 };
	int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	bool held;

	if (fd < 0)
		return false;
	held = !fcntl(fd, F_GETLK, &lock) && lock.l_type != F_UNLCK;
	close(fd);
	return held;
}

static bool any_locked(int dir)
{
	int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *list = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	bool found = false;

	if (!list && fd >= 0)
		close(fd);
	while (list && !found && (e = readdir(list)))
		found = e->d_type == DT_REG && locked(dir, e->d_name);
	if (list)
		closedir(list);
	return found;
}

bool cache_stuck(int dir)
{
	for (int i = 0; i < 20; i++) {
		if (!any_locked(dir))
			return false;
		usleep(5000);
	}
	return true;
}

/* A process that runs from a directory holds a shared lock on it. */
static bool unused(int root, const char *name)
{
	int fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW |
			O_CLOEXEC);
	bool free;

	if (fd < 0)
		return false;
	free = !flock(fd, LOCK_EX | LOCK_NB);
	close(fd);
	return free;
}

void cache_sweep(int root, const char *keep_runtime, const char *keep_app)
{
	int fd = openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while ((e = readdir(dir))) {
		const char *key = strchr(e->d_name, '-');
		bool ours = !strncmp(e->d_name, "rt-", 3) ||
			    !strncmp(e->d_name, "app-", 4) ||
			    !strncmp(e->d_name, "deno-", 5) ||
			    !strncmp(e->d_name, ".tmp-", 5);

		if (ours && strcmp(e->d_name, keep_runtime) &&
		    strcmp(key, strchr(keep_app, '-')) &&
		    unused(root, e->d_name))
			cache_remove(root, e->d_name);
	}
	closedir(dir);
}
