/* SPDX-License-Identifier: Apache-2.0
 *
 * unpack.c - makes rt-KEY/deno and app-KEY/: in a directory of another name
 * first, synced, then renamed.  Whoever comes second drops his.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "launcher.h"

#define DEPTH_MAX 16
#define WINDOW_LOG_MAX 31

static int write_all(int fd, const void *p, size_t n)
{
	const char *at = p;

	while (n) {
		ssize_t got = write(fd, at, n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		at += got;
		n -= (size_t)got;
	}
	return 0;
}

/* A regular file of ours, of that size, that nobody else may write. */
static bool file_is(int dir, const char *name, uint64_t size)
{
	struct stat st;

	return !fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) &&
	       S_ISREG(st.st_mode) && (uint64_t)st.st_size == size &&
	       (st.st_uid == geteuid() || st.st_uid == 0) &&
	       !(st.st_mode & 022);
}

bool unpack_runtime_there(int root, const char *name, uint64_t size)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/deno", name);
	return file_is(root, path, size);
}

static int decompress(int fd, struct bytes packed, uint64_t size)
{
	ZSTD_DCtx *ctx = ZSTD_createDCtx();
	ZSTD_inBuffer in = { packed.at, packed.n, 0 };
	size_t room = ZSTD_DStreamOutSize(), rc = 1;
	void *buf = malloc(room);
	uint64_t total = 0;
	int err = ctx && buf ? 0 : -ENOMEM;

	if (ctx)
		ZSTD_DCtx_setParameter(ctx, ZSTD_d_windowLogMax,
				       WINDOW_LOG_MAX);
	while (!err && rc) {
		ZSTD_outBuffer out = { buf, room, 0 };

		rc = ZSTD_decompressStream(ctx, &out, &in);
		if (ZSTD_isError(rc) || (rc && !out.pos && in.pos == in.size))
			err = -EBADMSG;
		else
			err = write_all(fd, buf, out.pos);
		total += out.pos;
	}
	free(buf);
	ZSTD_freeDCtx(ctx);
	/* The frame's own checksum covers the content. */
	return err ? err : total == size ? 0 : -EBADMSG;
}

static int put_file(int dir, const char *name, struct bytes data, int mode)
{
	int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW |
			O_CLOEXEC, mode);
	int rc;

	if (fd < 0)
		return -errno;
	rc = write_all(fd, data.at, data.n);
	if (!rc && fdatasync(fd))
		rc = -errno;
	close(fd);
	return rc;
}

static bool safe_name(const char *name)
{
	return name && *name && !strchr(name, '/') && strcmp(name, ".") &&
	       strcmp(name, "..");
}

/* What is done with each file of the tree. */
typedef int visit(int dir, const char *name, struct bytes data, bool exec);

static int walk(const struct section *s, const struct json *entries, int dir,
		bool make, visit *fn, int depth)
{
	const struct json *e;
	int rc = 0;

	if (depth > DEPTH_MAX || !entries || entries->type != JSON_ARRAY)
		return -EINVAL;
	for (e = entries->first; e && !rc; e = e->next) {
		const struct json *file = json_get(e, "File");
		const struct json *sub = json_get(e, "Dir");
		const char *name = json_text(file ? file : sub, "n");
		const struct json *exec = json_get(file, "x");
		struct bytes data;
		int fd;

		if (!file && !sub)
			continue;
		if (!safe_name(name))
			return -EINVAL;
		if (file) {
			rc = section_file(s, file, &data);
			if (!rc)
				rc = fn(dir, name, data,
					exec && exec->type == JSON_TRUE);
			continue;
		}
		if (make && mkdirat(dir, name, 0700) && errno != EEXIST)
			return -errno;
		fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW |
			    O_CLOEXEC);
		if (fd < 0)
			return -errno;
		rc = walk(s, json_get(sub, "e"), fd, make, fn, depth + 1);
		close(fd);
	}
	return rc;
}

static int write_entry(int dir, const char *name, struct bytes data, bool exec)
{
	return put_file(dir, name, data, exec ? 0500 : 0400);
}

static int check_entry(int dir, const char *name, struct bytes data, bool exec)
{
	(void)exec;
	return file_is(dir, name, data.n) ? 0 : -ENOENT;
}

bool unpack_app_there(int root, const char *name,
		      const struct section *section)
{
	int fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW |
			O_CLOEXEC);
	int rc;

	if (fd < 0)
		return false;
	rc = walk(section, section->files, fd, false, check_entry, 0);
	close(fd);
	return rc == 0;
}

/* A directory that nobody looks for, locked so that nobody sweeps it. */
static int begin(int root, char *name, size_t size)
{
	int fd;

	snprintf(name, size, ".tmp-%d", getpid());
	if (mkdirat(root, name, 0700))
		return -errno;
	fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW |
		    O_CLOEXEC);
	if (fd < 0)
		return -errno;
	flock(fd, LOCK_SH);
	return fd;
}

/* Gives a directory that was filled with result rc its name.  What has that
 * name already was found damaged, or came just now from somebody else: it
 * goes, and so does what could not be finished. */
static int publish(int root, int fd, const char *from, const char *to, int rc)
{
	if (!rc && fsync(fd))
		rc = -errno;
	close(fd);
	if (!rc && renameat2(root, from, root, to, RENAME_NOREPLACE)) {
		rc = -errno;
		if (rc == -EEXIST || rc == -ENOTEMPTY)
			rc = renameat2(root, from, root, to,
				       RENAME_EXCHANGE) ? -errno : 0;
		cache_remove(root, from);
	} else if (rc) {
		cache_remove(root, from);
	}
	if (!rc && fsync(root))
		rc = -errno;
	return rc;
}

/* The runtime as a file of a directory that is being filled. */
static int fill_runtime(int dir, struct bytes packed, uint64_t size)
{
	int fd = openat(dir, "deno", O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW |
			O_CLOEXEC, 0500), rc;

	if (fd < 0)
		return -errno;
	rc = posix_fallocate(fd, 0, (off_t)size) == ENOSPC ? -ENOSPC :
	     decompress(fd, packed, size);
	if (!rc && fdatasync(fd))
		rc = -errno;
	close(fd);
	return rc;
}

int unpack_runtime(int root, const char *name, struct bytes packed,
		   uint64_t size)
{
	char tmp[32];
	int dir = begin(root, tmp, sizeof(tmp));

	if (dir < 0)
		return dir;
	return publish(root, dir, tmp, name, fill_runtime(dir, packed, size));
}

int unpack_app(int root, const char *name, const struct section *section)
{
	char tmp[32];
	int dir = begin(root, tmp, sizeof(tmp));

	if (dir < 0)
		return dir;
	return publish(root, dir, tmp, name,
		       walk(section, section->files, dir, true, write_entry,
			    0));
}
