/* SPDX-License-Identifier: Apache-2.0 */
#include "parts.h"

#include <signal.h>
#include <sys/resource.h>

#define SECTORS 2048u              /* of the disks here: 1 MiB */
#define SIZE (SECTORS * 512ull)
#define MARK(end) { OBD_INVALID_LBA, (end) }
#define NO_CUT UINT64_MAX

static const uint64_t padding = OBD_INVALID_LBA;

/* ---- a log layer by its parts ------------------------------------------ */

struct log {
	int data, index;             /* ours: the upper has duplicates */
	struct obd_upper *upper;
	struct obd_upper_report report;
};

static int log_open(struct log *l, int32_t flags, uint64_t size)
{
	int data = dup(l->data), index = dup(l->index), err;

	MUST(data >= 0 && index >= 0);
	err = obd_upper_open(OBD_UPPER_LOG | flags, data, index, size,
			     &l->report, &l->upper);
	if (err) {
		l->upper = NULL;
		close(data);
		close(index);
	}
	return err;
}

static struct log log_new(void)
{
	struct log l = { .data = layer_file(0), .index = layer_file(0) };

	MUST(!log_open(&l, 0, SIZE));
	return l;
}

/* Files as they may be found: sectors of data, raw index records. */
static struct log log_found(uint64_t sectors, const struct obd_record *rec,
			    uint64_t count)
{
	struct log l = { .data = layer_file(0), .index = layer_file(0) };
	uint8_t *buf = malloc(sectors * 512 + 1);

	MUST(buf);
	memset(buf, 0x77, sectors * 512);
	MUST(obd_io_pwrite(l.data, buf, sectors * 512, 4096) ==
	     (int64_t)(sectors * 512));
	free(buf);
	MUST(obd_io_pwrite(l.index, rec, count * 16, 4096) ==
	     (int64_t)(count * 16));
	return l;
}

static void log_close(struct log *l)
{
	obd_upper_unref(l->upper);
	l->upper = NULL;
}

static void log_free(struct log *l)
{
	log_close(l);
	close(l->data);
	close(l->index);
}

static struct obd_device *log_device(struct log *l)
{
	return device_of(empty_view(SIZE), obd_upper_ref(l->upper), SIZE,
			 1000);
}

static struct obd_record index_record(struct log *l, uint64_t nr)
{
	struct obd_record rec;

	MUST(obd_io_pread(l->index, &rec, 16, 4096 + nr * 16) == 16);
	return rec;
}

static uint64_t index_records(struct log *l)
{
	return (file_size(l->index) - 4096) / 16;
}

static bool record_is(struct obd_record rec, uint64_t lba, uint64_t sectors,
		      uint64_t at, bool zeroed)
{
	struct obd_record want = rec_make(lba, sectors, at, zeroed, 0);

	return rec.w0 == want.w0 && rec.w1 == want.w1;
}

static bool mark_is(struct obd_record rec, uint64_t end)
{
	return rec.w0 == padding && rec.w1 == end;
}

/* ---- log: what is written ---------------------------------------------- */

static void the_worked_example_of_the_spec(void)
{
	struct log l = log_new();
	struct obd_device *dev = log_device(&l);
	uint8_t buf[4096];

	memset(buf, 0x41, 4096);
	CHECK_EQ(obd_device_write(dev, buf, 4096, 16 * 512), 0);
	CHECK_EQ(obd_device_discard(dev, 100 * 512, 4 * 512), 0);
	CHECK_EQ(index_records(&l), 3);
	CHECK(mark_is(index_record(&l, 0), 8));
	CHECK(record_is(index_record(&l, 1), 16, 8, 8, false));
	CHECK(record_is(index_record(&l, 2), 100, 4, 16, true));
	CHECK_EQ(file_size(l.data), 8192);
	obd_device_unref(dev);
	log_free(&l);
}

static void writes_are_cut_at_4_mib_and_zeros_at_16383_sectors(void)
{
	struct log l = { .data = layer_file(0), .index = layer_file(0) };
	uint64_t size = 64 * MIB, n = 9 * MIB + 512;
	struct obd_device *dev;
	uint8_t *buf = malloc(n);

	MUST(buf && !log_open(&l, 0, size));
	dev = device_of(empty_view(size), obd_upper_ref(l.upper), size, 0);
	memset(buf, 1, n);
	CHECK_EQ(obd_device_write(dev, buf, n, 512), 0);
	CHECK_EQ(index_records(&l), 4);
	CHECK(record_is(index_record(&l, 1), 1, 8192, 8, false));
	CHECK(record_is(index_record(&l, 2), 8193, 8192, 8200, false));
	CHECK(record_is(index_record(&l, 3), 16385, 2049, 16392, false));
	CHECK_EQ(obd_device_zero(dev, 512, 20 * MIB), 0);
	CHECK_EQ(index_records(&l), 7);
	CHECK(record_is(index_record(&l, 4), 1, 16383, 18441, true));
	CHECK(record_is(index_record(&l, 5), 16384, 16383, 18441, true));
	CHECK(record_is(index_record(&l, 6), 32767, 8194, 18441, true));
	free(buf);
	obd_device_unref(dev);
	log_free(&l);
}

static void more_records_than_one_batch(void)
{
	struct log l = { .data = layer_file(0), .index = layer_file(0) };
	uint64_t size = 200ull * OBD_MAX_LENGTH * 512, i;
	struct obd_device *dev;

	MUST(!log_open(&l, 0, size));
	dev = device_of(empty_view(size), obd_upper_ref(l.upper), size, 0);
	CHECK_EQ(obd_device_discard(dev, 0, size), 0);
	/* In-process requests are cut at 64 MiB. */
	CHECK(index_records(&l) >= 201);
	log_close(&l);
	obd_device_unref(dev);
	MUST(!log_open(&l, 0, size));
	dev = device_of(empty_view(size), obd_upper_ref(l.upper), size, 0);
	for (i = 0; i < 200; i += 7) {
		struct obd_extent e;

		CHECK_EQ(obd_device_extents(dev, i * OBD_MAX_LENGTH * 512,
					    512, &e, 1), 1);
		CHECK_EQ(e.state, OBD_EXTENT_ZERO);
	}
	obd_device_unref(dev);
	log_free(&l);
}

static void what_was_written_is_read_again_after_a_reopen(void)
{
	struct log l = log_new();
	struct obd_device *dev = log_device(&l);
	uint8_t *model = calloc(1, SIZE), *buf = malloc(SIZE);
	uint64_t i, at, n;

	MUST(model && buf);
	for (i = 0; i < 2000; i++) {
		at = check_below(SECTORS) * 512;
		n = (check_below(64) + 1) * 512;
		if (n > SIZE - at)
			n = SIZE - at;
		switch (check_below(8)) {
		case 0:
			CHECK_EQ(obd_device_flush(dev), 0);
			break;
		case 1:
			CHECK_EQ(obd_device_discard(dev, at, n), 0);
			memset(model + at, 0, n);
			break;
		case 2:
			CHECK_EQ(obd_device_zero(dev, at, n), 0);
			memset(model + at, 0, n);
			break;
		default:
			blob_fill(i, buf, at, n);
			CHECK_EQ(obd_device_write(dev, buf, n, at), 0);
			memcpy(model + at, buf, n);
		}
		if (check_below(200))
			continue;
		obd_device_unref(dev);
		log_close(&l);
		CHECK_EQ(log_open(&l, 0, SIZE), 0);
		CHECK_EQ(l.report.cut_record, NO_CUT);
		dev = log_device(&l);
		CHECK_EQ(obd_device_read(dev, buf, SIZE, 0), 0);
		CHECK(!memcmp(buf, model, SIZE));
	}
	free(model);
	free(buf);
	obd_device_unref(dev);
	log_free(&l);
}

/* ---- log: what is found ------------------------------------------------ */

static void a_torn_tail_is_dropped_and_cut_before_the_next_append(void)
{
	struct obd_record rec[2] = { rec_make(0, 8, 8, false, 0),
				     rec_make(8, 8, 16, false, 3) };
	struct obd_device *dev;
	uint8_t buf[512] = { 5 };
	uint64_t torn;

	for (torn = 1; torn <= 15; torn++) {
		struct log l = log_found(16, rec, 2);

		MUST(!ftruncate(l.index, (off_t)(4096 + 16 + torn)));
		CHECK_EQ(log_open(&l, OBD_UPPER_READONLY, SIZE), 0);
		CHECK_EQ(l.report.torn_bytes, torn);
		log_close(&l);
		CHECK_EQ(log_open(&l, 0, SIZE), 0);
		CHECK_EQ(l.report.torn_bytes, torn);
		CHECK_EQ(l.report.records, 1);
		CHECK_EQ(file_size(l.index), 4096 + 16 + torn);
		dev = log_device(&l);
		CHECK_EQ(obd_device_write(dev, buf, 512, 0), 0);
		CHECK_EQ(file_size(l.index), 4096 + 3 * 16);
		CHECK(mark_is(index_record(&l, 1), 24));
		CHECK(record_is(index_record(&l, 2), 0, 1, 24, false));
		obd_device_unref(dev);
		log_free(&l);
	}
}

static void nothing_is_written_read_only(void)
{
	struct obd_record rec[] = {
		rec_make(0, 8, 8, false, 0), MARK(16),
		rec_make(8, 8, 999, false, 0),
	};
	struct log l = log_found(9, rec, 3);
	uint8_t buf[512];
	struct obd_device *dev;

	MUST(!ftruncate(l.index, 4096 + 3 * 16 + 5));
	MUST(!ftruncate(l.data, 4096 + 9 * 512 + 17));
	CHECK_EQ(log_open(&l, OBD_UPPER_READONLY, SIZE), 0);
	CHECK_EQ(l.report.cut_record, 2);
	CHECK_EQ(l.report.torn_bytes, 5);
	dev = log_device(&l);
	CHECK_EQ(obd_device_read(dev, buf, 512, 0), 0);
	CHECK(all_bytes(buf, 0x77, 512));
	CHECK_EQ(obd_device_write(dev, buf, 512, 0), -EROFS);
	CHECK_EQ(obd_device_discard(dev, 0, 512), -EROFS);
	CHECK_EQ(obd_device_zero(dev, 0, 512), -EROFS);
	CHECK_EQ(obd_device_flush(dev), 0);
	CHECK_EQ(obd_upper_sync(l.upper), 0);
	CHECK_EQ(file_size(l.index), 4096 + 3 * 16 + 5);
	CHECK_EQ(file_size(l.data), 4096 + 9 * 512 + 17);
	obd_device_unref(dev);
	log_free(&l);
}

static void an_uneven_data_file_is_rounded_up_for_appending(void)
{
	struct obd_record rec[] = { rec_make(0, 1, 8, false, 0) };
	struct log l = log_found(1, rec, 1);
	struct obd_device *dev;
	uint8_t buf[512] = { 9 };

	MUST(!ftruncate(l.data, 4096 + 512 + 100));
	CHECK_EQ(log_open(&l, 0, SIZE), 0);
	CHECK_EQ(l.report.data_end, 4096 + 1024);
	dev = log_device(&l);
	CHECK_EQ(obd_device_zero(dev, 512, 512), 0);
	CHECK_EQ(obd_device_write(dev, buf, 512, 1024), 0);
	/* Not past the end that a reader sees: the floor. */
	CHECK(mark_is(index_record(&l, 1), 9));
	CHECK(record_is(index_record(&l, 2), 1, 1, 9, true));
	CHECK(record_is(index_record(&l, 3), 2, 1, 10, false));
	obd_device_unref(dev);
	log_free(&l);
}

/* Opens files made of rec over `sectors` of data; expects a rejection. */
static void check_rejected(uint64_t sectors, const struct obd_record *rec,
			   uint64_t count, uint64_t record, uint32_t reason)
{
	struct log l = log_found(sectors, rec, count);

	CHECK_EQ(log_open(&l, 0, SIZE), -EBADMSG);
	CHECK_EQ(l.report.bad.reason, reason);
	CHECK_EQ(l.report.bad.record, record);
	CHECK_EQ(log_open(&l, OBD_UPPER_READONLY, SIZE), -EBADMSG);
	log_free(&l);
}

static void without_marks_a_bad_record_rejects_the_layer(void)
{
	struct obd_record good = rec_make(0, 8, 8, false, 0);
	struct obd_record rec[2] = { good, good };

	rec[1] = rec_make(0, 8, 9, false, 0);
	check_rejected(8, rec, 2, 1, OBD_BAD_HIGH);
	rec[1] = rec_make(0, 1, 16, false, 0);
	check_rejected(8, rec, 2, 1, OBD_BAD_HIGH);
	rec[1] = rec_make(0, 1, 7, false, 0);
	check_rejected(8, rec, 2, 1, OBD_BAD_LOW);
	rec[1] = rec_make(0, 1, 7, true, 0);
	check_rejected(8, rec, 2, 1, OBD_BAD_LOW);
	rec[1] = rec_make(0, 1, 17, true, 0);
	check_rejected(8, rec, 2, 1, OBD_BAD_HIGH);
	rec[1] = rec_make(OBD_LBA_MASK - 1, 3, 8, false, 0);
	check_rejected(8, rec, 2, 1, OBD_BAD_ADDRESS);
	/* Also one that a later record hides. */
	rec[0] = rec_make(0, 8, 100, false, 0);
	rec[1] = good;
	check_rejected(8, rec, 2, 0, OBD_BAD_HIGH);
}

static void what_the_rules_allow_is_accepted(void)
{
	struct obd_record rec[] = {
		rec_make(0, 8, 8, false, 7),   /* a tag */
		MARK(0),                       /* group commit's padding */
		rec_make(3, 1, 16, true, 0),   /* zeroed at the very end */
		rec_make(4, 0, 99999, false, 0), /* nothing */
		{ 0, 0 },                      /* a reserved place */
		{ padding | 5ull << 50, 3 },   /* padding with a length */
	};
	struct log l = log_found(8, rec, 6);
	struct obd_index *index;
	struct obd_record out[4];

	CHECK_EQ(log_open(&l, 0, SIZE), 0);
	CHECK_EQ(l.report.records, 2);
	CHECK_EQ(l.report.marks, 0);
	CHECK_EQ(obd_upper_snapshot(l.upper, &index), 0);
	CHECK_EQ(obd_index_records(index, 0, 4, out), 3);
	CHECK(record_is(out[0], 0, 3, 8, false));
	CHECK(record_is(out[1], 3, 1, 16, true));
	CHECK(record_is(out[2], 4, 4, 12, false));
	obd_index_unref(index);
	log_free(&l);
}

static void behind_the_last_mark_a_bad_record_cuts_the_rest(void)
{
	struct obd_record rec[] = {
		rec_make(0, 4, 8, false, 0), MARK(12),
		rec_make(4, 4, 12, false, 0),
		rec_make(8, 8, 16, false, 0), /* past the end */
		rec_make(0, 1, 13, false, 0), /* good, but behind it */
		rec_make(1, 1, 13, false, 0),
		rec_make(2, 1, 13, false, 0),
	};
	struct log l = log_found(8, rec, 7);
	struct obd_device *dev;
	struct obd_record out[4];
	struct obd_index *index;
	uint8_t buf[512] = { 3 };

	CHECK_EQ(log_open(&l, 0, SIZE), 0);
	CHECK_EQ(l.report.cut_record, 3);
	CHECK_EQ(l.report.bad.record, 3);
	CHECK_EQ(l.report.bad.reason, OBD_BAD_HIGH);
	CHECK_EQ(l.report.marks, 1);
	CHECK_EQ(l.report.records, 2);
	CHECK_EQ(index_records(&l), 7);
	CHECK_EQ(obd_upper_snapshot(l.upper, &index), 0);
	CHECK_EQ(obd_index_records(index, 0, 4, out), 2);
	CHECK(record_is(out[0], 0, 4, 8, false));
	CHECK(record_is(out[1], 4, 4, 12, false));
	obd_index_unref(index);
	dev = log_device(&l);
	CHECK_EQ(obd_device_write(dev, buf, 512, 512), 0);
	CHECK_EQ(index_records(&l), 5);
	CHECK(mark_is(index_record(&l, 3), 16));
	CHECK(record_is(index_record(&l, 4), 1, 1, 16, false));
	obd_device_unref(dev);
	log_close(&l);
	CHECK_EQ(log_open(&l, 0, SIZE), 0);
	CHECK_EQ(l.report.cut_record, NO_CUT);
	log_free(&l);
}

static void before_the_last_mark_a_bad_record_rejects_the_layer(void)
{
	struct obd_record rec[] = {
		MARK(8), rec_make(0, 4, 20, false, 0), MARK(16),
	};

	check_rejected(8, rec, 3, 1, OBD_BAD_HIGH);
}

static void data_that_ends_before_the_mark_rejects_the_layer(void)
{
	struct obd_record rec[] = {
		rec_make(0, 4, 8, false, 0), MARK(17),
	};

	check_rejected(8, rec, 2, 1, OBD_BAD_HIGH);
}

static void a_record_into_a_hole_is_cut_behind_a_mark_only(void)
{
	struct obd_record rec[] = {
		rec_make(0, 8, 8, false, 0), MARK(16),
		rec_make(8, 8, 16, false, 0),   /* data */
		rec_make(16, 16, 24, false, 0), /* into the hole */
	};
	struct log l = log_found(16, rec, 4);

	MUST(!ftruncate(l.data, 4096 + 64 * 512));
	CHECK_EQ(log_open(&l, 0, SIZE), 0);
	CHECK_EQ(l.report.cut_record, 3);
	CHECK_EQ(l.report.bad.reason, OBD_BAD_HOLE);
	log_close(&l);
	/* The original makes no promise about holes. */
	rec[1] = (struct obd_record)MARK(0);
	MUST(obd_io_pwrite(l.index, &rec[1], 16, 4096 + 16) == 16);
	CHECK_EQ(log_open(&l, 0, SIZE), 0);
	CHECK_EQ(l.report.cut_record, NO_CUT);
	log_free(&l);
}

static void too_many_records_and_too_short_files_are_rejected(void)
{
	struct log l = log_found(8, NULL, 0);

	MUST(!ftruncate(l.index, 4096 + 16ll * (OBD_MAX_RW_RECORDS + 1)));
	CHECK_EQ(log_open(&l, 0, SIZE), -EBADMSG);
	CHECK_EQ(l.report.bad.reason, OBD_BAD_COUNT);
	MUST(!ftruncate(l.index, 4095));
	CHECK_EQ(log_open(&l, 0, SIZE), -EBADMSG);
	CHECK_EQ(l.report.bad.reason, OBD_BAD_SHORT);
	MUST(!ftruncate(l.index, 4096));
	MUST(!ftruncate(l.data, 100));
	CHECK_EQ(log_open(&l, 0, SIZE), -EBADMSG);
	CHECK_EQ(l.report.bad.reason, OBD_BAD_SHORT);
	log_free(&l);
}

/* ---- log: syncing ------------------------------------------------------ */

/* One line of a trace. */
struct event {
	char op[16];
	unsigned long long inode, n;
	long long at, result;
	struct obd_record rec;       /* the first 16 bytes of a pwrite */
	uint64_t data_at;            /* where its bytes are in the other file */
};

struct trace {
	char dir[64], path[96], data[104];
	struct event *events;
	uint64_t count;
};

static void trace_start(struct trace *t)
{
	snprintf(t->dir, sizeof(t->dir), "/tmp/obd-trace-XXXXXX");
	MUST(mkdtemp(t->dir));
	snprintf(t->path, sizeof(t->path), "%s/t", t->dir);
	snprintf(t->data, sizeof(t->data), "%s/t.data", t->dir);
	MUST(!obd_io_trace(t->path));
}

static void trace_stop(struct trace *t)
{
	FILE *text = fopen(t->path, "r"), *data = fopen(t->data, "r");
	struct event e;
	uint64_t at = 0;

	MUST(!obd_io_trace(NULL));
	MUST(text && data);
	t->events = NULL;
	t->count = 0;
	memset(&e, 0, sizeof(e));
	while (fscanf(text, "%*u %15s %llu %lld %llu %lld", e.op, &e.inode,
		      &e.at, &e.n, &e.result) == 5) {
		e.data_at = at;
		e.rec = (struct obd_record){ 0, 0 };
		if (!strcmp(e.op, "pwrite") && e.result > 0) {
			MUST(!fseek(data, (long)at, SEEK_SET));
			if (e.result >= 16)
				MUST(fread(&e.rec, 16, 1, data) == 1);
			at += (uint64_t)e.result;
		}
		t->events = realloc(t->events, (t->count + 1) * sizeof(e));
		MUST(t->events);
		t->events[t->count++] = e;
	}
	fclose(text);
	fclose(data);
	MUST(!unlink(t->path) && !unlink(t->data) && !rmdir(t->dir));
}

static unsigned long long inode_of(int fd)
{
	struct stat st;

	MUST(!fstat(fd, &st));
	return st.st_ino;
}

static bool event_is(const struct event *e, const char *op, int fd)
{
	return !strcmp(e->op, op) && e->inode == inode_of(fd) &&
	       e->result >= 0;
}

static void a_flush_syncs_data_then_marks_then_syncs_the_index(void)
{
	struct log l = log_new();
	struct obd_device *dev = log_device(&l);
	static const char *const ops[] = {
		/* before the first record: sync, mark, sync */
		"sync d", "pwrite i", "sync i", "pwrite d", "pwrite i",
		/* the flush: place, sync, mark, sync */
		"pwrite i", "sync d", "pwrite i", "sync i",
	};
	uint8_t buf[512] = { 1 };
	struct trace t;
	char got[32];
	uint64_t i;

	trace_start(&t);
	CHECK_EQ(obd_device_flush(dev), 0); /* nothing to do */
	CHECK_EQ(obd_device_write(dev, buf, 512, 0), 0);
	CHECK_EQ(obd_device_flush(dev), 0);
	CHECK_EQ(obd_device_flush(dev), 0); /* nothing new */
	trace_stop(&t);
	CHECK_EQ(t.count, sizeof(ops) / sizeof(ops[0]));
	for (i = 0; i < t.count; i++) {
		snprintf(got, sizeof(got), "%s %c", t.events[i].op,
			 t.events[i].inode == inode_of(l.data) ? 'd' : 'i');
		CHECK_MSG(!strcmp(got, ops[i]), "%d is %s, not %s", (int)i,
			  got, ops[i]);
	}
	CHECK(mark_is(t.events[1].rec, 8));
	CHECK(mark_is(t.events[5].rec, 0));
	CHECK(mark_is(t.events[7].rec, 9));
	CHECK_EQ(t.events[5].at, t.events[7].at);
	CHECK_EQ(obd_device_discard(dev, 0, 512), 0);
	CHECK_EQ(obd_device_flush(dev), 0);
	CHECK(mark_is(index_record(&l, 4), 9));
	free(t.events);
	obd_device_unref(dev);
	log_free(&l);
}

static void found_records_without_a_mark_are_flushed(void)
{
	struct obd_record rec[] = { rec_make(0, 8, 8, false, 0) };
	struct log l = log_found(8, rec, 1);

	CHECK_EQ(log_open(&l, 0, SIZE), 0);
	CHECK_EQ(obd_upper_sync(l.upper), 0);
	CHECK_EQ(index_records(&l), 2);
	CHECK(mark_is(index_record(&l, 1), 16));
	log_close(&l);
	/* Found with its mark, it needs no other one, nor one to begin with. */
	CHECK_EQ(log_open(&l, 0, SIZE), 0);
	CHECK_EQ(l.report.marks, 1);
	CHECK_EQ(obd_upper_sync(l.upper), 0);
	CHECK_EQ(index_records(&l), 2);
	log_free(&l);
}

static uint64_t syncs_of(const struct trace *t, int fd)
{
	uint64_t i, n = 0;

	for (i = 0; i < t->count; i++)
		n += event_is(&t->events[i], "sync", fd);
	return n;
}

/* Whoever wrote it may have been killed before the index was on disk. */
static void a_found_mark_is_synced_by_the_first_flush(void)
{
	struct obd_record rec[] = {
		rec_make(0, 8, 8, false, 0), { OBD_INVALID_LBA, 16 },
	};
	struct log l = log_found(8, rec, 2);
	struct trace t;

	CHECK_EQ(log_open(&l, 0, SIZE), 0);
	trace_start(&t);
	CHECK_EQ(obd_upper_sync(l.upper), 0);
	CHECK_EQ(obd_upper_sync(l.upper), 0);
	trace_stop(&t);
	CHECK_EQ(syncs_of(&t, l.index), 1);
	CHECK_EQ(index_records(&l), 2);
	free(t.events);
	log_free(&l);
}

static void fua_is_on_disk_when_it_is_answered(void)
{
	struct log l = log_new();
	struct obd_device *dev = log_device(&l);
	uint8_t buf[512] = { 1 };
	struct iovec iov = { buf, 512 };
	struct obd_request req = {
		.dev = dev, .length = 512, .op = OBD_WRITE,
		.flags = OBD_REQ_FUA, .iov = &iov, .iov_count = 1,
	};

	CHECK_EQ(obd_request_wait(&req), 0);
	CHECK_EQ(index_records(&l), 3);
	CHECK(mark_is(index_record(&l, 2), 9));
	obd_device_unref(dev);
	log_free(&l);
}

struct writer {
	pthread_t thread;
	struct obd_device *dev;
	uint64_t rnd, failed;
};

static void *writer_main(void *arg)
{
	struct writer *w = arg;
	uint8_t buf[8192];
	uint64_t at, n;
	int i, err;

	for (i = 0; i < 150; i++) {
		w->rnd = w->rnd * 6364136223846793005 + 1442695040888963407;
		at = (w->rnd >> 20) % (SECTORS - 16) * 512;
		n = ((w->rnd >> 50) % 16 + 1) * 512;
		memset(buf, (int)(w->rnd >> 40) | 1, n);
		if ((w->rnd >> 33) % 8 == 0)
			err = obd_device_flush(w->dev);
		else if ((w->rnd >> 33) % 8 == 1)
			err = obd_device_discard(w->dev, at, n);
		else
			err = obd_device_write(w->dev, buf, n, at);
		w->failed += err != 0;
	}
	return NULL;
}

/* The bytes that record nr of the index file pointed to were written before
 * event number before. */
static bool written_before(const struct trace *t, struct log *l,
			   struct obd_record rec, uint64_t before)
{
	uint64_t i, from = rec_at(rec) * 512;
	const struct event *e;

	for (i = 0; i < before; i++) {
		e = &t->events[i];
		if (event_is(e, "pwrite", l->data) &&
		    (uint64_t)e->at <= from &&
		    (uint64_t)e->at + (uint64_t)e->result >=
		    from + rec_sectors(rec) * 512)
			return true;
	}
	return false;
}

static void check_marks(const struct trace *t, struct log *l)
{
	uint64_t i, nr, sync, upto, marks = 0;
	struct obd_record rec;

	for (i = 0; i < t->count; i++) {
		if (!event_is(&t->events[i], "pwrite", l->index) ||
		    t->events[i].rec.w0 != padding || !t->events[i].rec.w1)
			continue;
		for (sync = i; sync && !event_is(&t->events[sync], "sync",
						 l->data); sync--)
			;
		CHECK(event_is(&t->events[sync], "sync", l->data));
		upto = ((uint64_t)t->events[i].at - 4096) / 16;
		for (nr = 0; nr < upto; nr++) {
			rec = index_record(l, nr);
			if (rec_lba(rec) == padding || rec_zeroed(rec))
				continue;
			CHECK(written_before(t, l, rec, sync));
			CHECK(rec_at(rec) + rec_sectors(rec) <=
			      t->events[i].rec.w1);
		}
		marks++;
	}
	CHECK(marks > 1);
}

static void marks_vouch_only_for_what_their_sync_covered(void)
{
	struct log l = log_new();
	struct obd_device *dev = log_device(&l);
	uint8_t *before = malloc(SIZE), *after = malloc(SIZE);
	struct writer w[4];
	struct trace t;
	int i;

	MUST(before && after);
	trace_start(&t);
	for (i = 0; i < 4; i++) {
		w[i] = (struct writer){ .dev = dev, .rnd = check_random() };
		MUST(!pthread_create(&w[i].thread, NULL, writer_main,
				     &w[i]));
	}
	for (i = 0; i < 4; i++) {
		MUST(!pthread_join(w[i].thread, NULL));
		CHECK_EQ(w[i].failed, 0);
	}
	trace_stop(&t);
	check_marks(&t, &l);
	free(t.events);
	CHECK_EQ(obd_device_read(dev, before, SIZE, 0), 0);
	obd_device_unref(dev);
	log_close(&l);
	CHECK_EQ(log_open(&l, 0, SIZE), 0);
	CHECK_EQ(l.report.cut_record, NO_CUT);
	dev = log_device(&l);
	CHECK_EQ(obd_device_read(dev, after, SIZE, 0), 0);
	CHECK(!memcmp(before, after, SIZE));
	free(before);
	free(after);
	obd_device_unref(dev);
	log_free(&l);
}

static void a_failed_sync_is_not_called_a_success_later(void)
{
	struct log l = log_new();
	struct obd_device *dev = log_device(&l);
	uint8_t buf[512] = { 1 };

	CHECK_EQ(obd_device_write(dev, buf, 512, 0), 0);
	obd_io_fault(OBD_IO_SYNC, 1, EIO, 1);
	CHECK_EQ(obd_device_flush(dev), -EIO);
	CHECK_EQ(obd_device_flush(dev), -EIO);
	CHECK_EQ(obd_device_read(dev, buf, 512, 0), 0);
	CHECK_EQ(buf[0], 1);
	obd_device_unref(dev);
	log_free(&l);
}

/* ---- log: a disk that is full ------------------------------------------ */

static void check_reopen_shows(struct log *l, const uint8_t *model)
{
	struct obd_device *dev;
	uint8_t *buf = malloc(SIZE);

	MUST(buf);
	log_close(l);
	CHECK_EQ(log_open(l, 0, SIZE), 0);
	CHECK_EQ(l->report.cut_record, NO_CUT);
	dev = log_device(l);
	CHECK_EQ(obd_device_read(dev, buf, SIZE, 0), 0);
	CHECK(!memcmp(buf, model, SIZE));
	obd_device_unref(dev);
	free(buf);
}

static void a_write_that_failed_changes_nothing_and_breaks_nothing(void)
{
	struct log l = log_new();
	struct obd_device *dev = log_device(&l);
	uint8_t *model = calloc(1, SIZE), *buf = malloc(65536);
	uint64_t i, at, n, fail, failed = 0;
	int err;

	MUST(model && buf);
	for (i = 0; i < 600; i++) {
		at = check_below(SECTORS - 128) * 512;
		n = (check_below(128) + 1) * 512;
		memset(buf, (int)i | 1, n);
		fail = check_below(4);
		if (fail)
			obd_io_fault(OBD_IO_PWRITE, (uint32_t)fail, ENOSPC,
				     1);
		if (check_below(3))
			err = obd_device_write(dev, buf, n, at);
		else
			err = obd_device_zero(dev, at, n),
			memset(buf, 0, n);
		obd_io_fault(OBD_IO_PWRITE, 0, 0, 0);
		CHECK(!err || err == -ENOSPC);
		failed += err != 0;
		if (!err)
			memcpy(model + at, buf, n);
		if (i % 100 == 99) {
			obd_device_unref(dev);
			check_reopen_shows(&l, model);
			dev = log_device(&l);
		}
	}
	CHECK(failed > 50);
	free(model);
	free(buf);
	obd_device_unref(dev);
	log_free(&l);
}

static void a_place_that_was_not_filled_is_used_again(void)
{
	struct log l = log_new();
	struct obd_device *dev = log_device(&l);
	uint8_t buf[4096] = { 1 };

	CHECK_EQ(obd_device_write(dev, buf, 512, 0), 0);
	obd_io_fault(OBD_IO_PWRITE, 1, ENOSPC, 1);
	CHECK_EQ(obd_device_write(dev, buf, 4096, 512), -ENOSPC);
	CHECK_EQ(obd_device_write(dev, buf, 512, 512), 0);
	CHECK(record_is(index_record(&l, 2), 1, 1, 9, false));
	obd_device_unref(dev);
	log_free(&l);
}

static void what_cannot_be_trimmed_is_trimmed_by_the_next_append(void)
{
	struct log l = log_new();
	struct obd_device *dev = log_device(&l);
	uint8_t buf[512] = { 1 };

	CHECK_EQ(obd_device_write(dev, buf, 512, 0), 0);
	obd_io_fault(OBD_IO_TRUNCATE, 1, EIO, 2);
	obd_io_fault(OBD_IO_PWRITE, 2, ENOSPC, 1); /* the record */
	CHECK_EQ(obd_device_write(dev, buf, 512, 512), -ENOSPC);
	/* As if part of it had been written. */
	MUST(obd_io_pwrite(l.index, buf, 7, file_size(l.index)) == 7);
	CHECK_EQ(obd_device_write(dev, buf, 512, 512), -EIO);
	CHECK_EQ(obd_device_write(dev, buf, 512, 512), 0);
	CHECK_EQ(file_size(l.index), 4096 + 3 * 16);
	obd_device_unref(dev);
	log_free(&l);
}

static void a_full_disk_without_room_for_a_mark_is_still_flushed(void)
{
	struct log l = log_new();
	struct obd_device *dev = log_device(&l);
	uint8_t buf[512] = { 1 };

	CHECK_EQ(obd_device_write(dev, buf, 512, 0), 0);
	obd_io_fault(OBD_IO_PWRITE, 1, ENOSPC, 1);
	CHECK_EQ(obd_device_flush(dev), 0);
	CHECK_EQ(index_records(&l), 2);
	CHECK_EQ(obd_device_write(dev, buf, 512, 512), 0);
	obd_io_fault(OBD_IO_PWRITE, 1, EIO, 1);
	CHECK_EQ(obd_device_flush(dev), -EIO);
	CHECK_EQ(obd_device_flush(dev), 0);
	obd_device_unref(dev);
	log_free(&l);
}

/* ---- files that the original made -------------------------------------- */

static const char *fixtures(void)
{
	const char *dir = getenv("OVERLAYBD_FIXTURES");

	return dir ? dir : "../shared/fixtures";
}

static int fixture(const char *name)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", fixtures(), name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* The map of upper is what the fixture lists. */
static void check_segments(struct obd_upper *upper, const char *name)
{
	FILE *f = fdopen(fixture(name), "r");
	unsigned long long lba, n, at, zeroed, tag;
	struct obd_index *index;
	struct obd_record rec;
	uint64_t i = 0;

	MUST(f);
	CHECK_EQ(obd_upper_snapshot(upper, &index), 0);
	while (fscanf(f, "%llu %llu %llu %llu %llu", &lba, &n, &at, &zeroed,
		      &tag) == 5) {
		CHECK_EQ(obd_index_records(index, i++, 1, &rec), 1);
		CHECK(record_is(rec, lba, n, at, zeroed));
	}
	CHECK_EQ(obd_index_count(index), i);
	obd_index_unref(index);
	fclose(f);
}

/* The whole disk's sha256 as sha256sum says it. */
static void check_disk(struct obd_device *dev, uint64_t size,
		       const char *sha)
{
	char path[] = "/tmp/obd-disk-XXXXXX", cmd[128], got[65] = "";
	uint8_t *buf = malloc(size);
	int fd = mkstemp(path);
	FILE *p;

	MUST(buf && fd >= 0);
	CHECK_EQ(obd_device_read(dev, buf, size, 0), 0);
	MUST(obd_io_pwrite(fd, buf, size, 0) == (int64_t)size);
	free(buf);
	close(fd);
	snprintf(cmd, sizeof(cmd), "sha256sum %s", path);
	p = popen(cmd, "r");
	MUST(p && fscanf(p, "%64s", got) == 1);
	pclose(p);
	unlink(path);
	CHECK_MSG(!strcmp(got, sha), "sha256 is %s, not %s", got, sha);
}

static void log_layers_of_the_original_read_right(void)
{
	static const char *const names[] = { "03-rw-data/rw.index",
					     "03-rw-data/rwg.index" };
	struct obd_device *dev;
	struct log l;
	int i;

	for (i = 0; i < 2; i++) {
		l.data = fixture("03-rw-data/rw.data");
		l.index = fixture(names[i]);
		if (l.data < 0) {
			printf("# no fixtures\n");
			return;
		}
		CHECK_EQ(log_open(&l, OBD_UPPER_READONLY, SIZE), 0);
		CHECK_EQ(l.report.marks, 0);
		CHECK_EQ(l.report.cut_record, NO_CUT);
		check_segments(l.upper, "03-rw-data/rw.segs.txt");
		dev = log_device(&l);
		check_disk(dev, SIZE, "1f89e33fedcc29cc7e199809bb6312129a597"
			   "0376b1624e75b8e227dec33c698");
		obd_device_unref(dev);
		log_free(&l);
	}
}

/* ---- a sparse layer by its parts --------------------------------------- */

struct sparse {
	int data;                    /* ours: the upper has a duplicate */
	struct obd_upper *upper;
	struct obd_upper_report report;
	struct obd_view *view;
	struct obd_device *dev;
	uint64_t size;
};

static int sparse_open(struct sparse *s, int32_t flags)
{
	int fd = dup(s->data), err;

	MUST(fd >= 0);
	err = obd_upper_open(OBD_UPPER_SPARSE | flags, fd, -1, s->size,
			     &s->report, &s->upper);
	if (err) {
		s->upper = NULL;
		close(fd);
		return err;
	}
	s->dev = device_of(obd_view_ref(s->view), obd_upper_ref(s->upper),
			   s->size, 1000);
	return 0;
}

static void sparse_close(struct sparse *s)
{
	obd_device_unref(s->dev);
	obd_upper_unref(s->upper);
	s->dev = NULL;
	s->upper = NULL;
}

/* Takes the view over. */
static struct sparse sparse_new(struct obd_view *view, uint64_t size)
{
	struct sparse s = { .data = layer_file(4096 + size), .view = view,
			    .size = size };

	MUST(!sparse_open(&s, 0));
	return s;
}

static void sparse_free(struct sparse *s)
{
	sparse_close(s);
	obd_view_unref(s->view);
	close(s->data);
}

/* Lowers of random runs: data, zeroed, holes; *model gets their bytes. */
static struct obd_view *random_lowers(uint8_t *model, uint64_t sectors)
{
	struct obd_source *src = blob_source(99, 2 * sectors * 512);
	struct obd_record rec[400];
	uint64_t lba = 0, n, at, count = 0;

	memset(model, 0, sectors * 512);
	while (lba < sectors && count < 400) {
		n = check_below(60) + 1;
		if (n > sectors - lba)
			n = sectors - lba;
		at = check_below(sectors);
		switch (check_below(3)) {
		case 0:
			rec[count++] = rec_make(lba, n, at, false, 0);
			blob_fill(99, model + lba * 512, at * 512, n * 512);
			break;
		case 1:
			rec[count++] = rec_make(lba, n, at, true, 0);
		}
		lba += n;
	}
	return view_of(rec, count, &src, 1, sectors * 512);
}

/* The map in memory shows what the file has, no more and no less. */
static void check_map_is_the_file(struct sparse *s)
{
	struct obd_upper_report report;
	struct obd_record a, b;
	struct obd_upper *fresh;
	int fd = dup(s->data);
	uint64_t lba;
	uint32_t n;

	MUST(fd >= 0);
	CHECK_EQ(obd_upper_open(OBD_UPPER_SPARSE | OBD_UPPER_READONLY, fd,
				-1, s->size, &report, &fresh), 0);
	for (lba = 0; lba < s->size / 512; lba++) {
		n = obd_upper_find(s->upper, lba, 1, &a, 1);
		CHECK_MSG(n == obd_upper_find(fresh, lba, 1, &b, 1),
			  "sector %d: %d in memory", (int)lba, (int)n);
		CHECK(!n || (a.w0 == b.w0 && a.w1 == b.w1));
	}
	obd_upper_unref(fresh);
}

static void sparse_model(uint64_t sectors)
{
	uint8_t *model = malloc(sectors * 512), *buf = malloc(sectors * 512);
	struct sparse s;
	uint64_t i, at, n;

	MUST(model && buf);
	s = sparse_new(random_lowers(model, sectors), sectors * 512);
	for (i = 0; i < 1200; i++) {
		at = check_below(sectors);
		n = check_below(check_below(4) ? 12 : 200) + 1;
		if (n > sectors - at)
			n = sectors - at;
		at *= 512;
		n *= 512;
		switch (check_below(6)) {
		case 0:
			CHECK_EQ(obd_device_zero(s.dev, at, n), 0);
			memset(model + at, 0, n);
			break;
		case 1:
			/* Promises nothing: what is read now must stay. */
			CHECK_EQ(obd_device_discard(s.dev, at, n), 0);
			CHECK_EQ(obd_device_read(s.dev, model + at, n, at),
				 0);
			break;
		case 2:
			CHECK_EQ(obd_device_read(s.dev, buf, n, at), 0);
			CHECK(!memcmp(buf, model + at, n));
			break;
		default:
			blob_fill(i, buf, at, n);
			CHECK_EQ(obd_device_write(s.dev, buf, n, at), 0);
			memcpy(model + at, buf, n);
		}
		if (check_below(60))
			continue;
		check_map_is_the_file(&s);
		sparse_close(&s);
		CHECK_EQ(sparse_open(&s, 0), 0);
		CHECK_EQ(obd_device_read(s.dev, buf, sectors * 512, 0), 0);
		CHECK(!memcmp(buf, model, sectors * 512));
	}
	free(model);
	free(buf);
	sparse_free(&s);
}

static void a_sparse_layer_reads_after_a_reopen_as_before(void)
{
	sparse_model(2048);
	sparse_model(2048);
}

static void also_when_its_last_block_ends_early(void)
{
	sparse_model(1021);
	sparse_model(8 * 100 + 1);
}

static void a_small_write_brings_the_rest_of_its_block(void)
{
	struct sparse s = sparse_new(flat_view(blob_source(5, 64 * KIB)),
				     64 * KIB);
	uint8_t sector[512], buf[64 * KIB];
	struct obd_record rec;

	memset(sector, 0xEE, 512);
	CHECK_EQ(obd_device_write(s.dev, sector, 512, 8192 + 1024), 0);
	CHECK_EQ(obd_upper_find(s.upper, 0, 128, &rec, 1), 1);
	CHECK_EQ(rec_lba(rec), 16);
	CHECK_EQ(rec_sectors(rec), 8);
	sparse_close(&s);
	/* The original's view of it: nothing but the file. */
	MUST(obd_io_pread(s.data, buf, 4096, 4096 + 8192) == 4096);
	CHECK(blob_same(5, buf, 8192, 1024));
	CHECK(all_bytes(buf + 1024, 0xEE, 512));
	CHECK(blob_same(5, buf + 1536, 8192 + 1536, 4096 - 1536));
	MUST(!sparse_open(&s, 0));
	CHECK_EQ(obd_device_read(s.dev, buf, 64 * KIB, 0), 0);
	CHECK(blob_same(5, buf, 0, 8192 + 1024));
	CHECK(blob_same(5, buf + 8192 + 1536, 8192 + 1536,
			64 * KIB - 8192 - 1536));
	sparse_free(&s);
}

static void zeros_are_written_over_lower_data_and_holes_elsewhere(void)
{
	struct obd_source *src = blob_source(6, 64 * KIB);
	struct obd_record rec[] = {
		rec_make(0, 32, 0, false, 0), rec_make(64, 32, 0, true, 0),
	};
	struct sparse s = sparse_new(view_of(rec, 2, &src, 1, 64 * KIB),
				     64 * KIB);
	uint8_t buf[64 * KIB];
	struct obd_record got[8];

	memset(buf, 7, sizeof(buf));
	CHECK_EQ(obd_device_write(s.dev, buf, 64 * KIB, 0), 0);
	CHECK_EQ(obd_device_zero(s.dev, 0, 64 * KIB), 0);
	CHECK_EQ(obd_upper_find(s.upper, 0, 128, got, 8), 1);
	CHECK_EQ(rec_end(got[0]), 32);
	check_map_is_the_file(&s);
	CHECK_EQ(obd_device_read(s.dev, buf, 64 * KIB, 0), 0);
	CHECK(all_bytes(buf, 0, 64 * KIB));
	/* A discard frees what reads as zeros without it. */
	memset(buf, 7, sizeof(buf));
	CHECK_EQ(obd_device_write(s.dev, buf, 64 * KIB, 0), 0);
	CHECK_EQ(obd_device_discard(s.dev, 0, 64 * KIB), 0);
	CHECK_EQ(obd_upper_find(s.upper, 0, 128, got, 8), 1);
	CHECK_EQ(rec_end(got[0]), 32);
	sparse_free(&s);
}

static void a_file_longer_than_its_disk_is_cut(void)
{
	struct sparse s = sparse_new(empty_view(SIZE), SIZE);
	uint8_t buf[4096];

	sparse_close(&s);
	memset(buf, 1, 4096);
	MUST(obd_io_pwrite(s.data, buf, 4096, 4096 + SIZE - 2048) == 4096);
	CHECK_EQ(sparse_open(&s, OBD_UPPER_READONLY), 0);
	CHECK_EQ(s.report.trimmed, 2048);
	CHECK_EQ(file_size(s.data), 4096 + SIZE + 2048);
	sparse_close(&s);
	CHECK_EQ(sparse_open(&s, 0), 0);
	CHECK_EQ(s.report.trimmed, 2048);
	CHECK_EQ(file_size(s.data), 4096 + SIZE);
	CHECK_EQ(obd_device_read(s.dev, buf, 4096, SIZE - 4096), 0);
	CHECK(all_bytes(buf + 2048, 1, 2048));
	sparse_close(&s);
	CHECK_EQ(sparse_open(&s, 0), 0);
	CHECK_EQ(s.report.trimmed, 0);
	sparse_free(&s);
}

static void a_failed_sparse_write_leaves_the_map_as_the_file(void)
{
	uint8_t *model = malloc(SIZE), *buf = malloc(SIZE);
	struct sparse s;
	uint64_t i, at, n, failed = 0;

	MUST(model && buf);
	s = sparse_new(random_lowers(model, SECTORS), SIZE);
	for (i = 0; i < 300; i++) {
		at = check_below(SECTORS - 64) * 512;
		n = (check_below(64) + 1) * 512;
		obd_io_fault(OBD_IO_PWRITE, (uint32_t)check_below(3) + 1,
			     ENOSPC, 1);
		memset(buf, (int)i | 1, n);
		failed += obd_device_write(s.dev, buf, n, at) != 0;
		obd_io_fault(OBD_IO_PWRITE, 0, 0, 0);
		obd_io_fault(OBD_IO_ALLOCATE, 1, EIO, check_below(2) != 0);
		failed += obd_device_zero(s.dev, at / 2, n) != 0;
		obd_io_fault(OBD_IO_ALLOCATE, 0, 0, 0);
	}
	CHECK(failed > 20);
	check_map_is_the_file(&s);
	CHECK_EQ(obd_device_read(s.dev, model, SIZE, 0), 0);
	sparse_close(&s);
	CHECK_EQ(sparse_open(&s, 0), 0);
	CHECK_EQ(obd_device_read(s.dev, buf, SIZE, 0), 0);
	CHECK(!memcmp(model, buf, SIZE));
	free(model);
	free(buf);
	sparse_free(&s);
}

static void a_write_done_in_part_is_in_the_map_in_part(void)
{
	struct sparse s = sparse_new(flat_view(blob_source(5, SIZE)), SIZE);
	struct rlimit was, limit;
	uint8_t buf[64 * KIB];

	MUST(!getrlimit(RLIMIT_FSIZE, &was));
	limit = was;
	limit.rlim_cur = 4096 + 96 * KIB;
	MUST(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
	MUST(!setrlimit(RLIMIT_FSIZE, &limit));
	memset(buf, 9, sizeof(buf));
	CHECK_EQ(obd_device_write(s.dev, buf, 64 * KIB, 64 * KIB), -EFBIG);
	MUST(!setrlimit(RLIMIT_FSIZE, &was));
	check_map_is_the_file(&s);
	CHECK_EQ(obd_device_read(s.dev, buf, 64 * KIB, 64 * KIB), 0);
	CHECK(all_bytes(buf, 9, 32 * KIB));
	CHECK(blob_same(5, buf + 32 * KIB, 96 * KIB, 32 * KIB));
	sparse_free(&s);
}

struct sparse_writer {
	pthread_t thread;
	pthread_barrier_t *together;
	struct obd_device *dev;
	uint64_t mine;               /* sectors lba % 4 == mine are its own */
	uint8_t *model;
	uint64_t wrong;
};

/* Writes only sectors of its own, in blocks that all share. */
static void *sparse_writer_main(void *arg)
{
	struct sparse_writer *w = arg;
	uint8_t buf[512];
	uint64_t i, lba;

	for (i = 0; i < 400; i++) {
		lba = (i * 37 % (SECTORS / 4)) * 4 + w->mine;
		pthread_barrier_wait(w->together);
		memset(buf, (int)(i + w->mine) | 1, 512);
		if (i % 5 == 4) {
			memset(buf, 0, 512);
			w->wrong += obd_device_zero(w->dev, lba * 512, 512)
				    != 0;
		} else {
			w->wrong += obd_device_write(w->dev, buf, 512,
						     lba * 512) != 0;
		}
		memcpy(w->model + lba * 512, buf, 512);
		w->wrong += obd_device_read(w->dev, buf, 512, lba * 512)
			    != 0;
		w->wrong += memcmp(w->model + lba * 512, buf, 512) != 0;
	}
	return NULL;
}

static void writers_of_one_block_do_not_undo_each_other(void)
{
	uint8_t *model = malloc(SIZE), *buf = malloc(SIZE);
	struct sparse_writer w[4];
	pthread_barrier_t together;
	struct sparse s;
	int i;

	MUST(model && buf && !pthread_barrier_init(&together, NULL, 4));
	s = sparse_new(random_lowers(model, SECTORS), SIZE);
	for (i = 0; i < 4; i++) {
		w[i] = (struct sparse_writer){ .dev = s.dev,
					       .together = &together,
					       .mine = (uint64_t)i,
					       .model = model };
		MUST(!pthread_create(&w[i].thread, NULL, sparse_writer_main,
				     &w[i]));
	}
	for (i = 0; i < 4; i++) {
		MUST(!pthread_join(w[i].thread, NULL));
		CHECK_EQ(w[i].wrong, 0);
	}
	check_map_is_the_file(&s);
	sparse_close(&s);
	CHECK_EQ(sparse_open(&s, 0), 0);
	CHECK_EQ(obd_device_read(s.dev, buf, SIZE, 0), 0);
	CHECK(!memcmp(model, buf, SIZE));
	free(model);
	free(buf);
	sparse_free(&s);
}

static void what_a_sparse_layer_cannot_be_is_refused(void)
{
	struct sparse s = sparse_new(empty_view(SIZE), SIZE);
	struct obd_upper_report report;
	struct obd_upper *upper;
	struct obd_device *dev;

	CHECK_EQ(obd_device_new(s.view, s.upper, SIZE + 512, 0, 0, &dev),
		 -EINVAL);
	CHECK_EQ(obd_upper_open(OBD_UPPER_SPARSE, s.data, -1, 513, &report,
				&upper), -EINVAL);
	CHECK_EQ(obd_upper_open(OBD_UPPER_SPARSE, s.data, s.data, SIZE,
				&report, &upper), -EBADF);
	CHECK_EQ(obd_upper_open(OBD_UPPER_LOG, s.data, -1, SIZE, &report,
				&upper), -EBADF);
	CHECK_EQ(obd_upper_open(7, s.data, -1, SIZE, &report, &upper),
		 -EINVAL);
	MUST(!ftruncate(s.data, 4000));
	CHECK_EQ(obd_upper_open(OBD_UPPER_SPARSE, s.data, -1, SIZE, &report,
				&upper), -EBADMSG);
	CHECK_EQ(report.bad.reason, OBD_BAD_SHORT);
	sparse_free(&s);
}

static void a_sparse_flush_syncs_the_data_once(void)
{
	struct sparse s = sparse_new(empty_view(SIZE), SIZE);
	uint8_t buf[4096] = { 1 };
	struct trace t;

	trace_start(&t);
	CHECK_EQ(obd_device_write(s.dev, buf, 4096, 0), 0);
	CHECK_EQ(obd_device_flush(s.dev), 0);
	CHECK_EQ(obd_device_flush(s.dev), 0);
	trace_stop(&t);
	CHECK_EQ(syncs_of(&t, s.data), 1);
	free(t.events);
	sparse_free(&s);
}

/* Whoever wrote it may have been killed before it was on disk. */
static void a_found_sparse_layer_is_synced_by_the_first_flush(void)
{
	struct sparse s = sparse_new(empty_view(SIZE), SIZE);
	struct trace t;

	trace_start(&t);
	CHECK_EQ(obd_device_flush(s.dev), 0);
	CHECK_EQ(obd_device_flush(s.dev), 0);
	trace_stop(&t);
	CHECK_EQ(syncs_of(&t, s.data), 1);
	free(t.events);
	sparse_free(&s);
}

/* ---- sparse files that the original made ------------------------------- */

/* Unpacks a member of a fixture's archive, holes and all. */
static int unpack(const char *archive, const char *member)
{
	char dir[] = "/tmp/obd-unpack-XXXXXX", cmd[900], path[128];
	int fd;

	MUST(mkdtemp(dir));
	snprintf(cmd, sizeof(cmd), "tar -xSf %s/%s -C %s", fixtures(),
		 archive, dir);
	MUST(!system(cmd));
	snprintf(path, sizeof(path), "%s/%s", dir, member);
	fd = open(path, O_RDWR | O_CLOEXEC);
	MUST(fd >= 0);
	snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
	MUST(!system(cmd));
	return fd;
}

static bool have_fixtures(void)
{
	int fd = fixture("15-quirks/qs.tar");

	if (fd < 0)
		printf("# no fixtures\n");
	else
		close(fd);
	return fd >= 0;
}

static void sparse_layers_of_the_original_read_right(void)
{
	struct sparse s = { .view = NULL, .size = SIZE };

	if (!have_fixtures())
		return;
	s.view = empty_view(SIZE);
	s.data = unpack("02-rw-sparse/sp1m.tar", "sp1m.data");
	CHECK_EQ(sparse_open(&s, 0), 0);
	check_disk(s.dev, SIZE, "988b4e1c7453e4739144a0318b1cbe6436d0b159e53"
		   "921b0190e689a5750920c");
	sparse_free(&s);
	s.view = empty_view(SIZE);
	s.data = unpack("02-rw-sparse/sp1m-empty.tar", "sp1m-empty.data");
	CHECK_EQ(sparse_open(&s, 0), 0);
	CHECK_EQ(s.report.records, 0);
	sparse_free(&s);
}

/* The fixtures' stream r:SEED. */
static void stream(uint64_t seed, uint8_t *buf, uint64_t n)
{
	uint64_t i, z;

	for (i = 0; i < n; i += 8) {
		z = seed += 0x9E3779B97F4A7C15;
		z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
		z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
		z ^= z >> 31;
		memcpy(buf + i, &z, 8);
	}
}

static struct obd_view *quirk_lowers(void)
{
	uint8_t *buf = malloc(SIZE);
	struct obd_source *src;
	int fd = temp_fd();

	MUST(buf);
	stream(1, buf, SIZE);
	MUST(obd_io_pwrite(fd, buf, SIZE, 0) == (int64_t)SIZE);
	free(buf);
	MUST(!obd_source_file(fd, 0, SIZE, &src));
	return flat_view(src);
}

#define QUIRK_MEANT "988e74b562ab8e1be822981fad98c45aa1b14686dc935647875c" \
		    "2167d5fa1365"
#define QUIRK_FOUND "a5463719a396adbf771301702220e3590b9bea130835cda0b222" \
		    "7c88c60837ff"

static void the_original_s_sparse_file_reads_as_it_reads_it(void)
{
	struct sparse s = { .view = NULL, .size = SIZE };

	if (!have_fixtures())
		return;
	s.view = quirk_lowers();
	s.data = unpack("15-quirks/qs.tar", "qs.data");
	CHECK_EQ(sparse_open(&s, 0), 0);
	check_disk(s.dev, SIZE, QUIRK_FOUND);
	sparse_free(&s);
}

static void the_same_operations_of_ours_read_as_they_were_meant(void)
{
	struct sparse s = sparse_new(quirk_lowers(), SIZE);
	uint8_t buf[512];

	stream(2, buf, 512);
	CHECK_EQ(obd_device_write(s.dev, buf, 512, 512), 0);
	CHECK_EQ(obd_device_zero(s.dev, 65536, 65536), 0);
	check_disk(s.dev, SIZE, QUIRK_MEANT);
	sparse_close(&s);
	CHECK_EQ(sparse_open(&s, 0), 0);
	check_disk(s.dev, SIZE, QUIRK_MEANT);
	sparse_free(&s);
}

int main(void)
{
	parts_start();
	RUN(the_worked_example_of_the_spec);
	RUN(writes_are_cut_at_4_mib_and_zeros_at_16383_sectors);
	RUN(more_records_than_one_batch);
	RUN(what_was_written_is_read_again_after_a_reopen);
	RUN(a_torn_tail_is_dropped_and_cut_before_the_next_append);
	RUN(nothing_is_written_read_only);
	RUN(an_uneven_data_file_is_rounded_up_for_appending);
	RUN(without_marks_a_bad_record_rejects_the_layer);
	RUN(what_the_rules_allow_is_accepted);
	RUN(behind_the_last_mark_a_bad_record_cuts_the_rest);
	RUN(before_the_last_mark_a_bad_record_rejects_the_layer);
	RUN(data_that_ends_before_the_mark_rejects_the_layer);
	RUN(a_record_into_a_hole_is_cut_behind_a_mark_only);
	RUN(too_many_records_and_too_short_files_are_rejected);
	RUN(a_flush_syncs_data_then_marks_then_syncs_the_index);
	RUN(a_found_mark_is_synced_by_the_first_flush);
	RUN(found_records_without_a_mark_are_flushed);
	RUN(fua_is_on_disk_when_it_is_answered);
	RUN(marks_vouch_only_for_what_their_sync_covered);
	RUN(a_failed_sync_is_not_called_a_success_later);
	RUN(a_write_that_failed_changes_nothing_and_breaks_nothing);
	RUN(a_place_that_was_not_filled_is_used_again);
	RUN(what_cannot_be_trimmed_is_trimmed_by_the_next_append);
	RUN(a_full_disk_without_room_for_a_mark_is_still_flushed);
	RUN(log_layers_of_the_original_read_right);
	RUN(a_sparse_layer_reads_after_a_reopen_as_before);
	RUN(also_when_its_last_block_ends_early);
	RUN(a_small_write_brings_the_rest_of_its_block);
	RUN(zeros_are_written_over_lower_data_and_holes_elsewhere);
	RUN(a_file_longer_than_its_disk_is_cut);
	RUN(a_failed_sparse_write_leaves_the_map_as_the_file);
	RUN(a_write_done_in_part_is_in_the_map_in_part);
	RUN(writers_of_one_block_do_not_undo_each_other);
	RUN(what_a_sparse_layer_cannot_be_is_refused);
	RUN(a_sparse_flush_syncs_the_data_once);
	RUN(a_found_sparse_layer_is_synced_by_the_first_flush);
	RUN(sparse_layers_of_the_original_read_right);
	RUN(the_original_s_sparse_file_reads_as_it_reads_it);
	RUN(the_same_operations_of_ours_read_as_they_were_meant);
	return check_done();
}
