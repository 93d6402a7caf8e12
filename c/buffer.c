/* SPDX-License-Identifier: Apache-2.0
 *
 * buffer.c - bytes on their way from the network into a cache's file, on
 * threads that may wait for a disk.  What waits for them goes on as soon as
 * they are written, before TypeScript hears of it.
 */
#include <stdlib.h>

#include "core.h"

/* Where a buffer is.  Whoever moves it out of RUNNING says whether its units
 * are marked present: the writer, or who takes it back.
 *   IDLE -> RUNNING      obd_buffer_write(), TypeScript's thread
 *   RUNNING -> ENDED     the writer, written or failed
 *   RUNNING -> DISOWNED  obd_buffer_take_back(), TypeScript's thread
 *   ENDED, DISOWNED -> IDLE   it was given back */
enum { IDLE, RUNNING, ENDED, DISOWNED };

struct obd_buffer {
	struct obd_task task;        /* its way to a writer */
	uint64_t tag, size;
	uint8_t *bytes;
	_Atomic int state;
	/* of the write: set before RUNNING, the writer's from then on */
	struct obd_source *cache;
	uint64_t at, n, ns;
	int32_t error;
	struct obd_buffer *next;     /* among those that ended: under lock */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct obd_buffer *ended_head, **ended_tail = &ended_head;

int32_t obd_buffer_new(uint64_t size, uint64_t tag, struct obd_buffer **out)
{
	struct obd_buffer *buffer;

	if (!size || size % 4096 || size > INT32_MAX)
		return -EINVAL;
	buffer = calloc(1, sizeof(*buffer));
	if (!buffer)
		return -ENOMEM;
	buffer->bytes = aligned_alloc(4096, size);
	if (!buffer->bytes) {
		free(buffer);
		return -ENOMEM;
	}
	buffer->size = size;
	buffer->tag = tag;
	*out = buffer;
	return 0;
}

void *obd_buffer_bytes(struct obd_buffer *buffer)
{
	return buffer->bytes;
}

void obd_buffer_unref(struct obd_buffer *buffer)
{
	if (!buffer)
		return;
	free(buffer->bytes);
	free(buffer);
}

/* ---- writing ------------------------------------------------------------ */

/* Under the lock: true when nobody was told of ended writes yet. */
static bool give_back(struct obd_buffer *buffer)
{
	bool was_empty = !ended_head;

	buffer->next = NULL;
	*ended_tail = buffer;
	ended_tail = &buffer->next;
	return was_empty;
}

/* A unit is present and its buffer given back in one step, as TypeScript
 * sees it: who drains the misses first and the ended writes then never finds
 * a unit damaged that it takes for one on its way, and never evicts one that
 * is marked present after it. */
static void end_write(struct obd_buffer *buffer, int error)
{
	struct obd_source *cache = buffer->cache;
	uint32_t shift = cache->units->shift;
	struct obd_task *woken = NULL;
	int running = RUNNING;
	bool tell;

	pthread_mutex_lock(&lock);
	if (!atomic_compare_exchange_strong(&buffer->state, &running, ENDED)) {
		obd_plane_writer_away(false);
		error = -ECANCELED;
	}
	if (!error)
		obd_miss_land(cache, buffer->at >> shift,
			      ((buffer->n - 1) >> shift) + 1, &woken);
	buffer->error = error;
	tell = give_back(buffer);
	pthread_mutex_unlock(&lock);
	obd_miss_run_woken(woken);
	if (tell)
		obd_wake();
	obd_source_unref(cache);
}

static void write_task(struct obd_task *task)
{
	struct obd_buffer *buffer = (struct obd_buffer *)((char *)task -
		offsetof(struct obd_buffer, task));
	uint64_t began = obd_now_ns();
	int64_t done = obd_io_pwrite(buffer->cache->fd, buffer->bytes,
				     buffer->n, buffer->at);

	buffer->ns = obd_now_ns() - began;
	if (done >= 0)
		done = done == (int64_t)buffer->n ? 0 : -EIO;
	end_write(buffer, (int)done);
}

/* Whole units, the last one up to the blob's end. */
static bool fits(const struct obd_buffer *buffer,
		 const struct obd_source *cache, uint64_t at, uint64_t n)
{
	uint64_t mask, size;

	if (cache->kind != SRC_CACHE || !n || n > buffer->size)
		return false;
	size = cache->units->size;
	mask = (1ull << cache->units->shift) - 1;
	return !(at & mask) && at < size && n <= size - at &&
	       (!(n & mask) || n == size - at);
}

int32_t obd_buffer_write(struct obd_buffer *buffer, struct obd_source *cache,
			 uint64_t at, uint64_t n)
{
	int err;

	if (atomic_load(&buffer->state) != IDLE ||
	    !fits(buffer, cache, at, n))
		return -EINVAL;
	buffer->cache = obd_source_ref(cache);
	buffer->at = at;
	buffer->n = n;
	buffer->task.fn = write_task;
	atomic_store(&buffer->state, RUNNING);
	err = obd_plane_write(&buffer->task);
	if (err) {
		atomic_store(&buffer->state, IDLE);
		obd_source_unref(cache);
	}
	return err;
}

int32_t obd_buffer_take_back(struct obd_buffer *buffer)
{
	int running = RUNNING;

	if (!atomic_compare_exchange_strong(&buffer->state, &running,
					    DISOWNED))
		return -EALREADY;
	if (!obd_plane_unwrite(&buffer->task)) {
		obd_plane_writer_away(true);
		return 0;
	}
	atomic_store(&buffer->state, IDLE);
	obd_source_unref(buffer->cache);
	return 1;
}

int32_t obd_written_drain(struct obd_written *out, uint32_t max)
{
	struct obd_buffer *buffer;
	uint32_t n = 0;

	if (max > INT32_MAX)
		max = INT32_MAX;
	pthread_mutex_lock(&lock);
	while (n < max && ended_head) {
		buffer = ended_head;
		ended_head = buffer->next;
		if (!ended_head)
			ended_tail = &ended_head;
		out[n++] = (struct obd_written){
			.tag = buffer->tag,
			.ns = buffer->ns,
			.error = buffer->error,
		};
		atomic_store(&buffer->state, IDLE);
	}
	pthread_mutex_unlock(&lock);
	return (int32_t)n;
}
