/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_conn.c - a connection: bytes in, what epoll watches for, its end.
 *
 * Events come on its worker alone and take conn->lock, as does whoever ends
 * a request; nbd_settle() gives it back.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "nbd.h"

#define GREETING_MAGIC 0x4e42444d41474943ull /* "NBDMAGIC" */
#define OPTION_MAGIC 0x49484156454f5054ull   /* "IHAVEOPT" */
#define FIXED_NEWSTYLE 1u
#define NO_ZEROES 2u
/* A client that has replies to work on does so while we do. */
#define SEND_EARLY (64u << 10)
#define TURNS 4              /* reads of one connection before the next's */

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
		nbd_start_flush(e);
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
	nbd_free_cache(conn);
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
		nbd_drop_output(conn);
		over = conn->running == 0 && !conn->later;
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

static void settle_task(struct obd_task *task)
{
	struct nbd_conn *conn = (struct nbd_conn *)((char *)task -
				offsetof(struct nbd_conn, settle));

	pthread_mutex_lock(&conn->lock);
	conn->later = false;
	nbd_settle(conn);
}

void nbd_settle_later(struct nbd_conn *conn)
{
	if (!conn->later)
		conn->later = obd_plane_later(&conn->settle);
	if (!conn->later || conn->unsent >= SEND_EARLY)
		nbd_settle(conn);
	else
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

void nbd_conn_new(struct obd_nbd *nbd, int fd)
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
	conn->settle.fn = settle_task;
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
