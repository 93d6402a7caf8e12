/* SPDX-License-Identifier: Apache-2.0
 *
 * plane.c - the threads: workers that wait in epoll and never block, and
 * three pools whose threads may: helpers, changers of uppers and writers of
 * cache files, so that a disk that hangs under those stops no read of others.
 *
 * A worker is made with the first watch and lives until obd_plane_stop().
 * A pool makes a thread when a task finds none idle, up to its `most`; it
 * ends after POOL_IDLE_MS without one.  Signals are blocked in all of them:
 * they are the JavaScript runtime's.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

#include "internal.h"

#define WORKERS_MAX 4
#define HELPERS_MAX 16
#define CHANGERS_MAX 16
#define WRITERS_MAX 4 /* few: what they do costs the disk more than the CPU */
#define POOL_THREADS_MAX 1024 /* with those that wait for a cache's disk */
#define POOL_IDLE_MS 10000
#define STACK_BYTES (256u << 10)
#define EVENTS_MAX 64
#define SUBMIT_RETRY_MS 1
#define URING_RETRY_MS 1000

/* lock guards rounds and removing; events, uring and later belong to the
 * worker's thread. */
struct worker {
	pthread_t thread;
	int epoll_fd, kick_fd;
	pthread_mutex_t lock;
	pthread_cond_t round;
	uint64_t rounds;         /* goes up before every epoll_wait */
	bool stop;
	struct epoll_event events[EVENTS_MAX];
	int events_left;         /* from events_next on, not yet handled */
	int events_next;
	struct obd_uring *uring; /* NULL: not asked for, or there is none */
	uint64_t uring_retry_ms; /* not before, after a failure */
	struct obd_task *later;  /* for the end of this round */
};

/* Threads that take tasks in turn; under plane.lock. */
struct pool {
	uint32_t most;
	pthread_cond_t work;     /* a task came, or stop */
	struct obd_task *head, **tail;
	uint32_t queued, threads, idle;
	uint32_t away;           /* threads that others stand in for */
};

/* lock guards everything here. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t gone;     /* a pool's thread ended */
	bool pools_ready;        /* conditions use CLOCK_MONOTONIC */
	bool stopping;
	struct worker *workers[WORKERS_MAX];
	uint32_t worker_count, next_worker;
	struct pool helpers, changers, writers;
} plane = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.helpers = { .most = HELPERS_MAX, .tail = &plane.helpers.head },
	.changers = { .most = CHANGERS_MAX, .tail = &plane.changers.head },
	.writers = { .most = WRITERS_MAX, .tail = &plane.writers.head },
};

static __thread struct worker *this_worker;
static __thread struct pool *this_pool;

uint64_t obd_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

uint64_t obd_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Starts a thread with a small stack and every signal blocked. */
static int start_thread(pthread_t *thread, void *(*fn)(void *), void *arg)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int rc;

	rc = pthread_attr_init(&attr);
	if (rc)
		return -rc;
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(thread, &attr, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return -rc;
}

/* ---- workers ------------------------------------------------------- */

static void run_events(struct worker *w, int count)
{
	w->events_next = 0;
	w->events_left = count;
	while (w->events_next < w->events_left) {
		struct epoll_event *e = &w->events[w->events_next++];
		struct obd_watch *watch = e->data.ptr;
		uint64_t kicks;

		if (watch)
			watch->fn(watch, e->events);
		else if (read(w->kick_fd, &kicks, sizeof(kicks)) < 0)
			continue; /* somebody else's kick was read already */
	}
	w->events_left = 0;
}

bool obd_plane_later(struct obd_task *task)
{
	struct worker *w = this_worker;

	if (!w)
		return false;
	task->next = w->later;
	w->later = task;
	return true;
}

static void run_later(struct worker *w)
{
	struct obd_task *task;

	while ((task = w->later)) {
		w->later = task->next;
		task->fn(task);
	}
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	int count;
	bool all;

	this_worker = w;
	for (;;) {
		pthread_mutex_lock(&w->lock);
		w->rounds++;
		pthread_cond_broadcast(&w->round);
		bool stop = w->stop;
		pthread_mutex_unlock(&w->lock);
		if (stop)
			break;
		/* Every read of the round in one call. */
		all = !w->uring || obd_uring_submit(w->uring);
		count = epoll_wait(w->epoll_fd, w->events, EVENTS_MAX,
				   all ? -1 : SUBMIT_RETRY_MS);
		if (count > 0)
			run_events(w, count);
		if (w->uring) /* whatever woke it: most often EINTR */
			obd_uring_reap(w->uring);
		run_later(w);
	}
	obd_uring_free(w->uring);
	return NULL;
}

struct obd_uring *obd_plane_uring(void)
{
	struct worker *w = this_worker;
	struct epoll_event e = { .events = EPOLLIN };
	struct obd_watch *watch;

	if (!w || w->uring || obd_now_ms() < w->uring_retry_ms)
		return w ? w->uring : NULL;
	w->uring_retry_ms = obd_now_ms() + URING_RETRY_MS;
	if (obd_uring_new(&w->uring))
		return NULL;
	watch = obd_uring_watch(w->uring);
	e.data.ptr = watch;
	if (epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, watch->fd, &e)) {
		obd_uring_free(w->uring);
		w->uring = NULL;
	}
	return w->uring;
}

static void worker_free(struct worker *w)
{
	if (w->epoll_fd >= 0)
		close(w->epoll_fd);
	if (w->kick_fd >= 0)
		close(w->kick_fd);
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->round);
	free(w);
}

static int worker_new(struct worker **out)
{
	struct epoll_event kick = { .events = EPOLLIN, .data.ptr = NULL };
	struct worker *w = calloc(1, sizeof(*w));
	int rc = 0;

	if (!w)
		return -ENOMEM;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->round, NULL);
	w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	w->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->epoll_fd < 0 || w->kick_fd < 0 ||
	    epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, w->kick_fd, &kick))
		rc = -errno;
	if (!rc)
		rc = start_thread(&w->thread, worker_main, w);
	if (rc) {
		worker_free(w);
		return rc;
	}
	*out = w;
	return 0;
}

static void worker_kick(struct worker *w)
{
	uint64_t one = 1;

	/* Fails only when the counter is full: then it is awake anyway. */
	(void)!write(w->kick_fd, &one, sizeof(one));
}

/* As many as there are processors, at most WORKERS_MAX. */
static uint32_t workers_wanted(void)
{
	cpu_set_t cpus;
	int n = 1;

	if (!sched_getaffinity(0, sizeof(cpus), &cpus))
		n = CPU_COUNT(&cpus);
	return n < 1 ? 1 : n > WORKERS_MAX ? WORKERS_MAX : (uint32_t)n;
}

/* Called with plane.lock held. */
static int pick_worker(uint32_t *out)
{
	int rc;

	if (plane.worker_count < workers_wanted()) {
		rc = worker_new(&plane.workers[plane.worker_count]);
		if (rc && plane.worker_count == 0)
			return rc;
		if (!rc)
			plane.worker_count++;
	}
	*out = plane.next_worker++ % plane.worker_count;
	return 0;
}

int obd_plane_add(struct obd_watch *watch, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.ptr = watch };
	int rc;

	pthread_mutex_lock(&plane.lock);
	rc = pick_worker(&watch->worker);
	pthread_mutex_unlock(&plane.lock);
	if (rc)
		return rc;
	if (epoll_ctl(plane.workers[watch->worker]->epoll_fd, EPOLL_CTL_ADD,
		      watch->fd, &e))
		return -errno;
	return 0;
}

int obd_plane_change(struct obd_watch *watch, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.ptr = watch };

	if (epoll_ctl(plane.workers[watch->worker]->epoll_fd, EPOLL_CTL_MOD,
		      watch->fd, &e))
		return -errno;
	return 0;
}

/* Takes the watch out of the batch of events that is being handled. */
static void forget_events(struct worker *w, struct obd_watch *watch)
{
	int i = w->events_next;

	while (i < w->events_left) {
		if (w->events[i].data.ptr == watch)
			w->events[i] = w->events[--w->events_left];
		else
			i++;
	}
}

int obd_plane_remove(struct obd_watch *watch)
{
	struct worker *w = plane.workers[watch->worker];
	uint64_t round;

	if (epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL))
		return -errno;
	if (w == this_worker) {
		forget_events(w, watch);
		return 0;
	}
	/* Events taken before the removal are handled within this round. */
	pthread_mutex_lock(&w->lock);
	round = w->rounds;
	worker_kick(w);
	while (w->rounds == round)
		pthread_cond_wait(&w->round, &w->lock);
	pthread_mutex_unlock(&w->lock);
	return 0;
}

/* ---- pools --------------------------------------------------------- */

static void deadline_in(struct timespec *at, uint32_t ms)
{
	clock_gettime(CLOCK_MONOTONIC, at);
	at->tv_sec += ms / 1000;
	at->tv_nsec += (long)(ms % 1000) * 1000000;
	if (at->tv_nsec >= 1000000000) {
		at->tv_sec++;
		at->tv_nsec -= 1000000000;
	}
}

static struct obd_task *pool_pop(struct pool *pool)
{
	struct obd_task *task = pool->head;

	pool->head = task->next;
	pool->queued--;
	if (!pool->head)
		pool->tail = &pool->head;
	return task;
}

/* Waits for a task with plane.lock held; NULL: the thread may go. */
static struct obd_task *next_task(struct pool *pool)
{
	struct timespec until;

	deadline_in(&until, POOL_IDLE_MS);
	while (!pool->head) {
		int rc;

		/* Those are back that this thread stood in for. */
		if (plane.stopping ||
		    pool->threads > pool->most + pool->away)
			return NULL;
		pool->idle++;
		rc = pthread_cond_timedwait(&pool->work, &plane.lock, &until);
		pool->idle--;
		if (rc == ETIMEDOUT && !pool->head)
			return NULL;
	}
	return pool_pop(pool);
}

static void *pool_main(void *arg)
{
	struct pool *pool = arg;
	struct obd_task *task;

	pthread_detach(pthread_self());
	this_pool = pool;
	pthread_mutex_lock(&plane.lock);
	while ((task = next_task(pool))) {
		pthread_mutex_unlock(&plane.lock);
		task->fn(task);
		pthread_mutex_lock(&plane.lock);
	}
	pool->threads--;
	pthread_cond_broadcast(&plane.gone);
	pthread_mutex_unlock(&plane.lock);
	return NULL;
}

/* Called with plane.lock held. */
static void prepare_pools(void)
{
	pthread_condattr_t attr;

	if (plane.pools_ready)
		return;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&plane.helpers.work, &attr);
	pthread_cond_init(&plane.changers.work, &attr);
	pthread_cond_init(&plane.writers.work, &attr);
	pthread_cond_init(&plane.gone, &attr);
	pthread_condattr_destroy(&attr);
	plane.pools_ready = true;
}

/* Called with plane.lock held: one thread more for `tasks` that wait, if
 * they are more than who waits for them. 0 or -errno. */
static int pool_grow(struct pool *pool, uint32_t tasks)
{
	pthread_t thread;
	int rc;

	if (tasks <= pool->idle || pool->threads >= POOL_THREADS_MAX ||
	    pool->threads >= pool->most + pool->away)
		return 0;
	rc = start_thread(&thread, pool_main, pool);
	if (!rc)
		pool->threads++;
	return rc;
}

static int pool_add(struct pool *pool, struct obd_task *task)
{
	int rc;

	task->next = NULL;
	pthread_mutex_lock(&plane.lock);
	prepare_pools();
	rc = pool_grow(pool, pool->queued + 1);
	if (rc && pool->threads > 0)
		rc = 0; /* one that runs will take it */
	if (!rc) {
		*pool->tail = task;
		pool->tail = &task->next;
		pool->queued++;
	}
	pthread_mutex_unlock(&plane.lock);
	/* After the lock, which who wakes takes first. */
	if (!rc)
		pthread_cond_signal(&pool->work);
	return rc;
}

static bool pool_take_back(struct pool *pool, struct obd_task *task)
{
	struct obd_task **at;

	pthread_mutex_lock(&plane.lock);
	for (at = &pool->head; *at && *at != task; at = &(*at)->next)
		;
	if (*at) {
		*at = task->next;
		pool->queued--;
		if (pool->tail == &task->next)
			pool->tail = at;
	} else {
		task = NULL;
	}
	pthread_mutex_unlock(&plane.lock);
	return task != NULL;
}

static void pool_away(struct pool *pool, bool away)
{
	pthread_mutex_lock(&plane.lock);
	pool->away += away ? 1 : -1u;
	if (away)
		pool_grow(pool, pool->queued);
	pthread_mutex_unlock(&plane.lock);
}

void obd_plane_away(bool away)
{
	if (this_pool)
		pool_away(this_pool, away);
}

void obd_plane_writer_away(bool away)
{
	pool_away(&plane.writers, away);
}

int obd_plane_offload(struct obd_task *task)
{
	return pool_add(&plane.helpers, task);
}

int obd_plane_offload_change(struct obd_task *task)
{
	return pool_add(&plane.changers, task);
}

int obd_plane_write(struct obd_task *task)
{
	return pool_add(&plane.writers, task);
}

bool obd_plane_unwrite(struct obd_task *task)
{
	return pool_take_back(&plane.writers, task);
}

/* ---- stop ---------------------------------------------------------- */

static void stop_pools(void)
{
	pthread_mutex_lock(&plane.lock);
	prepare_pools();
	plane.stopping = true;
	pthread_cond_broadcast(&plane.helpers.work);
	pthread_cond_broadcast(&plane.changers.work);
	pthread_cond_broadcast(&plane.writers.work);
	while (plane.helpers.threads + plane.changers.threads +
	       plane.writers.threads > 0)
		pthread_cond_wait(&plane.gone, &plane.lock);
	plane.stopping = false;
	pthread_mutex_unlock(&plane.lock);
}

void obd_plane_stop(void)
{
	uint32_t i;

	for (i = 0; i < plane.worker_count; i++) {
		struct worker *w = plane.workers[i];

		pthread_mutex_lock(&w->lock);
		w->stop = true;
		pthread_mutex_unlock(&w->lock);
		worker_kick(w);
		pthread_join(w->thread, NULL);
		worker_free(w);
		plane.workers[i] = NULL;
	}
	plane.worker_count = 0;
	stop_pools();
}
