/* SPDX-License-Identifier: Apache-2.0
 *
 * uring.c - reads of local layers by io_uring, a ring for each worker.
 *
 * A read for which a worker would have to wait is looked up as a whole; all
 * that it wants of files goes to the ring, and what was asked for in one
 * round of the worker to the kernel in one call (plane.c).  Once the last of
 * it is here the request runs again, from the start, with OBD_TRY_LANDED.
 * The ring only brings bytes.  What it has no room for, what failed and what
 * came short, is a helper's to read, who also knows which error it is.
 *
 * Everything here belongs to one worker's thread, and needs no lock.
 */
#include <liburing.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "core.h"

/* Of one worker.  A ring has room for READS in either direction, so that
 * none can be lost; memory is touched when it is first used. */
#define READS 256u
#define PAGE 4096u
#define PAGES 2048u
#define READ_MAX (PAGES / 2 * PAGE)
#define REAPED 64u                   /* at once */

/* One read of a file, whole blocks of it. */
struct obd_landing {
	struct obd_request *req;
	struct obd_source *file;     /* the request's view keeps it */
	uint64_t at, n;
	uint64_t got;                /* bytes that are here */
	uint64_t began;              /* for slow.c */
	uint8_t *buf;                /* NULL: has none yet */
	struct obd_landing *next;    /* of the same request, or unused */
};

struct obd_uring {
	struct io_uring ring;
	struct obd_watch watch;
	uint8_t *memory;
	uint64_t used[PAGES / 64];
	struct obd_landing reads[READS], *unused;
	struct obd_landing *landed;  /* of the request that runs */
};

/* ---- memory ------------------------------------------------------------- */

static uint64_t pages_of(uint64_t bytes)
{
	return (bytes + PAGE - 1) / PAGE;
}

/* The first n pages in a row that are free. */
static uint8_t *take_pages(struct obd_uring *u, uint64_t n)
{
	uint64_t i = 0, run = 0;

	for (; i < PAGES && run < n; i++) {
		if (u->used[i / 64] == ~0ull) {
			i |= 63;
			run = 0;
		} else {
			run = bit_get(u->used, i) ? 0 : run + 1;
		}
	}
	if (run < n)
		return NULL;
	for (run = i - n; run < i; run++)
		bit_set(u->used, run);
	return u->memory + (i - n) * PAGE;
}

static void give_pages(struct obd_uring *u, const struct obd_landing *read)
{
	uint64_t first = (uint64_t)(read->buf - u->memory) / PAGE, i;

	for (i = 0; i < pages_of(read->n); i++)
		bit_clear(u->used, first + i);
}

/* ---- life --------------------------------------------------------------- */

/* What wakes the worker has no more to tell it: see worker_main(). */
static void ignore(struct obd_watch *watch, uint32_t events)
{
	(void)watch;
	(void)events;
}

/* A completion interrupts the worker only where it sleeps (Linux 6.0; older
 * kernels do not know the flags).  Not IORING_SETUP_DEFER_TASKRUN: epoll
 * misses its completions on kernels that are in use. */
static int make_ring(struct io_uring *ring)
{
	struct io_uring_params p = {
		.flags = IORING_SETUP_SINGLE_ISSUER |
			 IORING_SETUP_COOP_TASKRUN,
	};
	int rc = io_uring_queue_init_params(READS, ring, &p);

	if (rc != -EINVAL)
		return rc;
	memset(&p, 0, sizeof(p));
	return io_uring_queue_init_params(READS, ring, &p);
}

/* One call there and back: what makes a ring may not be all that a filter
 * of system calls looks at, and IORING_OP_READ is younger than rings. */
static int try_ring(struct io_uring *ring)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
	bool reads = probe && io_uring_opcode_supported(probe,
							IORING_OP_READ);
	struct io_uring_cqe *cqe;
	int rc;

	io_uring_free_probe(probe);
	if (!reads)
		return -ENOSYS;
	io_uring_prep_nop(io_uring_get_sqe(ring));
	rc = io_uring_submit_and_wait(ring, 1);
	if (rc < 0)
		return rc;
	rc = io_uring_peek_cqe(ring, &cqe);
	if (!rc)
		io_uring_cqe_seen(ring, cqe);
	return rc;
}

int32_t obd_uring_check(void)
{
	struct io_uring ring;
	int rc = make_ring(&ring);

	if (rc)
		return rc;
	rc = try_ring(&ring);
	io_uring_queue_exit(&ring);
	return rc;
}

int obd_uring_new(struct obd_uring **out)
{
	struct obd_uring *u = calloc(1, sizeof(*u));
	int rc;

	if (!u)
		return -ENOMEM;
	u->memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (u->memory == MAP_FAILED) {
		free(u);
		return -ENOMEM;
	}
	rc = make_ring(&u->ring);
	if (rc) {
		munmap(u->memory, PAGES * PAGE);
		free(u);
		return rc;
	}
	for (uint32_t i = 0; i < READS; i++) {
		u->reads[i].next = u->unused;
		u->unused = &u->reads[i];
	}
	u->watch = (struct obd_watch){ .fn = ignore, .fd = u->ring.ring_fd };
	*out = u;
	return 0;
}

void obd_uring_free(struct obd_uring *u)
{
	if (!u)
		return;
	io_uring_queue_exit(&u->ring);
	munmap(u->memory, PAGES * PAGE);
	free(u);
}

struct obd_watch *obd_uring_watch(struct obd_uring *u)
{
	return &u->watch;
}

/* ---- asking ------------------------------------------------------------- */

static void give_back(struct obd_uring *u, struct obd_landing *reads)
{
	struct obd_landing *next;

	for (; reads; reads = next) {
		next = reads->next;
		if (reads->buf)
			give_pages(u, reads);
		reads->next = u->unused;
		u->unused = reads;
	}
}

void obd_uring_release(struct obd_landing *reads)
{
	struct obd_uring *u = obd_plane_uring();

	u->landed = NULL;
	give_back(u, reads);
}

/* Plans to read [at, at + n) of file for req; the last read planned grows
 * when both touch.  False: too much. */
static bool plan(struct obd_uring *u, struct obd_request *req,
		 struct obd_source *file, uint64_t at, uint64_t n)
{
	struct obd_landing *read = req->reads;
	uint64_t mask = file->align - 1, from = at & ~mask;
	uint64_t to = (at + n + mask) & ~mask;

	if (read && read->file == file && from >= read->at &&
	    from <= read->at + read->n) {
		if (to > read->at + read->n)
			read->n = to - read->at;
		return read->n <= READ_MAX;
	}
	read = u->unused;
	if (!read || to - from > READ_MAX)
		return false;
	u->unused = read->next;
	*read = (struct obd_landing){
		.req = req, .file = file, .at = from, .n = to - from,
		.next = req->reads,
	};
	req->reads = read;
	req->reads_left++;
	return true;
}

/* All that req wants of files, as reads with memory.  False: none of it, or
 * too much. */
static bool plan_all(struct obd_uring *u, struct obd_request *req)
{
	uint64_t lba = req->offset / OBD_SECTOR, at, n;
	struct obd_source *file;
	struct obd_landing *read;
	struct obd_piece piece;
	struct obd_walk w;

	obd_walk_start(&w, req->view, LEVEL_UPPER, lba,
		       lba + req->length / OBD_SECTOR);
	while (obd_walk_next(&w, &piece)) {
		at = piece.at;
		n = piece.sectors * OBD_SECTOR;
		if (piece.src &&
		    obd_source_on_disk(piece.src, &at, &n, &file) &&
		    !plan(u, req, file, at, n))
			return false;
	}
	for (read = req->reads; read; read = read->next) {
		read->buf = take_pages(u, pages_of(read->n));
		if (!read->buf)
			return false;
	}
	return req->reads != NULL;
}

bool obd_uring_start(struct obd_request *req)
{
	struct obd_uring *u = req->view->uring ? obd_plane_uring() : NULL;
	struct obd_landing *read;
	struct io_uring_sqe *sqe;
	uint64_t began;

	if (!u)
		return false;
	req->reads = NULL;
	req->reads_left = 0;
	if (!plan_all(u, req)) {
		give_back(u, req->reads);
		return false;
	}
	began = obd_slow_begin(OBD_SLOW_LOCAL);
	for (read = req->reads; read; read = read->next) {
		read->began = began;
		/* There is one: fewer than READS are out. */
		sqe = io_uring_get_sqe(&u->ring);
		io_uring_prep_read(sqe, read->file->direct_fd >= 0 ?
				   read->file->direct_fd : read->file->fd,
				   read->buf, (uint32_t)read->n, read->at);
		io_uring_sqe_set_data(sqe, read);
	}
	return true;
}

bool obd_uring_submit(struct obd_uring *u)
{
	if (io_uring_sq_ready(&u->ring))
		io_uring_submit(&u->ring);
	return !io_uring_sq_ready(&u->ring);
}

/* ---- what has come ------------------------------------------------------ */

static void landed(struct obd_uring *u, struct obd_landing *read, int res)
{
	struct obd_request *req = read->req;
	int64_t got = obd_io_seen(read->file->fd, read->n, read->at, res);

	if (got > 0)
		read->got = (uint64_t)got;
	if (--req->reads_left)
		return;
	u->landed = req->reads;
	obd_request_landed(req);
}

/* What is answered here may ask for more. */
void obd_uring_reap(struct obd_uring *u)
{
	struct io_uring_cqe *cqes[REAPED];
	struct obd_landing *reads[REAPED];
	int res[REAPED];
	uint32_t n, i;

	do {
		n = io_uring_peek_batch_cqe(&u->ring, cqes, REAPED);
		for (i = 0; i < n; i++) {
			reads[i] = io_uring_cqe_get_data(cqes[i]);
			res[i] = cqes[i]->res;
		}
		io_uring_cq_advance(&u->ring, n);
		for (i = 0; i < n; i++)
			landed(u, reads[i], res[i]);
	} while (n == REAPED);
}

uint64_t obd_uring_began(void)
{
	struct obd_landing *landed = obd_plane_uring()->landed;

	return landed ? landed->began : 0;
}

int obd_uring_take(const struct obd_source *file, uint8_t *buf, uint64_t n,
		   uint64_t at)
{
	struct obd_landing *read = obd_plane_uring()->landed;
	uint64_t part;

	while (n && read) {
		if (read->file != file || at < read->at ||
		    at >= read->at + read->got) {
			read = read->next;
			continue;
		}
		part = read->at + read->got - at;
		if (part > n)
			part = n;
		memcpy(buf, read->buf + (at - read->at), part);
		buf += part;
		at += part;
		n -= part;
		read = obd_plane_uring()->landed;
	}
	return n ? -EAGAIN : 0;
}
