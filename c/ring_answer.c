/* SPDX-License-Identifier: Apache-2.0
 *
 * ring_answer.c - ends commands of a ring: each is answered once, in the
 * oldest entry or in its own turn, and the kernel is told once a turn.
 *
 * All of it is called with ring->lock held, on any thread; ring_settle()
 * gives it back.
 */
#include "ring.h"

#define UFLAG_READ_LEN 2u

static void store_tail(struct obd_ring *ring)
{
	__atomic_store_n((uint32_t *)(void *)(ring->map + 64), ring->done,
			 __ATOMIC_RELEASE);
	ring->told = ring->done;
}

static void write_answer(struct obd_ring *ring, struct command *cmd,
			 uint32_t at)
{
	bool less = ring->tells_length && cmd->moved_less;
	uint8_t *entry = ring->area + at;
	uint32_t length = (uint32_t)cmd->moved;

	memcpy(entry + 4, &cmd->id, sizeof(cmd->id));
	entry[7] = less ? UFLAG_READ_LEN : 0;
	memset(entry + 8, 0, ENTRY_MIN - 8);
	entry[8] = (uint8_t)cmd->status;
	if (less)
		memcpy(entry + 12, &length, sizeof(length));
	if (cmd->own_sense)
		memcpy(entry + 16, cmd->own_sense, SCSI_SENSE_BYTES);
	else if (cmd->status == SAM_CHECK_CONDITION)
		scsi_sense(cmd->sense, entry + 16);
}

static void release(struct obd_ring *ring, struct command *cmd)
{
	cmd->state = IDLE;
	cmd->next = ring->free;
	ring->free = cmd;
	ring->stats.depth--;
	if (!--ring->running)
		pthread_cond_broadcast(&ring->idle);
}

static void break_at_done(struct obd_ring *ring)
{
	ring_break(ring, OBD_RING_BAD_ENTRY, ring->done,
		   load32(ring->area + ring->done));
}

void ring_pass_over(struct obd_ring *ring)
{
	uint32_t length;

	while (!ring->broken && ring->done != ring->tail &&
	       entry_op(ring, ring->done) != OP_CMD) {
		length = length_within(ring, ring->done, ring->tail);
		if (!length) {
			break_at_done(ring);
			return;
		}
		ring->done = after(ring, ring->done, length);
		ring->changed = true;
	}
}

/* Entries keep their lengths; should one not, no answer is written. */
static void consume(struct obd_ring *ring, struct command *cmd)
{
	uint32_t length = length_within(ring, ring->done, ring->tail);

	if (!ring->broken && length < ENTRY_MIN)
		break_at_done(ring);
	if (!ring->broken) {
		write_answer(ring, cmd, ring->done);
		ring->done = after(ring, ring->done, length);
		ring->changed = true;
	}
	release(ring, cmd);
	ring_pass_over(ring);
}

/* The finished command that stood at `at`. */
static struct command *finished_at(struct obd_ring *ring, uint32_t at)
{
	struct command *cmd;
	uint32_t tag;

	for (tag = 0; (cmd = ring_find(ring, tag)); tag++)
		if (cmd->state == FINISHED && cmd->entry == at)
			return cmd;
	return NULL;
}

void ring_finish(struct obd_ring *ring, struct command *cmd)
{
	ring_pass_over(ring);
	if (ring->out_of_order) {
		consume(ring, cmd);
		return;
	}
	cmd->state = FINISHED;
	if (cmd->own_sense) { /* not the caller's for ever */
		cmd->sense = (uint32_t)(((const uint8_t *)cmd->own_sense)[2]
					<< 16 |
			     ((const uint8_t *)cmd->own_sense)[12] << 8 |
			     ((const uint8_t *)cmd->own_sense)[13]);
		cmd->own_sense = NULL;
	}
	while (ring->done != ring->tail &&
	       (cmd = finished_at(ring, ring->done)))
		consume(ring, cmd);
}

void ring_finish_with(struct obd_ring *ring, struct command *cmd, int err)
{
	cmd->status = scsi_status(cmd->cdb.kind, err, &cmd->sense);
	ring_finish(ring, cmd);
}

void ring_refuse(struct obd_ring *ring, struct command *cmd, uint32_t sense)
{
	cmd->status = SAM_CHECK_CONDITION;
	cmd->sense = sense;
	ring_finish(ring, cmd);
}

/* In a broken ring nothing is answered: what waits for its turn ends. */
static void release_finished(struct obd_ring *ring)
{
	struct command *cmd;
	uint32_t tag;

	for (tag = 0; (cmd = ring_find(ring, tag)); tag++)
		if (cmd->state == FINISHED)
			release(ring, cmd);
}

void ring_settle(struct obd_ring *ring)
{
	uint32_t zero = 0;

	if (ring->starved && (ring->free || !ring_grow(ring))) {
		ring->starved = false;
		ring_take_all(ring);
	}
	if (ring->changed && !ring_is_ours(ring))
		ring->changed = false;
	if (ring->broken)
		release_finished(ring);

	if (ring->changed) {
		store_tail(ring);
		ring->changed = false;
		ring->stats.kicks++;
		/* Fails only for a device that is gone. */
		(void)!write(ring->watch.fd, &zero, sizeof(zero));
	}
	pthread_mutex_unlock(&ring->lock);
}
