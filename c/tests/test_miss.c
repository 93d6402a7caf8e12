/* SPDX-License-Identifier: Apache-2.0 */
#include "parts.h"

#include <poll.h>

#define UNIT 4096u
#define FOREVER 3600000u

/* A disk of n units, all of them remote. */
struct remote {
	struct obd_source *src;
	struct obd_device *dev;
	int fd;
	uint64_t nr, units;
};

static struct remote remote_new(uint64_t nr, uint64_t units,
				uint64_t deadline)
{
	struct remote r = { .nr = nr, .units = units };

	r.src = remote_source(nr, units * UNIT, UNIT, &r.fd);
	r.dev = device_of(flat_view(obd_source_ref(r.src)), NULL,
			  units * UNIT, deadline);
	return r;
}

static void remote_free(struct remote *r)
{
	obd_device_unref(r->dev);
	obd_source_unref(r->src);
}

static void put_units(struct remote *r, uint64_t first, uint64_t count)
{
	uint64_t i;
	uint8_t buf[UNIT];

	for (i = first; i < first + count; i++) {
		blob_fill(r->nr, buf, i * UNIT, UNIT);
		MUST(obd_io_pwrite(r->fd, buf, UNIT, i * UNIT) == UNIT);
	}
}

static void fill_units(struct remote *r, uint64_t first, uint64_t count)
{
	put_units(r, first, count);
	MUST(!obd_source_fill(r->src, first, count, 0));
}

static bool miss_is(const struct obd_miss *m, uint64_t source,
		    uint64_t first, uint64_t count, uint32_t kind)
{
	return m->source == source && m->first == first &&
	       m->count == count && m->kind == kind && !m->zero;
}

/* ---- what is asked for ------------------------------------------------- */

static void all_absent_units_of_a_request_are_asked_for_at_once(void)
{
	struct remote r = remote_new(11, 16, FOREVER);
	struct obd_miss m[8];
	struct reader rd;

	fill_units(&r, 5, 1);
	reader_start(&rd, r.dev, 2 * UNIT + 512, 6 * UNIT);
	wait_parked(r.dev, 1);
	CHECK_EQ(obd_miss_drain(m, 8), 2);
	CHECK(miss_is(&m[0], 11, 2, 3, OBD_MISS_ABSENT));
	CHECK(miss_is(&m[1], 11, 6, 3, OBD_MISS_ABSENT));
	CHECK_EQ(obd_miss_drain(m, 8), 0);
	CHECK_EQ(stats_of(r.dev).misses, 6);
	fill_units(&r, 6, 3);
	CHECK(!rd.ended);
	fill_units(&r, 2, 3);
	CHECK_EQ(reader_join(&rd), 0);
	CHECK(blob_same(11, rd.buf, rd.at, rd.n));
	free(rd.buf);
	remote_free(&r);
}

static void a_unit_is_fetched_once_for_many_requests(void)
{
	struct remote r = remote_new(12, 4, FOREVER);
	struct reader rd[12];
	struct obd_miss m[8];
	int i;

	for (i = 0; i < 12; i++)
		reader_start(&rd[i], r.dev, UNIT + (i % 8) * 512, 512);
	wait_parked(r.dev, 12);
	CHECK_EQ(obd_miss_drain(m, 8), 1);
	CHECK(miss_is(&m[0], 12, 1, 1, OBD_MISS_ABSENT));
	fill_units(&r, 1, 1);
	for (i = 0; i < 12; i++) {
		CHECK_EQ(reader_join(&rd[i]), 0);
		CHECK(blob_same(12, rd[i].buf, rd[i].at, 512));
		free(rd[i].buf);
	}
	CHECK_EQ(obd_miss_drain(m, 8), 0);
	CHECK_EQ(stats_of(r.dev).misses, 1);
	remote_free(&r);
}

static void neighbours_of_different_requests_merge(void)
{
	struct remote r = remote_new(13, 8, FOREVER);
	struct reader rd[4];
	struct obd_miss m[8];
	int i;

	for (i = 0; i < 4; i++)
		reader_start(&rd[i], r.dev, (6 - i) * UNIT, UNIT);
	wait_parked(r.dev, 4);
	CHECK_EQ(obd_miss_drain(m, 8), 1);
	CHECK(miss_is(&m[0], 13, 3, 4, OBD_MISS_ABSENT));
	fill_units(&r, 3, 4);
	for (i = 0; i < 4; i++) {
		CHECK_EQ(reader_join(&rd[i]), 0);
		free(rd[i].buf);
	}
	remote_free(&r);
}

static void a_short_drain_leaves_the_rest_and_every_source_has_a_turn(void)
{
	struct remote a = remote_new(14, 8, FOREVER);
	struct remote b = remote_new(15, 8, FOREVER);
	struct reader rd[5];
	struct obd_miss m[8];
	int i, of_b = -1;

	for (i = 0; i < 4; i++)
		reader_start(&rd[i], a.dev, 2 * i * UNIT, UNIT);
	wait_parked(a.dev, 4);
	reader_start(&rd[4], b.dev, 0, UNIT);
	wait_parked(b.dev, 1);
	for (i = 0; i < 5; i++) {
		CHECK_EQ(obd_miss_drain(&m[i], 1), 1);
		if (m[i].source == 15)
			of_b = i;
	}
	CHECK_EQ(of_b, 1);
	CHECK_EQ(obd_miss_drain(m, 8), 0);
	fill_units(&a, 0, 8);
	fill_units(&b, 0, 8);
	for (i = 0; i < 5; i++) {
		CHECK_EQ(reader_join(&rd[i]), 0);
		free(rd[i].buf);
	}
	remote_free(&a);
	remote_free(&b);
}

static void a_source_that_is_freed_leaves_the_queue(void)
{
	struct remote r = remote_new(16, 8, 50);
	struct reader rd;
	struct obd_miss m[8];

	reader_start(&rd, r.dev, 0, UNIT);
	CHECK_EQ(reader_join(&rd), -ETIMEDOUT);
	free(rd.buf);
	remote_free(&r);
	CHECK_EQ(obd_miss_drain(m, 8), 0);
}

static void a_present_unit_is_read_without_the_queue(void)
{
	struct remote r = remote_new(17, 2, FOREVER);
	uint8_t buf[UNIT];

	fill_units(&r, 0, 2);
	CHECK_EQ(obd_device_read(r.dev, buf, UNIT, 512), 0);
	CHECK(blob_same(17, buf, 512, UNIT));
	CHECK_EQ(stats_of(r.dev).parked, 0);
	CHECK_EQ(stats_of(r.dev).misses, 0);
	remote_free(&r);
}

/* ---- answers ----------------------------------------------------------- */

static uint64_t sum_of(const uint64_t *buckets)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < OBD_TIMES_BUCKETS; i++)
		sum += buckets[i];
	return sum;
}

static void reads_are_timed_by_where_they_came_from(void)
{
	struct remote r = remote_new(17, 4, FOREVER);
	struct obd_read_times times;
	struct reader rd;
	uint8_t buf[512];

	CHECK_EQ(obd_device_times(r.dev, &times), 0);
	CHECK_EQ(sum_of(times.local) + sum_of(times.fetched), 0);
	reader_start(&rd, r.dev, 0, 512);
	wait_parked(r.dev, 1);
	nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
	fill_units(&r, 0, 1);
	CHECK_EQ(reader_join(&rd), 0);
	CHECK_EQ(obd_device_times(r.dev, &times), 0);
	CHECK_EQ(sum_of(times.fetched), 1);
	CHECK(times.fetched_ns >= 5000000);
	/* 4^6 us is 4.1 ms: none of them was that fast. */
	CHECK_EQ(sum_of(times.fetched) - times.fetched[13], 1);
	for (int i = 0; i <= 6; i++)
		CHECK_EQ(times.fetched[i], 0);
	/* One in 16 is timed, and stands for as many. */
	for (int i = 0; i < 160; i++)
		CHECK_EQ(obd_device_read(r.dev, buf, 512, 0), 0);
	CHECK_EQ(obd_device_times(r.dev, &times), 0);
	CHECK_EQ(sum_of(times.local), 160);
	CHECK(times.local_ns > 0 && times.local_ns < 160000000000);
	CHECK_EQ(sum_of(times.fetched), 1);
	free(rd.buf);
	remote_free(&r);
}

static void a_failure_ends_the_request_and_is_not_remembered(void)
{
	struct remote r = remote_new(21, 4, FOREVER);
	struct obd_miss m[4];
	struct reader rd;

	reader_start(&rd, r.dev, 0, UNIT);
	CHECK_EQ(drain_wait(m, 4), 1);
	wait_parked(r.dev, 1);
	CHECK_EQ(obd_source_fill(r.src, 0, 1, -ECONNREFUSED), 0);
	CHECK_EQ(reader_join(&rd), -ECONNREFUSED);
	free(rd.buf);
	CHECK_EQ(stats_of(r.dev).errors, 1);
	reader_start(&rd, r.dev, 0, UNIT);
	CHECK_EQ(drain_wait(m, 4), 1);
	fill_units(&r, 0, 1);
	CHECK_EQ(reader_join(&rd), 0);
	free(rd.buf);
	remote_free(&r);
}

static void a_failure_ends_who_needs_the_unit_but_waits_for_another(void)
{
	struct remote r = remote_new(22, 8, FOREVER);
	struct reader rd, other;

	reader_start(&rd, r.dev, 0, 4 * UNIT);
	reader_start(&other, r.dev, 0, UNIT);
	wait_parked(r.dev, 2);
	CHECK_EQ(obd_source_fill(r.src, 3, 1, -EPIPE), 0);
	CHECK_EQ(reader_join(&rd), -EPIPE);
	CHECK(!other.ended);
	fill_units(&r, 0, 1);
	CHECK_EQ(reader_join(&other), 0);
	free(rd.buf);
	free(other.buf);
	remote_free(&r);
}

static void a_failed_unit_that_the_upper_hides_is_nobodys_business(void)
{
	int fd, data = layer_file(0), index = layer_file(0);
	struct obd_source *src = remote_source(23, 4 * UNIT, UNIT, &fd);
	struct obd_upper_report report;
	struct obd_upper *upper;
	struct obd_device *dev;
	uint8_t buf[UNIT];
	struct reader rd;

	MUST(!obd_upper_open(OBD_UPPER_LOG, data, index, 4 * UNIT, &report,
			     &upper));
	dev = device_of(flat_view(obd_source_ref(src)), upper, 4 * UNIT,
			FOREVER);
	memset(buf, 0xAB, UNIT);
	CHECK_EQ(obd_device_write(dev, buf, UNIT, UNIT), 0);
	reader_start(&rd, dev, 0, 2 * UNIT);
	wait_parked(dev, 1);
	CHECK_EQ(obd_source_fill(src, 1, 1, -EIO), 0);
	sleep_ms(20);
	CHECK(!rd.ended);
	blob_fill(23, buf, 0, UNIT);
	MUST(obd_io_pwrite(fd, buf, UNIT, 0) == UNIT);
	CHECK_EQ(obd_source_fill(src, 0, 1, 0), 0);
	CHECK_EQ(reader_join(&rd), 0);
	CHECK(blob_same(23, rd.buf, 0, UNIT));
	CHECK(all_bytes(rd.buf + UNIT, 0xAB, UNIT));
	free(rd.buf);
	obd_device_unref(dev);
	obd_source_unref(src);
}

static void a_restored_bitmap_wakes_what_it_answers(void)
{
	struct remote r = remote_new(24, 8, FOREVER);
	uint8_t bits = 0x0F;
	struct reader rd;
	struct obd_miss m[4];

	reader_start(&rd, r.dev, 0, 4 * UNIT);
	wait_parked(r.dev, 1);
	put_units(&r, 0, 4);
	CHECK_EQ(obd_source_bitmap_set(r.src, &bits, 1), 0);
	CHECK_EQ(reader_join(&rd), 0);
	CHECK(blob_same(24, rd.buf, 0, 4 * UNIT));
	CHECK_EQ(obd_miss_drain(m, 4), 0);
	free(rd.buf);
	remote_free(&r);
}

static void a_unit_evicted_before_it_was_read_is_asked_for_again(void)
{
	struct remote r = remote_new(25, 2, FOREVER);
	struct reader rd;
	struct obd_miss m[4];

	reader_start(&rd, r.dev, 0, 2 * UNIT);
	CHECK_EQ(drain_wait(m, 4), 1);
	wait_parked(r.dev, 1);
	/* It waits for unit 0; unit 1 comes and goes. */
	fill_units(&r, 1, 1);
	CHECK_EQ(obd_source_evict(r.src, 1, 1), 0);
	fill_units(&r, 0, 1);
	CHECK_EQ(drain_wait(m, 4), 1);
	CHECK(miss_is(&m[0], 25, 1, 1, OBD_MISS_ABSENT));
	fill_units(&r, 1, 1);
	CHECK_EQ(reader_join(&rd), 0);
	CHECK(blob_same(25, rd.buf, 0, 2 * UNIT));
	free(rd.buf);
	remote_free(&r);
}

static void a_cache_file_that_cannot_be_read_is_asked_for_again(void)
{
	struct remote r = remote_new(26, 3, FOREVER);
	struct reader rd;
	struct obd_miss m[4];
	uint64_t i;

	fill_units(&r, 0, 3);
	for (i = 0; i < 2; i++) {
		if (i == 0)
			obd_io_fault(OBD_IO_PREAD, 1, EIO, 1);
		else /* somebody cut it */
			MUST(!ftruncate(r.src->fd, (off_t)UNIT));
		reader_start(&rd, r.dev, UNIT, UNIT);
		CHECK_EQ(drain_wait(m, 4), 1);
		CHECK(miss_is(&m[0], 26, 1, 1, OBD_MISS_CORRUPT));
		fill_units(&r, 1, 1);
		CHECK_EQ(reader_join(&rd), 0);
		CHECK(blob_same(26, rd.buf, UNIT, UNIT));
		free(rd.buf);
	}
	remote_free(&r);
}

/* ---- ends -------------------------------------------------------------- */

static void a_request_waits_until_its_deadline_and_no_longer(void)
{
	struct remote r = remote_new(31, 4, 60), late = remote_new(32, 4, 400);
	struct reader rd[3];
	uint64_t start = obd_now_ms();
	int i;

	reader_start(&rd[1], late.dev, 0, UNIT);
	wait_parked(late.dev, 1);
	reader_start(&rd[0], r.dev, 0, UNIT);
	CHECK_EQ(reader_join(&rd[0]), -ETIMEDOUT);
	CHECK(obd_now_ms() - start >= 60);
	CHECK(!rd[1].ended);
	CHECK_EQ(reader_join(&rd[1]), -ETIMEDOUT);
	CHECK(obd_now_ms() - start >= 400);
	/* The unit is still on its way: it is not asked for again. */
	reader_start(&rd[2], r.dev, 0, UNIT);
	wait_parked(r.dev, 2);
	CHECK_EQ(stats_of(r.dev).misses, 1);
	fill_units(&r, 0, 1);
	CHECK_EQ(reader_join(&rd[2]), 0);
	for (i = 0; i < 3; i++)
		free(rd[i].buf);
	remote_free(&r);
	remote_free(&late);
}

static void closing_ends_waiting_requests_and_refuses_new_ones(void)
{
	struct remote r = remote_new(33, 4, FOREVER);
	struct remote other = remote_new(34, 4, FOREVER);
	struct reader rd[5];
	uint8_t buf[512];
	int i;

	for (i = 0; i < 4; i++)
		reader_start(&rd[i], r.dev, i * UNIT, UNIT);
	reader_start(&rd[4], other.dev, 0, UNIT);
	wait_parked(r.dev, 4);
	wait_parked(other.dev, 1);
	CHECK_EQ(obd_device_close(r.dev, -ENODEV), 0);
	for (i = 0; i < 4; i++) {
		CHECK_EQ(reader_join(&rd[i]), -ENODEV);
		free(rd[i].buf);
	}
	CHECK_EQ(obd_device_read(r.dev, buf, 512, 0), -ENODEV);
	CHECK_EQ(obd_device_flush(r.dev), 0); /* of what came before */
	CHECK_EQ(obd_device_close(r.dev, -EIO), 0);
	CHECK_EQ(obd_device_read(r.dev, buf, 512, 0), -ENODEV);
	CHECK(!rd[4].ended);
	CHECK_EQ(obd_device_close(other.dev, 0), 0);
	CHECK_EQ(reader_join(&rd[4]), -ESHUTDOWN);
	free(rd[4].buf);
	remote_free(&r);
	remote_free(&other);
}

static void units_that_nobody_waits_for_any_more_are_asked_for_again(void)
{
	struct remote r = remote_new(36, 8, FOREVER);
	struct obd_miss m[4];
	struct reader rd, other;

	CHECK_EQ(obd_source_wanted(r.src, 0, 9), -EINVAL);
	CHECK_EQ(obd_source_wanted(r.src, 0, 0), 0);
	reader_start(&rd, r.dev, 0, 4 * UNIT);
	wait_parked(r.dev, 1);
	CHECK_EQ(drain_wait(m, 4), 1);
	/* It waits for the first, and needs the others as well. */
	CHECK_EQ(obd_source_wanted(r.src, 3, 1), 1);
	CHECK_EQ(obd_source_wanted(r.src, 3, 5), 1);
	CHECK_EQ(obd_source_wanted(r.src, 4, 4), 0);
	CHECK_EQ(obd_device_abandon(r.dev, -ENODEV), 0);
	CHECK_EQ(reader_join(&rd), -ENODEV);
	free(rd.buf);
	/* Handed out, so nobody asks again, until it is known to be idle. */
	reader_start(&rd, r.dev, 0, UNIT);
	wait_parked(r.dev, 2);
	CHECK_EQ(obd_miss_drain(m, 4), 0);
	CHECK_EQ(obd_source_wanted(r.src, 0, 4), 1);
	CHECK_EQ(obd_source_wanted(r.src, 1, 3), 0);
	reader_start(&other, r.dev, UNIT, UNIT);
	CHECK_EQ(drain_wait(m, 4), 1);
	CHECK_EQ(m[0].first, 1);
	fill_units(&r, 0, 2);
	CHECK_EQ(reader_join(&rd), 0);
	CHECK_EQ(reader_join(&other), 0);
	free(rd.buf);
	free(other.buf);
	remote_free(&r);
}

static void a_device_lives_as_long_as_its_waiting_request(void)
{
	struct remote r = remote_new(35, 4, FOREVER);
	uint32_t before = obd_device_count();
	struct reader rd;

	reader_start(&rd, r.dev, 0, UNIT);
	wait_parked(r.dev, 1);
	obd_device_unref(r.dev);
	CHECK_EQ(obd_device_count(), before);
	fill_units(&r, 0, 1);
	CHECK_EQ(reader_join(&rd), 0);
	free(rd.buf);
	obd_source_unref(r.src);
	while (obd_device_count() == before)
		sleep_ms(1);
}

/* ---- requests of a transport ------------------------------------------- */

struct submitted {
	struct obd_request req;
	struct iovec iov;
	_Atomic int calls;
};

static void submitted_done(struct obd_request *req)
{
	struct submitted *s = req->owner;

	atomic_fetch_add(&s->calls, 1);
}

static bool submit_read(struct submitted *s, struct obd_device *dev,
			void *buf, uint64_t at, uint32_t n)
{
	memset(s, 0xA5, sizeof(*s)); /* whatever was there before */
	s->iov = (struct iovec){ buf, n };
	s->calls = 0;
	s->req.dev = dev;
	s->req.done = submitted_done;
	s->req.owner = s;
	s->req.offset = at;
	s->req.length = n;
	s->req.op = OBD_READ;
	s->req.flags = 0;
	s->req.iov = &s->iov;
	s->req.iov_count = 1;
	return obd_request_submit(&s->req);
}

static void wait_done(struct submitted *s)
{
	int i;

	for (i = 0; i < 10000 && !s->calls; i++)
		sleep_ms(1);
	MUST(s->calls == 1);
}

static void requests_end_out_of_order(void)
{
	struct remote r = remote_new(41, 8, FOREVER);
	static uint8_t buf[3][UNIT];
	struct submitted s[3];

	fill_units(&r, 7, 1);
	CHECK(!submit_read(&s[0], r.dev, buf[0], 0, UNIT));
	CHECK(!submit_read(&s[1], r.dev, buf[1], UNIT, UNIT));
	if (!submit_read(&s[2], r.dev, buf[2], 7 * UNIT, UNIT))
		wait_done(&s[2]);
	CHECK_EQ(s[2].req.err, 0);
	CHECK(blob_same(41, buf[2], 7 * UNIT, UNIT));
	fill_units(&r, 1, 1);
	wait_done(&s[1]);
	CHECK_EQ(s[1].req.err, 0);
	CHECK_EQ(s[0].calls, 0);
	fill_units(&r, 0, 1);
	wait_done(&s[0]);
	CHECK(blob_same(41, buf[0], 0, UNIT));
	CHECK(blob_same(41, buf[1], UNIT, UNIT));
	remote_free(&r);
}

static void what_would_block_goes_to_a_helper(void)
{
	struct obd_device *dev = device_of(flat_view(blob_source(42, UNIT)),
					   NULL, UNIT, FOREVER);
	static uint8_t buf[UNIT];
	struct submitted s;

	obd_io_fault(OBD_IO_PREAD, 1, EAGAIN, 1);
	CHECK(!submit_read(&s, dev, buf, 0, UNIT));
	wait_done(&s);
	CHECK_EQ(s.req.err, 0);
	CHECK(blob_same(42, buf, 0, UNIT));
	CHECK(submit_read(&s, dev, buf, 512, 512));
	CHECK_EQ(s.req.err, 0);
	CHECK(blob_same(42, buf, 512, 512));
	CHECK_EQ(s.calls, 0);
	CHECK(submit_read(&s, dev, buf, UNIT, 512));
	CHECK_EQ(s.req.err, -EINVAL);
	obd_device_unref(dev);
}

/* ---- the wake-up ------------------------------------------------------------- */

static int listen_at(const char *name, struct sockaddr_un *sa)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	size_t n = strlen(name);

	memset(sa, 0, sizeof(*sa));
	sa->sun_family = AF_UNIX;
	memcpy(sa->sun_path, name, n);
	if (name[0] == '@')
		sa->sun_path[0] = 0;
	MUST(fd >= 0);
	MUST(!bind(fd, (struct sockaddr *)sa,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n +
			       (name[0] != '@'))));
	MUST(!listen(fd, 4));
	return fd;
}

/* Bytes that have come within ms. */
static int bytes_within(int fd, int ms)
{
	struct pollfd p = { fd, POLLIN, 0 };
	char buf[16];

	if (poll(&p, 1, ms) <= 0)
		return 0;
	return (int)read(fd, buf, sizeof(buf));
}

static void one_byte_tells_that_the_queue_is_no_longer_empty(void)
{
	struct remote r = remote_new(51, 64, FOREVER);
	struct sockaddr_un sa;
	struct obd_miss m[8];
	struct reader rd[3];
	char name[64];
	int i, fd, conn;

	snprintf(name, sizeof(name), "@obd-test-miss-%d", (int)getpid());
	fd = listen_at(name, &sa);
	CHECK_EQ(obd_wake_connect(name), 0);
	conn = accept(fd, NULL, NULL);
	MUST(conn >= 0);
	CHECK_EQ(bytes_within(conn, 5000), 1); /* what came before */
	CHECK_EQ(bytes_within(conn, 20), 0);
	reader_start(&rd[0], r.dev, 0, UNIT);
	CHECK_EQ(bytes_within(conn, 5000), 1);
	reader_start(&rd[1], r.dev, 9 * UNIT, UNIT);
	wait_parked(r.dev, 2);
	CHECK_EQ(bytes_within(conn, 20), 0);
	CHECK_EQ(obd_miss_drain(m, 8), 2);
	reader_start(&rd[2], r.dev, 20 * UNIT, UNIT);
	CHECK_EQ(bytes_within(conn, 5000), 1);
	close(conn);
	/* A new listener hears at once. */
	CHECK_EQ(obd_wake_connect(name), 0);
	conn = accept(fd, NULL, NULL);
	MUST(conn >= 0);
	CHECK_EQ(bytes_within(conn, 5000), 1);
	CHECK_EQ(obd_wake_connect(NULL), 0);
	CHECK_EQ(bytes_within(conn, 5000), 0); /* closed */
	fill_units(&r, 0, 64);
	for (i = 0; i < 3; i++) {
		CHECK_EQ(reader_join(&rd[i]), 0);
		free(rd[i].buf);
	}
	close(conn);
	close(fd);
	remote_free(&r);
}

static void a_listener_that_is_not_there_is_an_error(void)
{
	char longer[200];

	memset(longer, 'x', sizeof(longer));
	longer[199] = 0;
	CHECK_EQ(obd_wake_connect("/nonexistent/socket"), -ENOENT);
	CHECK_EQ(obd_wake_connect("@obd-nobody-listens"), -ECONNREFUSED);
	CHECK_EQ(obd_wake_connect(longer), -ENAMETOOLONG);
	CHECK_EQ(obd_wake_connect(""), -EINVAL);
	CHECK_EQ(obd_wake_connect("@"), -EINVAL);
}

/* ---- writes that need lowers ------------------------------------------- */

static void a_small_write_on_a_sparse_layer_waits_for_the_rest(void)
{
	int fd, data = layer_file(0);
	struct obd_source *src = remote_source(61, 4 * UNIT, UNIT, &fd);
	struct obd_upper_report report;
	struct obd_upper *upper;
	struct obd_device *dev;
	uint8_t buf[2 * UNIT], sector[512];
	struct submitted s;
	struct obd_miss m[4];

	MUST(!obd_upper_open(OBD_UPPER_SPARSE, data, -1, 4 * UNIT, &report,
			     &upper));
	dev = device_of(flat_view(obd_source_ref(src)), upper, 4 * UNIT,
			FOREVER);
	memset(sector, 0xCD, sizeof(sector));
	memset(&s, 0, sizeof(s));
	s.iov = (struct iovec){ sector, 512 };
	s.req = (struct obd_request){
		.dev = dev, .done = submitted_done, .owner = &s,
		.offset = UNIT + 512, .length = 512, .op = OBD_WRITE,
		.iov = &s.iov, .iov_count = 1,
	};
	CHECK(!obd_request_submit(&s.req));
	CHECK_EQ(drain_wait(m, 4), 1);
	CHECK(miss_is(&m[0], 61, 1, 1, OBD_MISS_ABSENT));
	CHECK_EQ(s.calls, 0);
	blob_fill(61, buf, 0, 2 * UNIT);
	MUST(obd_io_pwrite(fd, buf, 2 * UNIT, 0) == 2 * UNIT);
	CHECK_EQ(obd_source_fill(src, 0, 2, 0), 0);
	wait_done(&s);
	CHECK_EQ(s.req.err, 0);
	CHECK_EQ(obd_device_read(dev, buf, UNIT, UNIT), 0);
	CHECK(blob_same(61, buf, UNIT, 512));
	CHECK(all_bytes(buf + 512, 0xCD, 512));
	CHECK(blob_same(61, buf + 1024, UNIT + 1024, UNIT - 1024));
	obd_device_unref(dev);
	obd_source_unref(src);
}

/* ---- bad blocks -------------------------------------------------------- */

/* A remote ZFile whose blocks can be spoilt in the cache file. */
struct remote_zfile {
	struct remote r;
	struct obd_source *zfile;
	uint8_t *bytes;
	uint64_t size;
};

static struct remote_zfile zfile_new(uint64_t nr, uint64_t blocks)
{
	struct remote_zfile z = { .r = { .nr = nr } };
	struct obd_zfile_info info;
	uint64_t table;

	z.bytes = zfile_of(nr, blocks * UNIT, &info, &z.size);
	z.r.src = remote_source(nr, z.size, UNIT, &z.r.fd);
	MUST(obd_source_zfile(z.r.src, &info, &z.zfile) == -EAGAIN);
	MUST(obd_io_pwrite(z.r.fd, z.bytes, z.size, 0) == (int64_t)z.size);
	table = info.index_offset / UNIT;
	MUST(!obd_source_fill(z.r.src, table, z.size / UNIT - table + 1, 0));
	MUST(!obd_source_zfile(z.r.src, &info, &z.zfile));
	z.r.dev = device_of(flat_view(obd_source_ref(z.zfile)), NULL,
			    blocks * UNIT, FOREVER);
	return z;
}

static void zfile_free(struct remote_zfile *z)
{
	obd_source_unref(z->zfile);
	remote_free(&z->r);
	free(z->bytes);
}

/* Writes the stored bytes of units again, or garbage. */
static void zfile_put(struct remote_zfile *z, uint64_t first, uint64_t count,
		      bool good)
{
	uint64_t at = first * UNIT, n = count * UNIT;
	uint8_t *bad = malloc(n);

	if (n > z->size - at)
		n = z->size - at;
	memcpy(bad, z->bytes + at, n);
	bad[n / 2] ^= good ? 0 : 0x10;
	MUST(obd_io_pwrite(z->r.fd, bad, n, at) == (int64_t)n);
	free(bad);
	MUST(!obd_source_fill(z->r.src, first, count, 0));
}

static void a_bad_block_is_fetched_again_as_corrupt(void)
{
	struct remote_zfile z = zfile_new(81, 32);
	struct obd_miss m[4];
	struct reader rd;
	uint64_t at;
	uint32_t length;

	MUST(!obd_source_block(z.zfile, 10, &at, &length));
	CHECK_EQ(obd_source_block(z.zfile, 32, &at, &length), -EINVAL);
	CHECK_EQ(obd_source_block(z.r.src, 0, &at, &length), -EINVAL);
	reader_start(&rd, z.r.dev, 10 * UNIT, 512);
	CHECK_EQ(drain_wait(m, 4), 1);
	CHECK_EQ(m[0].kind, OBD_MISS_ABSENT);
	CHECK(m[0].first == at / UNIT);
	CHECK(m[0].count == (at + length - 1) / UNIT - m[0].first + 1);
	zfile_put(&z, m[0].first, m[0].count, false);
	CHECK_EQ(drain_wait(m, 4), 1);
	CHECK_EQ(m[0].kind, OBD_MISS_CORRUPT);
	zfile_put(&z, m[0].first, m[0].count, true);
	CHECK_EQ(reader_join(&rd), 0);
	CHECK(blob_same(81, rd.buf, 10 * UNIT, 512));
	CHECK_EQ(stats_of(z.r.dev).corrupt, 1);
	free(rd.buf);
	zfile_free(&z);
}

static void a_block_that_stays_bad_is_given_up(void)
{
	struct remote_zfile z = zfile_new(82, 32);
	struct obd_miss m[4];
	struct reader rd;
	int i;

	reader_start(&rd, z.r.dev, 10 * UNIT, UNIT);
	for (i = 0; i < 4; i++) {
		CHECK_EQ(drain_wait(m, 4), 1);
		CHECK_EQ(m[0].kind, i ? OBD_MISS_CORRUPT : OBD_MISS_ABSENT);
		zfile_put(&z, m[0].first, m[0].count, false);
	}
	CHECK_EQ(reader_join(&rd), -EUCLEAN);
	free(rd.buf);
	CHECK_EQ(obd_miss_drain(m, 4), 0);
	CHECK_EQ(stats_of(z.r.dev).corrupt, 4);
	/* The next request tries again. */
	reader_start(&rd, z.r.dev, 10 * UNIT, UNIT);
	CHECK_EQ(drain_wait(m, 4), 1);
	CHECK_EQ(m[0].kind, OBD_MISS_CORRUPT);
	zfile_put(&z, m[0].first, m[0].count, true);
	CHECK_EQ(reader_join(&rd), 0);
	free(rd.buf);
	zfile_free(&z);
}

static void a_bad_block_of_a_local_file_is_an_error_at_once(void)
{
	struct obd_source *file, *zfile;
	struct obd_zfile_info info;
	struct obd_device *dev;
	uint8_t *bytes, buf[UNIT];
	uint64_t size;
	int fd = temp_fd();

	bytes = zfile_of(83, 8 * UNIT, &info, &size);
	bytes[600] ^= 1;
	MUST(obd_io_pwrite(fd, bytes, size, 0) == (int64_t)size);
	free(bytes);
	MUST(!obd_source_file(fd, 0, size, &file));
	MUST(!obd_source_zfile(file, &info, &zfile));
	obd_source_unref(file);
	dev = device_of(flat_view(zfile), NULL, 8 * UNIT, FOREVER);
	CHECK_EQ(obd_device_read(dev, buf, UNIT, 0), -EUCLEAN);
	CHECK_EQ(obd_device_read(dev, buf, UNIT, UNIT), 0);
	CHECK(blob_same(83, buf, UNIT, UNIT));
	CHECK_EQ(stats_of(dev).corrupt, 1);
	CHECK_EQ(stats_of(dev).misses, 0);
	obd_device_unref(dev);
}

/* ---- a fetcher that behaves badly -------------------------------------- */

struct chaos {
	struct remote r;
	_Atomic bool stop;
	_Atomic uint64_t fetched, failed, evicted;
};

/* Answers late, in any order, with failures, and evicts what is there. */
static void *chaos_fetch(void *arg)
{
	struct chaos *c = arg;
	struct obd_miss held[32];
	uint64_t rnd = 12345, count = 0, i, unit;
	int n;

	while (!atomic_load(&c->stop) || count) {
		n = obd_miss_drain(held + count, (uint32_t)(32 - count));
		count += (uint64_t)n;
		rnd = rnd * 6364136223846793005 + 1442695040888963407;
		if ((rnd >> 33) % 4 == 0)
			sleep_ms((rnd >> 40) % 3);
		unit = (rnd >> 33) % c->r.units;
		if ((rnd >> 50) % 8 == 0) {
			/* The order that keeps zeros from being served. */
			obd_source_evict(c->r.src, unit, 1);
			fallocate(c->r.fd, FALLOC_FL_PUNCH_HOLE |
				  FALLOC_FL_KEEP_SIZE,
				  (off_t)(unit * UNIT), UNIT);
			atomic_fetch_add(&c->evicted, 1);
		}
		if (!count)
			continue;
		i = (rnd >> 35) % count;
		if ((rnd >> 45) % 16 == 0) {
			obd_source_fill(c->r.src, held[i].first,
					held[i].count, -EREMOTEIO);
			atomic_fetch_add(&c->failed, 1);
		} else {
			fill_units(&c->r, held[i].first, held[i].count);
			atomic_fetch_add(&c->fetched, held[i].count);
		}
		held[i] = held[--count];
	}
	return NULL;
}

struct chaos_reader {
	pthread_t thread;
	struct chaos *c;
	uint64_t rnd, good, bad, wrong;
};

static void *chaos_read(void *arg)
{
	struct chaos_reader *r = arg;
	uint8_t buf[8 * UNIT];
	uint64_t at, n;
	int i, err;

	for (i = 0; i < 1500; i++) {
		r->rnd = r->rnd * 6364136223846793005 + 1442695040888963407;
		at = (r->rnd >> 20) % (r->c->r.units * 8) * 512;
		n = ((r->rnd >> 50) % 64 + 1) * 512;
		if (at + n > r->c->r.units * UNIT)
			n = r->c->r.units * UNIT - at;
		err = obd_device_read(r->c->r.dev, buf, n, at);
		if (!err && blob_same(r->c->r.nr, buf, at, n))
			r->good++;
		else if (err == -EREMOTEIO)
			r->bad++;
		else
			r->wrong++;
	}
	return NULL;
}

static void every_read_has_its_bytes_or_its_error_whatever_happens(void)
{
	struct chaos c = { .r = remote_new(71, 64, FOREVER) };
	struct chaos_reader rd[6];
	uint64_t good = 0, bad = 0;
	pthread_t fetcher;
	int i;

	MUST(!pthread_create(&fetcher, NULL, chaos_fetch, &c));
	for (i = 0; i < 6; i++) {
		rd[i] = (struct chaos_reader){ .c = &c, .rnd = i + 1u };
		MUST(!pthread_create(&rd[i].thread, NULL, chaos_read,
				     &rd[i]));
	}
	for (i = 0; i < 6; i++) {
		MUST(!pthread_join(rd[i].thread, NULL));
		CHECK_EQ(rd[i].wrong, 0);
		good += rd[i].good;
		bad += rd[i].bad;
	}
	atomic_store(&c.stop, true);
	MUST(!pthread_join(fetcher, NULL));
	CHECK_EQ(good + bad, 6 * 1500);
	CHECK(good > 0);
	CHECK(c.failed == 0 || bad > 0);
	CHECK_EQ(stats_of(c.r.dev).errors, bad);
	CHECK_EQ(stats_of(c.r.dev).allocations, 0);
	remote_free(&c.r);
}

struct shaker {
	struct remote r;
	_Atomic bool stop;
};

/* Evicts, frees and brings back the last unit, over and over. */
static void *shake(void *arg)
{
	const struct timespec gone = { 0, 50000 }, there = { 0, 200000 };
	struct shaker *s = arg;
	uint64_t last = s->r.units - 1;
	struct obd_miss m[4];

	while (!atomic_load(&s->stop)) {
		MUST(!obd_source_evict(s->r.src, last, 1));
		MUST(!fallocate(s->r.fd, FALLOC_FL_PUNCH_HOLE |
				FALLOC_FL_KEEP_SIZE, (off_t)(last * UNIT),
				UNIT));
		nanosleep(&gone, NULL);
		fill_units(&s->r, last, 1);
		obd_miss_drain(m, 4);
		nanosleep(&there, NULL);
	}
	return NULL;
}

static void a_read_serves_no_unit_that_went_while_it_ran(void)
{
	struct shaker s = { .r = remote_new(72, 512, FOREVER) };
	uint8_t *buf = malloc(512 * UNIT);
	pthread_t thread;
	int i;

	MUST(buf);
	fill_units(&s.r, 0, 512);
	MUST(!pthread_create(&thread, NULL, shake, &s));
	for (i = 0; i < 300; i++) {
		CHECK_EQ(obd_device_read(s.r.dev, buf, 512 * UNIT, 0), 0);
		CHECK(blob_same(72, buf + 511 * UNIT, 511 * UNIT, UNIT));
	}
	atomic_store(&s.stop, true);
	MUST(!pthread_join(thread, NULL));
	free(buf);
	remote_free(&s.r);
}

int main(void)
{
	parts_start();
	RUN(all_absent_units_of_a_request_are_asked_for_at_once);
	RUN(a_unit_is_fetched_once_for_many_requests);
	RUN(neighbours_of_different_requests_merge);
	RUN(a_short_drain_leaves_the_rest_and_every_source_has_a_turn);
	RUN(a_source_that_is_freed_leaves_the_queue);
	RUN(a_present_unit_is_read_without_the_queue);
	RUN(reads_are_timed_by_where_they_came_from);
	RUN(a_failure_ends_the_request_and_is_not_remembered);
	RUN(a_failure_ends_who_needs_the_unit_but_waits_for_another);
	RUN(a_failed_unit_that_the_upper_hides_is_nobodys_business);
	RUN(a_restored_bitmap_wakes_what_it_answers);
	RUN(a_unit_evicted_before_it_was_read_is_asked_for_again);
	RUN(a_cache_file_that_cannot_be_read_is_asked_for_again);
	RUN(a_request_waits_until_its_deadline_and_no_longer);
	RUN(closing_ends_waiting_requests_and_refuses_new_ones);
	RUN(units_that_nobody_waits_for_any_more_are_asked_for_again);
	RUN(a_device_lives_as_long_as_its_waiting_request);
	RUN(requests_end_out_of_order);
	RUN(what_would_block_goes_to_a_helper);
	RUN(one_byte_tells_that_the_queue_is_no_longer_empty);
	RUN(a_listener_that_is_not_there_is_an_error);
	RUN(a_small_write_on_a_sparse_layer_waits_for_the_rest);
	RUN(a_bad_block_is_fetched_again_as_corrupt);
	RUN(a_block_that_stays_bad_is_given_up);
	RUN(a_bad_block_of_a_local_file_is_an_error_at_once);
	RUN(every_read_has_its_bytes_or_its_error_whatever_happens);
	RUN(a_read_serves_no_unit_that_went_while_it_ran);
	MUST(!obd_engine_stop());
	return check_done();
}
