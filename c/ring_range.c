/* SPDX-License-Identifier: Apache-2.0
 *
 * ring_range.c - WRITE SAME and UNMAP, and what those who compare will read:
 * one request of the device after the other, each begun when the one before
 * has ended, so that no thread waits for one that does (for absent data, for
 * a snapshot).
 *
 * All of it is called with ring->lock held.
 */
#include <stdlib.h>

#include "ring.h"

#define STEP_BYTES (64u << 20)   /* a request's length has 32 bits */
#define BUFFER_BYTES (64u << 10)
#define HOST_BLOCK 4096u         /* that a change may have to complete */

/* ---- what is to be done ------------------------------------------------ */

static bool all_zero(const uint8_t *p, size_t n)
{
	return !*p && !memcmp(p, p + 1, n - 1);
}

/* 0 or -ENOMEM. */
static int set_pattern(struct range *range, const uint8_t *block)
{
	uint64_t n;

	range->op = OBD_WRITE;
	range->buffer = malloc(BUFFER_BYTES);
	if (!range->buffer)
		return -ENOMEM;
	for (n = 0; n < BUFFER_BYTES; n += OBD_SECTOR)
		memcpy(range->buffer + n, block, OBD_SECTOR);
	return 0;
}

static int set_write_same(struct command *cmd)
{
	uint8_t block[OBD_SECTOR] = { 0 };

	cmd->range.at = cmd->cdb.lba * OBD_SECTOR;
	cmd->range.left = cmd->cdb.count * OBD_SECTOR;
	if (cmd->cdb.unmap)
		return 0;
	if (!cmd->cdb.no_data)
		ring_copy(cmd, block, sizeof(block), 0, false);
	if (!all_zero(block, sizeof(block)))
		return set_pattern(&cmd->range, block);
	cmd->range.op = OBD_ZERO;
	return 0;
}

static void take_range(struct range *range)
{
	const uint8_t *p = range->buffer + 8 + 16 * range->taken++;

	range->at = scsi_be(p, 8);
	range->left = scsi_be(p + 8, 4);
}

/* Every range is checked before the first is dropped. 0, -ENOMEM, or 0 with
 * *sense set. */
static int set_unmap(struct command *cmd, uint32_t *sense)
{
	uint64_t size = obd_device_size(cmd->ring->dev) / OBD_SECTOR;
	uint64_t n = cmd->cdb.count < cmd->length ? cmd->cdb.count :
						    cmd->length;
	struct range *range = &cmd->range;
	int ranges;

	range->buffer = malloc(n + 1);
	if (!range->buffer)
		return -ENOMEM;
	ring_copy(cmd, range->buffer, n, 0, false);
	ranges = scsi_unmap_ranges(range->buffer, n);
	if (ranges < 0) {
		*sense = (uint32_t)-ranges;
		return 0;
	}
	range->ranges = (uint32_t)ranges;
	while (range->taken < range->ranges) {
		take_range(range);
		if (range->at > size || range->left > size - range->at)
			*sense = SENSE_RANGE;
	}
	range->taken = 0;
	range->left = 0;
	return 0;
}

/* ---- step by step ------------------------------------------------------ */

static void range_done(struct obd_request *req);

/* Makes cmd->req the next step. False: there is none. */
static bool next_step(struct command *cmd)
{
	struct range *range = &cmd->range;
	bool moves = range->op == OBD_READ || range->op == OBD_WRITE;
	uint64_t n = moves ? BUFFER_BYTES : STEP_BYTES;

	while (!range->left && range->taken < range->ranges) {
		take_range(range);
		range->at *= OBD_SECTOR;
		range->left *= OBD_SECTOR;
	}
	if (!range->left)
		return false;
	if (n > range->left)
		n = range->left;
	range->iov = (struct iovec){ range->buffer, n };
	cmd->req = (struct obd_request){
		.dev = cmd->ring->dev,
		.done = range_done,
		.owner = cmd,
		.offset = range->at,
		.length = (uint32_t)n,
		.op = range->op,
		.iov = &range->iov,
		.iov_count = moves,
	};
	range->at += n;
	range->left -= n;
	return true;
}

static void end_range(struct obd_ring *ring, struct command *cmd, int err,
		      uint32_t sense)
{
	free(cmd->range.buffer);
	cmd->range.buffer = NULL;
	if (sense)
		ring_refuse(ring, cmd, sense);
	else if (err || cmd->cdb.kind != SCSI_ASK)
		ring_finish_with(ring, cmd, err);
	else if (ring->closed)
		ring_finish_with(ring, cmd, -ESHUTDOWN);
	else
		ring_ask(ring, cmd);
}

static void go_on(struct obd_ring *ring, struct command *cmd, int err)
{
	while (!err && next_step(cmd)) {
		if (!obd_request_submit(&cmd->req))
			return; /* range_done() goes on */
		err = cmd->req.err;
	}
	end_range(ring, cmd, err, 0);
}

static void range_done(struct obd_request *req)
{
	struct command *cmd = req->owner;
	struct obd_ring *ring = cmd->ring;

	pthread_mutex_lock(&ring->lock);
	go_on(ring, cmd, req->err);
	ring_settle(ring);
}

void ring_change_range(struct obd_ring *ring, struct command *cmd)
{
	uint32_t sense = 0;
	int err;

	if (cmd->cdb.anchor ||
	    (cmd->cdb.kind == SCSI_WRITE_SAME && !cmd->cdb.unmap &&
	     !cmd->cdb.no_data && cmd->length < OBD_SECTOR) ||
	    (cmd->cdb.kind == SCSI_WRITE_SAME && !cmd->cdb.count)) {
		ring_refuse(ring, cmd, SENSE_CDB_FIELD);
		return;
	}
	cmd->range = (struct range){ .op = OBD_DISCARD };
	err = cmd->cdb.kind == SCSI_UNMAP ? set_unmap(cmd, &sense) :
					    set_write_same(cmd);
	if (err || sense)
		end_range(ring, cmd, err, sense);
	else
		go_on(ring, cmd, 0);
}

void ring_ask_to_compare(struct obd_ring *ring, struct command *cmd)
{
	uint64_t size = obd_device_size(ring->dev);
	uint64_t at = cmd->cdb.lba * OBD_SECTOR;
	uint64_t end = at + cmd->cdb.count * OBD_SECTOR;

	/* COMPARE AND WRITE also of what is beside its block. */
	at -= at % HOST_BLOCK;
	end += (HOST_BLOCK - end % HOST_BLOCK) % HOST_BLOCK;
	if (end > size)
		end = size;
	cmd->range = (struct range){ .op = OBD_READ, .at = at };
	cmd->range.left = cmd->cdb.count ? end - at : 0;
	cmd->range.buffer = malloc(BUFFER_BYTES);
	go_on(ring, cmd, cmd->range.buffer ? 0 : -ENOMEM);
}
