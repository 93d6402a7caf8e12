/* SPDX-License-Identifier: Apache-2.0
 *
 * device.c - a view and an optional upper as one disk: its life, its
 * figures, and requests from within the process.
 */
#include <stdlib.h>
#include <time.h>

#include "core.h"

#define CHUNK (64u << 20)     /* of a long in-process request */

static _Atomic uint32_t devices;

/* ---- who counts where --------------------------------------------------- */

_Thread_local uint32_t obd_stat_shard;
static _Atomic uint32_t shards_taken; /* a bit for every shard in use */
static pthread_key_t shard_key;
static pthread_once_t shard_once = PTHREAD_ONCE_INIT;

/* The next owner's acquire sees what this thread has counted. */
static void shard_drop(void *shard)
{
	uint32_t nr = (uint32_t)(uintptr_t)shard - 1;

	obd_stat_shard = STAT_SHARED + 1;
	atomic_fetch_and_explicit(&shards_taken, ~(1u << nr),
				  memory_order_release);
}

static void shard_init(void)
{
	if (pthread_key_create(&shard_key, shard_drop))
		atomic_store(&shards_taken, ~0u); /* all share the last */
}

uint32_t obd_stat_assign(void)
{
	uint32_t taken, nr;

	pthread_once(&shard_once, shard_init);
	taken = atomic_load(&shards_taken);
	do {
		nr = (uint32_t)__builtin_ctz(~taken | 1u << STAT_SHARED);
	} while (nr < STAT_SHARED &&
		 !atomic_compare_exchange_weak_explicit(&shards_taken, &taken,
			taken | 1u << nr, memory_order_acquire,
			memory_order_relaxed));
	obd_stat_shard = nr + 1;
	if (nr < STAT_SHARED)
		pthread_setspecific(shard_key,
				    (void *)(uintptr_t)obd_stat_shard);
	return obd_stat_shard;
}

/* ---- life --------------------------------------------------------------- */

static int size_check(struct obd_upper *upper, uint64_t size)
{
	if (size % OBD_SECTOR ||
	    size > OBD_LBA_MASK * OBD_SECTOR)
		return -EINVAL;
	/* A sparse file's length is its size: what is past it is cut when
	 * it is opened again. */
	if (upper && upper->kind == OBD_UPPER_SPARSE && !upper->readonly &&
	    size > upper->virtual_size)
		return -EINVAL;
	return 0;
}

static void gate_init(struct obd_device *dev)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&dev->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&dev->drained, &attr);
	pthread_condattr_destroy(&attr);
}

int32_t obd_device_new(struct obd_view *view, struct obd_upper *upper,
		       uint64_t virtual_size, uint32_t flags,
		       uint64_t deadline_ms, struct obd_device **out)
{
	struct obd_view *shown;
	struct obd_device *dev;
	int err = view && !view->base ? size_check(upper, virtual_size) :
					-EINVAL;

	if (!err)
		err = obd_view_over(view, upper, NULL, &shown);
	if (err)
		return err;
	dev = aligned_alloc(_Alignof(struct obd_device), sizeof(*dev));
	if (!dev) {
		obd_view_unref(shown);
		return -ENOMEM;
	}
	memset(dev, 0, sizeof(*dev));
	dev->refs = 1;
	dev->flags = flags;
	if (!upper || upper->readonly)
		dev->flags |= OBD_DEVICE_READONLY;
	dev->size = virtual_size;
	dev->deadline_ms = deadline_ms;
	if (upper) /* its slot above the lowers (spec lsmt 5) */
		upper->tag = view->n;
	gate_init(dev);
	obd_view_publish(&dev->view, shown);
	obd_view_unref(shown);
	atomic_fetch_add(&devices, 1);
	*out = dev;
	return 0;
}

int32_t obd_device_swap(struct obd_device *dev, struct obd_view *view)
{
	struct obd_view *now, *next;
	int err;

	if (!view || view->base)
		return -EINVAL;
	pthread_mutex_lock(&dev->lock);
	now = obd_view_shown(&dev->view);
	err = obd_view_over(view, now->upper, now->frozen, &next);
	if (!err) {
		obd_view_publish(&dev->view, next);
		obd_view_unref(next);
	}
	pthread_mutex_unlock(&dev->lock);
	return err;
}

int32_t obd_device_resize(struct obd_device *dev, uint64_t virtual_size)
{
	int err;

	pthread_mutex_lock(&dev->lock);
	err = size_check(obd_view_shown(&dev->view)->upper, virtual_size);
	if (!err && virtual_size < obd_device_size(dev))
		err = -EINVAL;
	if (!err)
		atomic_store(&dev->size, virtual_size);
	pthread_mutex_unlock(&dev->lock);
	return err;
}

/* The host block that the end of the disk splits, as a request: it may have
 * to wait for what the lowers have there. */
static int complete_end(struct obd_device *dev)
{
	struct obd_request req = { .dev = dev, .op = OBD_EXTEND };

	req.offset = obd_device_size(dev);
	req.length = OBD_SECTOR;
	return obd_request_wait(&req);
}

static struct obd_upper *upper_of(struct obd_device *dev)
{
	struct obd_upper *upper;

	pthread_mutex_lock(&dev->lock);
	upper = obd_view_shown(&dev->view)->upper;
	if (upper)
		obd_upper_ref(upper);
	pthread_mutex_unlock(&dev->lock);
	return upper;
}

int32_t obd_device_extend(struct obd_device *dev, uint64_t virtual_size)
{
	struct obd_upper *upper = upper_of(obd_device_ref(dev));
	uint64_t size = obd_device_size(dev);
	int err = size_check(NULL, virtual_size);

	if (!err && virtual_size < size)
		err = -EINVAL;
	if (!err && (!upper || upper->readonly))
		err = -EROFS;
	if (!err && upper->kind == OBD_UPPER_SPARSE) {
		err = obd_sparse_set_end(upper, virtual_size);
		if (!err && virtual_size > size) {
			err = complete_end(dev);
			if (!err)
				err = obd_upper_sync(upper);
			if (err)
				obd_sparse_set_end(upper, size);
		}
	}
	obd_upper_unref(upper);
	obd_device_unref(dev);
	return err;
}

int32_t obd_device_close(struct obd_device *dev, int32_t error)
{
	int32_t open = 0;

	if (error >= 0)
		error = -ESHUTDOWN;
	if (!atomic_compare_exchange_strong(&dev->closed, &open, error))
		return 0;
	obd_miss_abandon(dev, error);
	obd_gate_abandon(dev);
	return 0;
}

int32_t obd_device_abandon(struct obd_device *dev, int32_t error)
{
	if (error >= 0)
		return -EINVAL;
	obd_miss_abandon(dev, error);
	return 0;
}

struct obd_device *obd_device_ref(struct obd_device *dev)
{
	atomic_fetch_add_explicit(&dev->refs, 1, memory_order_relaxed);
	return dev;
}

void obd_device_unref(struct obd_device *dev)
{
	if (!dev || atomic_fetch_sub_explicit(&dev->refs, 1,
					      memory_order_acq_rel) != 1)
		return;
	obd_view_publish(&dev->view, NULL);
	obd_view_unref(dev->spare);
	obd_trace_free(atomic_load(&dev->trace));
	pthread_mutex_destroy(&dev->lock);
	pthread_cond_destroy(&dev->drained);
	free(dev);
	atomic_fetch_sub(&devices, 1);
}

uint32_t obd_device_count(void)
{
	return atomic_load(&devices);
}

uint64_t obd_device_size(struct obd_device *dev)
{
	return atomic_load_explicit(&dev->size, memory_order_relaxed);
}

uint32_t obd_device_flags(struct obd_device *dev)
{
	return dev->flags;
}

/* ---- requests from within the process ----------------------------------- */

static int blocking(struct obd_device *dev, enum obd_op op, void *buf,
		    uint64_t n, uint64_t at)
{
	struct obd_request req;
	struct iovec iov;
	uint32_t part;
	int err;

	req.dev = dev;
	req.op = (uint16_t)op;
	req.flags = 0;
	req.iov = &iov;
	req.iov_count = 1;
	/* Refused as a whole, so that no part of it has happened. */
	if (at % OBD_SECTOR || n % OBD_SECTOR)
		return -EINVAL;
	if (op != OBD_READ && op != OBD_FLUSH &&
	    dev->flags & OBD_DEVICE_READONLY)
		return -EROFS;
	if (at > obd_device_size(dev) || n > obd_device_size(dev) - at)
		return op == OBD_READ ? -EINVAL : -ENOSPC;
	do {
		part = n < CHUNK ? (uint32_t)n : CHUNK;
		req.offset = at;
		req.length = part;
		iov = (struct iovec){ buf, part };
		err = obd_request_wait(&req);
		if (buf)
			buf = (uint8_t *)buf + part;
		at += part;
		n -= part;
	} while (!err && n);
	return err;
}

static int held(struct obd_device *dev, enum obd_op op, void *buf,
		uint64_t n, uint64_t at)
{
	int err;

	obd_device_ref(dev);
	err = blocking(dev, op, buf, n, at);
	obd_device_unref(dev);
	return err;
}

int32_t obd_device_read(struct obd_device *dev, void *buf, uint64_t n,
			uint64_t at)
{
	return held(dev, OBD_READ, buf, n, at);
}

int32_t obd_device_write(struct obd_device *dev, const void *buf, uint64_t n,
			 uint64_t at)
{
	return held(dev, OBD_WRITE, (void *)(uintptr_t)buf, n, at);
}

int32_t obd_device_discard(struct obd_device *dev, uint64_t at, uint64_t n)
{
	return held(dev, OBD_DISCARD, NULL, n, at);
}

int32_t obd_device_zero(struct obd_device *dev, uint64_t at, uint64_t n)
{
	return held(dev, OBD_ZERO, NULL, n, at);
}

int32_t obd_device_flush(struct obd_device *dev)
{
	return held(dev, OBD_FLUSH, NULL, 0, 0);
}

int32_t obd_device_read_many(struct obd_device *dev, const uint64_t *offsets,
			     uint64_t n, uint32_t size)
{
	/* Aligned as a transport's buffer is: the kernel copies faster. */
	void *buf = aligned_alloc(4096, ((uint64_t)size + 4096) & ~4095ull);
	uint64_t i;
	int err = 0;

	if (!buf)
		return -ENOMEM;
	obd_device_ref(dev);
	for (i = 0; !err && i < n; i++)
		err = blocking(dev, OBD_READ, buf, size, offsets[i]);
	obd_device_unref(dev);
	free(buf);
	return err;
}

/* ---- what there is ------------------------------------------------------ */

int32_t obd_device_extents(struct obd_device *dev, uint64_t at, uint64_t n,
			   struct obd_extent *out, uint32_t max)
{
	struct obd_view *view;
	struct obd_piece piece;
	struct obd_walk w;
	uint64_t size = obd_device_size(dev);
	uint32_t count = 0;

	if ((at | n) % OBD_SECTOR || at > size || n > size - at)
		return -EINVAL;
	if (max > INT32_MAX)
		max = INT32_MAX;
	view = obd_view_borrow(&dev->view);
	obd_walk_start(&w, view, LEVEL_UPPER, at / OBD_SECTOR,
		       (at + n) / OBD_SECTOR);
	while (obd_walk_next(&w, &piece)) {
		if (count && out[count - 1].state == piece.state) {
			out[count - 1].length += piece.sectors * OBD_SECTOR;
			continue;
		}
		if (count == max)
			break;
		out[count++] = (struct obd_extent){
			piece.sectors * OBD_SECTOR, piece.state, 0,
		};
	}
	obd_view_return(&dev->view, view);
	return (int32_t)count;
}

int32_t obd_device_stat(struct obd_device *dev, struct obd_device_stats *out)
{
	uint64_t sum[ST_COUNT] = { 0 };
	uint32_t i, j;

	_Static_assert(sizeof(sum) == sizeof(*out), "one counter a field");
	for (i = 0; i < STAT_SHARDS; i++)
		for (j = 0; j < ST_COUNT; j++)
			sum[j] += atomic_load_explicit(
				&dev->counters[i].v[j],
				memory_order_relaxed);
	memcpy(out, sum, sizeof(*out));
	return 0;
}

static void times_out(const struct obd_times *times, uint64_t *buckets,
		      uint64_t *ns)
{
	for (uint32_t i = 0; i < OBD_TIMES_BUCKETS; i++)
		buckets[i] = atomic_load_explicit(&times->buckets[i],
						  memory_order_relaxed);
	*ns = atomic_load_explicit(&times->ns, memory_order_relaxed);
}

int32_t obd_device_times(struct obd_device *dev, struct obd_read_times *out)
{
	times_out(&dev->local, out->local, &out->local_ns);
	times_out(&dev->fetched, out->fetched, &out->fetched_ns);
	return 0;
}
