/* SPDX-License-Identifier: Apache-2.0
 *
 * request.c - one request from look-up to answer.
 *
 * A request is a job that can be run again from the start at any time: it
 * keeps the view it began with and nothing else.  A run has two phases:
 *   gather   only when a source can miss: ask for every absent unit under
 *            the request, so that all of them cost one round trip; if any
 *            is absent, park
 *   perform  read every piece straight into the iovecs, or change the
 *            upper
 * and the second falls back to the first when a unit has gone in between.
 * A transport's thread runs it without blocking.  What would block is read by
 * the worker's io_uring, if the files are set up for it, and the request
 * starts over with what that has brought; all else starts over on a helper
 * thread.
 */
#include "core.h"

#define CORRUPT_TRIES 3u
#define ZERO_STEP (8u << 20)
#define HEADER 4096u                 /* before the data of a sparse layer */

enum step { STEP_ENDED, STEP_PARKED, STEP_HELPER };

/* ---- pieces ------------------------------------------------------------- */

void obd_walk_start(struct obd_walk *w, struct obd_view *view,
		    enum obd_level from, uint64_t lba, uint64_t end)
{
	uint32_t i;

	w->view = view;
	w->lba = lba;
	w->end = end;
	if (from == LEVEL_UPPER && !view->upper)
		from = LEVEL_FROZEN;
	w->from = from;
	for (i = 0; i < LEVELS; i++) {
		w->level[i].end = lba;
		w->level[i].next = w->level[i].count = 0;
	}
}

/* What a level holds of [lba, to), which the levels above do not map. */
static struct obd_walk_level *walk_load(struct obd_walk *w, uint32_t nr,
					uint64_t to)
{
	struct obd_walk_level *level = &w->level[nr];
	uint64_t n = to - w->lba;

	if (level->next < level->count || w->lba < level->end)
		return level;
	level->next = 0;
	if (nr == LEVEL_LOWERS)
		level->count = obd_index_find(w->view->index, w->lba, n,
					      level->rec, WALK_BATCH);
	else
		level->count = obd_upper_find(nr == LEVEL_UPPER ?
					      w->view->upper :
					      w->view->frozen, w->lba, n,
					      level->rec, WALK_BATCH);
	level->end = level->count == WALK_BATCH ?
		     rec_end(level->rec[WALK_BATCH - 1]) : to;
	return level;
}

/* The source of a level's record.  One that the view has not got stays DATA
 * without a source: reading it is an error. */
static struct obd_source *level_source(const struct obd_view *view,
				       uint32_t nr, uint32_t tag)
{
	if (nr == LEVEL_UPPER)
		return view->upper->data;
	if (nr == LEVEL_FROZEN)
		return view->frozen->data;
	return obd_likely(tag < view->n) ? view->sources[tag] : NULL;
}

static void walk_emit(struct obd_walk *w, struct obd_piece *piece,
		      uint32_t nr, struct obd_record rec)
{
	piece->lba = w->lba;
	piece->sectors = rec_sectors(rec);
	piece->at = rec_at(rec) * OBD_SECTOR;
	piece->src = rec_zeroed(rec) ? NULL :
		     level_source(w->view, nr, rec_tag(rec));
	piece->state = rec_zeroed(rec) ? OBD_EXTENT_ZERO : OBD_EXTENT_DATA;
	w->lba += piece->sectors;
}

static void walk_gap(struct obd_walk *w, struct obd_piece *piece,
		     uint64_t to)
{
	piece->lba = w->lba;
	piece->sectors = to - w->lba;
	piece->at = 0;
	piece->src = NULL;
	piece->state = OBD_EXTENT_HOLE;
	w->lba = to;
}

/* A level that maps the position gives the piece; one that does not says up
 * to where those below may. */
bool obd_walk_next(struct obd_walk *w, struct obd_piece *piece)
{
	struct obd_walk_level *level;
	uint64_t to = w->end;
	uint32_t nr;

	if (w->lba >= w->end)
		return false;
	for (nr = w->from; nr < LEVELS; nr++) {
		if (nr == LEVEL_FROZEN && !w->view->frozen)
			continue;
		level = walk_load(w, nr, to);
		to = level->end;
		if (level->next == level->count)
			continue;
		to = rec_lba(level->rec[level->next]);
		if (to == w->lba) {
			walk_emit(w, piece, nr, level->rec[level->next++]);
			return true;
		}
	}
	walk_gap(w, piece, to);
	return true;
}

/* ---- what a request reads ----------------------------------------------- */

/* Up to two ranges of the disk, in sectors: all of a READ, the edges of a
 * change on a sparse upper. */
static void request_needs(const struct obd_request *req,
			  uint64_t range[2][2])
{
	uint64_t lba = req->offset / OBD_SECTOR;
	uint64_t end = lba + req->length / OBD_SECTOR;

	memset(range, 0, 4 * sizeof(uint64_t));
	if (req->op == OBD_READ) {
		range[0][0] = lba;
		range[0][1] = end;
	} else if (req->op != OBD_FLUSH && lba < end) {
		obd_upper_edges(req->view->upper, lba, end, range[0],
				range[1]);
	}
}

static bool piece_touches(const struct obd_piece *piece,
			  struct obd_source *cache, uint64_t first,
			  uint64_t count)
{
	uint32_t shift = cache->units->shift;
	struct obd_source *under;
	uint64_t at, n;

	if (!piece->src || !obd_source_stored(piece->src, piece->at,
					      piece->sectors * OBD_SECTOR,
					      &under, &at, &n))
		return false;
	return under == cache && n && at >> shift < first + count &&
	       (at + n - 1) >> shift >= first;
}

bool obd_request_touches(struct obd_request *req, struct obd_source *cache,
			 uint64_t first, uint64_t count)
{
	struct obd_piece piece;
	uint64_t range[2][2];
	struct obd_walk w;
	int i;

	request_needs(req, range);
	for (i = 0; i < 2; i++) {
		obd_walk_start(&w, req->view, LEVEL_UPPER, range[i][0],
			       range[i][1]);
		while (obd_walk_next(&w, &piece))
			if (piece_touches(&piece, cache, first, count))
				return true;
	}
	return false;
}

/* Asks for what is absent. True: the request is parked and not ours. */
static bool gather(struct obd_request *req)
{
	struct obd_piece piece;
	uint64_t range[2][2];
	struct obd_walk w;
	uint32_t absent = 0;
	int i;

	if (req->view->local)
		return false;
	request_needs(req, range);
	for (i = 0; i < 2; i++) {
		obd_walk_start(&w, req->view, LEVEL_UPPER, range[i][0],
			       range[i][1]);
		while (obd_walk_next(&w, &piece))
			if (piece.src)
				absent += obd_source_want(piece.src, piece.at,
					piece.sectors * OBD_SECTOR, req);
	}
	if (!absent)
		return false;
	if (!req->held) {
		obd_device_ref(req->dev);
		req->held = 1;
	}
	return obd_miss_settle(req) == SETTLED_PARKED;
}

/* ---- reading ------------------------------------------------------------ */

/* A place in the request's data area. */
struct area {
	struct iovec *iov;
	size_t used;         /* of *iov */
};

/* A block that stays bad is TypeScript's to give up, unit by unit; this ends
 * a request that nobody ends: so often for each of its units, however small
 * they are. */
static uint64_t corrupt_tries(const struct obd_request *req)
{
	uint64_t units = req->length / 4096;

	return CORRUPT_TRIES * (units ? units : 1);
}

/* -ENODATA also for a bad block that is worth another fetch. */
static int read_source(struct obd_request *req, struct obd_source *src,
		       void *buf, uint64_t n, uint64_t at, enum obd_try how)
{
	int err = obd_source_read(src, buf, n, at, how);

	if (obd_likely(err != -EUCLEAN))
		return err;
	obd_count(req->dev, ST_CORRUPT, 1);
	if (obd_source_is_local(src) || req->tries >= corrupt_tries(req))
		return err;
	req->tries++;
	return -ENODATA;
}

static int read_piece(struct obd_request *req, const struct obd_piece *piece,
		      struct area *area, enum obd_try how)
{
	uint64_t n = piece->sectors * OBD_SECTOR, at = piece->at, part;
	uint8_t *buf;
	int err = 0;

	if (obd_unlikely(!piece->src && piece->state == OBD_EXTENT_DATA))
		return -EIO;
	for (; !err && n; n -= part, at += part, area->used += part) {
		while (area->used == area->iov->iov_len) {
			area->iov++;
			area->used = 0;
		}
		buf = (uint8_t *)area->iov->iov_base + area->used;
		part = area->iov->iov_len - area->used;
		if (part > n)
			part = n;
		if (piece->src)
			err = read_source(req, piece->src, buf, part, at,
					  how);
		else
			memset(buf, 0, part);
	}
	return err;
}

/* The usual small read: one record of the lowers holds all of it.  Saves
 * the walk, which costs as much as the look-up. False: walk. */
static bool read_one(struct obd_request *req, struct iovec *iov,
		     uint64_t lba, uint64_t end, enum obd_try how, int *err)
{
	struct obd_source *src;
	struct obd_record rec;

	if (req->view->upper || iov->iov_len != (end - lba) * OBD_SECTOR ||
	    obd_index_find(req->view->index, lba, end - lba, &rec, 1) != 1 ||
	    rec_sectors(rec) != end - lba || rec_zeroed(rec))
		return false;
	src = level_source(req->view, LEVEL_LOWERS, rec_tag(rec));
	if (!src)
		return false;
	*err = read_source(req, src, iov->iov_base, iov->iov_len,
			   rec_at(rec) * OBD_SECTOR, how);
	return true;
}

static int read_range(struct obd_request *req, struct iovec *iov,
		      uint64_t lba, uint64_t end, enum obd_try how)
{
	struct area area = { iov, 0 };
	struct obd_piece piece;
	struct obd_walk w;
	int err = 0;

	if (lba < end && read_one(req, iov, lba, end, how, &err))
		return err;
	obd_walk_start(&w, req->view, LEVEL_UPPER, lba, end);
	while (!err && obd_walk_next(&w, &piece))
		err = read_piece(req, &piece, &area, how);
	return err;
}

/* ---- changing ----------------------------------------------------------- */

static int ask_read(struct obd_request *req, void *buf, uint64_t lba,
		    uint64_t sectors)
{
	struct iovec iov = { buf, sectors * OBD_SECTOR };

	return read_range(req, &iov, lba, lba + sectors, OBD_TRY_BLOCK);
}

static bool ask_lower(struct obd_request *req, struct obd_upper *upper,
		      uint64_t lba, uint64_t end, uint64_t *from,
		      uint64_t *to)
{
	struct obd_piece piece;
	struct obd_walk w;

	obd_walk_start(&w, req->view, upper == req->view->upper ?
		       LEVEL_FROZEN : LEVEL_LOWERS, lba, end);
	while (obd_walk_next(&w, &piece))
		if (piece.state == OBD_EXTENT_DATA) {
			*from = piece.lba;
			*to = piece.lba + piece.sectors;
			return true;
		}
	return false;
}

const struct obd_upper_ask obd_request_ask = { ask_read, ask_lower };

/* What is done at once of a change: zeros on a sparse layer may take long,
 * and nothing may hold up a push for long (push.c).  Steps end where host
 * blocks do. */
static uint64_t change_step(const struct obd_request *req)
{
	uint64_t left = req->length - req->progress, step;

	if (req->op == OBD_WRITE || req->view->upper->kind == OBD_UPPER_LOG)
		return left;
	step = ZERO_STEP - (req->offset + req->progress + HEADER) % ZERO_STEP;
	return step < left ? step : left;
}

/* The gate is open.  The next step of req. */
static int change_some(struct obd_request *req)
{
	struct obd_request part = *req;
	uint64_t step = change_step(req);
	int err;

	part.offset += req->progress;
	part.length = (uint32_t)step;
	err = obd_upper_change(req->view->upper, &part, &obd_request_ask);
	req->tries = part.tries;
	if (!err)
		req->progress += (uint32_t)step;
	return err;
}

/* 0, -errno or GATE_PARKED: then it goes on where it was. */
static int change(struct obd_request *req)
{
	struct obd_upper *upper;
	int err;

	do {
		err = obd_gate_enter(req);
		if (err)
			return err;
		upper = req->view->upper;
		err = change_some(req);
		obd_gate_leave(req->dev);
	} while (!err && req->progress < req->length);
	if (!err && req->flags & OBD_REQ_FUA)
		err = obd_upper_sync(upper);
	return err;
}

/* An upper that is frozen and not settled is still where its data is. */
static int flush(struct obd_request *req)
{
	int err = req->view->upper ? obd_gate_flush(req) : 0;

	if (!err && req->view->frozen)
		err = obd_upper_sync(req->view->frozen);
	if (!err && req->view->upper)
		err = obd_upper_sync(req->view->upper);
	return err;
}

/* 0, -errno or GATE_PARKED. */
static int perform(struct obd_request *req, enum obd_try how)
{
	uint64_t lba = req->offset / OBD_SECTOR;

	switch (req->op) {
	case OBD_READ:
		return read_range(req, req->iov, lba,
				  lba + req->length / OBD_SECTOR, how);
	case OBD_FLUSH:
		return flush(req);
	default:
		return change(req);
	}
}

/* ---- running ------------------------------------------------------------ */

/* After STEP_PARKED and STEP_HELPER the request may be gone already, or
 * must be handed on. */
static enum step run(struct obd_request *req, enum obd_try how)
{
	int err;

	for (;;) {
		err = req->miss_err;
		if (err)
			break;
		if (gather(req))
			return STEP_PARKED;
		err = req->miss_err;
		if (err)
			break;
		err = perform(req, how);
		if (err == GATE_PARKED)
			return STEP_PARKED;
		if (err == -EAGAIN && how != OBD_TRY_BLOCK)
			return STEP_HELPER;
		if (err != -ENODATA)
			break;
		err = atomic_load(&req->dev->closed);
		if (err)
			break;
	}
	req->err = err;
	return STEP_ENDED;
}

/* ---- how long reads take ------------------------------------------------ */

/* A clock costs a tenth of a read from the page cache. */
static _Thread_local uint32_t unsampled
	__attribute__((tls_model("initial-exec")));

static uint64_t sample(void)
{
	if (obd_likely(unsampled++ % TIMES_SAMPLE))
		return 0;
	return obd_now_ns();
}

/* 4^i us is the first that is not less. */
static uint32_t bucket_of(uint64_t ns)
{
	uint64_t us = (ns + 999) / 1000;
	uint32_t bits = us > 1 ? 64 - (uint32_t)__builtin_clzll(us - 1) : 0;
	uint32_t i = (bits + 1) / 2;

	return i < OBD_TIMES_BUCKETS ? i : OBD_TIMES_BUCKETS - 1;
}

static void note_time(struct obd_request *req)
{
	struct obd_device *dev = req->dev;
	struct obd_times *times = req->fetched ? &dev->fetched : &dev->local;
	uint64_t weight = req->fetched ? 1 : TIMES_SAMPLE;
	uint64_t ns = obd_now_ns() - req->began_ns;

	atomic_fetch_add_explicit(&times->buckets[bucket_of(ns)], weight,
				  memory_order_relaxed);
	atomic_fetch_add_explicit(&times->ns, ns * weight,
				  memory_order_relaxed);
}

static void count_ended(struct obd_request *req)
{
	struct obd_device *dev = req->dev;
	struct obd_trace *trace;

	if (obd_unlikely(req->err)) {
		obd_count(dev, ST_ERRORS, 1);
		return;
	}
	if (obd_unlikely(req->tries))
		obd_count(dev, ST_HEALED, req->tries);
	switch (req->op) {
	case OBD_READ:
		obd_count(dev, ST_READS, 1);
		obd_count(dev, ST_READ_BYTES, req->length);
		if (obd_unlikely(req->began_ns))
			note_time(req);
		trace = atomic_load_explicit(&dev->trace,
					     memory_order_acquire);
		if (obd_unlikely(trace))
			obd_trace_note(trace, req);
		break;
	case OBD_FLUSH:
		obd_count(dev, ST_FLUSHES, 1);
		break;
	case OBD_EXTEND:
		break;
	case OBD_DISCARD:
		obd_count(dev, ST_DISCARDS, 1);
		obd_count(dev, ST_DISCARDED_BYTES, req->length);
		break;
	default:
		obd_count(dev, ST_WRITES, 1);
		obd_count(dev, ST_WRITTEN_BYTES, req->length);
	}
}

static void end_inline(struct obd_request *req)
{
	struct obd_device *dev = req->dev;

	count_ended(req);
	obd_view_return(&dev->view, req->view);
	if (req->held) {
		req->held = 0;
		obd_device_unref(dev);
	}
}

/* The device is let go first, so that who has seen done() knows that this
 * request holds nothing; done() may free the request. */
static void end_later(struct obd_request *req)
{
	end_inline(req);
	req->done(req);
}

void obd_request_resume(struct obd_request *req)
{
	if (run(req, OBD_TRY_BLOCK) == STEP_ENDED)
		end_later(req);
}

void obd_request_landed(struct obd_request *req)
{
	struct obd_landing *reads = req->reads;
	enum step step = run(req, OBD_TRY_LANDED);

	obd_uring_release(reads);
	if (step == STEP_ENDED)
		end_later(req);
	else if (step == STEP_HELPER)
		obd_request_offload(req);
}

static void resume_task(struct obd_task *task)
{
	obd_request_resume((struct obd_request *)((char *)task -
		offsetof(struct obd_request, task)));
}

/* 0 or -errno. */
static int offload(struct obd_request *req)
{
	req->task.fn = resume_task;
	return req->op == OBD_READ ? obd_plane_offload(&req->task) :
				     obd_plane_offload_change(&req->task);
}

void obd_request_offload(struct obd_request *req)
{
	if (offload(req))
		obd_request_resume(req); /* late is better than never */
}

static uint64_t area_bytes(const struct obd_request *req)
{
	uint64_t n = 0;
	uint32_t i;

	for (i = 0; i < req->iov_count; i++)
		n += req->iov[i].iov_len;
	return n;
}

static int check(const struct obd_request *req)
{
	struct obd_device *dev = req->dev;
	int closed = atomic_load_explicit(&dev->closed,
					  memory_order_relaxed);
	uint64_t size;

	if (req->op == OBD_FLUSH) /* also of what came before a close */
		return 0;
	if (obd_unlikely(closed))
		return closed;
	if (req->op != OBD_READ && dev->flags & OBD_DEVICE_READONLY)
		return -EROFS;
	if ((req->offset | req->length) % OBD_SECTOR)
		return -EINVAL;
	if (req->op == OBD_EXTEND) /* behind the end, as it is now */
		return 0;
	size = obd_device_size(dev);
	if (req->offset > size || req->length > size - req->offset)
		return req->op == OBD_READ ? -EINVAL : -ENOSPC;
	if ((req->op == OBD_READ || req->op == OBD_WRITE) &&
	    area_bytes(req) != req->length)
		return -EINVAL;
	return 0;
}

/* False: refused, err is set. */
static bool start(struct obd_request *req)
{
	req->err = check(req);
	if (obd_unlikely(req->err)) {
		obd_count(req->dev, ST_ERRORS, 1);
		return false;
	}
	req->view = obd_view_borrow(&req->dev->view);
	req->deadline_ms = 0;
	req->began_ns = req->op == OBD_READ ? sample() : 0;
	req->fetched = 0;
	req->miss_err = 0;
	req->tries = 0;
	req->progress = 0;
	req->state = REQ_RUNNING;
	req->held = 0;
	return true;
}

bool obd_request_submit(struct obd_request *req)
{
	enum step step = STEP_HELPER;

	if (!start(req))
		return true;
	/* A change may wait for the disk in any of its calls. */
	if (req->op == OBD_READ || !req->view->upper)
		step = run(req, OBD_TRY_NOWAIT);
	if (step == STEP_HELPER) {
		if (!req->held)
			obd_device_ref(req->dev);
		req->held = 1;
		if (req->op == OBD_READ && obd_uring_start(req))
			return false;
		if (!offload(req))
			return false;
		/* Late is better than never; but done() is not for now, when
		 * the transport may hold its own locks. */
		step = run(req, OBD_TRY_BLOCK);
	}
	if (step == STEP_ENDED)
		end_inline(req);
	return step == STEP_ENDED;
}

/* ---- requests of the calling thread ------------------------------------- */

struct waiter {
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	bool ended;
};

static void waiter_done(struct obd_request *req)
{
	struct waiter *waiter = req->owner;

	pthread_mutex_lock(&waiter->mutex);
	waiter->ended = true;
	pthread_cond_signal(&waiter->cond);
	pthread_mutex_unlock(&waiter->mutex);
}

int obd_request_wait(struct obd_request *req)
{
	struct waiter waiter = { PTHREAD_MUTEX_INITIALIZER,
				 PTHREAD_COND_INITIALIZER, false };

	if (!start(req))
		return req->err;
	req->owner = &waiter;
	req->done = waiter_done;
	if (obd_likely(run(req, OBD_TRY_BLOCK) == STEP_ENDED)) {
		end_inline(req);
		return req->err;
	}
	pthread_mutex_lock(&waiter.mutex);
	while (!waiter.ended)
		pthread_cond_wait(&waiter.cond, &waiter.mutex);
	pthread_mutex_unlock(&waiter.mutex);
	return req->err;
}
