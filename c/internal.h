/* SPDX-License-Identifier: Apache-2.0
 *
 * internal.h - what the library's own files share.  Nothing here is
 * visible outside (-fvisibility=hidden).  Who owns what:
 *
 *   io.c      system calls on files, trace and fault seams
 *   socket.c  addresses, listening
 *   engine.c  init, CPU choice, ISA-L
 *   crc32c.c codec.c zfile.c
 *   pipe.c plan.c compress.c extract.c   the pipelines (pipe.h)
 *   index.c lookup.c merge.c map.c
 *   source.c upper.c view.c device.c push.c request.c miss.c trace.c
 *   buffer.c  bytes on their way into cache files
 *   slow.c    reads that waited for a disk
 *   wake.c    waking TypeScript
 *   netlink.c scsi.c ring*.c        TCMU (tcmu.h, ring.h)
 *   plane.c   epoll workers         nbd*.c  NBD (nbd.h)
 *   uring.c   io_uring, a ring for each worker
 */
#ifndef OBD_INTERNAL_H
#define OBD_INTERNAL_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "overlaybd.h"

#define OBD_HIDDEN __attribute__((visibility("hidden")))
#define obd_likely(x) __builtin_expect(!!(x), 1)
#define obd_unlikely(x) __builtin_expect(!!(x), 0)

/* ---- little-endian loads and stores (outside bytes are copied out) -- */
static inline uint32_t obd_le32(const void *p)
{
	uint32_t v;
	memcpy(&v, p, sizeof(v));
	return v;
}

static inline uint64_t obd_le64(const void *p)
{
	uint64_t v;
	memcpy(&v, p, sizeof(v));
	return v;
}

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "big-endian machines need byte swaps here"
#endif

/* ---- records (spec lsmt 3) ----------------------------------------- */
struct obd_record {
	uint64_t w0, w1;
};

#define OBD_LBA_MASK ((1ull << 50) - 1)
#define OBD_AT_MASK ((1ull << 55) - 1)

static inline uint64_t rec_lba(struct obd_record r)
{
	return r.w0 & OBD_LBA_MASK;
}

static inline uint64_t rec_sectors(struct obd_record r)
{
	return r.w0 >> 50;
}

static inline uint64_t rec_end(struct obd_record r)
{
	return rec_lba(r) + rec_sectors(r);
}

static inline uint64_t rec_at(struct obd_record r)
{
	return r.w1 & OBD_AT_MASK;
}

static inline bool rec_zeroed(struct obd_record r)
{
	return (r.w1 >> 55) & 1;
}

static inline uint32_t rec_tag(struct obd_record r)
{
	return (uint32_t)(r.w1 >> 56);
}

static inline struct obd_record rec_make(uint64_t lba, uint64_t sectors,
					 uint64_t at, bool zeroed,
					 uint32_t tag)
{
	return (struct obd_record){
		lba | sectors << 50,
		at | (uint64_t)zeroed << 55 | (uint64_t)tag << 56,
	};
}

/* Keeps [from, to) of r, which must lie inside it.  A cut data record
 * moves its mapped sector, a cut zeroed one does not (spec lsmt 8). */
static inline struct obd_record rec_cut(struct obd_record r, uint64_t from,
					uint64_t to)
{
	uint64_t at = rec_at(r);

	if (!rec_zeroed(r))
		at += from - rec_lba(r);
	return rec_make(from, to - from, at, rec_zeroed(r), rec_tag(r));
}

/* ---- CPU choice (engine.c) ----------------------------------------- */
enum obd_cpu { OBD_CPU_SCALAR, OBD_CPU_SSE42, OBD_CPU_AVX2, OBD_CPU_AVX512,
	       OBD_CPU_ISAL };
/* The best level that the machine has and OVERLAYBD_CPU allows. Valid also
 * before obd_engine_init(). */
OBD_HIDDEN enum obd_cpu obd_cpu_level(void);
/* ISA-L's crc32c, loaded when it is first asked for; NULL: not to be had. */
typedef unsigned int obd_isal_crc(unsigned char *buf, int n,
				  unsigned int start);
OBD_HIDDEN obd_isal_crc *obd_isal_load(void);

/* ---- io.c: internal forms ------------------------------------------ */
/* One attempt without blocking (RWF_NOWAIT): bytes read, which may be
 * short, -EAGAIN when the page cache lacks them, -EOPNOTSUPP where the file
 * system cannot tell. */
OBD_HIDDEN int64_t obd_io_pread_nowait(int fd, void *buf, uint64_t n,
				       uint64_t at);
OBD_HIDDEN int64_t obd_io_preadv(int fd, const struct iovec *iov, int cnt,
				 uint64_t at);
OBD_HIDDEN int64_t obd_io_pwritev(int fd, const struct iovec *iov, int cnt,
				  uint64_t at);
/* A read of n bytes that was done elsewhere: what it is to be taken for. */
OBD_HIDDEN int64_t obd_io_seen(int fd, uint64_t n, uint64_t at, int64_t got);
/* What offset and length of a read must be multiples of on a descriptor with
 * O_DIRECT, 512 to 64 KiB; -EOPNOTSUPP: the file system reads none so. */
OBD_HIDDEN int64_t obd_io_direct_align(int fd);
/* read(2) until n bytes or the end: for pipes and files read in order. */
OBD_HIDDEN int64_t obd_io_read(int fd, void *buf, uint64_t n);
OBD_HIDDEN void obd_io_init_from_env(void);

/* ---- socket.c -------------------------------------------------------- */
struct sockaddr_un;
/* "/path", or "@name" in the abstract namespace, as an address.  Returns its
 * length; -EINVAL, -ENAMETOOLONG. */
OBD_HIDDEN int obd_unix_address(const char *text, struct sockaddr_un *out);

/* ---- wake.c ---------------------------------------------------------- */
/* Tells the listener of obd_wake_connect() that a queue has something. */
OBD_HIDDEN void obd_wake(void);

/* ---- crc32c.c ------------------------------------------------------- */
/* Chooses the code path: the best one up to level, or ISA-L's when isal is
 * not NULL.  The first crc does so; tests as often as they like. */
OBD_HIDDEN void obd_crc_choose(enum obd_cpu level, obd_isal_crc *isal);
/* "table", "sse42", "pclmul", "arm" or "isal". */
OBD_HIDDEN const char *obd_crc_name(void);

/* ---- codec.c ------------------------------------------------------- */
/* One table entry a codec.  A context belongs to one thread at a time.
 * batch is the slot for hardware (QAT): it may compress several blocks at
 * once and falls back by returning -ENOTSUP. */
struct obd_codec {
	const char *name;
	uint32_t algo;
	void *(*context)(void);          /* NULL: out of memory */
	void (*context_free)(void *ctx);
	/* bytes written, or -errno; cap is at least bound(n) */
	int64_t (*compress)(void *ctx, const void *src, uint32_t n,
			    void *dst, uint32_t cap);
	/* bytes written (at most cap), or -EUCLEAN */
	int64_t (*decompress)(void *ctx, const void *src, uint32_t n,
			      void *dst, uint32_t cap);
	uint32_t (*bound)(uint32_t n);
	int (*batch)(const void *const *src, const uint32_t *n,
		     void *const *dst, uint32_t *cap, uint32_t count);
};
/* NULL for an unknown algo. */
OBD_HIDDEN const struct obd_codec *obd_codec_find(uint32_t algo);
/* Hardware slots: a DSA-like crc engine and a QAT-like batch compressor;
 * NULL takes them out.  Tests drive them with fakes. */
OBD_HIDDEN void obd_crc_set_engine(int (*crc)(uint32_t start, const void *buf,
					      uint64_t n, uint32_t *out));
OBD_HIDDEN void obd_codec_set_batch(uint32_t algo,
				    int (*batch)(const void *const *,
						 const uint32_t *,
						 void *const *, uint32_t *,
						 uint32_t));
/* The calling thread's context and scratch (>= 2 x (64 KiB + 4096)), made
 * on first use, freed with the thread: no allocation per block. */
OBD_HIDDEN void *obd_codec_thread_context(const struct obd_codec *codec);
OBD_HIDDEN uint8_t *obd_thread_scratch(uint64_t *size);

/* ---- zfile.c: the jump table and the blocks of one ZFile ------------- */
struct obd_zfile;
OBD_HIDDEN int obd_zfile_open(struct obd_source *inner,
			      const struct obd_zfile_info *info,
			      struct obd_zfile **out);
OBD_HIDDEN void obd_zfile_free(struct obd_zfile *z);
OBD_HIDDEN uint64_t obd_zfile_size(const struct obd_zfile *z);
OBD_HIDDEN uint32_t obd_zfile_block_size(const struct obd_zfile *z);
/* How hard a read may try. */
enum obd_try {
	OBD_TRY_NOWAIT, /* page cache only: -EAGAIN means "use a helper" */
	OBD_TRY_LANDED, /* the same, and what io_uring has brought */
	OBD_TRY_BLOCK,
};
/* Exactly n bytes of the original at `at`, inside its size.  Errors as
 * obd_source_read(); with -EUCLEAN *bad_block is the block's number. */
OBD_HIDDEN int obd_zfile_read(const struct obd_zfile *z,
			      struct obd_source *inner, void *buf, uint64_t n,
			      uint64_t at, enum obd_try how,
			      uint64_t *bad_block);
/* The stored bytes behind [at, at + n) of the original, in inner. */
OBD_HIDDEN void obd_zfile_range(const struct obd_zfile *z, uint64_t at,
				uint64_t n, uint64_t *stored_at,
				uint64_t *stored_n);
OBD_HIDDEN int obd_zfile_block(const struct obd_zfile *z, uint64_t nr,
			       uint64_t *at, uint32_t *length);

/* ---- index.c / lookup.c / map.c ------------------------------------ */
OBD_HIDDEN struct obd_index *obd_index_ref(struct obd_index *index);
OBD_HIDDEN const struct obd_record *obd_index_array(struct obd_index *index);
/* As obd_index_lookup() on typed records; the hot path. */
OBD_HIDDEN uint32_t obd_index_find(const struct obd_index *index,
				   uint64_t lba, uint64_t sectors,
				   struct obd_record *out, uint32_t max);

/* The writable map: newest wins, older records are cut or dropped.  Not
 * locked: the upper's lock guards it.  At most ~24 bytes a segment. */
struct obd_map;
OBD_HIDDEN struct obd_map *obd_map_new(void);
OBD_HIDDEN void obd_map_free(struct obd_map *map);
/* -ENOMEM or -E2BIG (OBD_MAX_RW_RECORDS); the map is then unchanged. */
OBD_HIDDEN int obd_map_insert(struct obd_map *map, struct obd_record rec);
/* Forgets a range: it reads as if never written. */
OBD_HIDDEN int obd_map_remove(struct obd_map *map, uint64_t lba,
			      uint64_t sectors);
OBD_HIDDEN uint32_t obd_map_find(const struct obd_map *map, uint64_t lba,
				 uint64_t sectors, struct obd_record *out,
				 uint32_t max);
OBD_HIDDEN uint64_t obd_map_count(const struct obd_map *map);
/* All records in order, to an array of obd_map_count() entries. */
OBD_HIDDEN void obd_map_dump(const struct obd_map *map,
			     struct obd_record *out);
/* Takes over a malloc()ed array that is sorted, disjoint and checked. */
OBD_HIDDEN int obd_index_adopt(struct obd_record *records, uint64_t count,
			       struct obd_index **out);

/* ---- source.c ------------------------------------------------------ */
OBD_HIDDEN struct obd_source *obd_source_ref(struct obd_source *src);
/* Exactly n bytes or an error.  -ENODATA: a unit is absent (ask
 * obd_source_want()).  -EUCLEAN: a block is bad; over a cache source its
 * units are forgotten, so that the next want asks for them again, as
 * corrupt.  No allocation. */
OBD_HIDDEN int obd_source_read(struct obd_source *src, void *buf, uint64_t n,
			       uint64_t at, enum obd_try how);
struct obd_request;
/* Queues every absent unit of the cache source under [at, at + n), each
 * once whoever asks, and makes req wait for the first of them unless it
 * waits for another already.  Returns how many are absent. */
OBD_HIDDEN uint32_t obd_source_want(struct obd_source *src, uint64_t at,
				    uint64_t n, struct obd_request *req);
OBD_HIDDEN bool obd_source_is_local(const struct obd_source *src);

/* ---- slow.c -------------------------------------------------------- */
/* When a read that may wait begins; 0: nobody wants to know. */
OBD_HIDDEN uint64_t obd_slow_begin(uint32_t kind);
/* It has ended: all of *read is set but ns. */
OBD_HIDDEN void obd_slow_end(uint64_t began,
			     const struct obd_slow_read *read);

/* ---- request.c / device.c ------------------------------------------ */
/* A job for a helper thread, embedded in what it works on. */
struct obd_task {
	void (*fn)(struct obd_task *task);
	struct obd_task *next;
};

/* OBD_EXTEND is obd_device_extend()'s own: what a sparse upper's last host
 * block lacks. */
enum obd_op { OBD_READ, OBD_WRITE, OBD_DISCARD, OBD_ZERO, OBD_FLUSH,
	      OBD_EXTEND };
#define OBD_REQ_FUA 1u

/* One transport request.  The transport owns the memory and the data area
 * and keeps both until the request has ended.  It runs on the submitting
 * thread as far as it can without blocking; what would block goes to a
 * helper thread or waits for a miss.
 *
 * obd_request_submit() returns true when the request ended inline: err is
 * set and done was not and will not be called.  Otherwise done is called
 * once, later, on any thread; dev is alive in it only by a reference of
 * the transport's own. */
struct obd_request {
	struct obd_device *dev;
	void (*done)(struct obd_request *req);
	void *owner;              /* the transport's */
	uint64_t offset;          /* bytes, multiple of 512 */
	uint32_t length;          /* bytes, multiple of 512 */
	uint16_t op;              /* enum obd_op */
	uint16_t flags;           /* OBD_REQ_* */
	struct iovec *iov;        /* data area of READ and WRITE */
	uint32_t iov_count;
	int32_t err;              /* 0 or -errno once ended */

	/* request.c's own, below; submit sets them up */
	struct obd_view *view;    /* the one it started with */
	struct obd_task task;     /* its way to a helper thread */
	struct obd_request *all_prev, *all_next; /* parked: miss.c's lock */
	struct obd_request *src_prev, *src_next; /* on wait_src: the same */
	struct obd_source *wait_src;
	uint64_t wait_unit;       /* the unit that wakes it */
	uint64_t deadline_ms;     /* 0: has not waited yet */
	uint64_t began_ns;        /* 0: nobody takes its time */
	int32_t miss_err;         /* why its wait failed */
	uint32_t tries;           /* corrupt blocks asked for again */
	uint32_t state;           /* REQ_*, see miss.c */
	uint32_t held;            /* 1: holds a reference on dev */
	uint32_t progress;        /* bytes of a change that are done */
	uint32_t fetched;         /* 1: has waited for absent data */
	struct obd_landing *reads; /* uring.c's, while they are wanted */
	uint32_t reads_left;      /* of them, not here yet */
};
OBD_HIDDEN bool obd_request_submit(struct obd_request *req);
OBD_HIDDEN struct obd_device *obd_device_ref(struct obd_device *dev);
/* Devices not freed yet: the engine does not stop under one. */
OBD_HIDDEN uint32_t obd_device_count(void);
/* Ends the thread of the deadlines; nothing may be waiting. */
OBD_HIDDEN void obd_miss_stop(void);
OBD_HIDDEN uint64_t obd_device_size(struct obd_device *dev);
OBD_HIDDEN uint32_t obd_device_flags(struct obd_device *dev);

/* ---- plane.c: epoll workers ---------------------------------------- */
/* A watch calls fn(watch, events) on one worker, never two at once. */
struct obd_watch {
	void (*fn)(struct obd_watch *watch, uint32_t events);
	int fd;
	uint32_t worker;
};
OBD_HIDDEN int obd_plane_add(struct obd_watch *watch, uint32_t events);
OBD_HIDDEN int obd_plane_change(struct obd_watch *watch, uint32_t events);
/* After return fn runs no more (call it on the watch's worker, or else it
 * waits for it). */
OBD_HIDDEN int obd_plane_remove(struct obd_watch *watch);
/* The calling worker's ring, made on first use.  NULL: the thread is not a
 * worker, or there is no io_uring for it. */
struct obd_uring;
OBD_HIDDEN struct obd_uring *obd_plane_uring(void);
/* uring.c's side of it, all on the worker. */
OBD_HIDDEN int obd_uring_new(struct obd_uring **out);
OBD_HIDDEN void obd_uring_free(struct obd_uring *u);
OBD_HIDDEN struct obd_watch *obd_uring_watch(struct obd_uring *u);
/* Hands the kernel what was asked for since.  False: not all of it could be,
 * so try again soon. */
OBD_HIDDEN bool obd_uring_submit(struct obd_uring *u);
/* Goes on with the requests whose last read has come. */
OBD_HIDDEN void obd_uring_reap(struct obd_uring *u);
/* Runs task->fn(task) at the end of the calling worker's round: once for all
 * that the round ends.  False: the thread is not a worker. */
OBD_HIDDEN bool obd_plane_later(struct obd_task *task);
/* Runs task->fn(task) on a helper thread that may block. 0 or -errno. */
OBD_HIDDEN int obd_plane_offload(struct obd_task *task);
/* The same on one of those that change uppers: no read waits for them. */
OBD_HIDDEN int obd_plane_offload_change(struct obd_task *task);
/* The same on one of the threads that write cache files. */
OBD_HIDDEN int obd_plane_write(struct obd_task *task);
/* Takes it back; false: it runs, or has run. */
OBD_HIDDEN bool obd_plane_unwrite(struct obd_task *task);
/* This thread waits for a cache's disk, which may hang, or does no longer:
 * other threads stand in for one of a pool. */
OBD_HIDDEN void obd_plane_away(bool away);
/* The same of a writer whose task was given up. */
OBD_HIDDEN void obd_plane_writer_away(bool away);
OBD_HIDDEN void obd_plane_stop(void);
OBD_HIDDEN uint64_t obd_now_ms(void); /* CLOCK_MONOTONIC */
OBD_HIDDEN uint64_t obd_now_ns(void);

#endif
