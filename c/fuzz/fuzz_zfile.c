/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_zfile.c - a ZFile from outside: the input is the file, its last 512
 * bytes say what is in it, unchecked.  Opens it, reads it in several ways,
 * verifies it, and aborts when two of them disagree about a block.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../core.h"

#define TRAILER 512u
/* A larger original is read at its ends only: 64 KiB a block from 4 bytes
 * of table would be all that the fuzzer's time goes to. */
#define WHOLE_MAX (1u << 20)

static uint8_t whole[WHOLE_MAX], part[WHOLE_MAX];

static struct obd_zfile_info parse(const uint8_t *t)
{
	return (struct obd_zfile_info){
		.index_offset = obd_le64(t + 40),
		.blocks = obd_le64(t + 48),
		.original_size = obd_le64(t + 56),
		.index_crc = obd_le32(t + 64),
		.block_size = obd_le32(t + 72),
		.algo = t[76],
		.verify = t[88],
		.check_index_crc = t[32] >> 4 & 1,
		.dict_size = obd_le32(t + 84),
	};
}

static struct obd_source *file_source(const uint8_t *data, size_t size)
{
	struct obd_source *src;
	int fd = memfd_create("zfile", MFD_CLOEXEC);

	if (fd < 0 || write(fd, data, size) != (ssize_t)size ||
	    obd_source_file(fd, 0, size, &src))
		abort();
	return src;
}

static void read_ends(struct obd_source *z)
{
	uint64_t size = obd_source_size(z);

	obd_source_pread(z, part, 70000, 0);
	obd_source_pread(z, part, 70000, size / 2);
	obd_source_pread(z, part, 70000, size > 5 ? size - 5 : 0);
	obd_source_pread(z, part, 1, size);
}

/* The block at `at` read alone: true when it is good. */
static bool good_block(struct obd_source *z, uint64_t at, uint64_t n)
{
	int64_t got = obd_source_pread(z, part, n, at);

	if (got != (int64_t)n && got != -EUCLEAN)
		abort();
	return got > 0;
}

static void check_place(struct obd_source *z, uint64_t nr, uint64_t at,
			uint64_t n)
{
	uint64_t stored_at, range_at, range_n;
	uint32_t length;

	if (obd_source_block(z, nr, &stored_at, &length))
		abort();
	obd_zfile_range(z->zfile, at, n, &range_at, &range_n);
	if (range_at != stored_at || range_n != length ||
	    stored_at + length > obd_source_size(z->inner))
		abort();
}

/* Block by block, then all at once, then by verify. */
static void read_all(struct obd_source *z, uint32_t bs)
{
	uint64_t size = obd_source_size(z), at, n, nr = 0, first = size;
	int64_t bad = 0;

	for (at = 0; at < size; at += n, nr++) {
		n = size - at < bs ? size - at : bs;
		check_place(z, nr, at, n);
		if (good_block(z, at, n)) {
			memcpy(whole + at, part, n);
			continue;
		}
		if (!bad++)
			first = at;
	}
	if (!obd_source_block(z, nr, &at, &(uint32_t){ 0 }))
		abort();
	if (obd_source_pread(z, part, first, 0) != (int64_t)first ||
	    memcmp(whole, part, first))
		abort();
	if (bad && obd_source_pread(z, part, size, 0) != -EUCLEAN)
		abort();
	if (obd_zfile_verify(z, 1, NULL, &at, 1) != bad ||
	    (bad && at != first / bs))
		abort();
	/* A slice that begins and ends inside blocks. */
	if (first > 2 && (obd_source_pread(z, part, first - 2, 1) !=
				  (int64_t)first - 2 ||
			  memcmp(whole + 1, part, first - 2)))
		abort();
}

static void work(struct obd_source *file, struct obd_zfile_info info)
{
	struct obd_source *z;
	uint64_t n, at;

	if (obd_source_zfile(file, &info, &z))
		return;
	obd_zfile_range(z->zfile, info.original_size, 1, &at, &n);
	if (n)
		abort();
	if (obd_source_size(z) <= WHOLE_MAX)
		read_all(z, info.block_size);
	else
		read_ends(z);
	obd_source_unref(z);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct obd_zfile_info info;
	struct obd_source *file;

	if (size < TRAILER)
		return 0;
	info = parse(data + size - TRAILER);
	file = file_source(data, size);
	work(file, info);
	/* Behind a crc that no mutation keeps right. */
	info.check_index_crc = 0;
	work(file, info);
	obd_source_unref(file);
	return 0;
}
