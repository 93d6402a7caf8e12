/* SPDX-License-Identifier: Apache-2.0
 *
 * push.c - puts a fresh upper on top of a disk that is in use, and takes
 * what was the upper out of the way of changes: the engine's part of a live
 * snapshot.
 *
 *   push     The gate is closed: new changes wait, running ones end.  Then
 *            the disk shows the new upper over the old one, which nothing
 *            changes any more, and the gate is open again.  That is all
 *            that a write can feel.
 *   settle   The old upper is sealed now: the disk shows it as a lower.
 *   pop      It could not be: what the new upper holds is copied back.
 *
 * A FLUSH between push and settle waits, as does a write with FUA: what they
 * promise holds on the configuration that is on disk, and that is still the
 * old one.
 *
 * The gate is one word.  A change adds itself and looks whether the gate
 * was open; if not, it takes itself off and waits in a list, so that no
 * thread is held.  Who closes the gate waits until the count is 0.
 */
#include <stdlib.h>
#include <time.h>

#include "core.h"

#define COPY_BYTES (1u << 20)

/* ---- the gate ----------------------------------------------------------- */

static struct obd_request *task_request(struct obd_task *task)
{
	return (struct obd_request *)((char *)task -
		offsetof(struct obd_request, task));
}

/* Under lock.  Who waits takes a reference as a parked request does. */
static void enlist(struct obd_request *req)
{
	struct obd_device *dev = req->dev;

	if (!req->held)
		obd_device_ref(dev);
	req->held = 1;
	req->task.next = dev->waiting;
	dev->waiting = &req->task;
}

/* Under lock. */
static struct obd_task *take_waiting(struct obd_device *dev)
{
	struct obd_task *waiting = dev->waiting;

	dev->waiting = NULL;
	return waiting;
}

/* Not under lock: a request may run at once where no thread can be had. */
static void release(struct obd_task *waiting)
{
	struct obd_task *task, *oldest = NULL;

	while (waiting) { /* first come, first served */
		task = waiting;
		waiting = task->next;
		task->next = oldest;
		oldest = task;
	}
	while (oldest) {
		task = oldest;
		oldest = task->next;
		obd_request_offload(task_request(task));
	}
}

static bool must_wait(const struct obd_device *dev, bool settled)
{
	return (settled && atomic_load(&dev->unsettled)) ||
	       atomic_load(&dev->changing) & GATE_CLOSED;
}

/* GATE_OPEN: not any more, try again. */
static int wait_at_gate(struct obd_request *req, bool settled)
{
	struct obd_device *dev = req->dev;
	int ret = GATE_OPEN;

	pthread_mutex_lock(&dev->lock);
	if (must_wait(dev, settled)) {
		ret = atomic_load(&dev->closed);
		if (!ret) {
			enlist(req);
			ret = GATE_PARKED;
		}
	}
	pthread_mutex_unlock(&dev->lock);
	return ret;
}

/* A request that has waited may hold a view of before. */
static void refresh(struct obd_request *req)
{
	struct obd_view_slot *slot = &req->dev->view;

	if (obd_view_shown(slot) == req->view)
		return;
	obd_view_return(slot, req->view);
	req->view = obd_view_borrow(slot);
}

void obd_gate_leave(struct obd_device *dev)
{
	if (obd_likely(atomic_fetch_sub(&dev->changing, 1) !=
		       (GATE_CLOSED | 1)))
		return;
	pthread_mutex_lock(&dev->lock);
	pthread_cond_signal(&dev->drained);
	pthread_mutex_unlock(&dev->lock);
}

int obd_gate_enter(struct obd_request *req)
{
	struct obd_device *dev = req->dev;
	bool fua = req->flags & OBD_REQ_FUA;
	int ret;

	for (;;) {
		if (obd_likely(!(atomic_fetch_add(&dev->changing, 1) &
				 GATE_CLOSED)) &&
		    !(fua && atomic_load(&dev->unsettled))) {
			refresh(req);
			return GATE_OPEN;
		}
		obd_gate_leave(dev);
		ret = wait_at_gate(req, fua);
		if (ret != GATE_OPEN)
			return ret;
	}
}

int obd_gate_flush(struct obd_request *req)
{
	int ret;

	while (atomic_load(&req->dev->unsettled)) {
		ret = wait_at_gate(req, true);
		if (ret != GATE_OPEN)
			return ret;
	}
	refresh(req);
	return GATE_OPEN;
}

void obd_gate_abandon(struct obd_device *dev)
{
	struct obd_task *waiting;

	pthread_mutex_lock(&dev->lock);
	waiting = take_waiting(dev);
	pthread_mutex_unlock(&dev->lock);
	release(waiting); /* to be refused: dev->closed is set */
}

/* Under lock, which is let go meanwhile.  False: the time was not enough,
 * and the gate is still closed. */
static bool gate_close(struct obd_device *dev, uint64_t limit_ms)
{
	uint64_t until = obd_now_ms() + limit_ms;
	struct timespec ts = { (time_t)(until / 1000),
			       (long)(until % 1000) * 1000000 };

	atomic_fetch_or(&dev->changing, GATE_CLOSED);
	while (atomic_load(&dev->changing) != GATE_CLOSED)
		if (pthread_cond_timedwait(&dev->drained, &dev->lock, &ts))
			return atomic_load(&dev->changing) == GATE_CLOSED;
	return true;
}

/* Under lock; release() what it returns after that. */
static struct obd_task *gate_open(struct obd_device *dev)
{
	atomic_fetch_and(&dev->changing, ~GATE_CLOSED);
	return take_waiting(dev);
}

/* ---- pushing ------------------------------------------------------------ */

static uint64_t count_records(struct obd_upper *upper)
{
	uint64_t n;

	pthread_rwlock_rdlock(&upper->maplock);
	n = obd_map_count(upper->map);
	pthread_rwlock_unlock(&upper->maplock);
	return n;
}

/* Under lock: what is shown now, and what will be when it is settled. */
static int make_spares(struct obd_device *dev, struct obd_view **next)
{
	int err = obd_view_spare(next);

	if (err)
		return err;
	err = obd_view_spare(&dev->spare);
	if (err)
		obd_view_unref(*next);
	return err;
}

/* Under lock. */
static void drop_spare(struct obd_device *dev)
{
	obd_view_unref(dev->spare);
	dev->spare = NULL;
}

/* Under lock, the gate closed. */
static int show_pushed(struct obd_device *dev, struct obd_upper *upper,
		       uint64_t max_records, struct obd_view *next)
{
	struct obd_view *now = obd_view_shown(&dev->view);

	if (count_records(now->upper) > max_records)
		return -E2BIG;
	obd_view_lay(next, now->base, upper, now->upper);
	/* Its slot: above the lowers and what was the upper. */
	upper->tag = now->n + 1;
	obd_view_publish(&dev->view, next);
	atomic_store(&dev->unsettled, true);
	return 0;
}

static int push_check(struct obd_device *dev, struct obd_upper *upper)
{
	struct obd_view *now = obd_view_shown(&dev->view);

	if (dev->flags & OBD_DEVICE_READONLY)
		return -EROFS;
	if (!upper || upper->readonly || upper == now->upper ||
	    (upper->kind == OBD_UPPER_SPARSE &&
	     upper->virtual_size < obd_device_size(dev)))
		return -EINVAL;
	if (atomic_load(&dev->unsettled) || now->frozen ||
	    atomic_load(&dev->changing) & GATE_CLOSED)
		return -EBUSY;
	return atomic_load(&dev->closed);
}

int32_t obd_device_push(struct obd_device *dev, struct obd_upper *upper,
			uint64_t max_records, uint32_t limit_ms,
			uint64_t *pause_ns)
{
	struct obd_task *waiting;
	struct obd_view *next;
	uint64_t began;
	int err;

	/* Else the first change would sync, and all others wait for it. */
	if (upper && upper->kind == OBD_UPPER_LOG && !upper->readonly) {
		err = obd_log_prepare(upper);
		if (err)
			return err;
	}
	pthread_mutex_lock(&dev->lock);
	err = push_check(dev, upper);
	if (!err)
		err = make_spares(dev, &next);
	if (err) {
		pthread_mutex_unlock(&dev->lock);
		return err;
	}
	began = obd_now_ns();
	err = gate_close(dev, limit_ms) ?
	      show_pushed(dev, upper, max_records, next) : -ETIMEDOUT;
	waiting = gate_open(dev);
	*pause_ns = obd_now_ns() - began;
	obd_view_unref(next);
	if (err)
		drop_spare(dev);
	pthread_mutex_unlock(&dev->lock);
	release(waiting);
	return err;
}

/* ---- settling ----------------------------------------------------------- */

/* Under lock: the disk shows something else from now on. */
static int show_settled(struct obd_device *dev, uint32_t how,
			struct obd_view *view)
{
	struct obd_view *now = obd_view_shown(&dev->view);

	if (!atomic_load(&dev->unsettled))
		return -EINVAL;
	switch (how) {
	case OBD_SETTLE_SEALED:
		if (!view || view->base)
			return -EINVAL;
		obd_view_lay(dev->spare, view, now->upper, NULL);
		break;
	case OBD_SETTLE_POPPED:
		if (!(atomic_load(&dev->changing) & GATE_CLOSED))
			return -EINVAL;
		obd_view_lay(dev->spare, now->base, now->frozen, NULL);
		break;
	case OBD_SETTLE_KEPT:
		return 0;
	default:
		return -EINVAL;
	}
	obd_view_publish(&dev->view, dev->spare);
	return 0;
}

int32_t obd_device_settle(struct obd_device *dev, uint32_t how,
			  struct obd_view *view)
{
	struct obd_task *waiting = NULL;
	int err;

	pthread_mutex_lock(&dev->lock);
	err = show_settled(dev, how, view);
	if (!err) {
		drop_spare(dev);
		atomic_store(&dev->unsettled, false);
		waiting = gate_open(dev);
	}
	pthread_mutex_unlock(&dev->lock);
	release(waiting);
	return err;
}

/* ---- popping ------------------------------------------------------------ */

/* One change of the old upper, in a request of the kind it knows. */
static int copy_change(struct obd_request *req, struct obd_upper *to,
		       uint64_t lba, uint64_t sectors, struct iovec *iov)
{
	req->op = iov ? OBD_WRITE : OBD_ZERO;
	req->offset = lba * OBD_SECTOR;
	req->length = (uint32_t)(sectors * OBD_SECTOR);
	req->iov = iov;
	req->iov_count = iov ? 1 : 0;
	return obd_upper_change(to, req, &obd_request_ask);
}

static int copy_record(struct obd_request *req, struct obd_record rec,
		       struct obd_upper *to, uint8_t *buf)
{
	struct obd_source *from = req->view->upper->data;
	uint64_t lba = rec_lba(rec), end = rec_end(rec), part;
	struct iovec iov;
	int err = 0;

	if (rec_zeroed(rec))
		return copy_change(req, to, lba, end - lba, NULL);
	for (; !err && lba < end; lba += part) {
		part = end - lba;
		if (part > COPY_BYTES / OBD_SECTOR)
			part = COPY_BYTES / OBD_SECTOR;
		err = obd_source_read(from, buf, part * OBD_SECTOR,
				      (rec_at(rec) + lba - rec_lba(rec)) *
				      OBD_SECTOR, OBD_TRY_BLOCK);
		iov = (struct iovec){ buf, part * OBD_SECTOR };
		if (!err)
			err = copy_change(req, to, lba, part, &iov);
	}
	return err;
}

static int copy_back(struct obd_device *dev)
{
	struct obd_request req = { .dev = dev };
	const struct obd_record *rec;
	struct obd_index *index;
	uint8_t *buf = malloc(COPY_BYTES);
	uint64_t i, n;
	int err;

	if (!buf)
		return -ENOMEM;
	req.view = obd_view_borrow(&dev->view);
	err = obd_upper_snapshot(req.view->upper, &index);
	if (!err) {
		rec = obd_index_array(index);
		n = obd_index_count(index);
		for (i = 0; !err && i < n; i++)
			err = copy_record(&req, rec[i], req.view->frozen,
					  buf);
		obd_index_unref(index);
	}
	obd_view_return(&dev->view, req.view);
	free(buf);
	return err;
}

int32_t obd_device_pop(struct obd_device *dev, uint32_t limit_ms)
{
	struct obd_task *waiting = NULL;
	int err = 0;

	pthread_mutex_lock(&dev->lock);
	if (!atomic_load(&dev->unsettled) ||
	    atomic_load(&dev->changing) & GATE_CLOSED)
		err = -EINVAL;
	else if (!gate_close(dev, limit_ms))
		err = -ETIMEDOUT;
	pthread_mutex_unlock(&dev->lock);
	if (err == -EINVAL)
		return err;
	if (!err) /* nobody else publishes or changes: TypeScript waits */
		err = copy_back(dev);
	if (!err)
		return 0;
	pthread_mutex_lock(&dev->lock);
	waiting = gate_open(dev);
	pthread_mutex_unlock(&dev->lock);
	release(waiting);
	return err;
}
