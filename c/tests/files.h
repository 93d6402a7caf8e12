/* SPDX-License-Identifier: Apache-2.0
 *
 * files.h - what the tests of ZFile and of the pipelines share: files in
 * memory, fixtures, and what a ZFile's trailer says.
 */
#ifndef OBD_TEST_FILES_H
#define OBD_TEST_FILES_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../internal.h"
#include "check.h"

/* ---- bytes ----------------------------------------------------------- */

struct bytes {
	uint8_t *p;
	uint64_t n;
};

/* All of a file; p is NULL when there is none. */
static inline struct bytes bytes_of_fd(int fd)
{
	struct bytes b = { NULL, 0 };
	struct stat st;

	if (fd >= 0 && !fstat(fd, &st)) {
		b.n = (uint64_t)st.st_size;
		b.p = malloc(b.n + 1);
		if (obd_io_pread(fd, b.p, b.n, 0) != (int64_t)b.n)
			abort();
	}
	return b;
}

static inline bool bytes_equal(struct bytes a, struct bytes b)
{
	return a.n == b.n && !memcmp(a.p, b.p, a.n);
}

static inline int new_file(void)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	if (fd < 0)
		abort();
	return fd;
}

static inline int file_with(const void *p, uint64_t n)
{
	int fd = new_file();

	if (obd_io_pwrite(fd, p, n, 0) != (int64_t)n)
		abort();
	return fd;
}

enum pattern { RANDOM, TEXT, ZEROS, MIXED, PATTERNS };

/* n bytes of a kind; the same for the same n and kind. */
static inline struct bytes make_bytes(uint64_t n, enum pattern kind)
{
	struct bytes b = { malloc(n + 1), n };
	uint64_t i, s = n * PATTERNS + kind;

	for (i = 0; i < n; i++) {
		s = s * 6364136223846793005ull + 1442695040888963407ull;
		if (kind == RANDOM || (kind == MIXED && i >> 13 & 1))
			b.p[i] = (uint8_t)(s >> 56);
		else if (kind == ZEROS)
			b.p[i] = 0;
		else
			b.p[i] = "etaoin shrdlu\n"[(s >> 60) % 14];
	}
	return b;
}

/* ---- fixtures -------------------------------------------------------- */

/* A descriptor, or -1 where there are none. */
static inline int fixture(const char *name)
{
	const char *dir = getenv("OVERLAYBD_FIXTURES");
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s",
		 dir && *dir ? dir : "../shared/fixtures", name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static inline bool no_fixtures(void)
{
	int fd = fixture("06-zfile/plain.bin");

	if (fd < 0) {
		printf("# skipped: %s: no fixtures\n", check_name);
		return true;
	}
	close(fd);
	return false;
}

static inline struct bytes fixture_bytes(const char *name)
{
	int fd = fixture(name);
	struct bytes b = bytes_of_fd(fd);

	if (fd >= 0)
		close(fd);
	return b;
}

/* ---- ZFile ----------------------------------------------------------- */

/* What the trailer at the end of n bytes says (spec zfile 2). */
static inline struct obd_zfile_info trailer_info(const uint8_t *p, uint64_t n)
{
	const uint8_t *t = p + n - 512;

	return (struct obd_zfile_info){
		.index_offset = obd_le64(t + 40),
		.blocks = obd_le64(t + 48),
		.original_size = obd_le64(t + 56),
		.index_crc = obd_le32(t + 64),
		.block_size = obd_le32(t + 72),
		.algo = t[76],
		.verify = t[88] == 1,
		.check_index_crc = t[32] >> 4 & 1,
		.dict_size = obd_le32(t + 84),
	};
}

/* Opens n bytes as ZFile; the error of obd_source_zfile(). */
static inline int open_zfile(const void *p, uint64_t n,
			     const struct obd_zfile_info *info,
			     struct obd_source **out)
{
	struct obd_source *inner;
	int err;

	if (obd_source_file(file_with(p, n), 0, n, &inner))
		abort();
	err = obd_source_zfile(inner, info, out);
	obd_source_unref(inner);
	return err;
}

#endif
