/* SPDX-License-Identifier: Apache-2.0
 *
 * test_buffer.c - bytes on their way into a cache's file: what is marked
 * present is there, whatever the disk does, and every buffer comes back.
 */
#include "parts.h"

#define UNIT 4096u
#define FOREVER 3600000u
#define UNITS 64u

/* A disk of UNITS units and a bit, all of them remote. */
struct remote {
	struct obd_source *src;
	struct obd_device *dev;
	int fd;
	uint64_t nr, size;
};

static struct remote remote_new(uint64_t nr)
{
	struct remote r = { .nr = nr, .size = UNITS * UNIT + 512 };

	r.src = remote_source(nr, r.size, UNIT, &r.fd);
	r.dev = device_of(flat_view(obd_source_ref(r.src)), NULL, r.size,
			  FOREVER);
	return r;
}

static void remote_free(struct remote *r)
{
	obd_device_unref(r->dev);
	obd_source_unref(r->src);
}

static struct obd_buffer *buffer_of(const struct remote *r, uint64_t tag,
				    uint64_t at, uint64_t n)
{
	struct obd_buffer *buffer;

	MUST(!obd_buffer_new(16 * UNIT, tag, &buffer));
	blob_fill(r->nr, obd_buffer_bytes(buffer), at, n);
	return buffer;
}

/* Waits for the next ended write. */
static struct obd_written ended(void)
{
	struct obd_written w = { 0 };
	int i;

	for (i = 0; i < 10000 && !obd_written_drain(&w, 1); i++)
		sleep_ms(1);
	return w;
}

static bool is_present(const struct remote *r, uint64_t unit)
{
	uint8_t bits[UNITS / 8 + 1];

	MUST(!obd_source_bitmap_get(r->src, bits, sizeof(bits)));
	return bits[unit / 8] >> (unit % 8) & 1;
}

static void who_waits_goes_on_when_the_write_has_ended(void)
{
	struct remote r = remote_new(81);
	struct obd_buffer *buffer = buffer_of(&r, 7, 2 * UNIT, 3 * UNIT);
	struct obd_written w;
	struct reader rd;

	reader_start(&rd, r.dev, 2 * UNIT + 512, 2 * UNIT);
	wait_parked(r.dev, 1);
	CHECK_EQ(obd_buffer_write(buffer, r.src, 2 * UNIT, 3 * UNIT), 0);
	CHECK_EQ(reader_join(&rd), 0);
	CHECK(blob_same(r.nr, rd.buf, rd.at, rd.n));
	w = ended();
	CHECK_EQ(w.tag, 7);
	CHECK_EQ(w.error, 0);
	CHECK(!is_present(&r, 1) && is_present(&r, 2) && is_present(&r, 4) &&
	      !is_present(&r, 5));
	free(rd.buf);
	obd_buffer_unref(buffer);
	remote_free(&r);
}

static void the_last_unit_may_be_short_and_no_other(void)
{
	struct remote r = remote_new(82);
	struct obd_buffer *buffer = buffer_of(&r, 1, 0, UNIT);

	CHECK_EQ(obd_buffer_write(buffer, r.src, 0, UNIT - 512), -EINVAL);
	CHECK_EQ(obd_buffer_write(buffer, r.src, 512, UNIT), -EINVAL);
	CHECK_EQ(obd_buffer_write(buffer, r.src, 0, 0), -EINVAL);
	CHECK_EQ(obd_buffer_write(buffer, r.src, 0, 17 * UNIT), -EINVAL);
	CHECK_EQ(obd_buffer_write(buffer, r.src, UNITS * UNIT, UNIT),
		 -EINVAL);
	CHECK_EQ(obd_buffer_write(buffer, r.src, r.size, 512), -EINVAL);
	CHECK_EQ(obd_buffer_write(buffer, r.src, 1ull << 63, UNIT), -EINVAL);
	blob_fill(r.nr, obd_buffer_bytes(buffer), UNITS * UNIT, 512);
	CHECK_EQ(obd_buffer_write(buffer, r.src, UNITS * UNIT, 512), 0);
	CHECK_EQ(ended().error, 0);
	CHECK(is_present(&r, UNITS));
	CHECK_EQ(obd_buffer_new(0, 1, &buffer), -EINVAL);
	CHECK_EQ(obd_buffer_new(UNIT + 1, 1, &buffer), -EINVAL);
	obd_buffer_unref(buffer);
	remote_free(&r);
}

static void a_write_that_fails_marks_nothing(void)
{
	struct remote r = remote_new(83);
	struct obd_buffer *buffer = buffer_of(&r, 9, 0, UNIT);

	CHECK_EQ(obd_io_fault(OBD_IO_PWRITE, 1, ENOSPC, 1), 0);
	CHECK_EQ(obd_buffer_write(buffer, r.src, 0, UNIT), 0);
	CHECK_EQ(ended().error, -ENOSPC);
	CHECK(!is_present(&r, 0));
	/* It is whole still: the next try takes it. */
	CHECK_EQ(obd_buffer_write(buffer, r.src, 0, UNIT), 0);
	CHECK_EQ(ended().error, 0);
	CHECK(is_present(&r, 0));
	obd_buffer_unref(buffer);
	remote_free(&r);
}

static void hang_one_and_queue_one(struct remote *r,
				   struct obd_buffer *buffers[8])
{
	uint32_t i;

	/* As many as there are writers, then one that no one takes. */
	CHECK_EQ(obd_io_fault(OBD_IO_PWRITE, 1, OBD_IO_HANG, 8), 0);
	for (i = 0; i < 8; i++) {
		buffers[i] = buffer_of(r, i, i * UNIT, UNIT);
		CHECK_EQ(obd_buffer_write(buffers[i], r->src, i * UNIT, UNIT),
			 0);
		CHECK_EQ(obd_buffer_write(buffers[i], r->src, i * UNIT, UNIT),
			 -EINVAL);
	}
	sleep_ms(50);
}

static void what_is_taken_back_marks_nothing_and_comes_back_once(void)
{
	struct remote r = remote_new(84);
	struct obd_buffer *buffers[8];
	struct obd_written w;
	uint32_t i, running = 0;

	hang_one_and_queue_one(&r, buffers);
	CHECK_EQ(obd_written_drain(&w, 1), 0);
	for (i = 0; i < 7; i++)
		running += obd_buffer_take_back(buffers[i]) == 0;
	CHECK(running > 0 && running < 7);
	/* Those that no thread had are ours at once. */
	CHECK_EQ(obd_io_fault(OBD_IO_PWRITE, 1, EIO, 0), 0);
	for (i = 0; i < running + 1; i++) {
		w = ended();
		CHECK_EQ(w.error, w.tag == 7 ? 0 : -ECANCELED);
		CHECK_EQ(is_present(&r, w.tag), w.tag == 7);
	}
	sleep_ms(20);
	CHECK_EQ(obd_written_drain(&w, 1), 0);
	CHECK_EQ(obd_buffer_take_back(buffers[7]), -EALREADY);
	for (i = 0; i < 8; i++)
		obd_buffer_unref(buffers[i]);
	remote_free(&r);
}

static void others_are_written_once_those_that_hang_are_given_up(void)
{
	enum { WRITERS = 4 };
	struct remote r = remote_new(86), other = remote_new(87);
	struct obd_buffer *buffers[WRITERS], *last;
	struct obd_written w;
	uint32_t i;

	CHECK_EQ(obd_io_fault(OBD_IO_PWRITE, 1, OBD_IO_HANG, WRITERS), 0);
	for (i = 0; i < WRITERS; i++) {
		buffers[i] = buffer_of(&r, i, i * UNIT, UNIT);
		CHECK_EQ(obd_buffer_write(buffers[i], r.src, i * UNIT, UNIT),
			 0);
	}
	last = buffer_of(&other, 9, 0, UNIT);
	CHECK_EQ(obd_buffer_write(last, other.src, 0, UNIT), 0);
	sleep_ms(30);
	CHECK_EQ(obd_written_drain(&w, 1), 0);
	for (i = 0; i < WRITERS; i++)
		CHECK_EQ(obd_buffer_take_back(buffers[i]), 0);
	w = ended();
	CHECK_EQ(w.tag, 9);
	CHECK_EQ(w.error, 0);
	CHECK_EQ(obd_io_fault(OBD_IO_PWRITE, 1, EIO, 0), 0);
	for (i = 0; i < WRITERS; i++)
		CHECK_EQ(ended().error, -ECANCELED);
	for (i = 0; i < WRITERS; i++)
		obd_buffer_unref(buffers[i]);
	obd_buffer_unref(last);
	remote_free(&r);
	remote_free(&other);
}

static void a_source_is_kept_until_its_write_has_ended(void)
{
	struct remote r = remote_new(85);
	struct obd_buffer *buffer = buffer_of(&r, 3, 0, UNIT);

	CHECK_EQ(obd_io_fault(OBD_IO_PWRITE, 1, OBD_IO_HANG, 1), 0);
	CHECK_EQ(obd_buffer_write(buffer, r.src, 0, UNIT), 0);
	sleep_ms(10);
	remote_free(&r);
	CHECK_EQ(obd_io_fault(OBD_IO_PWRITE, 1, EIO, 0), 0);
	CHECK_EQ(ended().error, 0);
	obd_buffer_unref(buffer);
}

/* Writes, evictions and reads all at once: never a byte of something else. */
#define ROUNDS 400u

struct evictor {
	struct remote *r;
	_Atomic bool stop;
};

static void *evict_main(void *arg)
{
	struct evictor *e = arg;
	uint64_t rnd = 1, unit;

	while (!atomic_load(&e->stop)) {
		rnd = rnd * 6364136223846793005ull + 1;
		unit = (rnd >> 33) % UNITS;
		MUST(!obd_source_evict(e->r->src, unit, 1));
		sched_yield();
	}
	return NULL;
}

static void reads_are_right_while_units_come_and_go(void)
{
	struct remote r = remote_new(86);
	struct evictor e = { .r = &r };
	struct obd_buffer *buffer = buffer_of(&r, 1, 0, 1);
	struct obd_miss m[16];
	struct reader rd;
	pthread_t thread;
	uint64_t at, n;
	uint32_t i;
	int j, got;

	MUST(!pthread_create(&thread, NULL, evict_main, &e));
	for (i = 0; i < ROUNDS; i++) {
		at = i * 7919ull % (UNITS - 4) * UNIT;
		reader_start(&rd, r.dev, at, 4 * UNIT);
		while (!atomic_load(&rd.ended)) {
			got = obd_miss_drain(m, 16);
			for (j = 0; j < got; j++) {
				n = m[j].count * UNIT;
				blob_fill(r.nr, obd_buffer_bytes(buffer),
					  m[j].first * UNIT, n);
				MUST(!obd_buffer_write(buffer, r.src,
						       m[j].first * UNIT, n));
				MUST(ended().tag == 1);
			}
		}
		CHECK_EQ(reader_join(&rd), 0);
		CHECK(blob_same(r.nr, rd.buf, rd.at, rd.n));
		free(rd.buf);
	}
	atomic_store(&e.stop, true);
	MUST(!pthread_join(thread, NULL));
	obd_buffer_unref(buffer);
	remote_free(&r);
}

int main(void)
{
	RUN(who_waits_goes_on_when_the_write_has_ended);
	RUN(the_last_unit_may_be_short_and_no_other);
	RUN(a_write_that_fails_marks_nothing);
	RUN(what_is_taken_back_marks_nothing_and_comes_back_once);
	RUN(others_are_written_once_those_that_hang_are_given_up);
	RUN(a_source_is_kept_until_its_write_has_ended);
	RUN(reads_are_right_while_units_come_and_go);
	return check_done();
}
