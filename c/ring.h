/* SPDX-License-Identifier: Apache-2.0
 *
 * ring.h - the command ring of one TCMU device (spec tcmu 4, 5): what ring.c,
 * ring_take.c, ring_range.c, ring_ask.c and ring_answer.c share.
 *
 * The ring's watch belongs to one worker, which alone takes commands off
 * it; they end on any thread.  ring->lock guards everything but the mapped
 * memory that a command's iovecs name: the functions below are called with
 * it held, if they do not say otherwise.  In the command area
 *
 *   done <= tail <= the kernel's cmd_head     (modulo its size)
 *
 * where [done, tail) was copied out and is not answered yet.  Entries there
 * are only containers: with out-of-order completion an answer goes into the
 * oldest one, under the id of the command that it answers.
 */
#ifndef OBD_RING_H
#define OBD_RING_H

#include <pthread.h>

#include "tcmu.h"

#define ENTRY_MIN 112u       /* of a command: the answer's own size */
#define CHUNK 16u            /* commands allocated at once */
#define INLINE_IOVS 12u
#define OP_PAD 0u
#define OP_CMD 1u
#define OP_TMR 2u

enum state { IDLE, RUNNING, QUEUED, ASKED, FINISHED };

/* What WRITE SAME and UNMAP have still to do, and who compares to read. */
struct range {
	uint64_t at, left;           /* bytes of the disk */
	uint8_t *buffer;             /* UNMAP's list, blocks, or room for some */
	struct iovec iov;            /* of one step */
	uint32_t ranges, taken;      /* of the list */
	uint16_t op;                 /* enum obd_op */
};

struct command {
	struct obd_request req;
	struct range range;
	struct obd_ring *ring;
	struct command *next;        /* idle, or queued for TypeScript */
	_Atomic enum state state;
	uint32_t tag;                /* its place in the ring's table */
	uint32_t entry;              /* where it stood in the command area */
	uint16_t id;
	uint8_t raw[16];
	struct scsi_cdb cdb;
	uint64_t length;             /* bytes of all iovecs */
	uint64_t moved;              /* of them, towards the initiator */
	bool moved_less;             /* and that is worth telling */
	uint32_t status, sense;
	const void *own_sense;       /* from TypeScript; NULL: sense */
	uint32_t iov_count, iov_room;
	struct iovec *iov, inline_iov[INLINE_IOVS];
};

struct obd_ring {
	struct obd_watch watch;
	pthread_mutex_t lock;
	pthread_cond_t idle;         /* nothing is running any more */
	uint8_t *map, *area;
	uint64_t map_size;
	uint32_t area_size, data_at;
	uint32_t tail, done;         /* see above */
	uint32_t told;               /* what the mailbox has as our tail */
	bool out_of_order, tells_length;
	bool broken;                 /* stats.bad says why */
	bool starved;                /* no memory for the next command */
	bool closed;                 /* nothing is taken or asked any more */
	bool watched, changed;       /* changed: answers not published yet */
	uint32_t flags;
	uint64_t id;
	struct obd_device *dev;
	uint32_t attention;          /* asc << 8 | ascq; 0: none */
	uint32_t running, asked;     /* commands there */
	struct command **chunks;
	uint32_t chunk_count;
	struct command *free;
	struct obd_ring_stats stats;
};

/* ---- mapped memory ---------------------------------------------------- */

static inline uint32_t load32(const uint8_t *p)
{
	return __atomic_load_n((const uint32_t *)(const void *)p,
			       __ATOMIC_RELAXED);
}

/* Length of the entry at `at`; 0: it cannot be one. */
static inline uint32_t entry_length(const struct obd_ring *ring, uint32_t at)
{
	uint32_t length = load32(ring->area + at) & ~7u;

	return length <= ring->area_size - at ? length : 0;
}

/* The same of one that must end at `end` or before, which lies ahead. */
static inline uint32_t length_within(const struct obd_ring *ring, uint32_t at,
				     uint32_t end)
{
	uint32_t length = entry_length(ring, at);

	return length >= 8 && (end < at || length <= end - at) ? length : 0;
}

static inline uint32_t entry_op(const struct obd_ring *ring, uint32_t at)
{
	return load32(ring->area + at) & 7u;
}

static inline uint32_t after(const struct obd_ring *ring, uint32_t at,
			     uint32_t length)
{
	at += length;
	return at == ring->area_size ? 0 : at;
}

/* What the kernel wrote before it moved its head is visible after. */
static inline uint32_t load_head(const struct obd_ring *ring)
{
	return __atomic_load_n((const uint32_t *)(const void *)
			       (ring->map + 12), __ATOMIC_ACQUIRE);
}

/* ---- ring.c: commands ------------------------------------------------- */

/* The command in this place of the table; NULL: past its end. */
OBD_HIDDEN struct command *ring_find(struct obd_ring *ring, uint32_t tag);
/* More idle commands. 0 or -ENOMEM. */
OBD_HIDDEN int ring_grow(struct obd_ring *ring);
/* Makes cmd->iov hold count entries. 0 or -ENOMEM. */
OBD_HIDDEN int ring_room_for(struct command *cmd, uint32_t count);
/* Copies between the iovecs from byte `at` and buf, also without the lock.
 * Bytes moved. */
OBD_HIDDEN uint64_t ring_copy(struct command *cmd, void *buf, uint64_t n,
			      uint64_t at, bool out);

/* False, and the ring is broken: somebody else has moved our tail. */
OBD_HIDDEN bool ring_is_ours(struct obd_ring *ring);
/* What is at `at` makes no sense: see overlaybd.h. */
OBD_HIDDEN void ring_break(struct obd_ring *ring, uint32_t bad, uint32_t at,
			   uint32_t value);

/* ---- ring_take.c: commands in ----------------------------------------- */

/* Takes every entry off the ring that it can. */
OBD_HIDDEN void ring_take_all(struct obd_ring *ring);
/* The watch's fn: takes the lock itself. */
OBD_HIDDEN void ring_readable(struct obd_watch *watch, uint32_t events);

/* ---- ring_range.c: ranges of the disk ---------------------------------- */

/* WRITE SAME and UNMAP. */
OBD_HIDDEN void ring_change_range(struct obd_ring *ring, struct command *cmd);
/* Asks TypeScript to compare when what it will read is there: it waits on
 * threads of which there are few. */
OBD_HIDDEN void ring_ask_to_compare(struct obd_ring *ring,
				    struct command *cmd);

/* ---- ring_ask.c: commands for TypeScript ------------------------------ */

OBD_HIDDEN void ring_ask(struct obd_ring *ring, struct command *cmd);
/* Ends what TypeScript has not answered; ring->closed is set. */
OBD_HIDDEN void ring_end_asked(struct obd_ring *ring);

/* ---- ring_answer.c: answers ------------------------------------------- */

/* Entries that want no answer are consumed when nothing before them does. */
OBD_HIDDEN void ring_pass_over(struct obd_ring *ring);
/* status, sense and the rest are set. */
OBD_HIDDEN void ring_finish(struct obd_ring *ring, struct command *cmd);
/* Ends as its kind does for 0 or -errno, or with CHECK CONDITION. */
OBD_HIDDEN void ring_finish_with(struct obd_ring *ring, struct command *cmd,
				 int err);
OBD_HIDDEN void ring_refuse(struct obd_ring *ring, struct command *cmd,
			    uint32_t sense);
/* Ends every turn and unlocks: one store and one write for all answers of
 * it.  What there was no memory for is tried again. */
OBD_HIDDEN void ring_settle(struct obd_ring *ring);

#endif
