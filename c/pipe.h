/* SPDX-License-Identifier: Apache-2.0
 *
 * pipe.h - the pipelines behind commit, merge and zfile: work in parallel,
 * results in order, so that the output is the same for every number of
 * threads (pipe.c plan.c compress.c extract.c).
 */
#ifndef OBD_PIPE_H
#define OBD_PIPE_H

#include <pthread.h>

#include "internal.h"

#define PIPE_BATCH (256u << 10)  /* bytes of input or output a step */
#define PIPE_BLOCKS 64u          /* blocks of the smallest size in one */
#define PIPE_THREADS_MAX 64u

enum obd_slot_state { SLOT_FREE, SLOT_BUSY, SLOT_FILLED, SLOT_READY,
		      SLOT_WRITING };

/* One step.  While SLOT_BUSY it belongs to the thread that fills it or
 * works on it, while SLOT_WRITING to the one that writes it; state is the
 * pipe's lock's. */
struct obd_slot {
	enum obd_slot_state state;
	int err;             /* what take() or work() said */
	uint8_t *in, *out;
	uint64_t at, n;      /* of the input, or of the original */
	uint64_t out_at;     /* where place() put the output */
	uint64_t out_n;
	uint32_t count;      /* blocks, or bad blocks */
	uint32_t lengths[PIPE_BLOCKS];
};

/* The caller fills in the first part, zeros the rest and calls
 * obd_pipe_run().  take() and place() are called in order and never two at
 * once, the others by any thread; a stream's write() in order. */
struct obd_pipe {
	void *owner;
	struct obd_job *job;         /* may be NULL */
	uint32_t threads;
	bool stream;
	uint64_t in_room, out_room;  /* a slot's buffers */
	/* Sets at, n; 1: a step, 0: the end, -errno. May block. */
	int (*take)(struct obd_pipe *pipe, struct obd_slot *slot);
	/* Reads what take() promised. NULL: nothing to read. */
	int (*read)(struct obd_pipe *pipe, struct obd_slot *slot);
	int (*work)(struct obd_pipe *pipe, struct obd_slot *slot);
	/* Sets out_at.  Under the lock: does not block. */
	int (*place)(struct obd_pipe *pipe, struct obd_slot *slot);
	/* NULL: nothing to write. */
	int (*write)(struct obd_pipe *pipe, struct obd_slot *slot);

	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct obd_slot *slots;
	uint32_t slot_count;
	uint64_t next, head;         /* step to take, step to place */
	bool taking, writing, ended;
	int err;
	uint64_t failed_at;          /* out_at of the step that failed */
};

/* Runs all steps on pipe->threads threads; the calling one reads and
 * writes. */
OBD_HIDDEN int obd_pipe_run(struct obd_pipe *pipe);

/* Where a pipeline's bytes go. */
struct obd_sink {
	int fd;
	uint64_t base;
	bool stream;
	struct obd_job *job;
};
/* All n bytes at byte `at` behind base, or next in a stream. */
OBD_HIDDEN int obd_sink_put(struct obd_sink *sink, const void *buf,
			    uint64_t n, uint64_t at);

OBD_HIDDEN void obd_job_total(struct obd_job *job, uint64_t total);
OBD_HIDDEN void obd_job_done(struct obd_job *job, uint64_t bytes);

/* compress.c: where its input comes from.  size is UINT64_MAX when only
 * the end of the input will tell. */
struct obd_feed {
	void *owner;
	uint64_t size;
	/* In order.  Bytes got, fewer than n only at the end. NULL: read()
	 * is called by the workers instead, in any order. */
	int64_t (*next)(void *owner, void *buf, uint64_t n);
	int (*read)(void *owner, void *buf, uint64_t n, uint64_t at);
};
OBD_HIDDEN int obd_compress_run(struct obd_feed *feed,
				const struct obd_zfile_params *params,
				uint32_t threads, struct obd_sink *sink,
				struct obd_zfile_result *result);

#endif
