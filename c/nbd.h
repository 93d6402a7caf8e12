/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd.h - what nbd.c (server and exports), nbd_conn.c, nbd_output.c,
 * nbd_negotiate.c and nbd_transmit.c share.
 * Names and numbers are the NBD protocol's (its doc/proto.md).
 *
 * A connection belongs to one worker, which alone reads its socket, takes
 * it out of epoll and decides that it is over.  conn->lock guards all of it:
 * requests that did not end at once are answered by whichever thread ends
 * them.  Lock order: conn->lock, then nbd->lock.
 */
#ifndef OBD_NBD_H
#define OBD_NBD_H

#include <pthread.h>

#include "internal.h"

#define NBD_MAX_REQUEST (32u << 20)  /* what most clients take for granted */
#define NBD_MAX_NAME 4096u
#define NBD_IN_BYTES (32u << 10)     /* a batch of requests, or one option */
#define NBD_MAX_SLOTS 128u           /* requests of one connection at once */
#define NBD_MAX_BYTES (64u << 20)    /* their data */

/* Freed with the last reference: the list's, that of everybody who looked it
 * up, of connections that have chosen it or asked for its contexts. */
struct nbd_export {
	char *name, *description;
	struct obd_device *dev;
	struct nbd_export *next;     /* nbd->lock */
	struct obd_nbd *nbd;
	uint32_t refs;               /* nbd->lock */
	uint32_t connections;        /* nbd->lock */
	_Atomic bool removed;        /* nbd->lock to write: off the list */
	bool flushing, again;        /* nbd->lock; again: one more after it */
	struct obd_request flush;
};

struct obd_nbd {
	struct obd_watch watch;      /* the listening socket */
	pthread_mutex_t lock;
	pthread_cond_t changed;      /* a connection or a flush ended */
	struct nbd_export *exports, **last; /* lock; the first is "" */
	struct nbd_conn *conns;
	uint32_t connections, flushes;
	bool started;
	_Atomic bool closing;
};

/* A reply, and while it is worked on, its request. */
struct nbd_slot {
	struct obd_request req;
	struct iovec iov;            /* the data area */
	struct nbd_slot *next;
	struct nbd_conn *conn;
	uint64_t handle;
	uint16_t type;
	uint8_t head[36];            /* reply header, in wire order */
	uint32_t head_bytes;
	uint8_t *data;
	uint32_t data_bytes;         /* to send */
	uint32_t capacity;           /* of data */
};

/* NBD_DRAIN: the server is going; answers are sent, nothing is read.
 * NBD_CLOSED: out of epoll; freed with the last request. */
enum nbd_phase { NBD_FLAGS, NBD_OPTIONS, NBD_TRANSMIT, NBD_DRAIN, NBD_CLOSED };

#define NBD_CLASSES 7                /* 4 KiB << class */

struct nbd_conn {
	struct obd_watch watch;
	struct obd_nbd *nbd;
	struct nbd_conn *prev, *next;
	pthread_mutex_t lock;
	enum nbd_phase phase;
	bool no_zeroes, structured, meta;
	struct nbd_export *meta_export;
	struct nbd_export *export;   /* nbd->lock to write */
	uint32_t options;
	uint32_t events;             /* what epoll watches for */

	uint8_t *in;
	uint32_t in_from, in_to;
	uint64_t skip;               /* bytes of input to drop */
	struct nbd_slot *payload;    /* the WRITE whose data is being read */
	uint32_t payload_got;

	struct nbd_slot *out, **out_tail;
	uint64_t out_sent;           /* bytes of the first one sent */
	uint64_t unsent;             /* queued since nbd_send() */
	uint32_t slots, running;     /* in use; submitted and not ended */
	uint64_t bytes;              /* data areas in use */
	bool stalled;                /* input waits for free slots */
	bool later;                  /* settle is to run at a round's end */
	struct obd_task settle;

	struct nbd_slot *free_slots;
	void *cache[NBD_CLASSES];    /* free data areas by size */
	uint64_t cached;
};

/* No further request is taken before some have been answered. */
static inline bool nbd_full(const struct nbd_conn *conn)
{
	return conn->slots >= NBD_MAX_SLOTS || conn->bytes >= NBD_MAX_BYTES;
}

/* ---- big-endian fields ---------------------------------------------- */

static inline uint16_t be16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, 2);
	return __builtin_bswap16(v);
}

static inline uint32_t be32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return __builtin_bswap32(v);
}

static inline uint64_t be64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return __builtin_bswap64(v);
}

static inline void put16(void *p, uint16_t v)
{
	v = __builtin_bswap16(v);
	memcpy(p, &v, 2);
}

static inline void put32(void *p, uint32_t v)
{
	v = __builtin_bswap32(v);
	memcpy(p, &v, 4);
}

static inline void put64(void *p, uint64_t v)
{
	v = __builtin_bswap64(v);
	memcpy(p, &v, 8);
}

/* ---- nbd_output.c ---------------------------------------------------- */

/* A slot with a data area of `bytes` (0: none); NULL: out of memory. */
OBD_HIDDEN struct nbd_slot *nbd_slot_new(struct nbd_conn *conn,
					 uint32_t bytes);
OBD_HIDDEN void nbd_slot_free(struct nbd_slot *slot);
/* Frees what is kept of free slots and data areas. */
OBD_HIDDEN void nbd_free_cache(struct nbd_conn *conn);
/* Queues head and data of a slot to be sent; nbd_send() sends. */
OBD_HIDDEN void nbd_queue(struct nbd_slot *slot);
OBD_HIDDEN void nbd_send(struct nbd_conn *conn);
/* Frees what is queued, sent or not. */
OBD_HIDDEN void nbd_drop_output(struct nbd_conn *conn);

/* ---- nbd_conn.c ------------------------------------------------------ */

/* Takes fd over, also on failure. */
OBD_HIDDEN void nbd_conn_new(struct obd_nbd *nbd, int fd);
/* Ends every turn, with conn->lock held: sends, says what epoll is to watch
 * for, unlocks; frees a connection that is over. */
OBD_HIDDEN void nbd_settle(struct nbd_conn *conn);
/* The same of a turn that ended one request: several in one round of a
 * worker are answered in one call. */
OBD_HIDDEN void nbd_settle_later(struct nbd_conn *conn);

/* ---- nbd.c ----------------------------------------------------------- */

/* The connection has chosen its export. -ENOENT: it is going. */
OBD_HIDDEN int nbd_attach(struct nbd_conn *conn, struct nbd_export *export);
/* A reference on the export called name; the first for length 0; NULL:
 * none. */
OBD_HIDDEN struct nbd_export *nbd_find(struct obd_nbd *nbd, const void *name,
				       uint32_t length);
OBD_HIDDEN void nbd_export_put(struct nbd_export *export);
/* The caller has set flushing and counted it, and holds no lock. */
OBD_HIDDEN void nbd_start_flush(struct nbd_export *export);

/* ---- nbd_negotiate.c, nbd_transmit.c --------------------------------- */

/* Transmission flags of an export, as both ways to choose it send them. */
OBD_HIDDEN uint16_t nbd_export_flags(const struct nbd_export *export,
				     bool structured);
/* Both eat what they can of conn->in.  1: go on, 0: more input is needed
 * (or, in transmission, free slots), -errno: close. */
OBD_HIDDEN int nbd_negotiate(struct nbd_conn *conn);
OBD_HIDDEN int nbd_transmit(struct nbd_conn *conn);

#endif
