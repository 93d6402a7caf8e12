/* SPDX-License-Identifier: Apache-2.0
 *
 * source.c - where a layer's bytes come from: an open file, a cache file
 * with a presence bitmap, or a ZFile over either.
 */
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/statfs.h>

#include "core.h"

static struct obd_source *source_alloc(enum obd_source_kind kind, int fd,
				       uint64_t base, uint64_t size)
{
	struct obd_source *src = calloc(1, sizeof(*src));

	if (src) {
		src->refs = 1;
		src->kind = kind;
		src->fd = fd;
		src->direct_fd = -1;
		src->align = 1;
		src->base = base;
		src->size = size;
	}
	return src;
}

int32_t obd_source_file(int32_t fd, uint64_t base, uint64_t size,
			struct obd_source **out)
{
	if (fd < 0)
		return -EBADF;
	if (base > INT64_MAX || size > INT64_MAX - base)
		return -EINVAL;
	*out = source_alloc(SRC_FILE, fd, base, size);
	return *out ? 0 : -ENOMEM;
}

int32_t obd_source_direct(struct obd_source *file, int32_t fd)
{
	int64_t align;

	if (fd < 0)
		return -EBADF;
	if (file->kind != SRC_FILE || file->direct_fd >= 0)
		return -EINVAL;
	align = obd_io_direct_align(fd);
	if (align < 0)
		return (int32_t)align;
	file->align = (uint32_t)align;
	file->direct_fd = fd;
	return 0;
}

int32_t obd_source_name(struct obd_source *src, uint64_t name)
{
	if (!name)
		return -EINVAL;
	src->name = name;
	return 0;
}

int32_t obd_source_uring(struct obd_source *file)
{
	if (file->kind != SRC_FILE)
		return -EINVAL;
	file->uring = true;
	return 0;
}

int obd_source_growing(int fd, struct obd_source **out)
{
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	int err;

	if (own < 0)
		return -errno;
	err = obd_source_file(own, 0, INT64_MAX, out);
	if (err)
		close(own);
	return err;
}

/* ---- units ------------------------------------------------------------- */

static void units_free(struct obd_units *u)
{
	if (!u)
		return;
	if (atomic_load(&u->spill_fd) >= 0)
		obd_io_close(atomic_load(&u->spill_fd));
	free((void *)u->present);
	free((void *)u->spilled);
	free((void *)u->used);
	free(u->asked);
	free(u->queued);
	free(u->corrupt);
	free(u);
}

static struct obd_units *units_alloc(uint64_t size, uint32_t unit,
				     uint64_t id)
{
	struct obd_units *u = calloc(1, sizeof(*u));
	uint64_t words;

	if (!u)
		return NULL;
	u->shift = (uint32_t)__builtin_ctz(unit);
	u->size = size;
	u->count = (size >> u->shift) + ((size & (unit - 1)) != 0);
	u->id = id;
	atomic_init(&u->spill_fd, -1);
	words = u->count / 64 + 1;
	u->present = calloc(words, sizeof(*u->present));
	u->spilled = calloc(words, sizeof(*u->spilled));
	u->used = calloc(words, sizeof(*u->used));
	u->asked = calloc(words, sizeof(*u->asked));
	u->queued = calloc(words, sizeof(*u->queued));
	u->corrupt = calloc(words, sizeof(*u->corrupt));
	if (u->present && u->spilled && u->used && u->asked && u->queued &&
	    u->corrupt)
		return u;
	units_free(u);
	return NULL;
}

int32_t obd_source_cache(int32_t fd, uint64_t size, uint32_t unit,
			 uint64_t id, struct obd_source **out)
{
	struct obd_source *src;
	struct statfs fs;

	if (fd < 0)
		return -EBADF;
	if (unit < 4096 || (unit & (unit - 1)) || size > INT64_MAX)
		return -EINVAL;
	src = source_alloc(SRC_CACHE, fd, 0, size);
	if (!src)
		return -ENOMEM;
	src->may_hang = fstatfs(fd, &fs) || fs.f_type != TMPFS_MAGIC;
	src->units = units_alloc(size, unit, id);
	if (!src->units) {
		free(src);
		return -ENOMEM;
	}
	*out = src;
	return 0;
}

/* The bits of word i that units first to last have. */
static uint64_t unit_mask(uint64_t i, uint64_t first, uint64_t last)
{
	uint64_t mask = ~0ull;

	if (i == first / 64)
		mask &= ~0ull << (first % 64);
	if (i == last / 64)
		mask &= ~0ull >> (63 - last % 64);
	return mask;
}

bool obd_units_present(const struct obd_units *u, uint64_t at, uint64_t n)
{
	uint64_t first = at >> u->shift, last = (at + n - 1) >> u->shift;
	uint64_t i, word, want;

	for (i = first / 64; i <= last / 64; i++) {
		want = unit_mask(i, first, last);
		word = atomic_load_explicit(&u->present[i],
					    memory_order_acquire);
		if ((word & want) != want)
			return false;
	}
	return true;
}

/* Most reads find the bits set already, and then write nothing. */
static void note_used(struct obd_units *u, uint64_t at, uint64_t n)
{
	uint64_t first = at >> u->shift, last = (at + n - 1) >> u->shift;
	uint64_t i, mask;

	for (i = first / 64; i <= last / 64; i++) {
		mask = unit_mask(i, first, last);
		if ((atomic_load_explicit(&u->used[i], memory_order_relaxed) &
		     mask) != mask)
			atomic_fetch_or_explicit(&u->used[i], mask,
						 memory_order_relaxed);
	}
}

static bool unit_spilled(const struct obd_units *u, uint64_t i)
{
	return atomic_load(&u->spilled[i / 64]) >> (i % 64) & 1;
}

/* ---- life -------------------------------------------------------------- */

int32_t obd_source_zfile(struct obd_source *inner,
			 const struct obd_zfile_info *info,
			 struct obd_source **out)
{
	struct obd_source *src;
	int err;

	if (!inner || inner->kind == SRC_ZFILE)
		return -EINVAL;
	src = source_alloc(SRC_ZFILE, -1, 0, 0);
	if (!src)
		return -ENOMEM;
	err = obd_zfile_open(inner, info, &src->zfile);
	if (err) {
		free(src);
		return err == -ENODATA ? -EAGAIN : err;
	}
	src->inner = obd_source_ref(inner);
	src->size = obd_zfile_size(src->zfile);
	*out = src;
	return 0;
}

struct obd_source *obd_source_ref(struct obd_source *src)
{
	atomic_fetch_add_explicit(&src->refs, 1, memory_order_relaxed);
	return src;
}

void obd_source_unref(struct obd_source *src)
{
	if (!src || atomic_fetch_sub_explicit(&src->refs, 1,
					      memory_order_acq_rel) != 1)
		return;
	if (src->kind == SRC_CACHE)
		obd_miss_forget(src);
	if (src->zfile)
		obd_zfile_free(src->zfile);
	obd_source_unref(src->inner);
	units_free(src->units);
	if (src->fd >= 0)
		obd_io_close(src->fd);
	if (src->direct_fd >= 0)
		obd_io_close(src->direct_fd);
	free(src);
}

uint64_t obd_source_size(struct obd_source *src)
{
	return src->size;
}

bool obd_source_is_local(const struct obd_source *src)
{
	if (src->kind == SRC_ZFILE)
		src = src->inner;
	return src->kind == SRC_FILE;
}

bool obd_source_by_uring(const struct obd_source *src)
{
	return src->kind == SRC_ZFILE ? src->inner->uring : src->uring;
}

bool obd_source_on_disk(struct obd_source *src, uint64_t *at, uint64_t *n,
			struct obd_source **file)
{
	uint64_t from = *at, length = *n;

	if (!obd_source_by_uring(src) || from > src->size ||
	    length > src->size - from)
		return false;
	if (src->kind == SRC_ZFILE) {
		obd_zfile_range(src->zfile, from, length, at, n);
		src = src->inner;
	}
	*at += src->base;
	*file = src;
	return *n != 0;
}

bool obd_source_stored(struct obd_source *src, uint64_t at, uint64_t n,
		       struct obd_source **cache, uint64_t *stored_at,
		       uint64_t *stored_n)
{
	*stored_at = at;
	*stored_n = n;
	if (src->kind == SRC_ZFILE) {
		if (src->inner->kind != SRC_CACHE)
			return false;
		obd_zfile_range(src->zfile, at, n, stored_at, stored_n);
		src = src->inner;
	}
	*cache = src;
	if (src->kind != SRC_CACHE)
		return false;
	*stored_at += src->base;
	return true;
}

int32_t obd_source_window(struct obd_source *cache, uint64_t base,
			  uint64_t size)
{
	uint64_t end = cache->base + cache->size;

	if (cache->kind != SRC_CACHE || base > end || size > end - base)
		return -EINVAL;
	if (cache->base != base || cache->size != size) {
		cache->base = base;
		cache->size = size;
	}
	return 0;
}

/* ---- reading ----------------------------------------------------------- */

/* Errors that mean something to the caller of obd_source_read() must not
 * come from a file system by chance. */
static int read_error(int64_t got)
{
	return got >= 0 || got == -EAGAIN || got == -ENODATA ||
	       got == -EUCLEAN ? -EIO : (int)got;
}

#define DIRECT_BYTES (1u << 20)      /* of one read past the page cache */
#define PAGE 4096u

/* Whole blocks around [at, at + n) into area, which has room for them.
 * Bytes of the range that came, or -errno. */
static int64_t read_blocks(struct obd_source *src, void *area, uint64_t n,
			   uint64_t at)
{
	uint64_t mask = src->align - 1, from = at & ~mask;
	uint64_t to = (at + n + mask) & ~mask;
	int64_t got = obd_io_pread(src->direct_fd, area, to - from, from);

	if (got < 0)
		return got;
	got -= (int64_t)(at - from);
	return got < 0 ? 0 : got < (int64_t)n ? got : (int64_t)n;
}

/* -EINVAL: this file system wants it otherwise. */
static int read_direct(struct obd_source *src, uint8_t *buf, uint64_t n,
		       uint64_t at)
{
	uint64_t room = (n < DIRECT_BYTES ? n : DIRECT_BYTES) +
			2 * src->align + PAGE - 1;
	uint8_t *area = aligned_alloc(PAGE, room & ~(uint64_t)(PAGE - 1));
	int err = 0;

	if (!area)
		return -ENOMEM;
	while (!err && n) {
		uint64_t part = n < DIRECT_BYTES ? n : DIRECT_BYTES;
		int64_t got = read_blocks(src, area, part, at);

		if (got == (int64_t)part)
			memcpy(buf, area + (at & (src->align - 1)), part);
		else
			err = got == -EINVAL ? -EINVAL : read_error(got);
		buf += part;
		at += part;
		n -= part;
	}
	free(area);
	return err;
}

/* A read that may wait. */
static int64_t read_waiting(struct obd_source *src, void *buf, uint64_t n,
			    uint64_t at)
{
	struct obd_slow_read slow = { .at = at, .kind = OBD_SLOW_CACHE };
	uint64_t began;
	int64_t got;

	if (src->kind != SRC_CACHE)
		return obd_io_pread(src->fd, buf, n, at);
	began = obd_slow_begin(OBD_SLOW_CACHE);
	obd_plane_away(true);
	got = obd_io_pread(src->fd, buf, n, at);
	obd_plane_away(false);
	if (obd_unlikely(began)) {
		slow.length = got < 0 ? -1 : got;
		obd_slow_end(began, &slow);
	}
	return got;
}

static int read_fd(struct obd_source *src, void *buf, uint64_t n,
		   uint64_t at, enum obd_try how)
{
	int64_t got;
	int err;

	if (obd_unlikely(how == OBD_TRY_LANDED) && src->uring)
		return obd_uring_take(src, buf, n, src->base + at);
	if (obd_unlikely(src->direct_fd >= 0)) {
		/* A disk is always waited for. */
		err = how != OBD_TRY_BLOCK ? -EAGAIN :
		      read_direct(src, buf, n, src->base + at);
		if (err != -EINVAL)
			return err;
	}
	if (how != OBD_TRY_BLOCK &&
	    !atomic_load_explicit(&src->no_nowait, memory_order_relaxed)) {
		got = obd_io_pread_nowait(src->fd, buf, n, src->base + at);
		if (obd_likely(got == (int64_t)n))
			return 0;
		if (got >= 0 || got == -EAGAIN)
			return -EAGAIN;
		if (got != -EOPNOTSUPP)
			return read_error(got);
		atomic_store_explicit(&src->no_nowait, true,
				      memory_order_relaxed);
	}
	if (how != OBD_TRY_BLOCK && src->may_hang)
		return -EAGAIN;
	got = read_waiting(src, buf, n, src->base + at);
	return obd_likely(got == (int64_t)n) ? 0 : read_error(got);
}

/* Unit by unit, each from the file that it lies in.  What is in the other
 * file is in memory mostly: the calling thread may as well wait. */
static int read_units(struct obd_source *src, uint8_t *buf, uint64_t n,
		      uint64_t at, enum obd_try how)
{
	struct obd_units *u = src->units;
	uint64_t unit, part, blob_at = src->base + at;
	int64_t got;
	int err = 0;

	for (; !err && n; n -= part, buf += part, at += part, blob_at += part) {
		unit = blob_at >> u->shift;
		part = ((unit + 1) << u->shift) - blob_at;
		if (part > n)
			part = n;
		if (!unit_spilled(u, unit)) {
			err = read_fd(src, buf, part, at, how);
			continue;
		}
		got = obd_io_pread(atomic_load(&u->spill_fd), buf, part,
				   blob_at);
		err = got == (int64_t)part ? 0 : read_error(got);
	}
	return err;
}

static int read_cache(struct obd_source *src, void *buf, uint64_t n,
		      uint64_t at, enum obd_try how)
{
	struct obd_units *u = src->units;
	uint64_t losses = atomic_load(&u->losses);
	int err;

	if (!obd_units_present(u, src->base + at, n))
		return -ENODATA;
	note_used(u, src->base + at, n);
	if (obd_unlikely(atomic_load_explicit(&u->spill_fd,
					      memory_order_relaxed) >= 0))
		err = read_units(src, buf, n, at, how);
	else
		err = read_fd(src, buf, n, at, how);
	if (obd_unlikely(err == -EAGAIN))
		return err;
	if (obd_unlikely(atomic_load(&u->losses) != losses))
		return -ENODATA;
	if (obd_unlikely(err)) {
		/* The disk below the cache fails, or somebody cut the file:
		 * the blob is elsewhere, too. */
		obd_miss_spoil(src, at, n, losses);
		return -ENODATA;
	}
	return 0;
}

/* A bad block of a remote ZFile has to be fetched again; false: it has been
 * already, since it was read. */
static bool spoil_block(struct obd_source *src, uint64_t nr, uint64_t losses)
{
	struct obd_source *cache = src->inner;
	uint64_t at;
	uint32_t length;

	if (atomic_load(&cache->units->losses) != losses)
		return false;
	if (!obd_zfile_block(src->zfile, nr, &at, &length))
		obd_miss_spoil(cache, at, length, losses);
	return true;
}

static int read_any(struct obd_source *src, void *buf, uint64_t n,
		    uint64_t at, enum obd_try how)
{
	uint64_t bad, losses = 0;
	bool remote;
	int err;

	if (obd_unlikely(at > src->size || n > src->size - at))
		return -EIO;
	if (obd_unlikely(!n))
		return 0;
	if (src->kind == SRC_FILE)
		return read_fd(src, buf, n, at, how);
	if (src->kind == SRC_CACHE)
		return read_cache(src, buf, n, at, how);
	remote = src->inner->kind == SRC_CACHE;
	if (remote)
		losses = atomic_load(&src->inner->units->losses);
	err = obd_zfile_read(src->zfile, src->inner, buf, n, at, how, &bad);
	if (obd_unlikely(err == -EUCLEAN) && remote &&
	    !spoil_block(src, bad, losses))
		return -ENODATA;
	return err;
}

/* When a read of src that may wait for its file began. 0: it does not, or
 * nobody wants to know. */
static uint64_t begin_read(const struct obd_source *src, enum obd_try how)
{
	if (obd_unlikely(how == OBD_TRY_LANDED) && obd_source_by_uring(src))
		return obd_uring_began();
	if (src->kind == SRC_ZFILE)
		src = src->inner;
	return how == OBD_TRY_BLOCK ||
	       atomic_load_explicit(&src->no_nowait, memory_order_relaxed) ?
	       obd_slow_begin(OBD_SLOW_LOCAL) : 0;
}

int obd_source_read(struct obd_source *src, void *buf, uint64_t n,
		    uint64_t at, enum obd_try how)
{
	struct obd_slow_read slow;
	uint64_t began = 0;
	int err;

	if (src->name)
		began = begin_read(src, how);
	err = read_any(src, buf, n, at, how);
	if (obd_unlikely(began) && err != -EAGAIN) {
		slow = (struct obd_slow_read){ src->name, at, (int64_t)n, 0,
					       OBD_SLOW_LOCAL, 0 };
		obd_slow_end(began, &slow);
	}
	return err;
}

int64_t obd_source_pread(struct obd_source *src, void *buf, uint64_t n,
			 uint64_t at)
{
	int err;

	if (at >= src->size)
		return 0;
	if (n > src->size - at)
		n = src->size - at;
	if (n > INT64_MAX)
		return -EINVAL;
	err = obd_source_read(src, buf, n, at, OBD_TRY_BLOCK);
	if (err)
		return err == -ENODATA ? -EAGAIN : err;
	return (int64_t)n;
}

int32_t obd_source_block(struct obd_source *zfile, uint64_t nr, uint64_t *at,
			 uint32_t *length)
{
	if (zfile->kind != SRC_ZFILE)
		return -EINVAL;
	return obd_zfile_block(zfile->zfile, nr, at, length);
}

int32_t obd_source_spill(struct obd_source *cache, int32_t fd)
{
	int none = -1;

	if (cache->kind != SRC_CACHE)
		return -EINVAL;
	if (fd < 0)
		return -EBADF;
	return atomic_compare_exchange_strong(&cache->units->spill_fd, &none,
					      fd) ? 0 : -EBUSY;
}

/* ---- the bitmaps, as TypeScript sees them ------------------------------ */

int32_t obd_source_used(struct obd_source *cache, void *bits, uint64_t bytes)
{
	struct obd_units *u = cache->units;
	uint8_t *out = bits;
	uint64_t i, word = 0;

	if (cache->kind != SRC_CACHE || bytes != (u->count + 7) / 8)
		return -EINVAL;
	for (i = 0; i < bytes; i++) {
		if (i % 8 == 0)
			word = atomic_exchange(&u->used[i / 8], 0);
		out[i] = (uint8_t)(word >> (i % 8 * 8));
	}
	return 0;
}

int32_t obd_source_bitmap_get(struct obd_source *cache, void *bits,
			      uint64_t bytes)
{
	struct obd_units *u = cache->units;
	uint8_t *out = bits;
	uint64_t i, word;

	if (cache->kind != SRC_CACHE || bytes != (u->count + 7) / 8)
		return -EINVAL;
	for (i = 0; i < bytes; i++) {
		word = atomic_load_explicit(&u->present[i / 8],
					    memory_order_acquire);
		out[i] = (uint8_t)(word >> (i % 8 * 8));
	}
	return 0;
}
