/* SPDX-License-Identifier: Apache-2.0
 *
 * pipe.c - steps worked on by several threads, placed in order.
 *
 * A ring of slots, one a step.  The calling thread writes what is finished
 * and reads ahead, so that one worker works while its input and output are
 * copied from and into the page cache; a worker that finds no input reads,
 * and writes when it finds no free slot.  Errors
 * of a step count when its turn comes, so the first one in the input is
 * the one reported, whoever was fastest.
 */
#include <stdlib.h>

#include "pipe.h"

/* ---- progress --------------------------------------------------------- */

void obd_job_total(struct obd_job *job, uint64_t total)
{
	if (job)
		__atomic_store_n(&job->total, total, __ATOMIC_RELAXED);
}

void obd_job_done(struct obd_job *job, uint64_t bytes)
{
	if (job)
		__atomic_fetch_add(&job->done, bytes, __ATOMIC_RELAXED);
}

static bool cancelled(const struct obd_job *job)
{
	return job && __atomic_load_n(&job->cancel, __ATOMIC_RELAXED);
}

int obd_sink_put(struct obd_sink *sink, const void *buf, uint64_t n,
		 uint64_t at)
{
	int64_t put;

	if (!n)
		return 0;
	put = sink->stream ? obd_io_write(sink->fd, buf, n) :
			     obd_io_pwrite(sink->fd, buf, n, sink->base + at);
	if (put < 0)
		return (int)put;
	if (sink->job)
		__atomic_fetch_add(&sink->job->written, n, __ATOMIC_RELAXED);
	return 0;
}

/* ---- one thread ------------------------------------------------------- */
/* Everything below runs with the lock held and gives it up inside. */

static void fail(struct obd_pipe *pipe, int err)
{
	if (!pipe->err)
		pipe->err = err;
	pthread_cond_broadcast(&pipe->changed);
}

/* The oldest step, if it is finished and may be written now. */
static struct obd_slot *writable(struct obd_pipe *pipe)
{
	struct obd_slot *slot = &pipe->slots[pipe->head % pipe->slot_count];

	if (pipe->head == pipe->next || slot->state != SLOT_READY ||
	    (pipe->stream && pipe->writing))
		return NULL;
	return slot;
}

static void write_step(struct obd_pipe *pipe, struct obd_slot *slot)
{
	int err = slot->err ? slot->err : pipe->place(pipe, slot);

	if (err) {
		pipe->failed_at = slot->out_at;
		fail(pipe, err);
		return;
	}
	slot->state = SLOT_WRITING;
	pipe->head++;
	pipe->writing = true;
	if (pipe->write) {
		pthread_mutex_unlock(&pipe->lock);
		err = pipe->write(pipe, slot);
		pthread_mutex_lock(&pipe->lock);
	}
	pipe->writing = false;
	slot->state = SLOT_FREE;
	if (err)
		fail(pipe, err);
	else
		obd_job_done(pipe->job, slot->n);
	pthread_cond_broadcast(&pipe->changed);
}

static bool takable(const struct obd_pipe *pipe)
{
	return !pipe->ended && !pipe->taking &&
	       pipe->slots[pipe->next % pipe->slot_count].state == SLOT_FREE;
}

/* The next step with its input, SLOT_BUSY and the caller's; NULL: there is
 * none, or it has failed. */
static struct obd_slot *fill_step(struct obd_pipe *pipe)
{
	struct obd_slot *slot = &pipe->slots[pipe->next % pipe->slot_count];
	int rc;

	pipe->taking = true;
	pthread_mutex_unlock(&pipe->lock);
	slot->err = 0;
	slot->n = slot->out_n = slot->count = 0;
	rc = pipe->take(pipe, slot);
	pthread_mutex_lock(&pipe->lock);
	pipe->taking = false;
	pipe->ended = rc <= 0;
	pthread_cond_broadcast(&pipe->changed);
	if (!rc)
		return NULL;
	slot->err = rc < 0 ? rc : 0;
	slot->state = SLOT_BUSY;
	pipe->next++;
	if (!slot->err && pipe->read) {
		pthread_mutex_unlock(&pipe->lock);
		slot->err = pipe->read(pipe, slot);
		pthread_mutex_lock(&pipe->lock);
	}
	if (!slot->err)
		return slot;
	slot->state = SLOT_READY;
	pthread_cond_broadcast(&pipe->changed);
	return NULL;
}

/* Reads a step and leaves it to a worker. */
static void fill_ahead(struct obd_pipe *pipe)
{
	struct obd_slot *slot = fill_step(pipe);

	if (!slot)
		return;
	slot->state = SLOT_FILLED;
	pthread_cond_broadcast(&pipe->changed);
}

/* The oldest step that was read ahead. */
static struct obd_slot *filled(struct obd_pipe *pipe)
{
	struct obd_slot *slot;
	uint64_t i;

	for (i = pipe->head; i < pipe->next; i++) {
		slot = &pipe->slots[i % pipe->slot_count];
		if (slot->state == SLOT_FILLED)
			return slot;
	}
	return NULL;
}

static void work_step(struct obd_pipe *pipe, struct obd_slot *slot)
{
	slot->state = SLOT_BUSY;
	pthread_mutex_unlock(&pipe->lock);
	slot->err = pipe->work(pipe, slot);
	pthread_mutex_lock(&pipe->lock);
	slot->state = SLOT_READY;
	pthread_cond_broadcast(&pipe->changed);
}

/* Works on what was read ahead, or on what it reads itself. False: there is
 * nothing. */
static bool work_on(struct obd_pipe *pipe)
{
	struct obd_slot *slot = filled(pipe);

	if (!slot && !takable(pipe))
		return false;
	if (!slot)
		slot = fill_step(pipe);
	if (slot)
		work_step(pipe, slot);
	return true;
}

static void run(struct obd_pipe *pipe, bool worker)
{
	struct obd_slot *slot;

	pthread_mutex_lock(&pipe->lock);
	while (!pipe->err && !(pipe->ended && pipe->head == pipe->next)) {
		if (cancelled(pipe->job))
			fail(pipe, -ECANCELED);
		else if (worker && work_on(pipe))
			continue;
		else if ((slot = writable(pipe)))
			write_step(pipe, slot);
		else if (!worker && pipe->read && takable(pipe))
			fill_ahead(pipe);
		else
			pthread_cond_wait(&pipe->changed, &pipe->lock);
	}
	pthread_mutex_unlock(&pipe->lock);
}

static void *run_worker(void *pipe)
{
	run(pipe, true);
	return NULL;
}

/* ---- all of them ------------------------------------------------------ */

static void slots_free(struct obd_pipe *pipe)
{
	uint32_t i;

	for (i = 0; pipe->slots && i < pipe->slot_count; i++) {
		free(pipe->slots[i].in);
		free(pipe->slots[i].out);
	}
	free(pipe->slots);
}

/* The slots beyond one a worker let a fast one run ahead of the step that
 * all wait for. */
static int slots_alloc(struct obd_pipe *pipe)
{
	struct obd_slot *slot;
	uint32_t i;

	pipe->slot_count = 2 * pipe->threads + 1;
	pipe->slots = calloc(pipe->slot_count, sizeof(*pipe->slots));
	for (i = 0; pipe->slots && i < pipe->slot_count; i++) {
		slot = &pipe->slots[i];
		if ((pipe->in_room && !(slot->in = malloc(pipe->in_room))) ||
		    (pipe->out_room && !(slot->out = malloc(pipe->out_room))))
			return -ENOMEM;
	}
	return pipe->slots ? 0 : -ENOMEM;
}

/* Fewer workers than asked for do the same work; none, and the caller is
 * one. */
static uint32_t start(struct obd_pipe *pipe, pthread_t *threads)
{
	uint32_t n = 0;

	while (n < pipe->threads &&
	       !pthread_create(&threads[n], NULL, run_worker, pipe))
		n++;
	return n;
}

int obd_pipe_run(struct obd_pipe *pipe)
{
	pthread_t threads[PIPE_THREADS_MAX];
	uint32_t n;
	int err;

	if (!pipe->threads)
		return -EINVAL;
	if (pipe->threads > PIPE_THREADS_MAX)
		pipe->threads = PIPE_THREADS_MAX;
	err = slots_alloc(pipe);
	if (!err) {
		pthread_mutex_init(&pipe->lock, NULL);
		pthread_cond_init(&pipe->changed, NULL);
		n = start(pipe, threads);
		run(pipe, !n);
		while (n)
			pthread_join(threads[--n], NULL);
		pthread_cond_destroy(&pipe->changed);
		pthread_mutex_destroy(&pipe->lock);
		err = pipe->err;
	}
	slots_free(pipe);
	return err;
}
