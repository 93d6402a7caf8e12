/* SPDX-License-Identifier: Apache-2.0 */
#include "parts.h"

#define SECTORS 1024u              /* of the disks here: 512 KiB */
#define SIZE (SECTORS * 512ull)
#define STACK_MAX 16u
#define NO_LIMIT 10000u

/* ---- a machine without memory ------------------------------------------- */

static _Thread_local bool starved; /* this thread alone */

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	return starved ? NULL : __real_calloc(n, size);
}

/* ---- a disk that is snapshotted ----------------------------------------- */

/* Lowers are kept topmost first, as the view has them. */
struct disk {
	struct obd_device *dev;
	struct obd_upper *upper, *before;
	struct obd_index *index[STACK_MAX];
	struct obd_source *source[STACK_MAX];
	uint32_t n;
	int data, file_index;        /* of the upper that was opened last */
	uint8_t model[SIZE];
};

static struct obd_upper *open_upper(int kind, int data, int index)
{
	struct obd_upper_report report;
	struct obd_upper *upper;

	MUST(!obd_upper_open(kind, dup(data), index < 0 ? -1 : dup(index),
			     SIZE, &report, &upper));
	return upper;
}

/* An empty one; its files stay open in the disk. */
static struct obd_upper *fresh_upper(struct disk *d, int kind)
{
	bool log = kind == OBD_UPPER_LOG;

	close(d->data);
	close(d->file_index);
	d->data = layer_file(log ? 0 : 4096 + SIZE);
	d->file_index = log ? layer_file(0) : -1;
	return open_upper(kind, d->data, d->file_index);
}

static void put_lower(struct disk *d, struct obd_index *index,
		      struct obd_source *source)
{
	MUST(d->n < STACK_MAX);
	memmove(d->index + 1, d->index, d->n * sizeof(d->index[0]));
	memmove(d->source + 1, d->source, d->n * sizeof(d->source[0]));
	d->index[0] = index;
	d->source[0] = source;
	d->n++;
}

static struct obd_view *lowers_view(struct disk *d)
{
	struct obd_index *merged;
	struct obd_view *view;

	MUST(!obd_index_merge(d->index, d->n, &merged));
	MUST(!obd_view_new(merged, d->source, d->n, SIZE, &view));
	obd_index_unref(merged);
	return view;
}

/* One lower of data, zeros and holes, and an upper of a kind. */
static struct disk *disk_new(int kind)
{
	struct disk *d = calloc(1, sizeof(*d));
	struct obd_record rec[SECTORS];
	uint64_t lba = 0, n, count = 0;
	struct obd_index *index;
	uint32_t what;

	MUST(d);
	d->data = d->file_index = -1;
	while (lba < SECTORS) {
		n = check_below(40) + 1;
		if (n > SECTORS - lba)
			n = SECTORS - lba;
		what = (uint32_t)check_below(3);
		if (what < 2)
			rec[count++] = rec_make(lba, n, lba, what == 1, 0);
		if (what == 0)
			blob_fill(5, d->model + lba * 512, lba * 512,
				  n * 512);
		lba += n;
	}
	MUST(!obd_index_new(rec, count, &index));
	put_lower(d, index, blob_source(5, SIZE));
	d->upper = fresh_upper(d, kind);
	d->dev = device_of(lowers_view(d), obd_upper_ref(d->upper), SIZE,
			   1000);
	return d;
}

static void disk_free(struct disk *d)
{
	uint32_t i;

	obd_device_unref(d->dev);
	obd_upper_unref(d->upper);
	obd_upper_unref(d->before);
	for (i = 0; i < d->n; i++) {
		obd_index_unref(d->index[i]);
		obd_source_unref(d->source[i]);
	}
	close(d->data);
	close(d->file_index);
	free(d);
}

static int push(struct disk *d, int kind, uint32_t limit_ms)
{
	struct obd_upper *upper = fresh_upper(d, kind);
	uint64_t pause_ns = 0;
	int err = obd_device_push(d->dev, upper, 1000000, limit_ms,
				  &pause_ns);

	MUST(pause_ns || err);
	if (err) {
		obd_upper_unref(upper);
		return err;
	}
	d->before = d->upper;
	d->upper = upper;
	return 0;
}

static int settle_sealed(struct disk *d)
{
	struct obd_source *source;
	struct obd_index *index;
	struct obd_view *view;
	int err;

	MUST(!obd_upper_snapshot(d->before, &index));
	MUST(!obd_upper_source(d->before, &source));
	put_lower(d, index, source);
	view = lowers_view(d);
	starved = true; /* it needs none */
	err = obd_device_settle(d->dev, OBD_SETTLE_SEALED, view);
	starved = false;
	obd_view_unref(view);
	obd_upper_unref(d->before);
	d->before = NULL;
	return err;
}

static int settle_popped(struct disk *d)
{
	int err;

	starved = true;
	err = obd_device_settle(d->dev, OBD_SETTLE_POPPED, NULL);
	starved = false;
	obd_upper_unref(d->upper);
	d->upper = d->before;
	d->before = NULL;
	return err;
}

/* A write, a zero or a discard that may touch anything; the model follows.
 * What a discard leaves is read. */
static void random_change(struct disk *d)
{
	uint64_t lba = check_below(SECTORS), n = check_below(50) + 1, at;
	uint8_t buf[50 * 512];

	if (n > SECTORS - lba)
		n = SECTORS - lba;
	at = lba * 512;
	switch (check_below(4)) {
	case 0:
		CHECK_EQ(obd_device_zero(d->dev, at, n * 512), 0);
		memset(d->model + at, 0, n * 512);
		break;
	case 1:
		CHECK_EQ(obd_device_discard(d->dev, at, n * 512), 0);
		CHECK_EQ(obd_device_read(d->dev, d->model + at, n * 512, at),
			 0);
		break;
	default:
		memset(buf, (int)check_random() | 1, n * 512);
		CHECK_EQ(obd_device_write(d->dev, buf, n * 512, at), 0);
		memcpy(d->model + at, buf, n * 512);
	}
}

static void changes(struct disk *d, int count)
{
	while (count--)
		random_change(d);
}

static bool same(struct disk *d)
{
	uint8_t *buf = malloc(SIZE);
	bool equal;

	MUST(buf);
	MUST(!obd_device_read(d->dev, buf, SIZE, 0));
	equal = !memcmp(buf, d->model, SIZE);
	free(buf);
	return equal;
}

/* ---- what a disk shows --------------------------------------------------- */

static void a_pushed_disk_shows_and_takes_what_it_did_before(void)
{
	struct disk *d;
	int i, kinds;

	for (i = 0; i < 24; i++) {
		kinds = i % 4;
		d = disk_new(kinds & 1);
		changes(d, 60);
		CHECK_EQ(push(d, kinds >> 1, NO_LIMIT), 0);
		CHECK(same(d));
		changes(d, 60);
		CHECK(same(d));
		CHECK_EQ(settle_sealed(d), 0);
		CHECK(same(d));
		changes(d, 60);
		CHECK(same(d));
		CHECK_EQ(obd_device_flush(d->dev), 0);
		disk_free(d);
	}
}

static void snapshots_follow_one_another(void)
{
	struct disk *d = disk_new(OBD_UPPER_LOG);
	uint32_t i;

	for (i = 0; i < STACK_MAX - 1; i++) {
		changes(d, 30);
		CHECK_EQ(push(d, (int)(i & 1), NO_LIMIT), 0);
		changes(d, 30);
		CHECK_EQ(settle_sealed(d), 0);
		CHECK(same(d));
	}
	disk_free(d);
}

static void nothing_changes_the_upper_of_before(void)
{
	uint64_t data_size, index_size;
	struct disk *d = disk_new(OBD_UPPER_LOG);
	int data, index;

	changes(d, 40);
	data = dup(d->data);
	index = dup(d->file_index);
	CHECK_EQ(push(d, OBD_UPPER_LOG, NO_LIMIT), 0);
	data_size = file_size(data);
	index_size = file_size(index);
	changes(d, 100);
	CHECK_EQ(file_size(data), data_size);
	CHECK_EQ(file_size(index), index_size);
	CHECK_EQ(settle_sealed(d), 0);
	changes(d, 100);
	CHECK_EQ(file_size(data), data_size);
	close(data);
	close(index);
	disk_free(d);
}

/* The tag of records in the index file is the layer's slot (spec lsmt 5). */
static void records_carry_the_slot_of_the_new_upper(void)
{
	struct disk *d = disk_new(OBD_UPPER_LOG);
	uint8_t sector[512] = { 1 };
	struct obd_record rec;

	CHECK_EQ(push(d, OBD_UPPER_LOG, NO_LIMIT), 0);
	CHECK_EQ(obd_device_write(d->dev, sector, 512, 0), 0);
	/* behind the mark that precedes every first record */
	CHECK_EQ(obd_io_pread(d->file_index, &rec, 16, 4096 + 16), 16);
	CHECK_EQ(rec_tag(rec), 2);
	disk_free(d);
}

static void another_view_of_the_lowers_keeps_both_uppers(void)
{
	struct disk *d = disk_new(OBD_UPPER_LOG);
	struct obd_view *view = lowers_view(d);

	changes(d, 50);
	CHECK_EQ(push(d, OBD_UPPER_SPARSE, NO_LIMIT), 0);
	changes(d, 50);
	CHECK_EQ(obd_view_busy(view), 0);
	CHECK_EQ(obd_device_swap(d->dev, view), 0);
	CHECK_EQ(obd_view_busy(view), 1);
	CHECK(same(d));
	CHECK_EQ(settle_sealed(d), 0);
	CHECK_EQ(obd_view_busy(view), 0);
	CHECK(same(d));
	obd_view_unref(view);
	disk_free(d);
}

/* ---- back ---------------------------------------------------------------- */

static void a_pop_copies_back_what_was_written_since(void)
{
	struct obd_upper *again;
	struct disk *d;
	int i, data, index, kind;

	for (i = 0; i < 24; i++) {
		kind = i & 1;
		d = disk_new(kind);
		changes(d, 60);
		data = dup(d->data);
		index = kind == OBD_UPPER_LOG ? dup(d->file_index) : -1;
		CHECK_EQ(push(d, i >> 1 & 1, NO_LIMIT), 0);
		changes(d, 60);
		CHECK_EQ(obd_device_pop(d->dev, NO_LIMIT), 0);
		CHECK_EQ(settle_popped(d), 0);
		CHECK(same(d));
		changes(d, 30);
		CHECK(same(d));
		CHECK_EQ(obd_device_flush(d->dev), 0);
		/* the files of the upper of before are all that is needed */
		again = open_upper(kind, data, index);
		obd_device_unref(d->dev);
		d->dev = device_of(lowers_view(d), again, SIZE, 1000);
		CHECK(same(d));
		close(data);
		close(index);
		disk_free(d);
	}
}

static void a_kept_push_goes_on_with_two_uppers(void)
{
	struct disk *d = disk_new(OBD_UPPER_LOG);

	changes(d, 60);
	CHECK_EQ(push(d, OBD_UPPER_LOG, NO_LIMIT), 0);
	changes(d, 60);
	CHECK_EQ(obd_device_settle(d->dev, OBD_SETTLE_KEPT, NULL), 0);
	changes(d, 60);
	CHECK(same(d));
	CHECK_EQ(obd_device_flush(d->dev), 0);
	CHECK_EQ(push(d, OBD_UPPER_LOG, NO_LIMIT), -EBUSY);
	CHECK(same(d));
	disk_free(d);
}

/* ---- who waits ----------------------------------------------------------- */

/* A request on a thread of its own. */
struct asker {
	pthread_t thread;
	struct obd_device *dev;
	enum obd_op op;
	uint16_t flags;
	uint8_t sector[512];
	int err;
	_Atomic bool ended;
};

static void *asker_main(void *arg)
{
	struct asker *a = arg;
	struct iovec iov = { a->sector, 512 };
	struct obd_request req = { .dev = a->dev, .op = (uint16_t)a->op,
				   .flags = a->flags, .iov = &iov,
				   .length = a->op == OBD_FLUSH ? 0 : 512,
				   .iov_count = a->op == OBD_WRITE ||
						a->op == OBD_READ };

	a->err = obd_request_wait(&req);
	atomic_store(&a->ended, true);
	return NULL;
}

static void ask(struct asker *a, struct obd_device *dev, enum obd_op op,
		uint16_t flags)
{
	memset(a, 0, sizeof(*a));
	a->dev = dev;
	a->op = op;
	a->flags = flags;
	memset(a->sector, 0x42, 512);
	MUST(!pthread_create(&a->thread, NULL, asker_main, a));
}

static int answer(struct asker *a)
{
	MUST(!pthread_join(a->thread, NULL));
	return a->err;
}

static void flush_and_fua_wait_until_it_is_settled(void)
{
	struct disk *d = disk_new(OBD_UPPER_LOG);
	struct asker flush, fua, plain;
	uint8_t sector[512];

	CHECK_EQ(push(d, OBD_UPPER_LOG, NO_LIMIT), 0);
	ask(&flush, d->dev, OBD_FLUSH, 0);
	ask(&fua, d->dev, OBD_WRITE, OBD_REQ_FUA);
	sleep_ms(50);
	CHECK(!atomic_load(&flush.ended));
	CHECK(!atomic_load(&fua.ended));
	CHECK_EQ(obd_device_read(d->dev, sector, 512, 0), 0);
	CHECK(!memcmp(sector, d->model, 512)); /* it has not written, too */
	ask(&plain, d->dev, OBD_DISCARD, 0);
	CHECK_EQ(answer(&plain), 0);
	CHECK_EQ(settle_sealed(d), 0);
	CHECK_EQ(answer(&flush), 0);
	CHECK_EQ(answer(&fua), 0);
	CHECK_EQ(obd_device_read(d->dev, sector, 512, 0), 0);
	CHECK(all_bytes(sector, 0x42, 512));
	CHECK(atomic_load(&d->upper->synced));
	disk_free(d);
}

/* A running change that ends when the test says so. */
static void hold_up(struct obd_device *dev)
{
	atomic_fetch_add(&dev->changing, 1);
}

static void a_change_that_does_not_end_costs_no_more_than_the_limit(void)
{
	struct disk *d = disk_new(OBD_UPPER_LOG);
	struct obd_upper *upper = fresh_upper(d, OBD_UPPER_LOG);
	struct asker waiting;
	uint64_t pause_ns = 0;

	hold_up(d->dev);
	CHECK_EQ(obd_device_push(d->dev, upper, 1000000, 30, &pause_ns),
		 -ETIMEDOUT);
	CHECK(pause_ns >= 29000000);
	ask(&waiting, d->dev, OBD_WRITE, OBD_REQ_FUA);
	CHECK_EQ(answer(&waiting), 0);
	obd_gate_leave(d->dev);
	CHECK_EQ(obd_device_push(d->dev, upper, 1000000, 30, &pause_ns), 0);
	obd_upper_unref(upper);
	disk_free(d);
}

struct pusher {
	pthread_t thread;
	struct disk *disk;
	int err;
};

static void *pusher_main(void *arg)
{
	struct pusher *p = arg;

	p->err = push(p->disk, OBD_UPPER_LOG, NO_LIMIT);
	return NULL;
}

static void changes_wait_at_a_closed_gate_and_reads_do_not(void)
{
	struct disk *d = disk_new(OBD_UPPER_LOG);
	struct pusher pusher = { .disk = d };
	struct asker write, zero, read;

	hold_up(d->dev);
	MUST(!pthread_create(&pusher.thread, NULL, pusher_main, &pusher));
	while (!(atomic_load(&d->dev->changing) & GATE_CLOSED))
		sleep_ms(1);
	ask(&write, d->dev, OBD_WRITE, 0);
	ask(&zero, d->dev, OBD_ZERO, 0);
	sleep_ms(30);
	CHECK(!atomic_load(&write.ended));
	CHECK(!atomic_load(&zero.ended));
	ask(&read, d->dev, OBD_READ, 0);
	CHECK_EQ(answer(&read), 0);
	obd_gate_leave(d->dev);
	MUST(!pthread_join(pusher.thread, NULL));
	CHECK_EQ(pusher.err, 0);
	CHECK_EQ(answer(&write), 0);
	CHECK_EQ(answer(&zero), 0);
	/* both are in the new upper */
	CHECK_EQ(obd_map_count(d->before->map), 0);
	CHECK_EQ(obd_map_count(d->upper->map), 1);
	disk_free(d);
}

static void closing_ends_what_waits(void)
{
	struct disk *d = disk_new(OBD_UPPER_LOG);
	struct asker flush, fua;

	CHECK_EQ(push(d, OBD_UPPER_LOG, NO_LIMIT), 0);
	ask(&flush, d->dev, OBD_FLUSH, 0);
	ask(&fua, d->dev, OBD_WRITE, OBD_REQ_FUA);
	sleep_ms(20);
	CHECK_EQ(obd_device_close(d->dev, -ESHUTDOWN), 0);
	CHECK_EQ(answer(&flush), -ESHUTDOWN);
	CHECK_EQ(answer(&fua), -ESHUTDOWN);
	CHECK_EQ(settle_sealed(d), 0);
	disk_free(d);
}

#define LARGE (48 * MIB)

static struct obd_upper *large_sparse(void)
{
	struct obd_upper_report report;
	struct obd_upper *upper;

	MUST(!obd_upper_open(OBD_UPPER_SPARSE, layer_file(4096 + LARGE), -1,
			     LARGE, &report, &upper));
	return upper;
}

static void *zero_all(void *arg)
{
	MUST(!obd_device_zero(arg, 512, LARGE - 1024));
	return NULL;
}

/* Zeros over data are really written on a sparse layer, which takes long. */
static void a_long_zero_lets_a_push_in_between(void)
{
	struct obd_upper *first = large_sparse(), *second = large_sparse();
	struct obd_device *dev = device_of(flat_view(blob_source(3, LARGE)),
					   first, LARGE, 1000);
	uint8_t *buf = malloc(LARGE);
	uint64_t pause_ns;
	pthread_t thread;
	int tries, err = -ETIMEDOUT;

	MUST(buf);
	MUST(!pthread_create(&thread, NULL, zero_all, dev));
	for (tries = 0; err == -ETIMEDOUT && tries < 1000; tries++)
		err = obd_device_push(dev, second, 1000000, 500, &pause_ns);
	CHECK_EQ(err, 0);
	MUST(!pthread_join(thread, NULL));
	CHECK_EQ(obd_device_read(dev, buf, LARGE, 0), 0);
	CHECK(blob_same(3, buf, 0, 512));
	CHECK(all_bytes(buf + 512, 0, LARGE - 1024));
	CHECK(blob_same(3, buf + LARGE - 512, LARGE - 512, 512));
	free(buf);
	obd_device_unref(dev);
	obd_upper_unref(second);
}

/* ---- what is refused ----------------------------------------------------- */

static void a_push_that_cannot_be_leaves_the_device_alone(void)
{
	struct disk *d = disk_new(OBD_UPPER_LOG);
	struct obd_upper_report report;
	struct obd_upper *other, *small, *shared;
	struct obd_device *readonly;
	struct obd_view *view = empty_view(SIZE);
	uint64_t ns;

	changes(d, 60);
	other = open_upper(OBD_UPPER_LOG, layer_file(0), layer_file(0));
	shared = open_upper(OBD_UPPER_LOG | OBD_UPPER_READONLY,
			    layer_file(0), layer_file(0));
	MUST(!obd_upper_open(OBD_UPPER_SPARSE, layer_file(SIZE), -1,
			     SIZE - 4096, &report, &small));
	MUST(!obd_device_new(view, other, SIZE, OBD_DEVICE_READONLY, 0,
			     &readonly));
	CHECK_EQ(obd_device_push(readonly, other, 9, 9, &ns), -EROFS);
	CHECK_EQ(obd_device_push(d->dev, NULL, 9, 9, &ns), -EINVAL);
	CHECK_EQ(obd_device_push(d->dev, d->upper, 9, 9, &ns), -EINVAL);
	CHECK_EQ(obd_device_push(d->dev, small, 9, 9, &ns), -EINVAL);
	CHECK_EQ(obd_device_push(d->dev, shared, 9, 9, &ns), -EINVAL);
	CHECK_EQ(obd_device_push(d->dev, other, 2, 9, &ns), -E2BIG);
	CHECK_EQ(obd_device_settle(d->dev, OBD_SETTLE_KEPT, NULL), -EINVAL);
	CHECK_EQ(obd_device_pop(d->dev, 9), -EINVAL);
	CHECK_EQ(obd_device_push(d->dev, other, 1000, 9, &ns), 0);
	CHECK_EQ(obd_device_push(d->dev, d->upper, 1000, 9, &ns), -EBUSY);
	CHECK_EQ(obd_device_settle(d->dev, OBD_SETTLE_SEALED, NULL),
		 -EINVAL);
	CHECK_EQ(obd_device_settle(d->dev, OBD_SETTLE_POPPED, NULL),
		 -EINVAL);
	CHECK_EQ(obd_device_settle(d->dev, 3, NULL), -EINVAL);
	CHECK(same(d));
	obd_device_unref(readonly);
	obd_upper_unref(other);
	obd_upper_unref(small);
	obd_upper_unref(shared);
	obd_view_unref(view);
	disk_free(d);
}

static void without_memory_a_push_is_refused_but_not_its_end(void)
{
	struct disk *d = disk_new(OBD_UPPER_LOG);
	struct obd_upper *other;
	uint64_t ns;
	uint32_t how;

	changes(d, 60);
	other = fresh_upper(d, OBD_UPPER_LOG);
	starved = true;
	CHECK_EQ(obd_device_push(d->dev, other, 1000, 9, &ns), -ENOMEM);
	starved = false;
	obd_upper_unref(other);
	CHECK(same(d));
	CHECK_EQ(obd_device_settle(d->dev, OBD_SETTLE_KEPT, NULL), -EINVAL);
	for (how = OBD_SETTLE_SEALED; how <= OBD_SETTLE_KEPT; how++) {
		CHECK_EQ(push(d, OBD_UPPER_LOG, NO_LIMIT), 0);
		changes(d, 60);
		if (how == OBD_SETTLE_POPPED)
			CHECK_EQ(obd_device_pop(d->dev, NO_LIMIT), 0);
		CHECK_EQ(how == OBD_SETTLE_SEALED ? settle_sealed(d) :
			 how == OBD_SETTLE_POPPED ? settle_popped(d) :
			 obd_device_settle(d->dev, how, NULL), 0);
		CHECK_EQ(obd_device_flush(d->dev), 0);
		changes(d, 60);
		CHECK(same(d));
	}
	disk_free(d);
}

/* ---- all at once --------------------------------------------------------- */

#define WRITERS 3u
#define ROUNDS 40u

/* Each writer has a third of the disk, and knows what is in it. */
struct writer {
	pthread_t thread;
	struct disk *disk;
	uint32_t nr;
	_Atomic bool *stop;
	uint64_t state, bad, done;
};

static uint64_t writer_random(struct writer *w)
{
	w->state = w->state * 6364136223846793005ull + 1442695040888963407ull;
	return w->state >> 33;
}

static void writer_step(struct writer *w)
{
	uint64_t part = SECTORS / WRITERS, n = writer_random(w) % 8 + 1;
	uint64_t lba = w->nr * part + writer_random(w) % (part - 8);
	uint8_t *model = w->disk->model + lba * 512, buf[8 * 512];
	struct obd_device *dev = w->disk->dev;

	switch (writer_random(w) % 4) {
	case 0:
		w->bad += obd_device_read(dev, buf, n * 512, lba * 512) != 0;
		w->bad += memcmp(buf, model, n * 512) != 0;
		break;
	case 1:
		w->bad += obd_device_zero(dev, lba * 512, n * 512) != 0;
		memset(model, 0, n * 512);
		break;
	default:
		memset(buf, (int)writer_random(w), n * 512);
		w->bad += obd_device_write(dev, buf, n * 512, lba * 512) != 0;
		memcpy(model, buf, n * 512);
	}
	w->done++;
}

static void *writer_main(void *arg)
{
	struct writer *w = arg;

	while (!atomic_load(w->stop))
		writer_step(w);
	return NULL;
}

static void snapshots_under_load_lose_nothing(void)
{
	struct disk *d = disk_new(OBD_UPPER_LOG);
	struct writer writer[WRITERS];
	_Atomic bool stop = false;
	uint32_t i;
	int err = 0;

	for (i = 0; i < WRITERS; i++) {
		writer[i] = (struct writer){ .disk = d, .nr = i,
					     .stop = &stop,
					     .state = check_random() };
		MUST(!pthread_create(&writer[i].thread, NULL, writer_main,
				     &writer[i]));
	}
	for (i = 0; i < ROUNDS && !err; i++) {
		sleep_ms(5);
		err = push(d, (int)(i & 1), NO_LIMIT);
		sleep_ms(2);
		if (!err && i % 3 == 2 && d->n < STACK_MAX)
			err = settle_sealed(d);
		else if (!err)
			err = obd_device_pop(d->dev, NO_LIMIT) ||
			      settle_popped(d);
	}
	atomic_store(&stop, true);
	for (i = 0; i < WRITERS; i++) {
		MUST(!pthread_join(writer[i].thread, NULL));
		CHECK_EQ(writer[i].bad, 0);
		CHECK(writer[i].done > ROUNDS);
	}
	CHECK_EQ(err, 0);
	CHECK(same(d));
	disk_free(d);
}

int main(void)
{
	parts_start();
	RUN(a_pushed_disk_shows_and_takes_what_it_did_before);
	RUN(snapshots_follow_one_another);
	RUN(nothing_changes_the_upper_of_before);
	RUN(records_carry_the_slot_of_the_new_upper);
	RUN(another_view_of_the_lowers_keeps_both_uppers);
	RUN(a_pop_copies_back_what_was_written_since);
	RUN(a_kept_push_goes_on_with_two_uppers);
	RUN(flush_and_fua_wait_until_it_is_settled);
	RUN(a_change_that_does_not_end_costs_no_more_than_the_limit);
	RUN(changes_wait_at_a_closed_gate_and_reads_do_not);
	RUN(closing_ends_what_waits);
	RUN(a_long_zero_lets_a_push_in_between);
	RUN(a_push_that_cannot_be_leaves_the_device_alone);
	RUN(without_memory_a_push_is_refused_but_not_its_end);
	RUN(snapshots_under_load_lose_nothing);
	obd_engine_stop();
	return check_done();
}
