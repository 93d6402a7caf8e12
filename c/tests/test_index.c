/* SPDX-License-Identifier: Apache-2.0
 *
 * Loading an index: every rule of spec lsmt 8 (and the cases of 13 that
 * concern it), met and broken by one, and the forms made in memory.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif
#include <sys/mman.h>

#include "../internal.h"
#include "check.h"

#define END 1000u /* where the data of the samples ends, in sectors */

static struct obd_index *loaded;
static struct obd_bad bad;

static struct obd_source *source_of(const void *bytes, uint64_t n,
				    uint64_t at)
{
	int fd = memfd_create("index", MFD_CLOEXEC);
	struct obd_source *src;

	if (fd < 0 || pwrite(fd, bytes, n, (off_t)at) != (ssize_t)n ||
	    obd_source_file(fd, 0, at + n, &src))
		abort();
	return src;
}

static int load_at(const struct obd_record *r, uint64_t n, uint64_t at,
		   uint64_t end)
{
	struct obd_source *src = source_of(r, n * sizeof(*r), at);
	int rc;

	memset(&bad, 0xee, sizeof(bad));
	obd_index_unref(loaded);
	loaded = NULL;
	rc = obd_index_load(src, at, n, end, &bad, &loaded);
	obd_source_unref(src);
	return rc;
}

#define LOAD(...)                                                     \
	load_at((struct obd_record[]){ __VA_ARGS__ },                 \
		sizeof((struct obd_record[]){ __VA_ARGS__ }) /        \
			sizeof(struct obd_record), 4096, END)

#define DATA(lba, n, at) rec_make(lba, n, at, false, 0)
#define ZERO(lba, n, at) rec_make(lba, n, at, true, 0)
#define PADDING rec_make(OBD_INVALID_LBA, 0, 0, false, 0)

static void has(uint64_t i, struct obd_record want)
{
	struct obd_record r;

	CHECK_EQ(obd_index_records(loaded, i, 1, &r), 1);
	CHECK_MSG(r.w0 == want.w0 && r.w1 == want.w1, "record %d", (int)i);
}

#define REJECTED(rc, number, why)                                     \
	do {                                                          \
		CHECK_EQ(rc, -EBADMSG);                               \
		CHECK_EQ(bad.record, number);                         \
		CHECK_EQ(bad.reason, why);                            \
		CHECK_EQ(bad.zero, 0);                                \
		CHECK(!loaded);                                       \
	} while (0)

#define ACCEPTED(rc, n)                                               \
	do {                                                          \
		CHECK_EQ(rc, 0);                                      \
		CHECK_EQ(bad.record, 0);                              \
		CHECK_EQ(bad.reason, OBD_BAD_NONE);                   \
		CHECK_EQ(obd_index_count(loaded), n);                 \
	} while (0)

/* ---- what is accepted ------------------------------------------------ */

static void an_empty_index_maps_nothing(void)
{
	struct obd_record r;

	ACCEPTED(load_at(NULL, 0, 4096, 8), 0);
	CHECK_EQ(obd_index_lookup(loaded, 0, UINT64_MAX, &r, 1), 0);
	CHECK_EQ(obd_index_records(loaded, 0, 1, &r), 0);
}

static void padding_is_dropped_wherever_it_is(void)
{
	struct obd_record odd = rec_make(OBD_INVALID_LBA, 77, 3, true, 9);

	ACCEPTED(LOAD(PADDING, DATA(0, 8, 8), PADDING, odd, DATA(8, 8, 16),
		      PADDING), 2);
	has(0, DATA(0, 8, 8));
	has(1, DATA(8, 8, 16));
	ACCEPTED(LOAD(PADDING, PADDING), 0);
}

static void padding_does_not_hide_disorder(void)
{
	REJECTED(LOAD(PADDING, DATA(4, 8, 8), PADDING, DATA(11, 8, 16)), 1,
		 OBD_BAD_ORDER);
}

static void tags_are_ignored(void)
{
	ACCEPTED(LOAD(rec_make(0, 8, 8, false, 255),
		      rec_make(8, 8, 8, true, 3)), 2);
	has(0, DATA(0, 8, 8));
	has(1, ZERO(8, 8, 8));
}

static void records_may_touch_and_leave_gaps(void)
{
	ACCEPTED(LOAD(DATA(0, 1, 8), ZERO(1, 16383, 8),
		      DATA(1ull << 49, 1, 8)), 3);
	has(1, ZERO(1, 16383, 8));
}

static void a_record_of_no_sectors_is_checked_and_dropped(void)
{
	ACCEPTED(LOAD(DATA(5, 0, 9), ZERO(5, 0, 8), DATA(6, 1, 8)), 1);
	has(0, DATA(6, 1, 8));
	/* mend = 8 is not past the header. */
	REJECTED(LOAD(DATA(5, 0, 8)), 0, OBD_BAD_LOW);
	REJECTED(LOAD(DATA(5, 0, END)), 0, OBD_BAD_HIGH);
	REJECTED(LOAD(DATA(6, 1, 8), DATA(5, 0, 9)), 0, OBD_BAD_ORDER);
}

/* ---- what is rejected ------------------------------------------------ */

static void disorder_is_rejected(void)
{
	REJECTED(LOAD(DATA(0, 8, 8), DATA(7, 8, 8)), 0, OBD_BAD_ORDER);
	REJECTED(LOAD(DATA(0, 1, 8), DATA(8, 8, 8), DATA(4, 1, 8)), 1,
		 OBD_BAD_ORDER);
	REJECTED(LOAD(DATA(0, 8, 8), DATA(0, 8, 8)), 0, OBD_BAD_ORDER);
}

static void data_must_lie_between_header_and_end(void)
{
	REJECTED(LOAD(DATA(0, 8, 7)), 0, OBD_BAD_LOW);
	REJECTED(LOAD(DATA(0, 8, 0)), 0, OBD_BAD_LOW);
	ACCEPTED(LOAD(DATA(0, 8, 8)), 1);
	ACCEPTED(LOAD(DATA(0, 8, END - 8)), 1);
	REJECTED(LOAD(DATA(0, 8, END - 7)), 0, OBD_BAD_HIGH);
	REJECTED(LOAD(DATA(0, 1, 8), DATA(1, 1, END)), 1, OBD_BAD_HIGH);
	REJECTED(LOAD(DATA(0, 16383, OBD_AT_MASK)), 0, OBD_BAD_HIGH);
}

static void zeroed_records_may_sit_at_the_end(void)
{
	REJECTED(LOAD(ZERO(0, 8, 7)), 0, OBD_BAD_LOW);
	ACCEPTED(LOAD(ZERO(0, 8, 8)), 1);
	ACCEPTED(LOAD(ZERO(0, 16383, END)), 1);
	REJECTED(LOAD(ZERO(0, 8, END + 1)), 0, OBD_BAD_HIGH);
}

static void the_address_space_ends_at_2_to_the_50(void)
{
	const uint64_t last = OBD_LBA_MASK - 1;

	ACCEPTED(LOAD(DATA(last, 2, 8)), 1);
	has(0, DATA(last, 2, 8));
	REJECTED(LOAD(DATA(last, 3, 8)), 0, OBD_BAD_ADDRESS);
	REJECTED(LOAD(DATA(0, 1, 8), ZERO(last, 16383, 8)), 1,
		 OBD_BAD_ADDRESS);
}

static void more_than_a_million_records_are_too_many(void)
{
	const uint64_t n = OBD_MAX_RO_RECORDS + 1;
	struct obd_record *r = malloc(n * sizeof(*r));
	uint64_t i;
	int rc;

	CHECK(r);
	for (i = 0; i < n; i++)
		r[i] = i % 3 ? DATA(i, 1, 8) : PADDING;
	/* Padding counts. */
	rc = load_at(r, n, 4096, END);
	REJECTED(rc, OBD_MAX_RO_RECORDS, OBD_BAD_COUNT);
	rc = load_at(r, n - 1, 4096, END);
	ACCEPTED(rc, (n - 1) * 2 / 3);
	has(7, DATA(11, 1, 8));
	has(obd_index_count(loaded) - 1, DATA(999998, 1, 8));
	r[n - 2].w0 = DATA(999997, 2, 8).w0;
	rc = load_at(r, n - 1, 4096, END);
	free(r);
	REJECTED(rc, n - 3, OBD_BAD_ORDER);
}

static void an_index_past_the_end_of_the_file_is_short(void)
{
	const struct obd_record r[2] = { DATA(0, 8, 8), DATA(8, 8, 8) };
	struct obd_source *src = source_of(r, sizeof(r) - 1, 4096);
	int rc;

	obd_index_unref(loaded);
	loaded = NULL;
	rc = obd_index_load(src, 4096, 2, END, &bad, &loaded);
	REJECTED(rc, 1, OBD_BAD_SHORT);
	rc = obd_index_load(src, 1ull << 60, 1, END, &bad, &loaded);
	REJECTED(rc, 0, OBD_BAD_SHORT);
	rc = obd_index_load(src, UINT64_MAX, 1, END, &bad, &loaded);
	REJECTED(rc, 0, OBD_BAD_SHORT);
	rc = obd_index_load(src, 4096, UINT64_MAX, END, &bad, &loaded);
	REJECTED(rc, OBD_MAX_RO_RECORDS, OBD_BAD_COUNT);
	obd_source_unref(src);
}

/* The file says 32 bytes more than it has. */
static void a_file_that_shrank_is_an_io_error(void)
{
	struct obd_source *src;
	int fd = memfd_create("short", MFD_CLOEXEC);

	obd_index_unref(loaded);
	loaded = NULL;
	CHECK_EQ(obd_source_file(fd, 0, 32, &src), 0);
	CHECK_EQ(obd_index_load(src, 0, 2, END, &bad, &loaded), -EIO);
	CHECK_EQ(bad.reason, OBD_BAD_NONE);
	CHECK(!loaded);
	obd_source_unref(src);
}

/* ---- from memory ----------------------------------------------------- */

static void made_in_memory_only_when_sorted_and_disjoint(void)
{
	const struct obd_record ok[] = { DATA(0, 8, 0), ZERO(8, 1, 1),
					 DATA(OBD_LBA_MASK, 1, 5) };
	struct obd_record r[3];
	struct obd_index *x = NULL;

	CHECK_EQ(obd_index_new(ok, 3, &x), 0);
	CHECK_EQ(obd_index_count(x), 3);
	CHECK_EQ(obd_index_records(x, 1, 9, r), 2);
	CHECK(!memcmp(r, ok + 1, 32));
	obd_index_unref(x);
	x = NULL;
	memcpy(r, ok, sizeof(r));
	r[1] = DATA(7, 1, 0);
	CHECK_EQ(obd_index_new(r, 3, &x), -EINVAL);
	r[1] = DATA(8, 0, 0);
	CHECK_EQ(obd_index_new(r, 3, &x), -EINVAL);
	r[1] = ok[1];
	r[2] = DATA(OBD_LBA_MASK, 2, 0);
	CHECK_EQ(obd_index_new(r, 3, &x), -EINVAL);
	/* A cut would carry into the zeroed bit. */
	r[2] = DATA(9, 2, OBD_AT_MASK);
	CHECK_EQ(obd_index_new(r, 3, &x), -EINVAL);
	r[2] = DATA(9, 1, OBD_AT_MASK);
	CHECK_EQ(obd_index_new(r, 3, &x), 0);
	obd_index_unref(x);
	x = NULL;
	CHECK_EQ(obd_index_new(NULL, OBD_MAX_RW_RECORDS + 1ull, &x), -EINVAL);
	CHECK_EQ(obd_index_new(NULL, 0, &x), 0);
	CHECK_EQ(obd_index_count(x), 0);
	obd_index_unref(x);
}

static void an_adopted_array_is_the_index(void)
{
	struct obd_record *r = malloc(2 * sizeof(*r));
	struct obd_index *x;

	CHECK(r);
	r[0] = DATA(0, 8, 8);
	r[1] = rec_make(9, 8, 8, false, 4);
	CHECK_EQ(obd_index_adopt(r, 2, &x), 0);
	CHECK_EQ(obd_index_count(x), 2);
	CHECK_EQ(rec_tag(obd_index_array(x)[1]), 4);
	obd_index_unref(obd_index_ref(x));
	CHECK_EQ(rec_lba(obd_index_array(x)[1]), 9);
	obd_index_unref(x);
	obd_index_unref(NULL);
}

int main(void)
{
	RUN(an_empty_index_maps_nothing);
	RUN(padding_is_dropped_wherever_it_is);
	RUN(padding_does_not_hide_disorder);
	RUN(tags_are_ignored);
	RUN(records_may_touch_and_leave_gaps);
	RUN(a_record_of_no_sectors_is_checked_and_dropped);
	RUN(disorder_is_rejected);
	RUN(data_must_lie_between_header_and_end);
	RUN(zeroed_records_may_sit_at_the_end);
	RUN(the_address_space_ends_at_2_to_the_50);
	RUN(more_than_a_million_records_are_too_many);
	RUN(an_index_past_the_end_of_the_file_is_short);
	RUN(a_file_that_shrank_is_an_io_error);
	RUN(made_in_memory_only_when_sorted_and_disjoint);
	RUN(an_adopted_array_is_the_index);
	obd_index_unref(loaded);
	return check_done();
}
