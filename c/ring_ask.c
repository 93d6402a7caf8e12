/* SPDX-License-Identifier: Apache-2.0
 *
 * ring_ask.c - commands that TypeScript answers: their queue, their data,
 * its answers.
 *
 * One queue for all rings.  Its lock also guards the step of a command from
 * QUEUED to ASKED.
 */
#include "ring.h"

/* Commands of all rings that wait for obd_scsi_drain().  Its lock is taken
 * after a ring's. */
static struct {
	pthread_mutex_t lock;
	struct command *head, **tail;
} asking = { .lock = PTHREAD_MUTEX_INITIALIZER, .tail = &asking.head };

void ring_ask(struct obd_ring *ring, struct command *cmd)
{
	bool first;

	cmd->state = QUEUED;
	cmd->next = NULL;
	ring->asked++;
	ring->stats.asked++;
	pthread_mutex_lock(&asking.lock);
	first = !asking.head;
	*asking.tail = cmd;
	asking.tail = &cmd->next;
	pthread_mutex_unlock(&asking.lock);
	if (first)
		obd_wake();
}

int32_t obd_scsi_drain(struct obd_scsi_command *out, uint32_t max)
{
	struct command *cmd;
	uint32_t n = 0;

	if (max > INT32_MAX)
		max = INT32_MAX;
	pthread_mutex_lock(&asking.lock);
	while (n < max && (cmd = asking.head)) {
		asking.head = cmd->next;
		if (!asking.head)
			asking.tail = &asking.head;
		out[n] = (struct obd_scsi_command){
			.ring = cmd->ring->id,
			.length = cmd->length,
			.tag = cmd->tag,
			.cdb_length = cmd->cdb.length,
		};
		memcpy(out[n++].cdb, cmd->raw, sizeof(cmd->raw));
		cmd->state = ASKED;
	}
	pthread_mutex_unlock(&asking.lock);
	return (int32_t)n;
}

/* The command that TypeScript was asked about under tag. */
static struct command *asked_command(struct obd_ring *ring, uint32_t tag)
{
	struct command *cmd = ring_find(ring, tag);
	bool asked;

	pthread_mutex_lock(&asking.lock);
	asked = cmd && cmd->state == ASKED;
	pthread_mutex_unlock(&asking.lock);
	return asked ? cmd : NULL;
}

int64_t obd_ring_data(struct obd_ring *ring, uint32_t tag, void *buf,
		      uint64_t n, uint64_t at)
{
	struct command *cmd;
	int64_t got = -ENOENT;

	pthread_mutex_lock(&ring->lock);
	cmd = asked_command(ring, tag);
	if (cmd)
		got = (int64_t)ring_copy(cmd, buf, n, at, false);
	pthread_mutex_unlock(&ring->lock);
	return got;
}

int32_t obd_ring_complete(struct obd_ring *ring, uint32_t tag,
			  uint32_t status, const void *sense,
			  const void *data, uint64_t n)
{
	struct command *cmd;

	pthread_mutex_lock(&ring->lock);
	cmd = asked_command(ring, tag);
	if (!cmd) {
		pthread_mutex_unlock(&ring->lock);
		return -ENOENT;
	}
	ring->asked--;
	cmd->state = RUNNING;
	cmd->status = status;
	cmd->own_sense = sense;
	if (data) {
		cmd->moved = ring_copy(cmd, (void *)(uintptr_t)data, n, 0,
				       true);
		cmd->moved_less = cmd->moved < cmd->length;
	}
	ring_finish(ring, cmd);
	ring_settle(ring);
	return 0;
}

/* Takes the ring's commands off the queue for TypeScript. */
static void unqueue(struct obd_ring *ring)
{
	struct command **p = &asking.head, *cmd;

	pthread_mutex_lock(&asking.lock);
	while ((cmd = *p)) {
		if (cmd->ring == ring) {
			*p = cmd->next;
			cmd->state = ASKED;
		} else {
			p = &cmd->next;
		}
	}
	asking.tail = p;
	pthread_mutex_unlock(&asking.lock);
}

void ring_end_asked(struct obd_ring *ring)
{
	struct command *cmd;
	uint32_t tag;

	unqueue(ring);
	for (tag = 0; ring->asked && (cmd = ring_find(ring, tag)); tag++)
		if (cmd->state == ASKED) {
			ring->asked--;
			cmd->state = RUNNING;
			ring_finish_with(ring, cmd, -ESHUTDOWN);
		}
}
