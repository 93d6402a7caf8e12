/* SPDX-License-Identifier: Apache-2.0
 *
 * miss.c - units that are not there yet: who asked for them, who waits, and
 * the queue that TypeScript drains.
 *
 * The queue is four bits a unit in its source, so its memory is bounded by
 * the images, neighbours merge by themselves, and one unit is asked for
 * once whoever wants it (asked).  A request waits on one unit at a time,
 * the first absent one it met: all of its units are asked for before it
 * parks, so N misses still cost one round trip, and when it is woken it
 * looks again.  The links are in the request: nothing is allocated.
 *
 * One lock guards it all.  It is taken on misses only, never on a hit.
 */
#include <stdlib.h>
#include <time.h>

#include "core.h"

#define NEVER UINT64_MAX
#define TICK_MS 5u /* deadlines are looked at no more often than this */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct obd_request *parked;     /* every one in SETUP or PARKED */
static struct obd_source *queue_head, *queue_tail;
static struct {
	pthread_t thread;
	pthread_cond_t cond;
	bool running, stop;
	uint64_t next_ms;              /* no deadline is earlier */
} timer = { .next_ms = NEVER };

/* ---- ranges of bits ---------------------------------------------------- */

/* The bits of word i that lie in [first, first + count), count > 0. */
static uint64_t word_mask(uint64_t i, uint64_t first, uint64_t count)
{
	uint64_t last = first + count - 1, mask = ~0ull;

	if (i == first / 64)
		mask &= ~0ull << (first % 64);
	if (i == last / 64)
		mask &= ~0ull >> (63 - last % 64);
	return mask;
}

/* Clears a range and returns how many bits were set in it. */
static uint64_t range_clear(uint64_t *words, uint64_t first, uint64_t count)
{
	uint64_t i, mask, n = 0;

	for (i = first / 64; i <= (first + count - 1) / 64; i++) {
		mask = word_mask(i, first, count);
		n += (uint64_t)__builtin_popcountll(words[i] & mask);
		words[i] &= ~mask;
	}
	return n;
}

static bool present(const struct obd_units *u, uint64_t i)
{
	return atomic_load_explicit(&u->present[i / 64],
				    memory_order_relaxed) >> (i % 64) & 1;
}

/* Units come, to one file or the other. */
static void present_set(struct obd_units *u, uint64_t first, uint64_t count,
			bool spilled)
{
	uint64_t i, mask;

	for (i = first / 64; i <= (first + count - 1) / 64; i++) {
		mask = word_mask(i, first, count);
		if (spilled)
			atomic_fetch_or(&u->spilled[i], mask);
		else
			atomic_fetch_and(&u->spilled[i], ~mask);
		atomic_fetch_or_explicit(&u->present[i], mask,
					 memory_order_release);
	}
}

static void present_clear(struct obd_units *u, uint64_t first, uint64_t count)
{
	uint64_t i;

	for (i = first / 64; i <= (first + count - 1) / 64; i++)
		atomic_fetch_and(&u->present[i], ~word_mask(i, first, count));
	atomic_fetch_add(&u->losses, 1);
}

/* ---- the queue --------------------------------------------------------- */

static void queue_link(struct obd_source *src)
{
	struct obd_units *u = src->units;

	u->prev = queue_tail;
	u->next = NULL;
	if (queue_tail)
		queue_tail->units->next = src;
	else
		queue_head = src;
	queue_tail = src;
}

static void queue_unlink(struct obd_source *src)
{
	struct obd_units *u = src->units;

	if (u->prev)
		u->prev->units->next = u->next;
	else
		queue_head = u->next;
	if (u->next)
		u->next->units->prev = u->prev;
	else
		queue_tail = u->prev;
}

static void queue_add(struct obd_source *src, uint64_t unit)
{
	struct obd_units *u = src->units;
	bool was_empty = !queue_head;

	bit_set(u->asked, unit);
	bit_set(u->queued, unit);
	if (!u->queued_count++)
		queue_link(src);
	if (was_empty)
		obd_wake();
}

static void queue_remove(struct obd_source *src, uint64_t first,
			 uint64_t count)
{
	struct obd_units *u = src->units;
	uint64_t n = range_clear(u->queued, first, count);

	if (!n)
		return;
	u->queued_count -= n;
	if (!u->queued_count)
		queue_unlink(src);
}

/* The next queued unit at or after from, wrapping round; one exists. */
static uint64_t queue_seek(const struct obd_units *u, uint64_t from)
{
	uint64_t i = from / 64, word = u->queued[i] & ~0ull << (from % 64);

	while (!word) {
		if (++i > (u->count - 1) / 64)
			i = 0;
		word = u->queued[i];
	}
	return i * 64 + (uint64_t)__builtin_ctzll(word);
}

/* Takes one run of neighbours of one kind off a source's queue. */
static struct obd_miss queue_take(struct obd_source *src)
{
	struct obd_units *u = src->units;
	uint64_t first = queue_seek(u, u->cursor), end = first;
	bool corrupt = bit_get(u->corrupt, first);

	while (end < u->count && bit_get(u->queued, end) &&
	       bit_get(u->corrupt, end) == corrupt)
		end++;
	u->cursor = end < u->count ? end : 0;
	queue_remove(src, first, end - first);
	return (struct obd_miss){
		.source = u->id,
		.first = first,
		.count = end - first,
		.kind = corrupt ? OBD_MISS_CORRUPT : OBD_MISS_ABSENT,
	};
}

int32_t obd_miss_drain(struct obd_miss *out, uint32_t max)
{
	struct obd_source *src;
	uint32_t n = 0;

	if (max > INT32_MAX)
		max = INT32_MAX;
	pthread_mutex_lock(&lock);
	while (n < max && queue_head) {
		src = queue_head;
		out[n++] = queue_take(src);
		if (queue_head == src && queue_tail != src) {
			queue_unlink(src); /* the others have a turn, too */
			queue_link(src);
		}
	}
	pthread_mutex_unlock(&lock);
	return (int32_t)n;
}

/* ---- waiting ----------------------------------------------------------- */

static void attach(struct obd_request *req, struct obd_source *src,
		   uint64_t unit)
{
	req->state = REQ_SETUP;
	req->wait_src = src;
	req->wait_unit = unit;
	req->all_prev = NULL;
	req->all_next = parked;
	if (parked)
		parked->all_prev = req;
	parked = req;
	req->src_prev = NULL;
	req->src_next = src->units->waiting;
	if (req->src_next)
		req->src_next->src_prev = req;
	src->units->waiting = req;
}

static void detach(struct obd_request *req)
{
	if (req->all_prev)
		req->all_prev->all_next = req->all_next;
	else
		parked = req->all_next;
	if (req->all_next)
		req->all_next->all_prev = req->all_prev;
	if (req->src_prev)
		req->src_prev->src_next = req->src_next;
	else
		req->wait_src->units->waiting = req->src_next;
	if (req->src_next)
		req->src_next->src_prev = req->src_prev;
}

/* Lets req go on: its own thread finds it WOKEN at settle(), a parked one
 * is collected in *woken for after the lock. */
static void wake(struct obd_request *req, int error,
		 struct obd_task **woken)
{
	if (error && !req->miss_err)
		req->miss_err = error;
	detach(req);
	if (req->state == REQ_SETUP) {
		req->state = REQ_WOKEN;
		return;
	}
	req->state = REQ_RUNNING;
	req->task.next = *woken;
	*woken = &req->task;
}

/* Woken requests go on on helper threads. */
void obd_miss_run_woken(struct obd_task *woken)
{
	struct obd_request *req;

	while (woken) {
		req = (struct obd_request *)((char *)woken -
			offsetof(struct obd_request, task));
		woken = woken->next;
		obd_request_offload(req);
	}
}

static void wake_units(struct obd_source *src, uint64_t first,
		       uint64_t count, struct obd_task **woken)
{
	struct obd_request *req, *next;

	for (req = src->units->waiting; req; req = next) {
		next = req->src_next;
		if (req->wait_unit - first < count)
			wake(req, 0, woken);
	}
}

/* A request needs one of the units, whichever it happens to wait on. */
static bool needs(struct obd_request *req, struct obd_source *src,
		  uint64_t first, uint64_t count)
{
	return (req->wait_src == src && req->wait_unit - first < count) ||
	       obd_request_touches(req, src, first, count);
}

static void fail_units(struct obd_source *src, uint64_t first,
		       uint64_t count, int error, struct obd_task **woken)
{
	struct obd_request *req, *next;

	for (req = parked; req; req = next) {
		next = req->all_next;
		if (needs(req, src, first, count))
			wake(req, error, woken);
	}
}

uint32_t obd_source_want(struct obd_source *src, uint64_t at, uint64_t n,
			 struct obd_request *req)
{
	struct obd_source *cache;
	struct obd_units *u;
	uint64_t i, last, stored_at, stored_n;
	uint32_t absent = 0, asked = 0;

	if (!n || at > src->size || n > src->size - at ||
	    !obd_source_stored(src, at, n, &cache, &stored_at, &stored_n))
		return 0;
	u = cache->units;
	if (!stored_n || stored_at - cache->base > cache->size ||
	    stored_n > cache->size - (stored_at - cache->base) ||
	    obd_units_present(u, stored_at, stored_n))
		return 0;
	last = (stored_at + stored_n - 1) >> u->shift;
	pthread_mutex_lock(&lock);
	for (i = stored_at >> u->shift; i <= last; i++) {
		if (present(u, i))
			continue;
		absent++;
		if (!bit_get(u->asked, i)) {
			queue_add(cache, i);
			asked++;
		}
		if (req->state == REQ_RUNNING)
			attach(req, cache, i);
	}
	pthread_mutex_unlock(&lock);
	if (asked)
		obd_count(req->dev, ST_MISSES, asked);
	return absent;
}

/* ---- deadlines --------------------------------------------------------- */

static void expire(uint64_t now, struct obd_task **woken)
{
	struct obd_request *req, *next;
	uint64_t earliest = NEVER;

	for (req = parked; req; req = next) {
		next = req->all_next;
		if (req->state != REQ_PARKED)
			continue;
		if (req->deadline_ms <= now)
			wake(req, -ETIMEDOUT, woken);
		else if (req->deadline_ms < earliest)
			earliest = req->deadline_ms;
	}
	timer.next_ms = earliest;
}

static void timer_sleep(uint64_t until_ms)
{
	struct timespec ts;

	if (until_ms / 1000 > (uint64_t)INT32_MAX) {
		pthread_cond_wait(&timer.cond, &lock);
		return;
	}
	ts.tv_sec = (time_t)(until_ms / 1000);
	ts.tv_nsec = (long)(until_ms % 1000) * 1000000;
	pthread_cond_timedwait(&timer.cond, &lock, &ts);
}

static void *timer_main(void *unused)
{
	uint64_t now, not_before = 0;
	struct obd_task *woken;

	pthread_mutex_lock(&lock);
	while (!timer.stop) {
		now = obd_now_ms();
		if (now < timer.next_ms || now < not_before) {
			timer_sleep(timer.next_ms > not_before ?
				    timer.next_ms : not_before);
			continue;
		}
		woken = NULL;
		expire(now, &woken);
		not_before = now + TICK_MS;
		pthread_mutex_unlock(&lock);
		obd_miss_run_woken(woken);
		pthread_mutex_lock(&lock);
	}
	pthread_mutex_unlock(&lock);
	return unused;
}

/* Starts the thread with the first deadline, wakes it for an earlier one. */
static int timer_arm(uint64_t deadline_ms)
{
	pthread_condattr_t attr;
	int err;

	if (!timer.running) {
		pthread_condattr_init(&attr);
		pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
		pthread_cond_init(&timer.cond, &attr);
		pthread_condattr_destroy(&attr);
		timer.stop = false;
		err = pthread_create(&timer.thread, NULL, timer_main, NULL);
		if (err)
			return -err;
		timer.running = true;
	}
	if (deadline_ms < timer.next_ms) {
		timer.next_ms = deadline_ms;
		pthread_cond_signal(&timer.cond);
	}
	return 0;
}

void obd_miss_stop(void)
{
	bool running;

	pthread_mutex_lock(&lock);
	running = timer.running;
	timer.stop = true;
	if (running)
		pthread_cond_signal(&timer.cond);
	pthread_mutex_unlock(&lock);
	if (!running)
		return;
	pthread_join(timer.thread, NULL);
	pthread_mutex_lock(&lock);
	pthread_cond_destroy(&timer.cond);
	timer.running = false;
	timer.next_ms = NEVER;
	pthread_mutex_unlock(&lock);
}

/* ---- parking ----------------------------------------------------------- */

static uint64_t deadline_of(const struct obd_request *req)
{
	uint64_t now = obd_now_ms();

	return now < NEVER - req->dev->deadline_ms ?
	       now + req->dev->deadline_ms : NEVER;
}

enum obd_settled obd_miss_settle(struct obd_request *req)
{
	enum obd_settled settled = SETTLED_RUN;
	int err;

	pthread_mutex_lock(&lock);
	if (req->state == REQ_WOKEN)
		req->state = REQ_RUNNING;
	if (req->state == REQ_SETUP) {
		if (!req->deadline_ms)
			req->deadline_ms = deadline_of(req);
		err = atomic_load(&req->dev->closed);
		if (!err)
			err = timer_arm(req->deadline_ms);
		if (err) {
			detach(req);
			req->miss_err = err;
			req->state = REQ_RUNNING;
		} else {
			obd_count(req->dev, ST_PARKED, 1);
			if (!req->began_ns)
				req->began_ns = obd_now_ns();
			req->fetched = 1;
			req->state = REQ_PARKED;
			settled = SETTLED_PARKED;
		}
	}
	pthread_mutex_unlock(&lock);
	return settled;
}

void obd_miss_abandon(struct obd_device *dev, int error)
{
	struct obd_request *req, *next;
	struct obd_task *woken = NULL;

	pthread_mutex_lock(&lock);
	for (req = parked; req; req = next) {
		next = req->all_next;
		if (req->dev == dev)
			wake(req, error, &woken);
	}
	pthread_mutex_unlock(&lock);
	obd_miss_run_woken(woken);
}

/* ---- answers ----------------------------------------------------------- */

static bool range_ok(const struct obd_source *src, uint64_t first,
		     uint64_t count)
{
	return src->kind == SRC_CACHE && first <= src->units->count &&
	       count <= src->units->count - first;
}

/* Under the lock. */
static void land(struct obd_source *cache, uint64_t first, uint64_t count,
		 bool spilled, struct obd_task **woken)
{
	struct obd_units *u = cache->units;

	queue_remove(cache, first, count);
	range_clear(u->asked, first, count);
	range_clear(u->corrupt, first, count);
	present_set(u, first, count, spilled);
	wake_units(cache, first, count, woken);
}

void obd_miss_land(struct obd_source *cache, uint64_t first, uint64_t count,
		   struct obd_task **woken)
{
	pthread_mutex_lock(&lock);
	land(cache, first, count, false, woken);
	pthread_mutex_unlock(&lock);
}

static int32_t answer(struct obd_source *cache, uint64_t first,
		      uint64_t count, int32_t error, bool spilled)
{
	struct obd_task *woken = NULL;

	if (!range_ok(cache, first, count) || error > 0)
		return -EINVAL;
	if (!count)
		return 0;
	pthread_mutex_lock(&lock);
	if (error) {
		queue_remove(cache, first, count);
		range_clear(cache->units->asked, first, count);
		fail_units(cache, first, count, error, &woken);
	} else {
		land(cache, first, count, spilled, &woken);
	}
	pthread_mutex_unlock(&lock);
	obd_miss_run_woken(woken);
	return 0;
}

int32_t obd_source_fill(struct obd_source *cache, uint64_t first,
			uint64_t count, int32_t error)
{
	return answer(cache, first, count, error, false);
}

int32_t obd_source_wanted(struct obd_source *cache, uint64_t first,
			  uint64_t count)
{
	struct obd_request *req;

	if (!range_ok(cache, first, count))
		return -EINVAL;
	if (!count)
		return 0;
	pthread_mutex_lock(&lock);
	req = parked;
	while (req && !needs(req, cache, first, count))
		req = req->all_next;
	if (!req) {
		queue_remove(cache, first, count);
		range_clear(cache->units->asked, first, count);
	}
	pthread_mutex_unlock(&lock);
	return req != NULL;
}

int32_t obd_source_fill_spilled(struct obd_source *cache, uint64_t first,
				uint64_t count)
{
	if (cache->kind == SRC_CACHE &&
	    atomic_load(&cache->units->spill_fd) < 0)
		return -EBADF;
	return answer(cache, first, count, 0, true);
}

int32_t obd_source_evict(struct obd_source *cache, uint64_t first,
			 uint64_t count)
{
	if (!range_ok(cache, first, count))
		return -EINVAL;
	if (!count)
		return 0;
	pthread_mutex_lock(&lock);
	present_clear(cache->units, first, count);
	pthread_mutex_unlock(&lock);
	return 0;
}

int32_t obd_source_bitmap_set(struct obd_source *cache, const void *bits,
			      uint64_t bytes)
{
	struct obd_units *u = cache->units;
	struct obd_task *woken = NULL;
	const uint8_t *in = bits;
	uint64_t i;

	if (cache->kind != SRC_CACHE || bytes != (u->count + 7) / 8)
		return -EINVAL;
	if (!u->count)
		return 0;
	pthread_mutex_lock(&lock);
	present_clear(u, 0, u->count);
	for (i = 0; i < u->count; i++) {
		if (!(in[i / 8] >> (i % 8) & 1))
			continue;
		queue_remove(cache, i, 1);
		bit_clear(u->asked, i);
		bit_clear(u->corrupt, i);
		present_set(u, i, 1, false);
		wake_units(cache, i, 1, &woken);
	}
	pthread_mutex_unlock(&lock);
	obd_miss_run_woken(woken);
	return 0;
}

void obd_miss_spoil(struct obd_source *cache, uint64_t at, uint64_t n,
		    uint64_t losses)
{
	struct obd_units *u = cache->units;
	uint64_t i, last;

	if (!n || at >= cache->size)
		return;
	at += cache->base;
	last = (at + n - 1) >> u->shift;
	pthread_mutex_lock(&lock);
	if (atomic_load(&u->losses) != losses) {
		pthread_mutex_unlock(&lock);
		return;
	}
	for (i = at >> u->shift; i <= last && i < u->count; i++)
		if (present(u, i)) {
			present_clear(u, i, 1);
			bit_set(u->corrupt, i);
		}
	pthread_mutex_unlock(&lock);
}

void obd_miss_forget(struct obd_source *src)
{
	pthread_mutex_lock(&lock);
	if (src->units->count)
		queue_remove(src, 0, src->units->count);
	pthread_mutex_unlock(&lock);
}
