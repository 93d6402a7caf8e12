/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd.c - an NBD server and its exports: they come and go while it runs.
 *
 * nbd->lock guards lists, counts and references.  It is not held while a
 * request is submitted or a device is closed.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "nbd.h"

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
		nbd_start_flush(export);
}

void nbd_start_flush(struct nbd_export *export)
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

/* ---- the server ----------------------------------------------------- */

static void accept_event(struct obd_watch *watch, uint32_t events)
{
	struct obd_nbd *nbd = (struct obd_nbd *)watch;
	int fd;

	(void)events;
	fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd >= 0)
		nbd_conn_new(nbd, fd);
	else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
}

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
