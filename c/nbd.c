/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd.c - an NBD server: exports, connections, sending, the end of both.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "nbd.h"

#define GREETING_MAGIC 0x4e42444d41474943ull /* "NBDMAGIC" */
#define OPTION_MAGIC 0x49484156454f5054ull   /* "IHAVEOPT" */
#define FIXED_NEWSTYLE 1u
#define NO_ZEROES 2u
#define CLASS_SHIFT 12                       /* 4 KiB */
#define CACHE_BYTES (1u << 20)               /* free data areas kept */
/* A client that has replies to work on does so while we do. */
#define SEND_EARLY (64u << 10)
#define SEND_IOVS 128
#define TURNS 4              /* reads of one connection before the next's */

/* ---- data areas and slots ------------------------------------------- */

/* The class of areas that hold `bytes`; NBD_CLASSES: too large to keep. */
static uint32_t class_of(uint32_t bytes)
{
	uint32_t class = 0;

	while (class < NBD_CLASSES && (1u << CLASS_SHIFT << class) < bytes)
		class++;
	return class;
}

static uint8_t *area_get(struct nbd_conn *conn, uint32_t bytes,
			 uint32_t *capacity)
{
	uint32_t class = class_of(bytes);
	void *area;

	*capacity = class < NBD_CLASSES ? 1u << CLASS_SHIFT << class : bytes;
	if (class == NBD_CLASSES || !conn->cache[class])
		return malloc(*capacity);
	area = conn->cache[class];
	memcpy(&conn->cache[class], area, sizeof(void *));
	conn->cached -= *capacity;
	return area;
}

static void area_put(struct nbd_conn *conn, uint8_t *area, uint32_t capacity)
{
	uint32_t class = class_of(capacity);

	if (class == NBD_CLASSES || conn->cached + capacity > CACHE_BYTES) {
		free(area);
		return;
	}
	memcpy(area, &conn->cache[class], sizeof(void *));
	conn->cache[class] = area;
	conn->cached += capacity;
}

struct nbd_slot *nbd_slot_new(struct nbd_conn *conn, uint32_t bytes)
{
	struct nbd_slot *slot = conn->free_slots;

	if (slot)
		conn->free_slots = slot->next;
	else if (!(slot = malloc(sizeof(*slot))))
		return NULL;
	slot->next = NULL;
	slot->conn = conn;
	slot->head_bytes = slot->data_bytes = slot->capacity = 0;
	slot->data = NULL;
	if (bytes) {
		slot->data = area_get(conn, bytes, &slot->capacity);
		if (!slot->data) {
			slot->next = conn->free_slots;
			conn->free_slots = slot;
			return NULL;
		}
	}
	conn->slots++;
	conn->bytes += slot->capacity;
	return slot;
}

void nbd_slot_free(struct nbd_slot *slot)
{
	struct nbd_conn *conn = slot->conn;

	conn->slots--;
	conn->bytes -= slot->capacity;
	if (slot->data)
		area_put(conn, slot->data, slot->capacity);
	slot->next = conn->free_slots;
	conn->free_slots = slot;
}

/* ---- sending -------------------------------------------------------- */

void nbd_queue(struct nbd_slot *slot)
{
	struct nbd_conn *conn = slot->conn;

	slot->next = NULL;
	*conn->out_tail = slot;
	conn->out_tail = &slot->next;
	conn->unsent += slot->head_bytes + slot->data_bytes;
}

static void drop_output(struct nbd_conn *conn)
{
	struct nbd_slot *slot;

	while ((slot = conn->out)) {
		conn->out = slot->next;
		nbd_slot_free(slot);
	}
	conn->out_tail = &conn->out;
	conn->out_sent = 0;
}

/* Heads and data of the queued slots, from the first byte not yet sent. */
static int fill_iovs(struct nbd_conn *conn, struct iovec *iov)
{
	struct nbd_slot *slot;
	uint64_t skip = conn->out_sent;
	int n = 0;

	for (slot = conn->out; slot && n + 2 <= SEND_IOVS; slot = slot->next) {
		struct iovec part[2] = {
			{ slot->head, slot->head_bytes },
			{ slot->data, slot->data_bytes },
		};
		for (int i = 0; i < 2; i++) {
			size_t cut = skip < part[i].iov_len ? skip :
				     part[i].iov_len;

			skip -= cut;
			if (part[i].iov_len == cut)
				continue;
			iov[n].iov_base = (char *)part[i].iov_base + cut;
			iov[n++].iov_len = part[i].iov_len - cut;
		}
	}
	return n;
}

static void output_sent(struct nbd_conn *conn, uint64_t bytes)
{
	bytes += conn->out_sent;
	while (conn->out) {
		struct nbd_slot *slot = conn->out;
		uint64_t all = (uint64_t)slot->head_bytes + slot->data_bytes;

		if (bytes < all)
			break;
		bytes -= all;
		conn->out = slot->next;
		nbd_slot_free(slot);
	}
	if (!conn->out)
		conn->out_tail = &conn->out;
	conn->out_sent = bytes;
}

void nbd_send(struct nbd_conn *conn)
{
	struct iovec iov[SEND_IOVS];
	struct msghdr msg = { .msg_iov = iov };
	ssize_t sent;

	conn->unsent = 0;
	while (conn->out) {
		msg.msg_iovlen = fill_iovs(conn, iov);
		sent = sendmsg(conn->watch.fd, &msg,
			       MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno == EAGAIN)
			return;
		if (sent < 0) {
			drop_output(conn);
			shutdown(conn->watch.fd, SHUT_RDWR);
			return;
		}
		output_sent(conn, (uint64_t)sent);
	}
}

/* ---- exports -------------------------------------------------------- */

/* Called with nbd->lock held. */
static struct nbd_export *look_up(struct obd_nbd *nbd, const void *name,
				  uint32_t length)
{
	struct nbd_export *e;

	if (length == 0)
		return nbd->exports;
	for (e = nbd->exports; e; e = e->next)
		if (strlen(e->name) == length && !memcmp(e->name, name,
							 length))
			return e;
	return NULL;
}

struct nbd_export *nbd_find(struct obd_nbd *nbd, const void *name,
			    uint32_t length)
{
	struct nbd_export *e;

	pthread_mutex_lock(&nbd->lock);
	e = look_up(nbd, name, length);
	if (e)
		e->refs++;
	pthread_mutex_unlock(&nbd->lock);
	return e;
}

static void export_free(struct nbd_export *e)
{
	obd_device_unref(e->dev);
	free(e->name);
	free(e->description);
	free(e);
}

void nbd_export_put(struct nbd_export *e)
{
	struct obd_nbd *nbd;
	bool last;

	if (!e)
		return;
	nbd = e->nbd;
	pthread_mutex_lock(&nbd->lock);
	last = --e->refs == 0;
	pthread_mutex_unlock(&nbd->lock);
	if (last)
		export_free(e);
}

int nbd_attach(struct nbd_conn *conn, struct nbd_export *export)
{
	struct obd_nbd *nbd = conn->nbd;
	bool removed;

	pthread_mutex_lock(&nbd->lock);
	removed = atomic_load(&export->removed);
	if (!removed) {
		export->refs++;
		export->connections++;
		conn->export = export;
	}
	pthread_mutex_unlock(&nbd->lock);
	if (removed)
		return -ENOENT;
	conn->meta = conn->meta && conn->structured &&
		     conn->meta_export == export;
	conn->phase = NBD_TRANSMIT;
	return 1;
}

static void start_flush(struct nbd_export *export);

/* On any thread.  The next one is submitted outside the lock. */
static void flush_done(struct obd_request *req)
{
	struct nbd_export *export = req->owner;
	struct obd_nbd *nbd = export->nbd;
	bool again;

	pthread_mutex_lock(&nbd->lock);
	again = export->again;
	export->again = false;
	if (!again) {
		export->flushing = false;
		nbd->flushes--;
		pthread_cond_broadcast(&nbd->changed);
	}
	pthread_mutex_unlock(&nbd->lock);
	if (again)
		start_flush(export);
}

static void start_flush(struct nbd_export *export)
{
	export->flush = (struct obd_request){
		.dev = export->dev,
		.op = OBD_FLUSH,
		.done = flush_done,
		.owner = export,
	};
	if (obd_request_submit(&export->flush))
		flush_done(&export->flush);
}

/* ---- connections ---------------------------------------------------- */

static void free_cache(struct nbd_conn *conn)
{
	struct nbd_slot *slot;

	while ((slot = conn->free_slots)) {
		conn->free_slots = slot->next;
		free(slot);
	}
	for (int i = 0; i < NBD_CLASSES; i++) {
		while (conn->cache[i]) {
			void *area = conn->cache[i];

			memcpy(&conn->cache[i], area, sizeof(void *));
			free(area);
		}
	}
}

/* Takes a connection out of its server; the last one of a writable export
 * starts a flush. */
static void leave_server(struct nbd_conn *conn)
{
	struct obd_nbd *nbd = conn->nbd;
	struct nbd_export *e = conn->export;
	bool flush = false;

	pthread_mutex_lock(&nbd->lock);
	if (conn->prev)
		conn->prev->next = conn->next;
	else
		nbd->conns = conn->next;
	if (conn->next)
		conn->next->prev = conn->prev;
	if (e && --e->connections == 0 &&
	    !(obd_device_flags(e->dev) & OBD_DEVICE_READONLY)) {
		flush = !e->flushing;
		e->again = e->flushing;
		if (flush) {
			e->flushing = true;
			nbd->flushes++;
		}
	}
	pthread_mutex_unlock(&nbd->lock);
	if (flush)
		start_flush(e);
	close(conn->watch.fd);
	nbd_export_put(e);
	nbd_export_put(conn->meta_export);
	pthread_mutex_lock(&nbd->lock);
	nbd->connections--;
	pthread_cond_broadcast(&nbd->changed);
	pthread_mutex_unlock(&nbd->lock);
}

static void conn_free(struct nbd_conn *conn)
{
	leave_server(conn);
	free_cache(conn);
	free(conn->in);
	pthread_mutex_destroy(&conn->lock);
	free(conn);
}

static uint32_t wanted_events(const struct nbd_conn *conn)
{
	uint32_t events = 0;

	if (conn->phase < NBD_DRAIN && (!nbd_full(conn) || conn->payload))
		events |= EPOLLIN;
	/* A socket that can be written wakes the worker: also to go on with
	 * input that waited for slots. */
	if (conn->out || (conn->stalled && !nbd_full(conn)))
		events |= EPOLLOUT;
	return events;
}

void nbd_settle(struct nbd_conn *conn)
{
	uint32_t events;
	bool over;

	nbd_send(conn);
	if (conn->phase == NBD_CLOSED) {
		drop_output(conn);
		over = conn->running == 0;
		pthread_mutex_unlock(&conn->lock);
		if (over)
			conn_free(conn);
		return;
	}
	if (conn->phase == NBD_DRAIN && conn->running == 0 && !conn->out)
		shutdown(conn->watch.fd, SHUT_RDWR); /* wakes the worker */
	events = wanted_events(conn);
	if (events != conn->events && !obd_plane_change(&conn->watch, events))
		conn->events = events;
	pthread_mutex_unlock(&conn->lock);
}

/* On the worker: no event comes any more. */
static void conn_close(struct nbd_conn *conn)
{
	obd_plane_remove(&conn->watch);
	shutdown(conn->watch.fd, SHUT_RDWR);
	if (conn->payload)
		nbd_slot_free(conn->payload);
	conn->payload = NULL;
	conn->phase = NBD_CLOSED;
}

/* Eats what it can of what was read. As nbd_negotiate(). */
static int consume(struct nbd_conn *conn)
{
	int rc = 1;

	while (rc > 0) {
		if (conn->skip) {
			uint64_t here = conn->in_to - conn->in_from;

			if (here > conn->skip)
				here = conn->skip;
			conn->in_from += (uint32_t)here;
			conn->skip -= here;
			rc = conn->skip ? 0 : 1;
		} else if (conn->phase < NBD_TRANSMIT) {
			rc = nbd_negotiate(conn);
		} else {
			rc = nbd_transmit(conn);
			if (conn->unsent >= SEND_EARLY)
				nbd_send(conn);
		}
	}
	return rc;
}

/* Reads once. 1: some came, 0: none for now, -errno. */
static int receive(struct nbd_conn *conn)
{
	uint32_t kept = conn->in_to - conn->in_from;
	ssize_t got;

	if (conn->payload || conn->stalled)
		return 0;
	memmove(conn->in, conn->in + conn->in_from, kept);
	conn->in_from = 0;
	conn->in_to = kept;
	got = recv(conn->watch.fd, conn->in + kept, NBD_IN_BYTES - kept,
		   MSG_DONTWAIT);
	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (got == 0)
		return -ECONNRESET;
	conn->in_to += (uint32_t)got;
	return 1;
}

static int pump(struct nbd_conn *conn)
{
	int rc = consume(conn);

	for (int turn = 0; rc == 0 && turn < TURNS; turn++) {
		rc = receive(conn);
		if (rc <= 0)
			return rc;
		rc = consume(conn);
	}
	return rc;
}

/* Its server or its export is going: what came in still counts. */
static bool going(const struct nbd_conn *conn)
{
	return atomic_load(&conn->nbd->closing) ||
	       (conn->export && atomic_load(&conn->export->removed));
}

static void conn_event(struct obd_watch *watch, uint32_t events)
{
	struct nbd_conn *conn = (struct nbd_conn *)watch;
	int rc = 0;

	pthread_mutex_lock(&conn->lock);
	if (events & (EPOLLHUP | EPOLLERR))
		rc = -ECONNRESET;
	else if (conn->phase < NBD_DRAIN)
		rc = pump(conn);
	if (rc < 0 && going(conn) && conn->phase < NBD_DRAIN &&
	    !(events & (EPOLLHUP | EPOLLERR)))
		conn->phase = NBD_DRAIN;
	else if (rc < 0)
		conn_close(conn);
	nbd_settle(conn);
}

static int greet(struct nbd_conn *conn)
{
	struct nbd_slot *slot = nbd_slot_new(conn, 0);

	if (!slot)
		return -ENOMEM;
	put64(slot->head, GREETING_MAGIC);
	put64(slot->head + 8, OPTION_MAGIC);
	put16(slot->head + 16, FIXED_NEWSTYLE | NO_ZEROES);
	slot->head_bytes = 18;
	nbd_queue(slot);
	nbd_send(conn);
	return 0;
}

static void join_server(struct nbd_conn *conn)
{
	struct obd_nbd *nbd = conn->nbd;

	pthread_mutex_lock(&nbd->lock);
	conn->next = nbd->conns;
	if (conn->next)
		conn->next->prev = conn;
	nbd->conns = conn;
	nbd->connections++;
	pthread_mutex_unlock(&nbd->lock);
}

/* Takes fd over, also on failure. */
static void conn_new(struct obd_nbd *nbd, int fd)
{
	struct nbd_conn *conn = calloc(1, sizeof(*conn));
	int one = 1;

	if (!conn || !(conn->in = malloc(NBD_IN_BYTES))) {
		free(conn);
		close(fd);
		return;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	pthread_mutex_init(&conn->lock, NULL);
	conn->nbd = nbd;
	conn->watch = (struct obd_watch){ .fn = conn_event, .fd = fd };
	conn->out_tail = &conn->out;
	conn->events = EPOLLIN;
	join_server(conn);
	/* From the moment it is watched it may be gone. */
	pthread_mutex_lock(&conn->lock);
	if (greet(conn) || obd_plane_add(&conn->watch, EPOLLIN)) {
		conn->phase = NBD_CLOSED;
		nbd_settle(conn);
		return;
	}
	pthread_mutex_unlock(&conn->lock);
}

static void accept_event(struct obd_watch *watch, uint32_t events)
{
	struct obd_nbd *nbd = (struct obd_nbd *)watch;
	int fd;

	(void)events;
	fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd >= 0)
		conn_new(nbd, fd);
	else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
}

/* ---- the server ----------------------------------------------------- */

int32_t obd_nbd_new(int32_t listen_fd, struct obd_nbd **out)
{
	struct obd_nbd *nbd = calloc(1, sizeof(*nbd));
	pthread_condattr_t attr;

	if (!nbd)
		return -ENOMEM;
	nbd->watch = (struct obd_watch){ .fn = accept_event, .fd = listen_fd };
	nbd->last = &nbd->exports;
	pthread_mutex_init(&nbd->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&nbd->changed, &attr);
	pthread_condattr_destroy(&attr);
	*out = nbd;
	return 0;
}

static struct nbd_export *export_new(struct obd_nbd *nbd, const char *name,
				     const char *description,
				     struct obd_device *dev)
{
	struct nbd_export *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->name = strdup(name);
	e->description = strdup(description);
	if (!e->name || !e->description) {
		free(e->name);
		free(e->description);
		free(e);
		return NULL;
	}
	e->refs = 1;
	e->nbd = nbd;
	e->dev = obd_device_ref(dev);
	return e;
}

int32_t obd_nbd_add(struct obd_nbd *nbd, const char *name,
		    const char *description, struct obd_device *dev)
{
	size_t length = strlen(name);
	struct nbd_export *e;
	bool taken;

	if (length == 0 || length > NBD_MAX_NAME ||
	    strlen(description) > NBD_MAX_NAME)
		return -EINVAL;
	e = export_new(nbd, name, description, dev);
	if (!e)
		return -ENOMEM;
	pthread_mutex_lock(&nbd->lock);
	taken = look_up(nbd, name, (uint32_t)length);
	if (!taken) {
		*nbd->last = e;
		nbd->last = &e->next;
	}
	pthread_mutex_unlock(&nbd->lock);
	if (taken)
		export_free(e);
	return taken ? -EEXIST : 0;
}

int32_t obd_nbd_start(struct obd_nbd *nbd)
{
	int rc;

	if (nbd->started)
		return -EINVAL;
	rc = obd_plane_add(&nbd->watch, EPOLLIN);
	if (!rc)
		nbd->started = true;
	return rc;
}

int32_t obd_nbd_connections(struct obd_nbd *nbd)
{
	int32_t n;

	pthread_mutex_lock(&nbd->lock);
	n = (int32_t)nbd->connections;
	pthread_mutex_unlock(&nbd->lock);
	return n;
}

int32_t obd_nbd_users(struct obd_nbd *nbd, const char *name)
{
	struct nbd_export *e;
	int32_t n = -ENOENT;

	pthread_mutex_lock(&nbd->lock);
	e = look_up(nbd, name, (uint32_t)strlen(name));
	if (e && *name)
		n = (int32_t)e->connections;
	pthread_mutex_unlock(&nbd->lock);
	return n;
}

/* Connections of one export, or all (NULL).  Called with nbd->lock held,
 * which keeps every descriptor open. */
static void shutdown_all(struct obd_nbd *nbd, const struct nbd_export *e,
			 int how)
{
	struct nbd_conn *conn;

	for (conn = nbd->conns; conn; conn = conn->next)
		if (!e || conn->export == e)
			shutdown(conn->watch.fd, how);
}

static struct timespec after(uint32_t ms)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ms / 1000;
	until.tv_nsec += (long)(ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	return until;
}

/* Waits for *connections to become 0, at most grace_ms.  Called with
 * nbd->lock held. */
static bool drained(struct obd_nbd *nbd, const uint32_t *connections,
		    uint32_t grace_ms)
{
	struct timespec until = after(grace_ms);

	while (*connections > 0 &&
	       pthread_cond_timedwait(&nbd->changed, &nbd->lock, &until) == 0)
		;
	return *connections == 0;
}

static void wait_for_connections(struct obd_nbd *nbd, uint32_t grace_ms)
{
	struct nbd_export *e;

	pthread_mutex_lock(&nbd->lock);
	shutdown_all(nbd, NULL, SHUT_RD);
	if (!drained(nbd, &nbd->connections, grace_ms)) {
		shutdown_all(nbd, NULL, SHUT_RDWR);
		pthread_mutex_unlock(&nbd->lock);
		for (e = nbd->exports; e; e = e->next)
			obd_device_close(e->dev, -ESHUTDOWN);
		pthread_mutex_lock(&nbd->lock);
	}
	while (nbd->connections > 0 || nbd->flushes > 0)
		pthread_cond_wait(&nbd->changed, &nbd->lock);
	pthread_mutex_unlock(&nbd->lock);
}

/* Takes an export off the list.  Called with nbd->lock held. */
static struct nbd_export *unlist(struct obd_nbd *nbd, const char *name)
{
	struct nbd_export **at, *e;

	for (at = &nbd->exports; (e = *at); at = &e->next)
		if (!strcmp(e->name, name))
			break;
	if (!e)
		return NULL;
	*at = e->next;
	if (nbd->last == &e->next)
		nbd->last = at;
	atomic_store(&e->removed, true);
	return e;
}

int32_t obd_nbd_remove(struct obd_nbd *nbd, const char *name,
		       uint32_t grace_ms)
{
	struct nbd_export *e;

	pthread_mutex_lock(&nbd->lock);
	e = unlist(nbd, name);
	if (!e) {
		pthread_mutex_unlock(&nbd->lock);
		return -ENOENT;
	}
	shutdown_all(nbd, e, SHUT_RD);
	if (!drained(nbd, &e->connections, grace_ms)) {
		shutdown_all(nbd, e, SHUT_RDWR);
		pthread_mutex_unlock(&nbd->lock);
		obd_device_close(e->dev, -ESHUTDOWN);
		pthread_mutex_lock(&nbd->lock);
	}
	while (e->connections > 0 || e->flushing)
		pthread_cond_wait(&nbd->changed, &nbd->lock);
	pthread_mutex_unlock(&nbd->lock);
	nbd_export_put(e);
	return 0;
}

int32_t obd_nbd_close(struct obd_nbd *nbd, uint32_t grace_ms)
{
	struct nbd_export *e;

	atomic_store(&nbd->closing, true);
	if (nbd->started)
		obd_plane_remove(&nbd->watch);
	close(nbd->watch.fd);
	wait_for_connections(nbd, grace_ms);
	while ((e = nbd->exports)) {
		nbd->exports = e->next;
		export_free(e);
	}
	pthread_cond_destroy(&nbd->changed);
	pthread_mutex_destroy(&nbd->lock);
	free(nbd);
	return 0;
}
