/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads by a worker's io_uring: the same bytes as by any other engine, few
 * calls, and a helper's answer wherever the ring has none.
 */
#include <liburing.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include "parts.h"

enum { DIRECT = 1, URING = 2, ENGINES = 4 };

/* ---- the seams ---------------------------------------------------------- */

static _Atomic int calls, asked, helped;  /* of the kernel, and of helpers */
static _Atomic int submit_errors, init_error;

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring)
{
	int n;

	if (atomic_load(&submit_errors) > 0) {
		atomic_fetch_sub(&submit_errors, 1);
		return -EAGAIN;
	}
	n = __real_io_uring_submit(ring);
	atomic_fetch_add(&calls, 1);
	atomic_fetch_add(&asked, n);
	return n;
}

int __real_io_uring_queue_init_params(unsigned int entries,
				      struct io_uring *ring,
				      struct io_uring_params *p);
int __wrap_io_uring_queue_init_params(unsigned int entries,
				      struct io_uring *ring,
				      struct io_uring_params *p);
int __wrap_io_uring_queue_init_params(unsigned int entries,
				      struct io_uring *ring,
				      struct io_uring_params *p)
{
	int error = atomic_load(&init_error);

	/* As a kernel before 6.0 does. */
	if (error == -EINVAL && !p->flags)
		error = 0;
	return error ? error :
		       __real_io_uring_queue_init_params(entries, ring, p);
}

int __real_obd_plane_offload(struct obd_task *task);
int __wrap_obd_plane_offload(struct obd_task *task);
int __wrap_obd_plane_offload(struct obd_task *task)
{
	atomic_fetch_add(&helped, 1);
	return __real_obd_plane_offload(task);
}

static void forget_counts(void)
{
	calls = asked = helped = 0;
}

/* ---- a transport -------------------------------------------------------- */

/* One read, and where its bytes go. */
struct io {
	struct obd_request req;
	struct iovec iov[3];
	uint8_t *buf;
};

/* A watch whose worker submits a batch, all of it in one round. */
struct pump {
	struct obd_watch watch;
	struct io *ios;
	uint32_t count;
	_Atomic uint32_t left;
	_Atomic bool submitted;
};

static void pump_done(struct obd_request *req)
{
	atomic_fetch_sub((_Atomic uint32_t *)req->owner, 1);
}

static void pump_ready(struct obd_watch *watch, uint32_t events)
{
	struct pump *p = (struct pump *)((char *)watch -
					 offsetof(struct pump, watch));
	uint64_t kicks;

	(void)events;
	MUST(read(watch->fd, &kicks, 8) == 8);
	for (uint32_t i = 0; i < p->count; i++)
		if (obd_request_submit(&p->ios[i].req))
			pump_done(&p->ios[i].req);
	atomic_store(&p->submitted, true);
}

static void pump_start(struct pump *p)
{
	memset(p, 0, sizeof(*p));
	p->watch.fn = pump_ready;
	p->watch.fd = eventfd(0, EFD_CLOEXEC);
	MUST(p->watch.fd >= 0);
	MUST(!obd_plane_add(&p->watch, EPOLLIN));
}

static void pump_submit(struct pump *p, struct io *ios, uint32_t count)
{
	uint64_t one = 1;

	p->ios = ios;
	p->count = count;
	atomic_store(&p->left, count);
	atomic_store(&p->submitted, false);
	MUST(write(p->watch.fd, &one, 8) == 8);
}

static void pump_wait(struct pump *p)
{
	for (int i = 0; i < 60000 && atomic_load(&p->left); i++)
		sleep_ms(1);
	MUST(!atomic_load(&p->left));
}

static void pump_stop(struct pump *p)
{
	MUST(!obd_plane_remove(&p->watch));
	close(p->watch.fd);
}

/* A read of [at, at + n), its data area in up to three parts. */
static void io_read(struct io *io, struct pump *p, struct obd_device *dev,
		    uint64_t at, uint32_t n)
{
	uint32_t cut = n > 1024 ? 512 * (1 + (uint32_t)check_below(n / 1024))
				: 0;

	io->buf = malloc(n + 1);
	MUST(io->buf);
	memset(io->buf, 0xEE, n);
	io->iov[0] = (struct iovec){ io->buf, cut };
	io->iov[1] = (struct iovec){ io->buf + cut, n - cut };
	io->req = (struct obd_request){
		.dev = dev, .done = pump_done, .owner = &p->left,
		.offset = at, .length = n, .op = OBD_READ,
		.iov = io->iov, .iov_count = 2,
	};
}

/* One read by a worker; its error. */
static int read_one(struct pump *p, struct obd_device *dev, uint64_t at,
		    uint32_t n, uint8_t *buf)
{
	struct io io;

	io_read(&io, p, dev, at, n);
	pump_submit(p, &io, 1);
	pump_wait(p);
	memcpy(buf, io.buf, n);
	free(io.buf);
	return io.req.err;
}

/* ---- layers ------------------------------------------------------------- */

/* The first n bytes of the file are blob nr's, or what is at bytes. */
static struct obd_source *file_source(int fd, uint64_t base, uint64_t n,
				      int engine)
{
	struct obd_source *src;
	char path[64];
	int direct, err;

	MUST(!obd_source_file(fd, base, n - base, &src));
	if (engine & DIRECT) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		direct = obd_io_open(path, O_RDONLY | O_DIRECT, 0);
		err = direct < 0 ? direct : obd_source_direct(src, direct);
		if (err)
			printf("# no O_DIRECT here: %d\n", err);
		if (err && direct >= 0)
			close(direct);
	}
	if (engine & URING)
		MUST(!obd_source_uring(src));
	return src;
}

static int file_of(const void *bytes, uint64_t n)
{
	int fd = temp_fd();

	MUST(obd_io_pwrite(fd, bytes, n, 0) == (int64_t)n);
	MUST(!fsync(fd));
	return fd;
}

static struct obd_source *plain_source(uint64_t nr, uint64_t base, uint64_t n,
				       int engine)
{
	uint8_t *bytes = malloc(base + n);
	int fd;

	MUST(bytes);
	memset(bytes, 0x77, base);
	blob_fill(nr, bytes + base, 0, n);
	fd = file_of(bytes, base + n);
	free(bytes);
	return file_source(fd, base, base + n, engine);
}

static struct obd_source *zfile_source(uint64_t nr, uint64_t n, int engine)
{
	struct obd_zfile_info info;
	struct obd_source *inner, *src;
	uint64_t size;
	uint8_t *bytes = zfile_of(nr, n, &info, &size);

	inner = file_source(file_of(bytes, size), 0, size, engine);
	free(bytes);
	MUST(!obd_source_zfile(inner, &info, &src));
	obd_source_unref(inner);
	return src;
}

/* ---- a disk and its model ----------------------------------------------- */

#define DISK (4 * MIB)
#define SECTORS (DISK / 512)
#define LAYERS 4u

struct model {
	struct obd_device *dev;
	uint8_t *bytes;
};

/* Records at random over LAYERS blobs, with gaps and zeroed ones between. */
static uint64_t random_records(struct obd_record *rec, uint8_t *bytes,
			       uint64_t longest)
{
	uint64_t lba = 0, n, at, count = 0, tag;
	bool zeroed;

	for (;; lba += n) {
		n = 1 + check_below(check_below(8) ? 40 : longest);
		if (lba + n > SECTORS)
			return count;
		if (!check_below(8))
			continue;
		tag = check_below(LAYERS);
		at = check_below(SECTORS - n);
		zeroed = !check_below(10);
		rec[count++] = rec_make(lba, n, zeroed ? 0 : at, zeroed,
					(uint32_t)tag);
		if (!zeroed)
			blob_fill(tag, bytes + lba * 512, at * 512, n * 512);
	}
}

static struct model model_of(int engine, uint64_t longest)
{
	struct obd_record *rec = malloc(SECTORS * sizeof(*rec));
	struct model m = { .bytes = calloc(1, DISK) };
	struct obd_source *layers[LAYERS] = {
		plain_source(0, 512, DISK, engine),
		zfile_source(1, DISK, engine),
		plain_source(2, 1536, DISK, engine),
		/* One that stays with the threads. */
		plain_source(3, 0, DISK, engine & DIRECT),
	};
	struct obd_upper_report report;
	struct obd_upper *upper;
	struct obd_view *view;
	uint64_t count;

	MUST(rec && m.bytes);
	count = random_records(rec, m.bytes, longest);
	view = view_of(rec, count, layers, LAYERS, DISK);
	free(rec);
	MUST(!obd_upper_open(OBD_UPPER_LOG, layer_file(0), layer_file(0),
			     DISK, &report, &upper));
	m.dev = device_of(view, upper, DISK, 1000);
	for (int i = 0; i < 200; i++) {
		uint64_t n = 512 * (1 + check_below(16));
		uint64_t at = 512 * check_below((DISK - n) / 512);

		blob_fill(100 + i, m.bytes + at, 0, n);
		MUST(!obd_device_write(m.dev, m.bytes + at, n, at));
	}
	return m;
}

static void model_free(struct model *m)
{
	obd_device_unref(m->dev);
	free(m->bytes);
}

/* Reads count random ranges at once. */
static void check_batch(struct model *m, struct pump *p, uint32_t count,
			uint64_t longest)
{
	struct io *ios = calloc(count, sizeof(*ios));
	uint64_t n, at;
	uint32_t i;

	MUST(ios);
	for (i = 0; i < count; i++) {
		n = 512 * (1 + check_below(check_below(4) ? 16 :
					   longest / 512));
		at = 512 * check_below((DISK - n) / 512 + 1);
		io_read(&ios[i], p, m->dev, at, (uint32_t)n);
	}
	pump_submit(p, ios, count);
	pump_wait(p);
	for (i = 0; i < count; i++) {
		CHECK_EQ(ios[i].req.err, 0);
		CHECK(!memcmp(ios[i].buf, m->bytes + ios[i].req.offset,
			      ios[i].req.length));
		free(ios[i].buf);
	}
	free(ios);
}

static void every_engine_reads_the_same_bytes(void)
{
	struct pump p;

	pump_start(&p);
	for (int engine = 0; engine < ENGINES; engine++) {
		struct model m = model_of(engine, 2000);

		forget_counts();
		for (int i = 0; i < 12; i++)
			check_batch(&m, &p, 1 + i * 8, 256 * KIB);
		check_batch(&m, &p, 4, DISK);
		/* From the page cache, nothing needs to be asked for. */
		CHECK_EQ(asked > 0, engine == (DIRECT | URING));
		model_free(&m);
	}
	pump_stop(&p);
}

/* ---- how it is asked ---------------------------------------------------- */

static void the_pieces_of_a_request_go_to_the_kernel_in_one_call(void)
{
	struct obd_source *layers[2] = {
		plain_source(0, 0, MIB, DIRECT | URING),
		zfile_source(1, MIB, DIRECT | URING),
	};
	struct obd_record rec[32];
	struct obd_device *dev;
	uint8_t buf[32 * 4096];
	struct pump p;
	uint32_t i;

	for (i = 0; i < 32; i++)
		rec[i] = rec_make(i * 8, 8, (i * 37 % 64) * 16, false, i % 2);
	dev = device_of(view_of(rec, 32, layers, 2, MIB), NULL, MIB, 1000);
	pump_start(&p);
	CHECK_EQ(read_one(&p, dev, 0, 4096, buf), 0);
	forget_counts();
	CHECK_EQ(read_one(&p, dev, 0, sizeof(buf), buf), 0);
	CHECK_EQ(calls, 1);
	CHECK_EQ(asked, 32);
	CHECK_EQ(helped, 0);
	for (i = 0; i < 32; i++)
		CHECK(blob_same(i % 2, buf + i * 4096,
				(i * 37 % 64) * 16 * 512, 4096));
	/* Neighbours in the file are one read. */
	forget_counts();
	pump_stop(&p);
	obd_device_unref(dev);
	dev = device_of(flat_view(plain_source(0, 512, 16 * MIB,
					       DIRECT | URING)),
			NULL, 16 * MIB, 1000);
	pump_start(&p);
	/* Two records of the longest length, and one read. */
	CHECK_EQ(read_one(&p, dev, 16383 * 512 - 65536, sizeof(buf), buf), 0);
	CHECK(blob_same(0, buf, 16383 * 512 - 65536, sizeof(buf)));
	CHECK_EQ(asked, 1);
	pump_stop(&p);
	obd_device_unref(dev);
}

static void what_the_page_cache_lacks_is_asked_of_the_ring(void)
{
	struct obd_source *src = plain_source(0, 0, MIB, URING);
	struct obd_device *dev = device_of(flat_view(src), NULL, MIB, 1000);
	uint8_t buf[4096];
	struct pump p;
	int i;

	pump_start(&p);
	forget_counts();
	for (i = 0; i < 100 && !asked; i++) {
		posix_fadvise(src->fd, 0, 0, POSIX_FADV_DONTNEED);
		CHECK_EQ(read_one(&p, dev, i * 4096, 4096, buf), 0);
		CHECK(blob_same(0, buf, i * 4096, 4096));
	}
	if (i == 100)
		printf("# a file system that forgets nothing\n");
	CHECK_EQ(helped, 0);
	pump_stop(&p);
	obd_device_unref(dev);
}

static void more_than_a_ring_holds_is_read_all_the_same(void)
{
	struct model m = model_of(DIRECT | URING, 100);
	struct pump p;

	pump_start(&p);
	forget_counts();
	check_batch(&m, &p, 3000, 8 * KIB); /* more reads than READS */
	CHECK(asked > 0 && helped > 0);
	forget_counts();
	check_batch(&m, &p, 40, DISK);      /* more bytes than PAGES */
	CHECK(asked > 0 && helped > 0);
	/* All of it was given back. */
	forget_counts();
	for (int i = 0; i < 100; i++)
		check_batch(&m, &p, 1, 64 * KIB);
	CHECK(asked > 0);
	pump_stop(&p);
	model_free(&m);
}

/* ---- what fails --------------------------------------------------------- */

static struct obd_device *flat_device(struct obd_source **src)
{
	*src = plain_source(5, 512, MIB, DIRECT | URING);
	return device_of(flat_view(*src), NULL, MIB, 1000);
}

static void what_the_ring_cannot_read_a_helper_reads(void)
{
	static const int errors[] = { EIO, EINTR, EAGAIN, EINVAL, ENODATA };
	struct obd_source *src;
	struct obd_device *dev = flat_device(&src);
	uint8_t buf[4096];
	struct pump p;

	pump_start(&p);
	for (uint32_t i = 0; i < 5; i++) {
		forget_counts();
		obd_io_fault(OBD_IO_PREAD, 1, errors[i], 1);
		CHECK_EQ(read_one(&p, dev, i * 4096, 4096, buf), 0);
		CHECK(blob_same(5, buf, i * 4096, 4096));
		CHECK_EQ(asked, 1);
		CHECK_EQ(helped, 1);
	}
	obd_io_fault(OBD_IO_PREAD, 1, EIO, 2);
	CHECK_EQ(read_one(&p, dev, 0, 4096, buf), -EIO);
	obd_io_fault(OBD_IO_PREAD, 1, EAGAIN, 2);
	CHECK_EQ(read_one(&p, dev, 0, 4096, buf), -EIO);
	obd_io_fault(OBD_IO_PREAD, 0, 0, 0);
	CHECK_EQ(read_one(&p, dev, 0, 4096, buf), 0);
	pump_stop(&p);
	obd_device_unref(dev);
}

static void a_file_that_became_shorter_is_an_error(void)
{
	struct obd_source *src;
	struct obd_device *dev = flat_device(&src);
	uint8_t buf[8192];
	struct pump p;
	int left;

	pump_start(&p);
	for (left = 8192; left >= 0; left -= 1000) {
		MUST(!ftruncate(src->fd, (off_t)(512 + MIB - 8192 + left)));
		CHECK_EQ(read_one(&p, dev, MIB - 8192, 8192, buf),
			 left == 8192 ? 0 : -EIO);
		CHECK_EQ(read_one(&p, dev, MIB - 16384, 8192, buf), 0);
		CHECK(blob_same(5, buf, MIB - 16384, 8192));
	}
	pump_stop(&p);
	obd_device_unref(dev);
}

static void a_block_that_is_bad_is_an_error(void)
{
	struct obd_source *src = zfile_source(1, MIB, DIRECT | URING);
	struct obd_device *dev = device_of(flat_view(src), NULL, MIB, 1000);
	uint8_t buf[4096], bad = 0x11;
	uint32_t length;
	struct pump p;
	uint64_t at;

	MUST(!obd_source_block(src, 7, &at, &length));
	MUST(obd_io_pwrite(src->inner->fd, &bad, 1, at + 2) == 1);
	pump_start(&p);
	CHECK_EQ(read_one(&p, dev, 7 * 4096, 4096, buf), -EUCLEAN);
	CHECK_EQ(read_one(&p, dev, 8 * 4096, 4096, buf), 0);
	CHECK(blob_same(1, buf, 8 * 4096, 4096));
	pump_stop(&p);
	obd_device_unref(dev);
}

static void what_the_kernel_does_not_take_is_handed_in_again(void)
{
	struct obd_source *src;
	struct obd_device *dev = flat_device(&src);
	uint8_t buf[4096];
	struct pump p;

	pump_start(&p);
	forget_counts();
	atomic_store(&submit_errors, 5);
	CHECK_EQ(read_one(&p, dev, 4096, 4096, buf), 0);
	CHECK(blob_same(5, buf, 4096, 4096));
	CHECK_EQ(submit_errors, 0);
	CHECK_EQ(asked, 1);
	CHECK_EQ(helped, 0);
	pump_stop(&p);
	obd_device_unref(dev);
}

static void without_a_ring_helpers_read(void)
{
	struct model m = model_of(DIRECT | URING, 2000);
	struct pump p;

	obd_plane_stop(); /* new workers, which have no ring yet */
	atomic_store(&init_error, -EPERM);
	CHECK_EQ(obd_uring_check(), -EPERM);
	pump_start(&p);
	forget_counts();
	check_batch(&m, &p, 50, 64 * KIB);
	CHECK_EQ(asked, 0);
	CHECK(helped > 0);
	pump_stop(&p);
	/* A kernel that knows rings and not our flags. */
	obd_plane_stop();
	atomic_store(&init_error, -EINVAL);
	CHECK_EQ(obd_uring_check(), 0);
	pump_start(&p);
	check_batch(&m, &p, 50, 64 * KIB);
	CHECK(asked > 0);
	pump_stop(&p);
	atomic_store(&init_error, 0);
	model_free(&m);
}

static void a_process_without_descriptors_is_told_why(void)
{
	struct rlimit now, none;

	MUST(!getrlimit(RLIMIT_NOFILE, &now));
	none = now;
	none.rlim_cur = 3;
	MUST(!setrlimit(RLIMIT_NOFILE, &none));
	CHECK_EQ(obd_uring_check(), -EMFILE);
	MUST(!setrlimit(RLIMIT_NOFILE, &now));
	CHECK_EQ(obd_uring_check(), 0);
}

/* ---- beside the rest ---------------------------------------------------- */

static void absent_data_comes_first_then_the_disk(void)
{
	struct obd_source *layers[2];
	struct obd_record rec[2] = { rec_make(0, 8, 0, false, 0),
				     rec_make(8, 8, 8, false, 1) };
	struct obd_device *dev;
	struct obd_miss miss;
	uint8_t buf[8192];
	struct pump p;
	struct io io;
	int fd;

	layers[0] = remote_source(1, MIB, 4096, &fd);
	layers[1] = plain_source(2, 0, MIB, DIRECT | URING);
	dev = device_of(view_of(rec, 2, layers, 2, MIB), NULL, MIB, 10000);
	pump_start(&p);
	io_read(&io, &p, dev, 0, 8192);
	pump_submit(&p, &io, 1);
	CHECK_EQ(drain_wait(&miss, 1), 1);
	blob_fill(1, buf, 0, 4096);
	MUST(obd_io_pwrite(fd, buf, 4096, 0) == 4096);
	MUST(!obd_source_fill(layers[0], 0, 1, 0));
	pump_wait(&p);
	CHECK_EQ(io.req.err, 0);
	CHECK(blob_same(1, io.buf, 0, 4096));
	CHECK(blob_same(2, io.buf + 4096, 4096, 4096));
	free(io.buf);
	forget_counts();
	CHECK_EQ(read_one(&p, dev, 0, 8192, buf), 0);
	CHECK_EQ(asked, 1);
	CHECK(blob_same(1, buf, 0, 4096));
	CHECK(blob_same(2, buf + 4096, 4096, 4096));
	pump_stop(&p);
	obd_device_unref(dev);
}

static void what_took_long_is_noted_with_its_name(void)
{
	struct obd_source *src;
	struct obd_device *dev = flat_device(&src);
	struct obd_slow_read slow[4];
	uint64_t dropped;
	uint8_t buf[4096];
	struct pump p;

	MUST(!obd_source_name(src, 77));
	pump_start(&p);
	forget_counts();
	MUST(!obd_slow_watch(0, 1000000));
	MUST(!obd_io_delay(2));
	CHECK_EQ(read_one(&p, dev, 8192, 4096, buf), 0);
	MUST(!obd_io_delay(0));
	CHECK_EQ(helped, 0);
	/* One for each part of the data area. */
	CHECK_EQ(obd_slow_drain(slow, 4, &dropped), 2);
	CHECK_EQ(slow[0].at, 8192);
	CHECK_EQ(slow[0].length + slow[1].length, 4096);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(slow[i].name, 77);
		CHECK(slow[i].ns >= 2000000);
	}
	MUST(!obd_slow_watch(0, 0));
	pump_stop(&p);
	obd_device_unref(dev);
}

struct round {
	struct obd_watch watch;
	struct obd_task task;
	_Atomic int step;
};

static void round_ends(struct obd_task *task)
{
	struct round *r = (struct round *)((char *)task -
					   offsetof(struct round, task));

	atomic_store(&r->step, atomic_load(&r->step) == 1 ? 2 : -1);
}

static void round_event(struct obd_watch *watch, uint32_t events)
{
	struct round *r = (struct round *)watch;
	uint64_t kicks;

	(void)events;
	MUST(read(watch->fd, &kicks, 8) == 8);
	MUST(obd_plane_later(&r->task));
	atomic_store(&r->step, 1);
}

static void what_is_for_later_runs_when_the_round_ends(void)
{
	struct round r = { .watch = { .fn = round_event },
			   .task = { .fn = round_ends } };
	uint64_t one = 1;

	r.watch.fd = eventfd(0, EFD_CLOEXEC);
	MUST(r.watch.fd >= 0);
	MUST(!obd_plane_add(&r.watch, EPOLLIN));
	CHECK(!obd_plane_later(&r.task)); /* no worker */
	MUST(write(r.watch.fd, &one, 8) == 8);
	for (int i = 0; i < 10000 && atomic_load(&r.step) >= 0 &&
			atomic_load(&r.step) < 2; i++)
		sleep_ms(1);
	CHECK_EQ(r.step, 2);
	MUST(!obd_plane_remove(&r.watch));
	close(r.watch.fd);
}

static void a_device_that_is_closed_ends_its_reads(void)
{
	struct model m = model_of(DIRECT | URING, 2000);
	struct io ios[64];
	struct pump p;

	pump_start(&p);
	for (int i = 0; i < 64; i++)
		io_read(&ios[i], &p, m.dev, (uint64_t)i * 65536, 65536);
	pump_submit(&p, ios, 64);
	while (!atomic_load(&p.submitted))
		sleep_ms(0);
	obd_device_close(m.dev, -ESHUTDOWN);
	obd_device_unref(m.dev); /* requests hold it */
	pump_wait(&p);
	for (int i = 0; i < 64; i++) {
		CHECK(!ios[i].req.err || ios[i].req.err == -ESHUTDOWN);
		if (!ios[i].req.err)
			CHECK(!memcmp(ios[i].buf, m.bytes + i * 65536,
				      65536));
		free(ios[i].buf);
	}
	free(m.bytes);
	pump_stop(&p);
	CHECK_EQ(obd_device_count(), 0);
	CHECK_EQ(obd_engine_stop(), 0);
}

int main(void)
{
	int rc;

	parts_start();
	rc = obd_uring_check();
	if (rc) { /* there is nothing to see */
		printf("ok - no io_uring here: %s\n", strerror(-rc));
		return 0;
	}
	RUN(every_engine_reads_the_same_bytes);
	RUN(the_pieces_of_a_request_go_to_the_kernel_in_one_call);
	RUN(what_the_page_cache_lacks_is_asked_of_the_ring);
	RUN(more_than_a_ring_holds_is_read_all_the_same);
	RUN(what_the_ring_cannot_read_a_helper_reads);
	RUN(a_file_that_became_shorter_is_an_error);
	RUN(a_block_that_is_bad_is_an_error);
	RUN(what_the_kernel_does_not_take_is_handed_in_again);
	RUN(without_a_ring_helpers_read);
	RUN(a_process_without_descriptors_is_told_why);
	RUN(absent_data_comes_first_then_the_disk);
	RUN(what_took_long_is_noted_with_its_name);
	RUN(what_is_for_later_runs_when_the_round_ends);
	RUN(a_device_that_is_closed_ends_its_reads);
	return check_done();
}
