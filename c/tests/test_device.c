/* SPDX-License-Identifier: Apache-2.0 */
#include "parts.h"

#define SIZE MIB
#define SECTORS (SIZE / 512)

/* A disk of one log layer over view, which is taken over. */
static struct obd_device *writable(struct obd_view *view, uint64_t size)
{
	struct obd_upper_report report;
	struct obd_upper *upper;

	MUST(!obd_upper_open(OBD_UPPER_LOG, layer_file(0), layer_file(0),
			     size, &report, &upper));
	return device_of(view, upper, size, 1000);
}

/* ---- size -------------------------------------------------------------- */

static void a_disk_grows_and_never_shrinks(void)
{
	struct obd_device *dev = writable(empty_view(SIZE), SIZE);
	uint8_t buf[512] = { 7 };

	CHECK_EQ(obd_device_resize(dev, 2 * SIZE + 1), -EINVAL);
	CHECK_EQ(obd_device_resize(dev, SIZE - 512), -EINVAL);
	CHECK_EQ(obd_device_write(dev, buf, 512, SIZE), -ENOSPC);
	CHECK_EQ(obd_device_resize(dev, 2 * SIZE), 0);
	CHECK_EQ(obd_device_read(dev, buf, 512, 2 * SIZE - 512), 0);
	CHECK_EQ(buf[0], 0);
	buf[0] = 9;
	CHECK_EQ(obd_device_write(dev, buf, 512, 2 * SIZE - 512), 0);
	CHECK_EQ(obd_device_write(dev, buf, 512, 2 * SIZE), -ENOSPC);
	buf[0] = 0;
	CHECK_EQ(obd_device_read(dev, buf, 512, 2 * SIZE - 512), 0);
	CHECK_EQ(buf[0], 9);
	obd_device_unref(dev);
}

static void *extend(void *dev)
{
	return (void *)(intptr_t)obd_device_extend(dev, 29 * 512);
}

/* Sectors 8 to 12 of 13 are written: the rest of their host block is what the
 * lower has, as soon as that is fetched. */
static void a_sparse_disk_that_grows_fetches_what_its_last_block_lacks(void)
{
	struct obd_upper_report report;
	struct obd_miss miss;
	struct obd_upper *upper;
	struct obd_device *dev;
	struct obd_source *src;
	uint8_t buf[29 * 512], unit[4096];
	int fd, data = layer_file(4096 + 13 * 512);
	pthread_t thread;
	void *ret;

	src = remote_source(3, 64 * 512, 4096, &fd);
	MUST(!obd_upper_open(OBD_UPPER_SPARSE, data, -1, 13 * 512, &report,
			     &upper));
	dev = device_of(flat_view(src), upper, 13 * 512, 10000);
	memset(buf, 7, sizeof(buf));
	CHECK_EQ(obd_device_write(dev, buf, 5 * 512, 8 * 512), 0);
	CHECK_EQ(obd_device_resize(dev, 29 * 512), -EINVAL);
	CHECK_EQ(obd_device_extend(dev, 12 * 512), -EINVAL);
	MUST(!pthread_create(&thread, NULL, extend, dev));
	CHECK_EQ(drain_wait(&miss, 1), 1);
	CHECK_EQ(miss.first, 1);
	/* Refused while it waits, then again and well. */
	CHECK_EQ(obd_source_fill(src, 1, 1, -EIO), 0);
	MUST(!pthread_join(thread, &ret));
	CHECK_EQ((intptr_t)ret, -EIO);
	CHECK_EQ(obd_device_resize(dev, 29 * 512), -EINVAL);
	MUST(!pthread_create(&thread, NULL, extend, dev));
	CHECK_EQ(drain_wait(&miss, 1), 1);
	blob_fill(3, unit, 4096, 4096);
	MUST(obd_io_pwrite(fd, unit, 4096, 4096) == 4096);
	CHECK_EQ(obd_source_fill(src, 1, 1, 0), 0);
	MUST(!pthread_join(thread, &ret));
	CHECK_EQ((intptr_t)ret, 0);
	CHECK_EQ(file_size(data), 4096 + 16 * 512);
	CHECK_EQ(obd_device_resize(dev, 29 * 512), 0);
	CHECK_EQ(obd_device_read(dev, buf, 8 * 512, 8 * 512), 0);
	CHECK(all_bytes(buf, 7, 5 * 512));
	CHECK(blob_same(3, buf + 5 * 512, 13 * 512, 3 * 512));
	obd_device_unref(dev);
}

/* ---- without threads --------------------------------------------------- */

static bool no_threads;

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
			  void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
			  void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
			  void *(*fn)(void *), void *arg)
{
	return no_threads ? EAGAIN :
			    __real_pthread_create(thread, attr, fn, arg);
}

static void is_called(struct obd_request *req)
{
	*(bool *)req->owner = true;
}

/* A transport submits under its own locks, which done() takes. */
static void what_no_thread_can_be_had_for_ends_inline(void)
{
	struct obd_device *dev = writable(empty_view(SIZE), SIZE);
	uint8_t buf[512] = { 7 };
	struct iovec iov = { buf, 512 };
	bool called = false;
	struct obd_request req = {
		.dev = dev, .done = is_called, .owner = &called,
		.length = 512, .op = OBD_WRITE, .iov = &iov, .iov_count = 1,
	};

	obd_plane_stop();
	no_threads = true;
	CHECK(obd_request_submit(&req));
	no_threads = false;
	CHECK(!called);
	CHECK_EQ(req.err, 0);
	buf[0] = 0;
	CHECK_EQ(obd_device_read(dev, buf, 512, 0), 0);
	CHECK_EQ(buf[0], 7);
	obd_device_unref(dev);
}

/* ---- what is refused --------------------------------------------------- */

static void ranges_are_checked_before_anything_happens(void)
{
	struct obd_device *dev = writable(empty_view(SIZE), SIZE);
	uint8_t *buf = calloc(1, SIZE + 512);

	MUST(buf);
	CHECK_EQ(obd_device_read(dev, buf, 512, 1), -EINVAL);
	CHECK_EQ(obd_device_read(dev, buf, 511, 0), -EINVAL);
	CHECK_EQ(obd_device_read(dev, buf, 512, SIZE), -EINVAL);
	CHECK_EQ(obd_device_read(dev, buf, SIZE + 512, 0), -EINVAL);
	CHECK_EQ(obd_device_read(dev, buf, UINT64_MAX - 511, 512), -EINVAL);
	CHECK_EQ(obd_device_write(dev, buf, 512, SIZE), -ENOSPC);
	CHECK_EQ(obd_device_write(dev, buf, 1024, SIZE - 512), -ENOSPC);
	CHECK_EQ(obd_device_write(dev, buf, 512, 7), -EINVAL);
	CHECK_EQ(obd_device_zero(dev, SIZE, 512), -ENOSPC);
	CHECK_EQ(obd_device_discard(dev, 0, UINT64_MAX - 511), -ENOSPC);
	CHECK_EQ(obd_device_read(dev, buf, 0, SIZE), 0);
	CHECK_EQ(obd_device_write(dev, buf, 0, SIZE), 0);
	CHECK_EQ(obd_device_zero(dev, 0, 0), 0);
	CHECK_EQ(obd_device_read(dev, buf, SIZE, 0), 0);
	CHECK_EQ(obd_device_write(dev, buf, 512, SIZE - 512), 0);
	free(buf);
	obd_device_unref(dev);
}

static void a_device_without_upper_or_with_the_flag_is_read_only(void)
{
	struct obd_upper_report report;
	struct obd_upper *upper;
	struct obd_device *dev;
	struct obd_view *view = empty_view(SIZE);
	uint8_t buf[512] = { 0 };

	MUST(!obd_upper_open(OBD_UPPER_LOG, layer_file(0), layer_file(0),
			     SIZE, &report, &upper));
	CHECK_EQ(obd_device_new(view, upper, SIZE, OBD_DEVICE_READONLY, 0,
				&dev), 0);
	CHECK_EQ(obd_device_write(dev, buf, 512, 0), -EROFS);
	CHECK_EQ(obd_device_flags(dev), OBD_DEVICE_READONLY);
	obd_device_unref(dev);
	obd_upper_unref(upper);
	CHECK_EQ(obd_device_new(view, NULL, SIZE, 0, 0, &dev), 0);
	CHECK_EQ(obd_device_discard(dev, 0, 512), -EROFS);
	CHECK_EQ(obd_device_flush(dev), 0);
	CHECK_EQ(obd_device_flags(dev), OBD_DEVICE_READONLY);
	CHECK_EQ(obd_device_size(dev), SIZE);
	CHECK_EQ(obd_device_swap(dev, NULL), -EINVAL);
	obd_device_unref(dev);
	CHECK_EQ(obd_device_new(view, NULL, SIZE + 1, 0, 0, &dev), -EINVAL);
	CHECK_EQ(obd_device_new(NULL, NULL, SIZE, 0, 0, &dev), -EINVAL);
	obd_view_unref(view);
}

static void a_data_area_of_another_size_is_refused(void)
{
	struct obd_device *dev = writable(empty_view(SIZE), SIZE);
	uint8_t buf[1024];
	struct iovec iov[2] = { { buf, 512 }, { buf + 512, 511 } };
	struct obd_request req = { .dev = dev, .length = 1024,
				   .op = OBD_READ, .iov = iov,
				   .iov_count = 2 };

	CHECK(obd_request_submit(&req));
	CHECK_EQ(req.err, -EINVAL);
	iov[1].iov_len = 513;
	CHECK(obd_request_submit(&req));
	CHECK_EQ(req.err, -EINVAL);
	req.iov_count = 0;
	CHECK(obd_request_submit(&req));
	CHECK_EQ(req.err, -EINVAL);
	obd_device_unref(dev);
}

static void a_record_of_a_source_that_is_not_there_is_an_io_error(void)
{
	struct obd_record rec = rec_make(0, 8, 0, false, 3);
	struct obd_source *src = blob_source(1, 4096);
	struct obd_device *dev = device_of(view_of(&rec, 1, &src, 1, SIZE),
					   NULL, SIZE, 0);
	uint8_t buf[8192];

	CHECK_EQ(obd_device_read(dev, buf, 4096, 0), -EIO);
	CHECK_EQ(obd_device_read(dev, buf, 8192, 0), -EIO);
	CHECK_EQ(obd_device_read(dev, buf, 4096, 4096), 0);
	CHECK(all_bytes(buf, 0, 4096));
	obd_device_unref(dev);
}

static void data_that_ends_early_is_an_io_error_and_never_zeros(void)
{
	struct obd_record rec = rec_make(0, 16, 0, false, 0);
	struct obd_source *src = blob_source(1, 4096 + 100);
	struct obd_device *dev = device_of(view_of(&rec, 1, &src, 1, SIZE),
					   NULL, SIZE, 0);
	uint8_t buf[8192];

	CHECK_EQ(obd_device_read(dev, buf, 4096, 0), 0);
	CHECK_EQ(obd_device_read(dev, buf, 512, 4096), -EIO);
	CHECK_EQ(obd_device_read(dev, buf, 8192, 0), -EIO);
	CHECK_EQ(stats_of(dev).errors, 2);
	obd_device_unref(dev);
}

/* ---- what is read ------------------------------------------------------ */

/* Three sources under many short records, more than one batch of a walk;
 * model gets the bytes. */
static struct obd_view *patchwork(uint8_t *model, uint64_t sectors)
{
	struct obd_record *rec = malloc(sectors * sizeof(*rec));
	uint64_t lba = 0, n, at, count = 0;
	struct obd_source *src[3];
	struct obd_view *view;
	uint32_t tag;

	MUST(rec);
	memset(model, 0, sectors * 512);
	for (tag = 0; tag < 3; tag++)
		src[tag] = blob_source(tag, sectors * 512);
	while (lba < sectors) {
		n = check_below(5) + 1;
		if (n > sectors - lba)
			n = sectors - lba;
		at = check_below(sectors - n + 1);
		tag = (uint32_t)check_below(5);
		if (tag < 3)
			blob_fill(tag, model + lba * 512, at * 512, n * 512);
		if (tag < 4)
			rec[count++] = rec_make(lba, n, at, tag == 3,
						tag % 3);
		lba += n;
	}
	view = view_of(rec, count, src, 3, sectors * 512);
	free(rec);
	return view;
}

static void reads_of_any_range_and_any_data_area_are_right(void)
{
	uint8_t *model = malloc(SIZE), *buf = malloc(SIZE);
	struct obd_device *dev;
	struct iovec iov[40];
	struct obd_request req;
	uint64_t i, at, n, left, part;

	MUST(model && buf);
	dev = writable(patchwork(model, SECTORS), SIZE);
	for (i = 0; i < 800; i++) {
		at = check_below(SECTORS) * 512;
		n = (check_below(check_below(2) ? 16 : 400) + 1) * 512;
		if (n > SIZE - at)
			n = SIZE - at;
		if (!check_below(4)) {
			memset(model + at, (int)i, n);
			CHECK_EQ(obd_device_write(dev, model + at, n, at),
				 0);
			continue;
		}
		memset(&req, 0xFF, sizeof(req));
		req.dev = dev;
		req.offset = at;
		req.length = (uint32_t)n;
		req.op = OBD_READ;
		req.flags = 0;
		req.iov = iov;
		req.iov_count = 0;
		for (left = n; left; left -= part) {
			part = check_below(left) + 1;
			if (req.iov_count == 39 || !check_below(3))
				part = left;
			iov[req.iov_count++] = (struct iovec){
				buf + (n - left), part };
			if (req.iov_count < 39 && !check_below(6))
				iov[req.iov_count++] =
					(struct iovec){ buf, 0 };
		}
		memset(buf, 0x5A, n);
		CHECK_EQ(obd_request_wait(&req), 0);
		CHECK(!memcmp(buf, model + at, n));
	}
	free(model);
	free(buf);
	obd_device_unref(dev);
}

static void a_read_longer_than_one_chunk_is_whole(void)
{
	struct obd_device *dev = device_of(flat_view(blob_source(4, MIB)),
					   NULL, 100 * MIB, 0);
	uint8_t *buf = malloc(100 * MIB);

	MUST(buf);
	memset(buf, 1, 100 * MIB);
	CHECK_EQ(obd_device_read(dev, buf, 100 * MIB, 0), 0);
	CHECK(blob_same(4, buf, 0, MIB));
	CHECK(all_bytes(buf + MIB, 0, 99 * MIB));
	free(buf);
	obd_device_unref(dev);
}

static void many_reads_are_the_same_as_one_and_one(void)
{
	struct obd_device *dev = device_of(flat_view(blob_source(4, MIB)),
					   NULL, MIB, 0);
	uint64_t offsets[100], i;

	for (i = 0; i < 100; i++)
		offsets[i] = check_below(SECTORS - 8) * 512;
	CHECK_EQ(obd_device_read_many(dev, offsets, 100, 4096), 0);
	CHECK_EQ(stats_of(dev).reads, 100);
	CHECK_EQ(stats_of(dev).read_bytes, 100 * 4096);
	offsets[50] = SIZE;
	CHECK_EQ(obd_device_read_many(dev, offsets, 100, 4096), -EINVAL);
	CHECK_EQ(obd_device_read_many(dev, offsets, 0, 4096), 0);
	obd_device_unref(dev);
}

static void sectors_past_two_tib_are_found(void)
{
	uint64_t size = 1ull << 58, lba = (1ull << 48) + 12345;
	struct obd_record rec = rec_make(lba, 8, 0, false, 0);
	struct obd_source *src = blob_source(8, 4096);
	struct obd_device *dev = device_of(view_of(&rec, 1, &src, 1, size),
					   NULL, size, 0);
	struct obd_extent e[4];
	uint8_t buf[8192];

	CHECK_EQ(obd_device_read(dev, buf, 8192, (lba - 4) * 512), 0);
	CHECK(all_bytes(buf, 0, 2048));
	CHECK(blob_same(8, buf + 2048, 0, 4096));
	CHECK(all_bytes(buf + 6144, 0, 2048));
	CHECK_EQ(obd_device_extents(dev, 0, size, e, 4), 3);
	CHECK_EQ(e[0].length, lba * 512);
	CHECK_EQ(e[1].length, 4096);
	CHECK_EQ(e[2].length, size - (lba + 8) * 512);
	obd_device_unref(dev);
}

/* ---- extents ----------------------------------------------------------- */

static bool extent_is(const struct obd_extent *e, uint64_t length,
		      uint32_t state)
{
	return e->length == length && e->state == state && !e->zero;
}

static void extents_merge_and_come_from_the_top(void)
{
	struct obd_record rec[] = {
		rec_make(0, 8, 0, false, 0), rec_make(8, 8, 0, false, 0),
		rec_make(16, 8, 0, true, 0), rec_make(40, 8, 8, false, 0),
	};
	struct obd_source *src = blob_source(1, SIZE);
	struct obd_device *dev = writable(view_of(rec, 4, &src, 1, SIZE),
					  SIZE);
	uint8_t buf[4096] = { 0 };
	struct obd_extent e[8];

	CHECK_EQ(obd_device_extents(dev, 0, SIZE, e, 8), 5);
	CHECK(extent_is(&e[0], 8192, OBD_EXTENT_DATA));
	CHECK(extent_is(&e[1], 4096, OBD_EXTENT_ZERO));
	CHECK(extent_is(&e[2], 8192, OBD_EXTENT_HOLE));
	CHECK(extent_is(&e[3], 4096, OBD_EXTENT_DATA));
	CHECK(extent_is(&e[4], SIZE - 24576, OBD_EXTENT_HOLE));
	CHECK_EQ(obd_device_zero(dev, 4096, 1024), 0);
	CHECK_EQ(obd_device_write(dev, buf, 4096, 8192), 0);
	CHECK_EQ(obd_device_extents(dev, 512, 12288, e, 8), 4);
	CHECK(extent_is(&e[0], 3584, OBD_EXTENT_DATA));
	CHECK(extent_is(&e[1], 1024, OBD_EXTENT_ZERO));
	CHECK(extent_is(&e[2], 4096 + 3072, OBD_EXTENT_DATA));
	CHECK(extent_is(&e[3], 512, OBD_EXTENT_HOLE));
	CHECK_EQ(obd_device_extents(dev, 0, SIZE, e, 2), 2);
	CHECK(extent_is(&e[1], 1024, OBD_EXTENT_ZERO));
	CHECK_EQ(obd_device_extents(dev, SIZE, 0, e, 8), 0);
	CHECK_EQ(obd_device_extents(dev, 0, SIZE + 512, e, 8), -EINVAL);
	CHECK_EQ(obd_device_extents(dev, 3, 512, e, 8), -EINVAL);
	obd_device_unref(dev);
}

/* ---- views ------------------------------------------------------------- */

static void a_view_borrowed_very_often_is_counted_right(void)
{
	struct obd_view *view = empty_view(SIZE), *again;
	struct obd_view_slot slot = { 0 };
	int64_t held;
	int i;

	held = atomic_load(&view->refs);
	obd_view_publish(&slot, view);
	/* More than the slot's 16 bits could count. */
	for (i = 0; i < 200000; i++)
		CHECK(obd_view_borrow(&slot) == view);
	for (i = 0; i < 100000; i++)
		obd_view_return(&slot, view);
	again = empty_view(SIZE);
	obd_view_publish(&slot, again);
	for (i = 0; i < 50000; i++)
		obd_view_return(&slot, view);
	obd_view_publish(&slot, view); /* shown again, others still held */
	for (i = 0; i < 50000; i++)
		obd_view_return(&slot, view);
	obd_view_publish(&slot, NULL);
	CHECK_EQ(atomic_load(&view->refs), held);
	CHECK_EQ(atomic_load(&again->refs), 1);
	obd_view_unref(view);
	obd_view_unref(again);
}

struct swapper {
	pthread_t thread;
	struct obd_device *dev;
	_Atomic bool *stop;
	uint64_t reads, wrong;
};

/* Every read shows one of the views, whole. */
static void *swap_reader(void *arg)
{
	struct swapper *s = arg;
	uint8_t buf[16384];
	uint64_t i = 0, nr;

	while (!atomic_load(s->stop)) {
		i = (i * 5 + 7) % 200;
		if (obd_device_read(s->dev, buf, sizeof(buf), i * 512)) {
			s->wrong++;
			continue;
		}
		for (nr = 0; nr < 4; nr++)
			if (blob_same(nr, buf, i * 512, sizeof(buf)))
				break;
		s->wrong += nr == 4;
		s->reads++;
	}
	return NULL;
}

static void a_swap_under_load_tears_no_read_and_frees_every_view(void)
{
	struct obd_device *dev = device_of(
		flat_view(blob_source(0, 128 * KIB)), NULL, 128 * KIB, 0);
	struct swapper s[4];
	_Atomic bool stop = false;
	struct obd_view *view;
	uint64_t i;

	for (i = 0; i < 4; i++) {
		s[i] = (struct swapper){ .dev = dev, .stop = &stop };
		MUST(!pthread_create(&s[i].thread, NULL, swap_reader,
				     &s[i]));
	}
	for (i = 0; i < 300; i++) {
		view = flat_view(blob_source(i % 4, 128 * KIB));
		CHECK_EQ(obd_device_swap(dev, view), 0);
		obd_view_unref(view);
	}
	atomic_store(&stop, true);
	for (i = 0; i < 4; i++) {
		MUST(!pthread_join(s[i].thread, NULL));
		CHECK_EQ(s[i].wrong, 0);
		CHECK(s[i].reads > 0);
	}
	obd_device_unref(dev);
}

static void a_waiting_request_keeps_the_view_it_started_with(void)
{
	int fd;
	struct obd_source *old = remote_source(91, 4096, 4096, &fd);
	struct obd_view *first = flat_view(obd_source_ref(old));
	struct obd_device *dev = device_of(obd_view_ref(first), NULL, 4096,
					   60000);
	struct obd_view *view = flat_view(blob_source(92, 4096));
	uint8_t buf[4096];
	struct reader rd;

	CHECK_EQ(obd_view_busy(first), 1);
	CHECK_EQ(obd_view_busy(view), 0);
	reader_start(&rd, dev, 0, 4096);
	wait_parked(dev, 1);
	CHECK_EQ(obd_device_swap(dev, view), 0);
	obd_view_unref(view);
	CHECK_EQ(obd_device_read(dev, buf, 4096, 0), 0);
	CHECK(blob_same(92, buf, 0, 4096));
	CHECK(!rd.ended);
	CHECK_EQ(obd_view_busy(first), 1);
	blob_fill(91, buf, 0, 4096);
	MUST(obd_io_pwrite(fd, buf, 4096, 0) == 4096);
	CHECK_EQ(obd_source_fill(old, 0, 1, 0), 0);
	CHECK_EQ(reader_join(&rd), 0);
	CHECK(blob_same(91, rd.buf, 0, 4096));
	CHECK_EQ(obd_view_busy(first), 0);
	obd_view_unref(first);
	free(rd.buf);
	obd_source_unref(old);
	obd_device_unref(dev);
}

/* ---- trace -------------------------------------------------------------- */

static bool noted(const struct obd_trace_read *r, uint32_t layer,
		  uint64_t at, uint64_t length)
{
	return r->layer == layer && r->at == at && r->length == length &&
	       !r->zero;
}

/* 0..8 of the top, 8..16 zeroed, 16..24 of the bottom, a hole, 40..48. */
static struct obd_view *traced_view(void)
{
	struct obd_record rec[] = {
		rec_make(0, 8, 100, false, 0), rec_make(8, 8, 0, true, 0),
		rec_make(16, 8, 8, false, 1), rec_make(40, 8, 16, false, 1),
	};
	struct obd_source *src[] = { blob_source(0, MIB),
				     blob_source(1, MIB) };

	return view_of(rec, 4, src, 2, SIZE);
}

static void a_trace_has_what_lowers_served_in_the_order_of_its_end(void)
{
	struct obd_device *dev = writable(traced_view(), SIZE);
	struct obd_trace_read got[8];
	uint64_t lost = 7;
	uint8_t buf[24576] = { 1 };

	CHECK_EQ(obd_device_read(dev, buf, 4096, 0), 0);
	CHECK_EQ(obd_device_trace_take(dev, got, 8, &lost), 0);
	CHECK_EQ(lost, 0);
	CHECK_EQ(obd_device_trace(dev, 100), 0);
	CHECK_EQ(obd_device_trace_take(dev, got, 8, &lost), 0);
	CHECK_EQ(obd_device_read(dev, buf, 24576, 0), 0);
	CHECK_EQ(obd_device_read(dev, buf, 512, 512), 0);
	CHECK_EQ(obd_device_read(dev, buf, 512, 1024), 0); /* goes on */
	CHECK_EQ(obd_device_read(dev, buf, 512, SIZE), -EINVAL);
	CHECK_EQ(obd_device_write(dev, buf, 512, 0), 0);
	CHECK_EQ(obd_device_read(dev, buf, 1024, 0), 0);
	CHECK_EQ(obd_device_trace_take(dev, got, 3, &lost), 3);
	CHECK(noted(&got[0], 1, 51200, 4096));
	CHECK(noted(&got[1], 0, 4096, 8192)); /* 16 follows 8 in the layer */
	CHECK(noted(&got[2], 1, 51712, 1024));
	CHECK_EQ(obd_device_trace_take(dev, got, 8, &lost), 1);
	CHECK(noted(&got[0], 1, 51712, 512)); /* not what the upper has */
	CHECK_EQ(lost, 0);
	CHECK_EQ(obd_device_trace(dev, 0), 0);
	CHECK_EQ(obd_device_read(dev, buf, 4096, 0), 0);
	CHECK_EQ(obd_device_trace_take(dev, got, 8, &lost), 0);
	obd_device_unref(dev);
}

static void a_trace_keeps_no_more_than_it_may_and_says_what_is_lost(void)
{
	struct obd_device *dev = device_of(traced_view(), NULL, SIZE, 0);
	struct obd_trace_read got[8];
	uint64_t lost, i;
	uint8_t buf[512];

	CHECK_EQ(obd_device_trace(dev, 2), 0);
	for (i = 0; i < 5; i++)
		CHECK_EQ(obd_device_read(dev, buf, 512, 1024 * (i % 2)), 0);
	CHECK_EQ(obd_device_trace_take(dev, got, 8, &lost), 2);
	CHECK_EQ(lost, 3);
	CHECK(noted(&got[1], 1, 51200 + 1024, 512));
	obd_device_unref(dev);
}

static void readers_note_at_once_and_every_read_is_there(void)
{
	struct obd_device *dev = device_of(traced_view(), NULL, SIZE, 0);
	struct obd_trace_read got[64];
	uint64_t lost, sum = 0;
	struct reader rd[40];
	int i, n;

	CHECK_EQ(obd_device_trace(dev, 1000), 0);
	for (i = 0; i < 40; i++)
		reader_start(&rd[i], dev, (uint64_t)(i % 4) * 1024, 1024);
	for (i = 0; i < 40; i++) {
		CHECK_EQ(reader_join(&rd[i]), 0);
		free(rd[i].buf);
	}
	n = obd_device_trace_take(dev, got, 64, &lost);
	for (i = 0; i < n; i++)
		sum += got[i].length;
	CHECK_EQ(sum, 40 * 1024);
	obd_device_unref(dev);
}

/* ---- figures ----------------------------------------------------------- */

static void the_figures_add_up_over_threads(void)
{
	struct obd_device *dev = device_of(flat_view(blob_source(4, MIB)),
					   NULL, MIB, 0);
	struct reader rd[40];
	struct obd_device_stats st;
	int i, round;

	/* More threads than shards, living and dead. */
	for (round = 0; round < 3; round++) {
		for (i = 0; i < 40; i++)
			reader_start(&rd[i], dev, (uint64_t)i * 512, 1024);
		for (i = 0; i < 40; i++) {
			CHECK_EQ(reader_join(&rd[i]), 0);
			free(rd[i].buf);
		}
	}
	st = stats_of(dev);
	CHECK_EQ(st.reads, 120);
	CHECK_EQ(st.read_bytes, 120 * 1024);
	CHECK_EQ(st.errors, 0);
	obd_device_unref(dev);
	dev = writable(empty_view(SIZE), SIZE);
	rd[0].buf = calloc(1, 4096);
	CHECK_EQ(obd_device_write(dev, rd[0].buf, 4096, 0), 0);
	CHECK_EQ(obd_device_zero(dev, 0, 512), 0);
	CHECK_EQ(obd_device_discard(dev, 0, 1024), 0);
	CHECK_EQ(obd_device_flush(dev), 0);
	st = stats_of(dev);
	CHECK_EQ(st.writes, 2);
	CHECK_EQ(st.written_bytes, 4608);
	CHECK_EQ(st.discards, 1);
	CHECK_EQ(st.discarded_bytes, 1024);
	CHECK_EQ(st.flushes, 1);
	free(rd[0].buf);
	obd_device_unref(dev);
}

/* The sanitizers tell of every allocation; without them nothing is
 * counted. */
int __sanitizer_install_malloc_and_free_hooks(
	void (*made)(const volatile void *, size_t),
	void (*freed)(const volatile void *)) __attribute__((weak));

static _Atomic uint64_t made;

static void count_made(const volatile void *p, size_t n)
{
	(void)p;
	(void)n;
	atomic_fetch_add(&made, 1);
}

static void count_freed(const volatile void *p)
{
	(void)p;
}

static void no_request_allocates_in_steady_state(void)
{
	struct obd_zfile_info info;
	struct obd_source *file, *src[2];
	struct obd_record rec[] = { rec_make(0, 128, 0, false, 0),
				    rec_make(128, 128, 0, false, 1) };
	struct obd_device *dev;
	uint8_t *bytes, buf[4096];
	uint64_t size, before, i;
	int fd = temp_fd();

	if (__sanitizer_install_malloc_and_free_hooks)
		__sanitizer_install_malloc_and_free_hooks(count_made,
							  count_freed);
	bytes = zfile_of(1, 64 * KIB, &info, &size);
	MUST(obd_io_pwrite(fd, bytes, size, 0) == (int64_t)size);
	free(bytes);
	MUST(!obd_source_file(fd, 0, size, &file));
	MUST(!obd_source_zfile(file, &info, &src[0]));
	obd_source_unref(file);
	src[1] = blob_source(2, 64 * KIB);
	dev = writable(view_of(rec, 2, src, 2, SIZE), SIZE);
	/* The map makes a node now and then: rewrite what it has. */
	for (i = 0; i < 300; i++)
		MUST(!obd_device_write(dev, buf, 4096, 512 * KIB));
	MUST(!obd_device_read(dev, buf, 4096, 0));
	MUST(!obd_device_flush(dev));
	before = made;
	for (i = 0; i < 300; i++) {
		CHECK_EQ(obd_device_read(dev, buf, 4096, i % 200 * 512), 0);
		CHECK_EQ(obd_device_write(dev, buf, 4096, 512 * KIB), 0);
		CHECK_EQ(obd_device_discard(dev, 512 * KIB, 4096), 0);
		if (i % 50 == 0)
			CHECK_EQ(obd_device_flush(dev), 0);
	}
	CHECK_EQ(made - before, 0);
	CHECK(made > 0 || !__sanitizer_install_malloc_and_free_hooks);
	CHECK_EQ(stats_of(dev).allocations, 0);
	obd_device_unref(dev);
}

int main(void)
{
	parts_start();
	RUN(a_disk_grows_and_never_shrinks);
	RUN(a_sparse_disk_that_grows_fetches_what_its_last_block_lacks);
	RUN(what_no_thread_can_be_had_for_ends_inline);
	RUN(ranges_are_checked_before_anything_happens);
	RUN(a_device_without_upper_or_with_the_flag_is_read_only);
	RUN(a_data_area_of_another_size_is_refused);
	RUN(a_record_of_a_source_that_is_not_there_is_an_io_error);
	RUN(data_that_ends_early_is_an_io_error_and_never_zeros);
	RUN(reads_of_any_range_and_any_data_area_are_right);
	RUN(a_read_longer_than_one_chunk_is_whole);
	RUN(many_reads_are_the_same_as_one_and_one);
	RUN(sectors_past_two_tib_are_found);
	RUN(extents_merge_and_come_from_the_top);
	RUN(a_view_borrowed_very_often_is_counted_right);
	RUN(a_swap_under_load_tears_no_read_and_frees_every_view);
	RUN(a_waiting_request_keeps_the_view_it_started_with);
	RUN(a_trace_has_what_lowers_served_in_the_order_of_its_end);
	RUN(a_trace_keeps_no_more_than_it_may_and_says_what_is_lost);
	RUN(readers_note_at_once_and_every_read_is_there);
	RUN(the_figures_add_up_over_threads);
	RUN(no_request_allocates_in_steady_state);
	MUST(!obd_engine_stop());
	return check_done();
}
