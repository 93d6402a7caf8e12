/* SPDX-License-Identifier: Apache-2.0
 *
 * parts.h - what the tests of sources, layers, devices and misses share:
 * unnamed files, known bytes, disks of a few records, and a fetcher that
 * behaves as badly as it is told to.
 */
#ifndef OBD_PARTS_H
#define OBD_PARTS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_TMPFILE */
#endif
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "../core.h"
#include "check.h"

#define KIB 1024ull
#define MIB (1024ull * 1024)

/* Every helper's failure ends the program: it is the test that is broken. */
#define MUST(condition)                                               \
	do {                                                          \
		if (!(condition)) {                                   \
			printf("not ok - %s: %s:%d: %s\n",            \
			       check_name, __FILE__, __LINE__,        \
			       #condition);                           \
			exit(2);                                      \
		}                                                     \
	} while (0)

/* First in main().  What waits for ever fails, too. */
static inline void parts_start(void)
{
	alarm(120);
	check_seed();
}

static inline int temp_fd(void)
{
	const char *dir = getenv("TMPDIR");
	int fd = open(dir && *dir ? dir : "/tmp",
		      O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	MUST(fd >= 0);
	return fd;
}

static inline void sleep_ms(unsigned int ms)
{
	struct timespec ts = { ms / 1000, (long)(ms % 1000) * 1000000 };

	nanosleep(&ts, NULL);
}

/* Byte x of blob nr: never the same in two places, never all zeros. */
static inline uint8_t blob_byte(uint64_t nr, uint64_t x)
{
	uint64_t z = (x / 8 + nr * 0x51ED27) * 0x9E3779B97F4A7C15 + 1;

	z ^= z >> 31;
	return (uint8_t)(z >> (x % 8 * 8)) | 1;
}

static inline void blob_fill(uint64_t nr, void *buf, uint64_t at, uint64_t n)
{
	uint8_t *out = buf;
	uint64_t i;

	for (i = 0; i < n; i++)
		out[i] = blob_byte(nr, at + i);
}

static inline bool blob_same(uint64_t nr, const void *buf, uint64_t at,
			     uint64_t n)
{
	const uint8_t *in = buf;
	uint64_t i;

	for (i = 0; i < n; i++)
		if (in[i] != blob_byte(nr, at + i))
			return false;
	return true;
}

static inline bool all_bytes(const void *buf, int value, uint64_t n)
{
	const uint8_t *in = buf;
	uint64_t i;

	for (i = 0; i < n; i++)
		if (in[i] != value)
			return false;
	return true;
}

/* A local file source that holds the first n bytes of blob nr. */
static inline struct obd_source *blob_source(uint64_t nr, uint64_t n)
{
	struct obd_source *src;
	uint8_t *buf = malloc(n + 1);
	int fd = temp_fd();

	MUST(buf);
	blob_fill(nr, buf, 0, n);
	MUST(obd_io_pwrite(fd, buf, n, 0) == (int64_t)n);
	free(buf);
	MUST(!obd_source_file(fd, 0, n, &src));
	return src;
}

/* A remote blob of n bytes of which nothing is there; *fd is its file. */
static inline struct obd_source *remote_source(uint64_t id, uint64_t n,
					       uint32_t unit, int *fd)
{
	struct obd_source *src;

	*fd = temp_fd();
	MUST(!ftruncate(*fd, (off_t)n));
	MUST(!obd_source_cache(*fd, n, unit, id, &src));
	return src;
}

/* Takes the index over, and one reference on every source. */
static inline struct obd_view *view_of(const struct obd_record *records,
				       uint64_t count,
				       struct obd_source *const *sources,
				       uint32_t n, uint64_t size)
{
	struct obd_index *index;
	struct obd_view *view;
	uint32_t i;

	MUST(!obd_index_new(records, count, &index));
	MUST(!obd_view_new(index, sources, n, size, &view));
	obd_index_unref(index);
	for (i = 0; i < n; i++)
		obd_source_unref(sources[i]);
	return view;
}

/* A disk whose sector X is sector X of src: one source, whole. */
static inline struct obd_view *flat_view(struct obd_source *src)
{
	uint64_t sectors = obd_source_size(src) / OBD_SECTOR, lba = 0, n = 0;
	struct obd_record rec[512];
	uint64_t part;

	for (; lba < sectors && n < 512; lba += part) {
		part = sectors - lba < OBD_MAX_LENGTH ? sectors - lba :
							OBD_MAX_LENGTH;
		rec[n++] = rec_make(lba, part, lba, false, 0);
	}
	MUST(lba == sectors);
	return view_of(rec, n, &src, 1, sectors * OBD_SECTOR);
}

static inline struct obd_view *empty_view(uint64_t size)
{
	return view_of(NULL, 0, NULL, 0, size);
}

/* Takes view and upper over. */
static inline struct obd_device *device_of(struct obd_view *view,
					   struct obd_upper *upper,
					   uint64_t size, uint64_t deadline)
{
	struct obd_device *dev;

	MUST(!obd_device_new(view, upper, size, 0, deadline, &dev));
	obd_view_unref(view);
	obd_upper_unref(upper);
	return dev;
}

static inline struct obd_device_stats stats_of(struct obd_device *dev)
{
	struct obd_device_stats st;

	MUST(!obd_device_stat(dev, &st));
	return st;
}

/* A header's worth of non-zero bytes. */
static inline int layer_file(uint64_t size)
{
	uint8_t header[4096];
	int fd = temp_fd();

	memset(header, 0x4C, sizeof(header));
	MUST(obd_io_pwrite(fd, header, sizeof(header), 0) == 4096);
	if (size > 4096)
		MUST(!ftruncate(fd, (off_t)size));
	return fd;
}

static inline uint64_t file_size(int fd)
{
	struct stat st;

	MUST(!fstat(fd, &st));
	return (uint64_t)st.st_size;
}

/* The bytes of a ZFile (lz4, 4 KiB blocks, crc) over the first n bytes of
 * blob nr, without a header: only the info is needed to open it. */
static inline uint8_t *zfile_of(uint64_t nr, uint64_t n,
				struct obd_zfile_info *info, uint64_t *size)
{
	const struct obd_codec *lz4 = obd_codec_find(OBD_ALGO_LZ4);
	uint64_t blocks = (n + 4095) / 4096, i, at = 512;
	uint8_t *out = calloc(1, 512 + blocks * (lz4->bound(4096) + 8));
	uint32_t *table = malloc(blocks * 4), len, crc;
	uint8_t plain[4096];
	int64_t got;

	MUST(out && table);
	for (i = 0; i < blocks; i++) {
		len = n - i * 4096 < 4096 ? (uint32_t)(n - i * 4096) : 4096;
		blob_fill(nr, plain, i * 4096, len);
		got = lz4->compress(obd_codec_thread_context(lz4), plain,
				    len, out + at, lz4->bound(4096));
		MUST(got > 0);
		crc = obd_crc32c(100007, out + at, (uint64_t)got);
		memcpy(out + at + got, &crc, 4);
		table[i] = (uint32_t)got + 4;
		at += table[i];
	}
	memcpy(out + at, table, blocks * 4);
	free(table);
	*size = at + blocks * 4;
	*info = (struct obd_zfile_info){
		.index_offset = at, .blocks = blocks, .original_size = n,
		.block_size = 4096, .algo = OBD_ALGO_LZ4, .verify = 1,
	};
	return out;
}

/* ---- readers on their own threads -------------------------------------- */

struct reader {
	pthread_t thread;
	struct obd_device *dev;
	uint64_t at, n;
	uint8_t *buf;
	int err;
	_Atomic bool ended;
};

static inline void *reader_main(void *arg)
{
	struct reader *r = arg;

	r->err = obd_device_read(r->dev, r->buf, r->n, r->at);
	atomic_store(&r->ended, true);
	return NULL;
}

static inline void reader_start(struct reader *r, struct obd_device *dev,
				uint64_t at, uint64_t n)
{
	memset(r, 0, sizeof(*r));
	r->dev = dev;
	r->at = at;
	r->n = n;
	r->buf = malloc(n);
	MUST(r->buf);
	MUST(!pthread_create(&r->thread, NULL, reader_main, r));
}

/* Its result. */
static inline int reader_join(struct reader *r)
{
	MUST(!pthread_join(r->thread, NULL));
	return r->err;
}

/* Waits until n requests of dev have parked, ever. */
static inline void wait_parked(struct obd_device *dev, uint64_t n)
{
	int i;

	for (i = 0; i < 10000 && stats_of(dev).parked < n; i++)
		sleep_ms(1);
	MUST(stats_of(dev).parked >= n);
}

/* Drains until something comes, at most 10 s. Returns how many. */
static inline int drain_wait(struct obd_miss *out, uint32_t max)
{
	int i, n;

	for (i = 0; i < 10000; i++) {
		n = obd_miss_drain(out, max);
		if (n)
			return n;
		sleep_ms(1);
	}
	return 0;
}

#endif
