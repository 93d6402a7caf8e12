/* SPDX-License-Identifier: Apache-2.0
 *
 * core.h - the structs behind source, view, upper, device and request:
 * shared by source.c miss.c view.c upper*.c device.c push.c request.c
 * trace.c uring.c buffer.c alone.
 *
 * Locks, in the order in which they may be taken:
 *   dev->lock      what a device shows, its gate (push.c)
 *   upper->order   who may change a sparse file (shared: whole blocks)
 *   upper->syncing one flush at a time
 *   upper->append  order of index records, ends of both files
 *   buffer lock    buffers whose writes have ended (buffer.c)
 *   miss lock      parked requests, the units asked for (miss.c)
 *   trace->lock    what was read
 *   upper->maplock the map in memory
 * None is held while a request's done() runs.
 */
#ifndef OBD_CORE_H
#define OBD_CORE_H

#include <pthread.h>

#include "internal.h"

/* ---- source ------------------------------------------------------------ */

enum obd_source_kind { SRC_FILE, SRC_CACHE, SRC_ZFILE };

/* The units of a cache source.  present is written under the miss lock and
 * read by anybody: release by the fill, acquire by the reader.  The other
 * bitmaps are the miss lock's.  losses counts evictions: it goes up after
 * the bits went down and before the caller may overwrite the bytes, so a
 * reader that sees the same count before and after its pread has read what
 * was present.  spilled is written like present, before it: a unit that is
 * here lies in the other file.  used is set by readers, cleared by who asks. */
struct obd_units {
	uint64_t size;               /* of the whole blob, in bytes */
	uint64_t count;
	uint32_t shift;              /* log2 of the unit */
	uint64_t id;
	_Atomic uint64_t losses;
	_Atomic uint64_t *present;
	_Atomic uint64_t *spilled;
	_Atomic uint64_t *used;
	_Atomic int spill_fd;        /* -1: none yet */
	uint64_t *asked;             /* queued or handed out, no answer yet */
	uint64_t *queued;            /* asked and not handed out */
	uint64_t *corrupt;           /* to be asked for as OBD_MISS_CORRUPT */
	uint64_t queued_count;
	uint64_t cursor;             /* where the next drain goes on */
	struct obd_source *prev, *next; /* sources with queued units */
	struct obd_request *waiting; /* parked on a unit of this source */
};

struct obd_source {
	_Atomic uint32_t refs;
	enum obd_source_kind kind;
	int fd;                      /* FILE, CACHE */
	int direct_fd;               /* FILE: the same with O_DIRECT; -1: none */
	uint32_t align;              /* of its reads, a power of two */
	bool uring;                  /* FILE: see obd_source_uring() */
	_Atomic bool no_nowait;      /* the file system knows no RWF_NOWAIT */
	bool may_hang;               /* CACHE: it is none in memory */
	uint64_t base, size;
	uint64_t name;               /* for slow reads; 0: it has none */
	struct obd_source *inner;    /* ZFILE */
	struct obd_zfile *zfile;     /* ZFILE */
	struct obd_units *units;     /* CACHE */
};

/* True when every unit under [at, at + n), n > 0, is present. */
OBD_HIDDEN bool obd_units_present(const struct obd_units *u, uint64_t at,
				  uint64_t n);
/* Stored range below a cache source; false when src is local. */
OBD_HIDDEN bool obd_source_stored(struct obd_source *src, uint64_t at,
				  uint64_t n, struct obd_source **cache,
				  uint64_t *stored_at, uint64_t *stored_n);
/* True when workers read src by io_uring. */
OBD_HIDDEN bool obd_source_by_uring(const struct obd_source *src);
/* The file that holds [*at, *at + *n) of src and where, when it is one that
 * workers read by io_uring.  False: it is not. */
OBD_HIDDEN bool obd_source_on_disk(struct obd_source *src, uint64_t *at,
				   uint64_t *n, struct obd_source **file);
/* A file source over a file that grows; fd stays the caller's own. */
OBD_HIDDEN int obd_source_growing(int fd, struct obd_source **out);

/* ---- bits -------------------------------------------------------------- */

static inline bool bit_get(const uint64_t *words, uint64_t i)
{
	return words[i / 64] >> (i % 64) & 1;
}

static inline void bit_set(uint64_t *words, uint64_t i)
{
	words[i / 64] |= 1ull << (i % 64);
}

static inline void bit_clear(uint64_t *words, uint64_t i)
{
	words[i / 64] &= ~(1ull << (i % 64));
}

/* ---- view -------------------------------------------------------------- */

/* Lowers alone, or what a device shows: the lowers of base, and uppers. */
struct obd_view {
	_Atomic int64_t refs;        /* see view.c for what it counts */
	struct obd_index *index;     /* base's, when there is one */
	struct obd_source **sources; /* the same */
	uint64_t virtual_size;
	uint32_t n;
	bool local;                  /* no source can miss */
	bool uring;                  /* a source is read by io_uring */
	struct obd_view *base;       /* NULL: index and sources are its own */
	struct obd_upper *upper;     /* topmost, takes the changes */
	struct obd_upper *frozen;    /* under it: nothing changes it */
	struct obd_source *own[];
};

/* A published view: pointer in the low 48 bits, the count of borrowed
 * references in the high 16. */
struct obd_view_slot {
	_Atomic uint64_t word;
};

OBD_HIDDEN struct obd_view *obd_view_ref(struct obd_view *view);
/* base, which is lowers alone, under one or two uppers, or none. */
OBD_HIDDEN int obd_view_over(struct obd_view *base, struct obd_upper *upper,
			     struct obd_upper *frozen, struct obd_view **out);
/* The same in two steps, of which only the first can fail. */
OBD_HIDDEN int obd_view_spare(struct obd_view **out);
OBD_HIDDEN void obd_view_lay(struct obd_view *view, struct obd_view *base,
			     struct obd_upper *upper,
			     struct obd_upper *frozen);
/* What the slot shows, without a reference: for who alone changes it. */
OBD_HIDDEN struct obd_view *obd_view_shown(struct obd_view_slot *slot);
OBD_HIDDEN void obd_view_publish(struct obd_view_slot *slot,
				 struct obd_view *view);
OBD_HIDDEN struct obd_view *obd_view_borrow(struct obd_view_slot *slot);
OBD_HIDDEN void obd_view_return(struct obd_view_slot *slot,
				 struct obd_view *view);

/* ---- upper ------------------------------------------------------------- */

struct obd_upper {
	_Atomic uint32_t refs;
	int kind;                    /* OBD_UPPER_LOG or OBD_UPPER_SPARSE */
	bool readonly;
	int data_fd, index_fd;       /* index_fd -1 when sparse */
	_Atomic uint64_t virtual_size; /* sparse: written under order */
	struct obd_source *data;     /* data_fd, however far it grows */

	pthread_rwlock_t maplock;
	struct obd_map *map;

	/* Flush.  changes counts what was acknowledged, synced how much of
	 * it is on disk; broken keeps the error of a failed sync, for what
	 * the kernel dropped then no later sync brings back. */
	pthread_mutex_t syncing;
	_Atomic uint64_t changes, synced;
	_Atomic int broken;

	/* Log.  All under append, but for data_done's readers. */
	pthread_mutex_t append;
	uint64_t index_end;          /* where the next record goes */
	uint32_t tag;                /* of records in the file: lowers below,
				      * set before the first request */
	uint64_t data_end;           /* where the next data goes */
	_Atomic uint64_t data_done;  /* end of the data that is written */
	bool unmarked;               /* a mark must precede our records */
	bool marked;                 /* found so, and nothing came since */
	bool untrimmed;              /* the index file is longer than that */

	/* Sparse.  order: shared by writers of whole or present blocks,
	 * exclusive for who reads, decides and writes. */
	pthread_rwlock_t order;
	uint64_t block;              /* what the host makes present at once */
	uint8_t *scratch;            /* two blocks, under order exclusive */
};

/* Reads [lba, lba + sectors) of the disk as it is now into buf. */
typedef int (*obd_upper_read_fn)(struct obd_request *req, void *buf,
				 uint64_t lba, uint64_t sectors);
/* Next run in [lba, end) that what is below upper holds as data; false:
 * none. */
typedef bool (*obd_upper_lower_fn)(struct obd_request *req,
				   struct obd_upper *upper, uint64_t lba,
				   uint64_t end, uint64_t *from,
				   uint64_t *to);

/* What a sparse layer asks about the disk around it. */
struct obd_upper_ask {
	obd_upper_read_fn read;
	obd_upper_lower_fn lower;
};

OBD_HIDDEN struct obd_upper *obd_upper_ref(struct obd_upper *upper);
/* Mapped pieces of [lba, lba + sectors), cut, in order; at most max. */
OBD_HIDDEN uint32_t obd_upper_find(struct obd_upper *upper, uint64_t lba,
				   uint64_t sectors, struct obd_record *out,
				   uint32_t max);
/* Writes, zeroes or discards the request's range. 0 or -errno. */
OBD_HIDDEN int obd_upper_change(struct obd_upper *upper,
				struct obd_request *req,
				const struct obd_upper_ask *ask);
/* What a change of [lba, end) may read of the disk first: the host blocks
 * that its ends split; empty ranges when nothing. */
OBD_HIDDEN void obd_upper_edges(struct obd_upper *upper, uint64_t lba,
				uint64_t end, uint64_t head[2],
				uint64_t tail[2]);

/* upper_log.c and upper_sparse.c, called by upper.c and push.c alone */
OBD_HIDDEN int obd_log_load(struct obd_upper *upper,
			    struct obd_upper_report *report);
OBD_HIDDEN int obd_log_change(struct obd_upper *upper,
			      struct obd_request *req);
OBD_HIDDEN int obd_log_sync(struct obd_upper *upper);
/* What the first change would have to do before it, done ahead of it. */
OBD_HIDDEN int obd_log_prepare(struct obd_upper *upper);
OBD_HIDDEN int obd_sparse_load(struct obd_upper *upper,
			       struct obd_upper_report *report);
OBD_HIDDEN int obd_sparse_change(struct obd_upper *upper,
				 struct obd_request *req,
				 const struct obd_upper_ask *ask);
/* Where the disk ends, for later changes; what is mapped behind is not. */
OBD_HIDDEN int obd_sparse_set_end(struct obd_upper *upper, uint64_t size);
OBD_HIDDEN int obd_upper_map(struct obd_upper *upper, struct obd_record rec);
/* All n bytes of the iovecs at `at`. */
OBD_HIDDEN int obd_write_iov(int fd, const struct iovec *iov, uint32_t count,
			     uint64_t n, uint64_t at);

/* ---- device ------------------------------------------------------------ */

enum obd_stat { ST_READS, ST_READ_BYTES, ST_WRITES, ST_WRITTEN_BYTES,
		ST_DISCARDS, ST_DISCARDED_BYTES, ST_FLUSHES, ST_ERRORS,
		ST_MISSES, ST_PARKED, ST_CORRUPT, ST_ALLOCATIONS,
		ST_HEALED, ST_COUNT };
/* Every shard but the last belongs to one living thread, which needs no
 * locked instruction to count; the last is everybody else's. */
#define STAT_SHARDS 16u
#define STAT_SHARED (STAT_SHARDS - 1)

struct obd_counters {
	_Alignas(64) _Atomic uint64_t v[ST_COUNT];
};

/* The gate of changes (push.c): how many run, and whether new ones wait. */
#define GATE_CLOSED (1u << 31)

/* By everybody, for it is written rarely: struct obd_read_times. */
struct obd_times {
	_Atomic uint64_t buckets[OBD_TIMES_BUCKETS], ns;
};
#define TIMES_SAMPLE 16u

struct obd_device {
	_Atomic uint32_t refs;       /* handles and requests not inline */
	uint32_t flags;
	_Atomic uint64_t size;       /* only grows */
	uint64_t deadline_ms;
	_Atomic int32_t closed;      /* 0, or -errno for new requests */
	_Atomic uint32_t changing;   /* GATE_CLOSED | changes that run */
	_Atomic bool unsettled;      /* pushed: FLUSH and FUA wait; written
				      * under lock, while the gate is closed
				      * when it becomes true */
	struct obd_view_slot view;   /* published under lock */
	struct obd_view *spare;      /* while unsettled: what will be shown,
				      * since settling cannot wait for
				      * memory; under lock */
	pthread_mutex_t lock;
	pthread_cond_t drained;      /* the last change has ended */
	struct obd_task *waiting;    /* at the gate, or for settling */
	struct obd_trace *_Atomic trace; /* NULL: never asked for */
	struct obd_counters counters[STAT_SHARDS];
	struct obd_times local, fetched; /* reads: sampled, all */
};

/* The calling thread's shard of every device's counters, plus one; 0: not
 * assigned yet. */
extern OBD_HIDDEN _Thread_local uint32_t obd_stat_shard
	__attribute__((tls_model("initial-exec")));
OBD_HIDDEN uint32_t obd_stat_assign(void);

static inline void obd_count(struct obd_device *dev, enum obd_stat what,
			     uint64_t n)
{
	uint32_t shard = obd_stat_shard;
	_Atomic uint64_t *v;

	if (obd_unlikely(!shard))
		shard = obd_stat_assign();
	v = &dev->counters[shard - 1].v[what];
	if (obd_likely(shard - 1 != STAT_SHARED))
		atomic_store_explicit(v, n + atomic_load_explicit(v,
				      memory_order_relaxed),
				      memory_order_relaxed);
	else
		atomic_fetch_add_explicit(v, n, memory_order_relaxed);
}

/* ---- pieces of a disk (request.c) -------------------------------------- */

struct obd_piece {
	struct obd_source *src;      /* NULL: reads as zeros */
	uint64_t at;                 /* bytes in src */
	uint64_t lba, sectors;
	uint32_t state;              /* OBD_EXTENT_* */
};

#define WALK_BATCH 16u
/* The levels of a view, from the top; a walk may begin further down. */
enum obd_level { LEVEL_UPPER, LEVEL_FROZEN, LEVEL_LOWERS, LEVELS };

/* What a level holds from the walk's position up to end. */
struct obd_walk_level {
	uint64_t end;
	uint32_t next, count;
	struct obd_record rec[WALK_BATCH];
};

/* Walks [lba, end) in order, gaps included. */
struct obd_walk {
	struct obd_view *view;
	uint64_t lba, end;
	enum obd_level from;
	struct obd_walk_level level[LEVELS];
};

OBD_HIDDEN void obd_walk_start(struct obd_walk *w, struct obd_view *view,
			       enum obd_level from, uint64_t lba,
			       uint64_t end);
OBD_HIDDEN bool obd_walk_next(struct obd_walk *w, struct obd_piece *piece);

/* ---- trace.c ----------------------------------------------------------- */

OBD_HIDDEN void obd_trace_free(struct obd_trace *trace);
/* A read has ended well; the request still has its view. */
OBD_HIDDEN void obd_trace_note(struct obd_trace *trace,
			       const struct obd_request *req);

/* ---- the gate (push.c) -------------------------------------------------- */

/* What a change passes before it touches an upper.  GATE_OPEN: it may go on
 * until obd_gate_leave(), and req->view is the one that is shown.
 * GATE_PARKED: req waits and is not ours. */
#define GATE_OPEN 0
#define GATE_PARKED 1
/* GATE_OPEN, GATE_PARKED or -errno. */
OBD_HIDDEN int obd_gate_enter(struct obd_request *req);
OBD_HIDDEN void obd_gate_leave(struct obd_device *dev);
/* The same for a FLUSH, which leaves nothing behind to leave. */
OBD_HIDDEN int obd_gate_flush(struct obd_request *req);
/* Lets go what waits; the device is closed. */
OBD_HIDDEN void obd_gate_abandon(struct obd_device *dev);
/* What a change asks about the disk (request.c). */
extern OBD_HIDDEN const struct obd_upper_ask obd_request_ask;

/* ---- uring.c ------------------------------------------------------------ */

/* Asks for all that req, a READ that must wait for a disk, wants of files
 * that are read by io_uring.  True: obd_request_landed() follows, on this
 * thread.  False: nothing has happened. */
OBD_HIDDEN bool obd_uring_start(struct obd_request *req);
/* [at, at + n) of the file out of what has come for the request that runs
 * on this worker. 0, or -EAGAIN: not all of it has. */
OBD_HIDDEN int obd_uring_take(const struct obd_source *file, uint8_t *buf,
			      uint64_t n, uint64_t at);

/* When that request asked for it; 0: nobody wants to know. */
OBD_HIDDEN uint64_t obd_uring_began(void);
/* What has come is wanted no more. */
OBD_HIDDEN void obd_uring_release(struct obd_landing *reads);

/* ---- requests (request.c, miss.c) -------------------------------------- */

/* Where a request is.  Written under the miss lock:
 *   RUNNING -> SETUP    want() found a first absent unit
 *   SETUP -> RUNNING    settle(): its unit came, or failed, meanwhile
 *   SETUP -> PARKED     settle(): it waits; nobody runs it
 *   PARKED -> RUNNING   fill, failure, deadline, close: to a helper */
enum { REQ_RUNNING, REQ_SETUP, REQ_WOKEN, REQ_PARKED };

enum obd_settled { SETTLED_RUN, SETTLED_PARKED };
/* Ends the gathering of misses: park, or run again at once (also when
 * miss_err is set). */
OBD_HIDDEN enum obd_settled obd_miss_settle(struct obd_request *req);
/* Ends every parked request of dev with error. */
OBD_HIDDEN void obd_miss_abandon(struct obd_device *dev, int error);
/* As obd_source_fill() without an error; obd_miss_run_woken() then runs what it gathers
 * in *woken. */
OBD_HIDDEN void obd_miss_land(struct obd_source *cache, uint64_t first,
			      uint64_t count, struct obd_task **woken);
OBD_HIDDEN void obd_miss_run_woken(struct obd_task *woken);
/* Takes a dying cache source off the queue. */
OBD_HIDDEN void obd_miss_forget(struct obd_source *src);
/* What was read at [at, at + n) is bad: its units must come again.  losses
 * is what it was before the read: when it has changed since, somebody else
 * has said so, or they have come again already, and nothing is done. */
OBD_HIDDEN void obd_miss_spoil(struct obd_source *cache, uint64_t at,
			       uint64_t n, uint64_t losses);
/* Units [first, first + count) of cache are wanted by req. Locked by the
 * caller (miss.c); request.c walks the pieces. */
OBD_HIDDEN bool obd_request_touches(struct obd_request *req,
				    struct obd_source *cache, uint64_t first,
				    uint64_t count);
/* Goes on with a read whose bytes have come, on the worker that asked. */
OBD_HIDDEN void obd_request_landed(struct obd_request *req);
/* Goes on with a request that was woken; may block. */
OBD_HIDDEN void obd_request_resume(struct obd_request *req);
/* The same on a helper thread. */
OBD_HIDDEN void obd_request_offload(struct obd_request *req);
/* A request of the caller's own thread: blocks until it has ended. */
OBD_HIDDEN int obd_request_wait(struct obd_request *req);

#endif
