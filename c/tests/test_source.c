/* SPDX-License-Identifier: Apache-2.0 */
#include "parts.h"

static void a_file_source_is_a_window_of_its_file(void)
{
	struct obd_source *src;
	uint8_t buf[256], want[256];
	int fd = temp_fd();

	blob_fill(1, want, 0, 256);
	MUST(obd_io_pwrite(fd, want, 256, 1000) == 256);
	CHECK_EQ(obd_source_file(fd, 1000, 200, &src), 0);
	CHECK_EQ(obd_source_size(src), 200);
	CHECK_EQ(obd_source_pread(src, buf, 100, 0), 100);
	CHECK(!memcmp(buf, want, 100));
	CHECK_EQ(obd_source_pread(src, buf, 256, 150), 50);
	CHECK(!memcmp(buf, want + 150, 50));
	CHECK_EQ(obd_source_pread(src, buf, 1, 200), 0);
	CHECK_EQ(obd_source_pread(src, buf, 1, UINT64_MAX), 0);
	CHECK_EQ(obd_source_read(src, buf, 100, 101, OBD_TRY_BLOCK), -EIO);
	CHECK_EQ(obd_source_read(src, buf, UINT64_MAX, 1, OBD_TRY_BLOCK),
		 -EIO);
	CHECK(obd_source_is_local(src));
	obd_source_unref(src);
}

static void bounds_that_overflow_are_refused(void)
{
	struct obd_source *src;
	int fd = temp_fd();

	CHECK_EQ(obd_source_file(-1, 0, 1, &src), -EBADF);
	CHECK_EQ(obd_source_file(fd, UINT64_MAX, 1, &src), -EINVAL);
	CHECK_EQ(obd_source_file(fd, INT64_MAX, 1, &src), -EINVAL);
	CHECK_EQ(obd_source_file(fd, 1, INT64_MAX, &src), -EINVAL);
	CHECK_EQ(obd_source_cache(-1, 1, 4096, 0, &src), -EBADF);
	CHECK_EQ(obd_source_cache(fd, 1, 2048, 0, &src), -EINVAL);
	CHECK_EQ(obd_source_cache(fd, 1, 5000, 0, &src), -EINVAL);
	CHECK_EQ(obd_source_cache(fd, UINT64_MAX, 4096, 0, &src), -EINVAL);
	close(fd);
}

static void a_file_that_is_shorter_than_its_source_is_an_io_error(void)
{
	struct obd_source *src;
	uint8_t buf[512];
	int fd = temp_fd();

	MUST(!ftruncate(fd, 300));
	CHECK_EQ(obd_source_file(fd, 0, 512, &src), 0);
	CHECK_EQ(obd_source_pread(src, buf, 512, 0), -EIO);
	CHECK_EQ(obd_source_pread(src, buf, 300, 0), 300);
	obd_source_unref(src);
}

static void only_nowait_says_again_and_blocking_never_does(void)
{
	struct obd_source *src = blob_source(2, 4096);
	uint8_t buf[4096];

	obd_io_fault(OBD_IO_PREAD, 1, EAGAIN, 1);
	CHECK_EQ(obd_source_read(src, buf, 4096, 0, OBD_TRY_NOWAIT),
		 -EAGAIN);
	obd_io_fault(OBD_IO_PREAD, 1, EAGAIN, 1);
	CHECK_EQ(obd_source_read(src, buf, 4096, 0, OBD_TRY_BLOCK), -EIO);
	obd_io_fault(OBD_IO_PREAD, 1, ENODATA, 1);
	CHECK_EQ(obd_source_read(src, buf, 4096, 0, OBD_TRY_BLOCK), -EIO);
	obd_io_fault(OBD_IO_PREAD, 1, EUCLEAN, 1);
	CHECK_EQ(obd_source_read(src, buf, 4096, 0, OBD_TRY_NOWAIT), -EIO);
	obd_io_fault(OBD_IO_PREAD, 1, ENOMEM, 1);
	CHECK_EQ(obd_source_read(src, buf, 4096, 0, OBD_TRY_BLOCK), -ENOMEM);
	obd_source_unref(src);
}

static void a_file_system_without_nowait_is_remembered(void)
{
	struct obd_source *src = blob_source(3, 4096);
	uint8_t buf[4096];

	obd_io_fault(OBD_IO_PREAD, 1, EOPNOTSUPP, 1);
	CHECK_EQ(obd_source_read(src, buf, 4096, 0, OBD_TRY_NOWAIT), 0);
	CHECK(blob_same(3, buf, 0, 4096));
	CHECK(src->no_nowait);
	/* A plain read now, whose EAGAIN means nothing. */
	obd_io_fault(OBD_IO_PREAD, 1, EAGAIN, 1);
	CHECK_EQ(obd_source_read(src, buf, 4096, 0, OBD_TRY_NOWAIT), -EIO);
	obd_source_unref(src);
}

static void direct_reads_of_any_range_have_its_bytes(void)
{
	enum { SIZE = (2 << 20) + 777, BASE = 512 };
	uint8_t *want = malloc(SIZE), *buf = malloc(SIZE);
	char path[64];
	struct obd_source *src;
	uint64_t at, n;
	int fd = temp_fd(), direct;

	blob_fill(7, want, 0, SIZE);
	MUST(obd_io_pwrite(fd, want, SIZE, 0) == SIZE);
	MUST(!fsync(fd));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	direct = obd_io_open(path, 0 | O_DIRECT, 0);
	if (direct < 0) {
		printf("# no O_DIRECT here\n");
		direct = dup(fd);
	}
	CHECK_EQ(obd_source_file(fd, BASE, SIZE - BASE, &src), 0);
	CHECK_EQ(obd_source_direct(src, -1), -EBADF);
	CHECK_EQ(obd_source_direct(src, direct), 0);
	CHECK_EQ(obd_source_direct(src, direct), -EINVAL);
	CHECK_EQ(obd_source_read(src, buf, 512, 0, OBD_TRY_NOWAIT), -EAGAIN);
	CHECK_EQ(obd_source_pread(src, buf, SIZE, 0), SIZE - BASE);
	CHECK(!memcmp(buf, want + BASE, SIZE - BASE));
	for (int i = 0; i < 2000; i++) {
		at = check_random() % (SIZE - BASE);
		n = check_random() % (i % 10 ? 9000 : SIZE);
		if (n > SIZE - BASE - at)
			n = SIZE - BASE - at;
		CHECK_EQ(obd_source_pread(src, buf, n, at), (int64_t)n);
		CHECK(!memcmp(buf, want + BASE + at, n));
	}
	/* A file that became shorter is an error, never old bytes. */
	MUST(!ftruncate(fd, SIZE - 1000));
	CHECK_EQ(obd_source_read(src, buf, 512, SIZE - BASE - 512,
				 OBD_TRY_BLOCK), -EIO);
	obd_source_unref(src);
	free(want);
	free(buf);
}

static void a_cache_serves_what_was_filled_and_nothing_else(void)
{
	int fd;
	struct obd_source *src = remote_source(7, 10000, 4096, &fd);
	uint8_t buf[10000];

	CHECK(!obd_source_is_local(src));
	CHECK_EQ(obd_source_pread(src, buf, 1, 0), -EAGAIN);
	blob_fill(7, buf, 0, 10000);
	MUST(obd_io_pwrite(fd, buf, 10000, 0) == 10000);
	CHECK_EQ(obd_source_fill(src, 1, 1, 0), 0);
	CHECK_EQ(obd_source_pread(src, buf, 4096, 4096), 4096);
	CHECK(blob_same(7, buf, 4096, 4096));
	CHECK_EQ(obd_source_pread(src, buf, 4097, 4096), -EAGAIN);
	CHECK_EQ(obd_source_pread(src, buf, 2, 4095), -EAGAIN);
	CHECK_EQ(obd_source_fill(src, 2, 1, 0), 0);
	CHECK_EQ(obd_source_pread(src, buf, 9999, 4096), 10000 - 4096);
	CHECK_EQ(obd_source_evict(src, 1, 1), 0);
	CHECK_EQ(obd_source_pread(src, buf, 4096, 4096), -EAGAIN);
	CHECK_EQ(obd_source_pread(src, buf, 1, 8192), 1);
	obd_source_unref(src);
}

static void a_spilled_unit_is_read_from_the_second_file(void)
{
	int fd, spill = temp_fd();
	struct obd_source *src = remote_source(7, 12288, 4096, &fd);
	uint8_t buf[12288], wrong[12288];

	CHECK_EQ(obd_source_fill_spilled(src, 1, 1), -EBADF);
	CHECK_EQ(obd_source_spill(src, spill), 0);
	CHECK_EQ(obd_source_spill(src, fd), -EBUSY);
	blob_fill(7, buf, 0, 12288);
	memset(wrong, 0xee, sizeof(wrong));
	MUST(obd_io_pwrite(fd, buf, 12288, 0) == 12288);
	MUST(obd_io_pwrite(fd, wrong, 4096, 4096) == 4096);
	MUST(obd_io_pwrite(spill, wrong, 12288, 0) == 12288);
	MUST(obd_io_pwrite(spill, buf + 4096, 4096, 4096) == 4096);
	CHECK_EQ(obd_source_fill(src, 0, 3, 0), 0);
	CHECK_EQ(obd_source_evict(src, 1, 1), 0);
	CHECK_EQ(obd_source_pread(src, buf, 1, 5000), -EAGAIN);
	CHECK_EQ(obd_source_fill_spilled(src, 1, 1), 0);
	CHECK_EQ(obd_source_pread(src, buf, 11000, 100), 11000);
	CHECK(blob_same(7, buf, 100, 11000));
	/* Back in the first file it is read there. */
	CHECK_EQ(obd_source_evict(src, 1, 1), 0);
	CHECK_EQ(obd_source_fill(src, 1, 1, 0), 0);
	CHECK_EQ(obd_source_pread(src, buf, 4096, 4096), 4096);
	CHECK(!memcmp(buf, wrong, 4096));
	obd_source_unref(src);
}

static void reads_are_noted_by_unit_until_they_are_asked_for(void)
{
	int fd;
	struct obd_source *src = remote_source(7, 10 * 4096, 4096, &fd);
	uint8_t bits[2], buf[8192];

	MUST(!ftruncate(fd, 10 * 4096));
	CHECK_EQ(obd_source_fill(src, 0, 10, 0), 0);
	CHECK_EQ(obd_source_used(src, bits, 1), -EINVAL);
	CHECK_EQ(obd_source_used(src, bits, 2), 0);
	CHECK(!bits[0] && !bits[1]);
	CHECK_EQ(obd_source_pread(src, buf, 1, 4095), 1);
	CHECK_EQ(obd_source_pread(src, buf, 4097, 8 * 4096 - 1), 4097);
	CHECK_EQ(obd_source_used(src, bits, 2), 0);
	CHECK_EQ(bits[0], 0x81);
	CHECK_EQ(bits[1], 0x01);
	CHECK_EQ(obd_source_used(src, bits, 2), 0);
	CHECK(!bits[0] && !bits[1]);
	obd_source_unref(src);
}

static void who_reads_late_does_not_spoil_what_came_since(void)
{
	int fd;
	struct obd_source *src = remote_source(7, 8192, 4096, &fd);
	uint64_t losses;
	uint8_t buf;

	MUST(!ftruncate(fd, 8192));
	CHECK_EQ(obd_source_fill(src, 0, 2, 0), 0);
	losses = atomic_load(&src->units->losses);
	/* Another one has found it bad; it is fetched again. */
	obd_miss_spoil(src, 0, 1, losses);
	CHECK_EQ(obd_source_pread(src, &buf, 1, 0), -EAGAIN);
	CHECK_EQ(obd_source_fill(src, 0, 1, 0), 0);
	obd_miss_spoil(src, 0, 1, losses);
	CHECK_EQ(obd_source_pread(src, &buf, 1, 0), 1);
	obd_source_unref(src);
}

static void answers_outside_a_cache_are_refused(void)
{
	int fd;
	struct obd_source *src = remote_source(7, 10000, 4096, &fd);
	struct obd_source *file = blob_source(1, 512);

	CHECK_EQ(obd_source_fill(src, 0, 4, 0), -EINVAL);
	CHECK_EQ(obd_source_fill(src, 4, 1, 0), -EINVAL);
	CHECK_EQ(obd_source_fill(src, 1, UINT64_MAX, 0), -EINVAL);
	CHECK_EQ(obd_source_fill(src, 0, 1, EIO), -EINVAL);
	CHECK_EQ(obd_source_fill(src, 3, 0, 0), 0);
	CHECK_EQ(obd_source_evict(src, 0, 4), -EINVAL);
	CHECK_EQ(obd_source_fill(file, 0, 1, 0), -EINVAL);
	CHECK_EQ(obd_source_evict(file, 0, 1), -EINVAL);
	obd_source_unref(file);
	obd_source_unref(src);
}

static void the_bitmap_comes_back_as_it_was_saved(void)
{
	int fd;
	struct obd_source *src = remote_source(1, 200 * 4096, 4096, &fd);
	uint8_t bits[25], other[25];
	uint64_t i;

	for (i = 0; i < 200; i += 3)
		CHECK_EQ(obd_source_fill(src, i, 1, 0), 0);
	CHECK_EQ(obd_source_bitmap_get(src, bits, 25), 0);
	for (i = 0; i < 200; i++)
		CHECK_EQ(bits[i / 8] >> (i % 8) & 1, i % 3 == 0);
	CHECK_EQ(obd_source_bitmap_get(src, bits, 24), -EINVAL);
	CHECK_EQ(obd_source_bitmap_set(src, bits, 26), -EINVAL);
	CHECK_EQ(obd_source_fill(src, 0, 200, 0), 0);
	CHECK_EQ(obd_source_bitmap_set(src, bits, 25), 0);
	CHECK_EQ(obd_source_bitmap_get(src, other, 25), 0);
	CHECK(!memcmp(bits, other, 25));
	obd_source_unref(src);
}

static void bits_past_the_last_unit_mean_nothing(void)
{
	int fd;
	struct obd_source *src = remote_source(1, 3 * 4096 + 1, 4096, &fd);
	uint8_t bits = 0xFF;

	CHECK_EQ(obd_source_bitmap_set(src, &bits, 1), 0);
	CHECK_EQ(obd_source_bitmap_get(src, &bits, 1), 0);
	CHECK_EQ(bits, 0x0F);
	obd_source_unref(src);
}

static void presence_is_right_across_words(void)
{
	int fd;
	struct obd_source *src = remote_source(1, 300 * 4096, 4096, &fd);
	uint64_t i, from, n;

	for (i = 0; i < 300; i++)
		if (i != 130)
			CHECK_EQ(obd_source_fill(src, i, 1, 0), 0);
	for (from = 0; from < 300; from++)
		for (n = 1; from + n <= 300; n += 13)
			CHECK_EQ(obd_units_present(src->units, from * 4096,
						   n * 4096),
				 !(from <= 130 && from + n > 130));
	obd_source_unref(src);
}

static void bytes_read_while_their_unit_was_evicted_are_not_served(void)
{
	int fd;
	struct obd_source *src = remote_source(1, 8192, 4096, &fd);
	uint64_t before;
	uint8_t buf[16];

	CHECK_EQ(obd_source_fill(src, 0, 2, 0), 0);
	before = src->units->losses;
	CHECK_EQ(obd_source_evict(src, 1, 1), 0);
	CHECK(src->units->losses != before);
	CHECK_EQ(obd_source_read(src, buf, 16, 0, OBD_TRY_BLOCK), 0);
	CHECK_EQ(obd_source_read(src, buf, 16, 4096, OBD_TRY_BLOCK),
		 -ENODATA);
	obd_source_unref(src);
}

/* Takes all there is; the newest kind, name, place and length. */
static int64_t drain_slow(struct obd_slow_read *last)
{
	struct obd_slow_read out[8];
	uint64_t dropped;
	int64_t n, all = 0;

	while ((n = obd_slow_drain(out, 8, &dropped)) > 0) {
		*last = out[n - 1];
		all += n;
	}
	return all;
}

static void a_slow_read_of_a_cache_is_noted_with_what_came(void)
{
	struct obd_slow_read slow;
	struct obd_source *src;
	uint8_t buf[4096];
	int fd = temp_fd();

	MUST(!ftruncate(fd, 16384));
	CHECK_EQ(obd_source_cache(fd, 16384, 4096, 7, &src), 0);
	CHECK_EQ(obd_source_window(src, 1024, 8192), 0);
	CHECK_EQ(obd_source_fill(src, 0, 4, 0), 0);
	obd_io_delay(2);
	CHECK_EQ(obd_source_read(src, buf, 512, 4096, OBD_TRY_BLOCK), 0);
	CHECK_EQ(drain_slow(&slow), 0);
	CHECK_EQ(obd_slow_watch(1000000, 0), 0);
	CHECK_EQ(obd_source_read(src, buf, 512, 4096, OBD_TRY_NOWAIT),
		 -EAGAIN);
	CHECK_EQ(drain_slow(&slow), 0);
	CHECK_EQ(obd_source_read(src, buf, 512, 4096, OBD_TRY_BLOCK), 0);
	CHECK_EQ(drain_slow(&slow), 1);
	CHECK_EQ(slow.kind, OBD_SLOW_CACHE);
	CHECK_EQ(slow.at, 1024 + 4096);
	CHECK_EQ(slow.length, 512);
	CHECK(slow.ns >= 2000000);
	obd_io_fault(OBD_IO_PREAD, 1, EIO, 1);
	obd_source_read(src, buf, 512, 0, OBD_TRY_BLOCK);
	CHECK_EQ(drain_slow(&slow), 1);
	CHECK_EQ(slow.length, -1);
	obd_io_delay(0);
	CHECK_EQ(obd_source_fill(src, 0, 4, 0), 0);
	CHECK_EQ(obd_source_read(src, buf, 512, 0, OBD_TRY_BLOCK), 0);
	CHECK_EQ(obd_slow_watch(0, 0), 0);
	obd_source_unref(src);
	drain_slow(&slow);
}

static void a_slow_read_of_a_local_file_is_noted_by_its_name(void)
{
	struct obd_source *src = blob_source(5, 8192);
	struct obd_slow_read slow;
	uint8_t buf[4096];

	CHECK_EQ(obd_source_name(src, 0), -EINVAL);
	obd_io_delay(2);
	CHECK_EQ(obd_slow_watch(0, 1000000), 0);
	CHECK_EQ(obd_source_read(src, buf, 4096, 1024, OBD_TRY_BLOCK), 0);
	CHECK_EQ(drain_slow(&slow), 0);
	CHECK_EQ(obd_source_name(src, 9), 0);
	CHECK_EQ(obd_source_read(src, buf, 4096, 1024, OBD_TRY_BLOCK), 0);
	CHECK_EQ(drain_slow(&slow), 1);
	CHECK_EQ(slow.kind, OBD_SLOW_LOCAL);
	CHECK_EQ(slow.name, 9);
	CHECK_EQ(slow.at, 1024);
	CHECK_EQ(slow.length, 4096);
	/* Where every read may wait, so may this one. */
	src->no_nowait = true;
	CHECK_EQ(obd_source_read(src, buf, 4096, 0, OBD_TRY_NOWAIT), 0);
	CHECK_EQ(drain_slow(&slow), 1);
	obd_io_delay(0);
	CHECK_EQ(obd_slow_watch(0, 0), 0);
	obd_source_unref(src);
}

static void slow_reads_beyond_what_there_is_room_for_are_counted(void)
{
	struct obd_source *src = blob_source(6, 4096);
	struct obd_slow_read out[300];
	uint64_t dropped;
	uint8_t buf[16];
	int i;

	CHECK_EQ(obd_source_name(src, 1), 0);
	CHECK_EQ(obd_slow_watch(1, 1), 0);
	for (i = 0; i < 300; i++)
		CHECK_EQ(obd_source_read(src, buf, 16, (uint64_t)i,
					 OBD_TRY_BLOCK), 0);
	CHECK_EQ(obd_slow_drain(out, 100, &dropped), 100);
	CHECK_EQ(dropped, 44);
	CHECK_EQ(out[0].at, 0);
	CHECK_EQ(obd_slow_drain(out, 300, &dropped), 156);
	CHECK_EQ(dropped, 0);
	CHECK_EQ(out[155].at, 255);
	CHECK_EQ(obd_slow_watch(0, 0), 0);
	obd_source_unref(src);
}

static void a_zfile_in_a_zfile_is_refused(void)
{
	struct obd_source src = { .kind = SRC_ZFILE }, *out;
	struct obd_zfile_info info = { 0 };

	CHECK_EQ(obd_source_zfile(&src, &info, &out), -EINVAL);
	CHECK_EQ(obd_source_zfile(NULL, &info, &out), -EINVAL);
}

int main(void)
{
	parts_start();
	RUN(a_file_source_is_a_window_of_its_file);
	RUN(bounds_that_overflow_are_refused);
	RUN(a_file_that_is_shorter_than_its_source_is_an_io_error);
	RUN(only_nowait_says_again_and_blocking_never_does);
	RUN(a_file_system_without_nowait_is_remembered);
	RUN(direct_reads_of_any_range_have_its_bytes);
	RUN(a_cache_serves_what_was_filled_and_nothing_else);
	RUN(a_spilled_unit_is_read_from_the_second_file);
	RUN(reads_are_noted_by_unit_until_they_are_asked_for);
	RUN(who_reads_late_does_not_spoil_what_came_since);
	RUN(answers_outside_a_cache_are_refused);
	RUN(the_bitmap_comes_back_as_it_was_saved);
	RUN(bits_past_the_last_unit_mean_nothing);
	RUN(presence_is_right_across_words);
	RUN(bytes_read_while_their_unit_was_evicted_are_not_served);
	RUN(a_slow_read_of_a_cache_is_noted_with_what_came);
	RUN(a_slow_read_of_a_local_file_is_noted_by_its_name);
	RUN(slow_reads_beyond_what_there_is_room_for_are_counted);
	RUN(a_zfile_in_a_zfile_is_refused);
	return check_done();
}
